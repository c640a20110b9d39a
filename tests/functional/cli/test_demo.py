"""`make demo` on a machine with Python alone, and the virtual environment that it makes first."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support import fake_node
from tests.support.fake_node import CHECKOUT

DEMO: Final = CHECKOUT / "examples/demo"
VENV: Final = CHECKOUT / "tools/venv.py"


def demo(
    *words: str, path: str = "/nonexistent", timeout: float = 110
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DEMO), *words],
        env={"PATH": path, "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_it_shows_the_whole_job_without_any_runtime() -> None:
    done = demo("--containerd=")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    shown = (
        "planned, installed, restarted once, ready, repeated without a write, repaired, rolled"
        " back,"
        r" reverted to the same bytes \(runtime: stand-in, no containerd here\)\."
    )
    assert re.fullmatch(rf"Shown in [\d.]+ s: {shown}", last)
    assert re.findall(r"^== (\d)/7 ", done.stdout, re.MULTILINE) == list("1234567")
    assert len(re.findall(r"^-- done in [\d.]+ s$", done.stdout, re.MULTILINE)) == 7
    assert "It is not the real one" in done.stdout
    # The plan is the diff that a terminal shows, and no warning contradicts what follows it.
    assert re.search(r"^@@ ", done.stdout, re.MULTILINE)
    warnings = re.findall(r"^W (\w+): ", done.stdout, re.MULTILINE)
    assert warnings == ["health", "reload"], "drift, and the bad change"
    assert "no pod starts" not in done.stdout


def test_files_that_come_and_go_while_they_are_compared_do_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent writes next to the file that it replaces, while the demonstration waits for it."""
    monkeypatch.syspath_prepend(str(DEMO))
    node = importlib.import_module("node")
    (tmp_path / "stays").write_text("always there", encoding="utf-8")
    calm = node.fingerprint(tmp_path, ("",))
    listed = Path.rglob

    def with_one_gone(path: Path, pattern: str) -> list[Path]:
        return [*listed(path, pattern), path / "gone.toml"]

    monkeypatch.setattr(Path, "rglob", with_one_gone)
    assert node.fingerprint(tmp_path, ("",)) == calm
    (tmp_path / "stays").write_text("other", encoding="utf-8")
    assert node.fingerprint(tmp_path, ("",)) != calm


def test_what_is_no_containerd_costs_one_line(tmp_path: Path) -> None:
    fake_node.write_program(tmp_path / "containerd", "#!/bin/sh\necho nonsense\n")
    done = demo(f"--containerd={tmp_path}/containerd")
    assert done.returncode == 1
    assert done.stderr.startswith("demo: failed: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_and_nothing_is_left(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, str(DEMO), "--containerd="],
        env={"PATH": "/nonexistent", "LC_ALL": "C.UTF-8", "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        first = running.stdout.readline()
        root = first.split()[4].rstrip(";")
        while not (line := running.stdout.readline()).startswith("== 2/7"):
            assert line, "it ended before the second step"
        assert processes(root)
        running.send_signal(number)
        _, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (128 + number, "demo: stopped; nothing is left of it\n")
    assert not Path(root).exists()
    assert processes(root) == []


def test_a_step_that_fails_is_named_in_one_line(tmp_path: Path) -> None:
    """A containerd that says its version and nothing else validates no change."""
    script = (
        '#!/bin/sh\ntest "$1" = --version || exit 1\necho containerd example.com/containerd 2.1.0\n'
    )
    fake_node.write_program(tmp_path / "containerd", script)
    tmp_path.chmod(0o755)
    done = demo(f"--containerd={tmp_path}/containerd")
    assert done.returncode == 1
    assert re.match(r"demo: failed: .+\n\Z", done.stderr)
    assert "Shown in" not in done.stdout


def processes(root: str) -> list[str]:
    """Return the PIDs of the processes whose command names a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if root.encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


# --- the virtual environment --------------------------------------------------------------------


def fake_python(directory: Path, version: tuple[int, ...]) -> Path:
    """Return a Python that takes itself for another version when it runs tools/venv.py."""
    program = directory / "python3"
    script = (
        "import runpy, sys\n"
        f"sys.version_info = {version!r}\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    (directory / "older.py").write_text(script)
    fake_node.write_program(
        program, f'#!/bin/sh\nexec {sys.executable} {directory}/older.py "$@"\n'
    )
    return program


def test_an_older_python_is_told_in_one_line(tmp_path: Path) -> None:
    old = fake_python(tmp_path, (3, 10, 13))
    fake_node.write_program(tmp_path / "python3.12", "#!/bin/sh\nexit 0\n")
    done = subprocess.run(
        [old, VENV, tmp_path / "venv", "program"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "MAKECMDGOALS": "demo"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert re.fullmatch(
        r"Python 3\.11 or newer is needed, this is 3\.10\.13: make demo PYTHON=python3\.\d+\n",
        done.stderr,
    )
    assert not (tmp_path / "venv").exists()


def test_it_is_written_for_old_pythons_too() -> None:
    """Python 3.6 has to read it whole, to say that it is too old."""
    import ast  # noqa: PLC0415

    ast.parse(VENV.read_text(encoding="utf-8"), feature_version=(3, 6))


@pytest.mark.parametrize(
    "left", ["nothing in it", "another python's", "a link to nowhere", "no pip"]
)
def test_what_an_earlier_try_left_is_made_again(tmp_path: Path, left: str) -> None:
    """Keep pip from finding anything: the environment is made, the packages are not."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "marker").touch()
    if left != "nothing in it":
        (venv / "bin/python").symlink_to(
            "/nonexistent/python" if left == "a link to nowhere" else "/bin/true"
        )
        (venv / ".program").write_text("3.9.1 /usr/bin/python3.9\n")
    if left == "no pip":  # finished by this very Python, and damaged since
        (venv / "bin/python").unlink()
        fake_node.write_program(venv / "bin/python", "#!/bin/sh\nexit 1\n")
        version = ".".join(map(str, sys.version_info[:3]))
        (venv / ".program").write_text(f"{version} {os.path.realpath(sys.executable)}\n")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
    }
    done = subprocess.run(
        [os.path.realpath(sys.executable), VENV, venv, "program"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert re.match(r"ERROR: .+\nNo network\? PIP_NO_INDEX=1 PIP_FIND_LINKS=DIR", done.stderr)
    assert not (venv / "marker").exists()
    assert (venv / "bin/python").exists()
    assert not (venv / ".program").exists()
    shutil.rmtree(venv)
