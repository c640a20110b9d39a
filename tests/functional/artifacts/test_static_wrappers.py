"""The static wrapper: the same as the script in every situation, and it runs where no shell is."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from tests.functional.artifacts import test_wrappers as cases
from tests.support import fake_node, nodes, programs
from toolkit.artifacts import static_wrapper, wrappers
from toolkit.artifacts.static_wrapper import Wrapper
from toolkit.node import elf

SHELL: Final = ("dash",)
needs_dash: Final = fake_node.needs_program("dash", package="dash")
# What it was started with, as the kernel keeps it: the words and the environment.
_KEPT: Final = b"""#!/bin/sh
exec 3>&1
cat /proc/$$/cmdline >&3
printf '\\377\\377'
cat /proc/$$/environ >&3
exit 3
"""
_OF_SHELLS: Final = (b"PWD=", b"OLDPWD=", b"SHLVL=", b"_=")


def placed(path: Path, content: bytes | None) -> Path:
    assert content is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755)
    return path


class Pair:
    """One wrapper in both forms."""

    def __init__(self, home: Path, wrapper: Wrapper) -> None:
        self.home = home
        self.static = placed(home / "static", static_wrapper.render(wrapper, programs.wrapper()))
        self.script = placed(home / "script", wrappers.script(wrapper))

    def run(
        self,
        words: Sequence[bytes] = (),
        environment: Mapping[bytes, bytes] | None = None,
        *,
        cwd: Path | None = None,
    ) -> tuple[subprocess.CompletedProcess[bytes], subprocess.CompletedProcess[bytes]]:
        """Run the static program, then the script, with the same words and environment."""
        static, script = (
            subprocess.run(
                [*prefix, os.fsencode(path), *words],
                env={b"PATH": b"/usr/bin:/bin"} if environment is None else environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                cwd=cwd,
                timeout=20,
            )
            for prefix, path in (((), self.static), ((shutil.which("dash") or "sh",), self.script))
        )
        return static, script


def passing(home: Path, content: bytes = _KEPT, **more: object) -> Pair:
    home.mkdir(parents=True, exist_ok=True)
    program = placed(home / "a program.real", content)
    wrapper = Wrapper(
        real=str(program),
        sets=(("NVIDIA_CTK_CONFIG_FILE_PATH", f"{home}/config.toml"),),
        prepends=(("LD_LIBRARY_PATH", str(home)), ("PATH", str(home))),
    )
    return Pair(home, replace(wrapper, **more))  # type: ignore[arg-type]


def told(done: subprocess.CompletedProcess[bytes]) -> tuple[bytes, list[bytes]]:
    """Return the words and the sorted variables, without those that a shell adds."""
    words, _, environment = done.stdout.partition(b"\xff\xff")
    variables = environment.removesuffix(b"\0").split(b"\0")
    return words, sorted(each for each in variables if not each.startswith(_OF_SHELLS))


# --- the same as the script ---------------------------------------------------------------------

_BYTES: Final = some.binary(max_size=12).map(lambda text: text.replace(b"\0", b"x"))
_WORD: Final = _BYTES.filter(lambda word: b"\xff\xff" not in word)
_NAMES: Final = some.one_of(
    some.sampled_from([b"PATH", b"LD_LIBRARY_PATH", b"NVIDIA_CTK_CONFIG_FILE_PATH"]),
    some.from_regex(rb"[A-OQ-Z]{1,3}", fullmatch=True),
).filter(lambda name: name not in {b"IFS", b"PS", b"ENV"})


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return passing(tmp_path_factory.mktemp("static wrapper"))


@needs_dash
@settings(max_examples=60, deadline=None)
@given(words=some.lists(_WORD, max_size=4), variables=some.dictionaries(_NAMES, _WORD, max_size=4))
def test_the_next_program_gets_the_same_words_and_variables(
    pair: Pair, words: list[bytes], variables: dict[bytes, bytes]
) -> None:
    # The program that tells needs `cat`, which it finds only behind what the wrapper adds.
    variables[b"PATH"] = variables.get(b"PATH", b"") + b":/usr/bin:/bin"
    static, script = pair.run(words, variables)
    assert (static.returncode, static.stderr) == (script.returncode, script.stderr) == (3, b"")
    assert told(static) == told(script)


def test_variables_that_no_shell_knows_pass_as_well(tmp_path: Path) -> None:
    static, _ = passing(tmp_path).run(
        (), {b"PATH": b"/usr/bin:/bin", b"a-b.\xe4": b"\xff", b"9": b""}
    )
    assert {b"a-b.\xe4=\xff", b"9="} <= set(told(static)[1])


def test_the_last_of_variables_of_one_name_counts(tmp_path: Path) -> None:
    path = passing(tmp_path).static
    launcher = (
        "import ctypes, sys\n"
        "def array(*words): return (ctypes.c_char_p * (len(words) + 1))(*words, None)\n"
        "path = sys.argv[1].encode()\n"
        "ctypes.CDLL(None).execve(path, array(path), array(b'PATH=/first', b'X=1',"
        " b'PATH=/usr/bin:/bin'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", launcher, str(path)], capture_output=True, check=False
    )
    found = [each for each in told(done)[1] if each.startswith(b"PATH=")]
    assert found == [b"PATH=" + os.fsencode(tmp_path) + b":/usr/bin:/bin"]


@needs_dash
def test_words_of_the_largest_size_pass(pair: Pair) -> None:
    largest = b"x" * ((1 << 17) - 1)  # MAX_ARG_STRLEN of the kernel, with its zero
    static, script = pair.run([largest, b"", largest])
    assert told(static) == told(script)
    assert static.stdout.count(largest) == 2


@needs_dash
def test_variables_of_the_largest_number_pass(pair: Pair) -> None:
    variables = {b"V%d" % number: b"" for number in range(50_000)}
    static, script = pair.run((), {**variables, b"PATH": b"/usr/bin:/bin"})
    assert len(told(static)[1]) == 50_003
    assert told(static) == told(script)


@needs_dash
@pytest.mark.parametrize("low_level", [False, True], ids=["its program", "the low-level runtime"])
@pytest.mark.parametrize(
    ("content", "mode", "code"),
    [
        (None, 0o755, 127),
        (b"#!/bin/sh\nexit 5\n", 0o755, 5),
        (b"#!/bin/sh\nexit 5\n", 0o644, 126),
        (b"exit 6 # no `#!`\n", 0o755, 6),
        (b"#!/nonexistent/interpreter\n", 0o755, 127),
        (b"", 0o755, 0),
    ],
    ids=["missing", "a program", "no right", "a script without #!", "no interpreter", "empty"],
)
def test_what_cannot_be_executed_ends_as_in_a_shell(
    tmp_path: Path, content: bytes | None, mode: int, code: int, *, low_level: bool
) -> None:
    program = tmp_path / "a program"
    if content is not None:
        placed(program, content)
        program.chmod(mode)
    named = {"low_level": str(program), "signs": (f"{tmp_path}/none",)}
    pair = passing(tmp_path / "w", **(named if low_level else {"real": str(program)}))
    static, script = pair.run([b"create"])
    assert static.returncode == script.returncode == code
    # A shell adds the number of a line behind its own name.
    reason = b"" if code < 126 else script.stderr.partition(b": exec: ")[2]
    assert static.stderr.partition(b": exec: ")[2] == reason
    assert static.stderr.startswith(os.fsencode(pair.static) if reason else b"")


@needs_dash
@pytest.mark.parametrize(
    "path",
    [b"", b":", b"/nonexistent", b"one:two", b"two:one", b"/nonexistent::", b"file/x:two", None],
)
def test_a_name_is_looked_up_as_by_a_shell(tmp_path: Path, path: bytes | None) -> None:
    for name, content, mode in (
        ("one", b"#!/bin/sh\nexit 1\n", 0o644), ("two", b"#!/bin/sh\nexit 2\n", 0o755),
        (".", b"#!/bin/sh\nexit 3\n", 0o755),
    ):  # fmt: skip
        placed(tmp_path / name / "crun-of-test", content).chmod(mode)
    (tmp_path / "file").touch()
    pair = passing(tmp_path / "w", low_level="crun-of-test", signs=(f"{tmp_path}/none",))
    environment = {} if path is None else {b"PATH": path}
    static, script = pair.run((), environment, cwd=tmp_path)
    assert static.returncode == script.returncode
    assert static.stderr.partition(b"exec: ")[2] == script.stderr.partition(b"exec: ")[2]


@needs_dash
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    parts=some.lists(
        some.sampled_from([
            '"NVIDIA_VISIBLE_DEVICES=all"', '"NVIDIA_VISIBLE_DEVICES=void"', "\n", '"', "\\", ",",
            '"NVIDIA_VISIBLE_DEVICES=none"', '"NVIDIA_VISIBLE_DEVICES="', '"cdi.k8s.io/x"',
            '"/var/run/nvidia-container-devices/void"', '"/var/run/nvidia-container-devices/0"',
            "NVIDIA_VISIBLE_DEVICES=all", '"NVIDIA_VISIBLE_DEVICES', '"it\'s/', '"NVIDIA_VIS',
        ]),
        max_size=7,
    ),
    start=some.sampled_from([0, 4096 - 20, 65536 - 4096 - 9, 65536 - 20, 2 * 65536 - 4096]),
    words=some.sampled_from([
        ("create", "--bundle", "B", "id"), ("--log", "L", "create", "-b=B", "id"),
        ("run", "--bundle=B"), ("--log=L", "create", "-b", "B"), ("create", "id"), ("state", "id"),
        ("create", "--bundle", "B", "--bundle", "nowhere"), ("--bundle", "B", "run"),
    ]),
)  # fmt: skip
def test_the_same_containers_are_refused(
    tmp_path: Path, parts: list[str], start: int, words: tuple[str, ...]
) -> None:
    """`start` puts what is looked for across the ends of what is read at a time."""
    home = tmp_path / "w"
    (tmp_path / "B").mkdir(exist_ok=True)
    (tmp_path / "B/config.json").write_text("x" * start + "".join(parts), encoding="utf-8")
    low_level = placed(home / "low", b"#!/bin/sh\nexit 9\n")
    pair = passing(
        home, low_level=str(low_level), signs=(f"{tmp_path}/none",), refuses=True,
        prefixes=("cdi.k8s.io/", "it's/"),
    )  # fmt: skip
    outcomes = []
    for prefix, path in (([], pair.static), (["dash"], pair.script)):
        (tmp_path / "L").unlink(missing_ok=True)
        done = subprocess.run(
            [*prefix, str(path), *words], cwd=tmp_path, capture_output=True, check=False
        )
        log = (tmp_path / "L").read_bytes() if (tmp_path / "L").exists() else b""
        outcomes.append((done.returncode, done.stdout, done.stderr, log))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("nowhere"),
        lambda path: os.mkfifo(path, 0o000) if os.geteuid() else path.touch(),
    ],
    ids=["a directory", "a broken link", "nothing in it"],
)
def test_a_configuration_that_cannot_be_read_is_passed_on(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "config.json")
    low_level = placed(tmp_path / "low", b"#!/bin/sh\nexit 9\n")
    pair = passing(
        tmp_path / "w", low_level=str(low_level), signs=(f"{tmp_path}/none",), refuses=True
    )
    static, script = pair.run([b"create"], cwd=tmp_path)
    assert static.returncode == script.returncode == 9


# --- what a process is --------------------------------------------------------------------------

_STATE: Final = b"""#!/bin/sh
while read -r line; do
	case $line in Sig*) echo "$line" ;; esac
done < /proc/$$/status
"""


def test_ignored_and_blocked_signals_stay_so(tmp_path: Path) -> None:
    path = passing(tmp_path, _STATE).static

    def arrange() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGUSR1})

    done = subprocess.run([path], preexec_fn=arrange, capture_output=True, text=True, check=True)
    lines = dict(line.split(":\t") for line in done.stdout.splitlines())
    assert int(lines["SigBlk"], 16) & 1 << (signal.SIGUSR1 - 1)
    assert int(lines["SigIgn"], 16) & 1 << (signal.SIGHUP - 1)


def test_a_signal_ends_the_program_itself(tmp_path: Path) -> None:
    path = passing(tmp_path, b"#!/bin/sh\nkill -TERM $$\nsleep 9\n").static
    assert subprocess.run([path], check=False).returncode == -signal.SIGTERM


def test_open_files_stay_open(tmp_path: Path) -> None:
    path = passing(tmp_path, b'#!/bin/sh\necho through > "/proc/self/fd/$1"\n').static
    end, start = os.pipe()
    try:
        subprocess.run([path, str(start)], pass_fds=(start,), check=True)
        assert os.read(end, 100) == b"through\n"
    finally:
        os.close(start)
        os.close(end)


def test_it_does_without_words_of_its_own(tmp_path: Path) -> None:
    """execve(2) with no words at all: the kernel adds an empty one from 5.18 on."""
    path = passing(tmp_path).static
    launcher = (
        "import ctypes, sys\n"
        "none = (ctypes.c_char_p * 1)(None)\n"
        "path = (ctypes.c_char_p * 2)(b'PATH=/usr/bin:/bin', None)\n"
        "ctypes.CDLL(None).execve(sys.argv[1].encode(), none, path)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", launcher, str(path)], capture_output=True, check=False
    )
    assert str(tmp_path / "a program.real").encode() in done.stdout


# --- where there is no shell --------------------------------------------------------------------


@fake_node.needs_root
@pytest.mark.parametrize("driver", [True, False], ids=["with the driver", "without"])
def test_it_runs_on_a_root_without_a_shell_a_library_and_proc(
    tmp_path: Path, *, driver: bool
) -> None:
    smallest = elf.minimal()
    assert smallest is not None
    for form in ("static", "script"):
        wrapper = wrappers.describe("x", "/toolkit", low_level="runc")
        content = (
            static_wrapper.render(wrapper, programs.wrapper())
            if form == "static"
            else wrappers.script(wrapper)
        )
        placed(tmp_path / f"toolkit/{form}", content)
    placed(tmp_path / ("toolkit/x.real" if driver else "bin/runc"), smallest)
    if driver:
        (tmp_path / "sys/module/nvidia").mkdir(parents=True)

    def call(form: str) -> int:
        return subprocess.run(
            [f"/toolkit/{form}", "state"],
            env={"PATH": "/bin:/usr/sbin:/usr/bin:/sbin"},
            preexec_fn=lambda: os.chroot(tmp_path),
            check=False,
        ).returncode

    assert call("static") == 0
    with pytest.raises(FileNotFoundError):
        call("script")


# --- the file -----------------------------------------------------------------------------------


def header(program: bytes) -> list[tuple[int, int, int, int, int]]:
    """Return type, flags, offset, file size and memory size of each segment."""
    table, count = struct.unpack_from("<32xQ16xH", program)
    found = []
    for number in range(count):
        kind, flags, offset, _, _, size, memory, _ = struct.unpack_from(
            "<IIQQQQQQ", program, table + 56 * number
        )
        found.append((kind, flags, offset, size, memory))
    return found


def test_nothing_of_it_can_be_written_and_executed() -> None:
    wrapper = wrappers.describe("nvidia-ctk", "/toolkit", low_level=None)
    program = static_wrapper.render(wrapper, programs.wrapper())
    assert program is not None
    loaded, stack = header(program)
    assert loaded == (1, 5, 0, len(program), len(program))  # read and execute
    assert stack[:2] == (0x6474E551, 6)  # a stack that is not executed
    assert len(program) < 8192


def test_a_template_has_no_settings(tmp_path: Path) -> None:
    path = placed(tmp_path / "wrapper", programs.wrapper())
    done = subprocess.run([path], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (
        126,
        f"{path}: exec: no settings: cannot be executed\n".encode(),
    )


@pytest.mark.parametrize(
    "wrapper",
    [
        Wrapper(real="/a\0b"),
        Wrapper(real="/a", low_level="b", signs=("c",), refuses=True, prefixes=("x" * 4096,)),
        Wrapper(real="/a", low_level="b", signs=("c",), refuses=True, prefixes=("a\nb",)),
    ],
    ids=["a zero", "long", "two lines"],
)
def test_settings_that_it_cannot_have_make_a_script(wrapper: Wrapper) -> None:
    assert static_wrapper.render(wrapper, programs.wrapper()) is None
    assert wrappers.is_script(wrappers.render(wrapper, programs.wrapper()))


def test_the_longest_text_is_found(tmp_path: Path) -> None:
    prefix = "x" * (static_wrapper.LONGEST - 1)
    (tmp_path / "config.json").write_text(" " * 65000 + f'"{prefix}y"', encoding="utf-8")
    pair = passing(
        tmp_path / "w", low_level="false", signs=(f"{tmp_path}/none",), refuses=True,
        prefixes=(prefix,),
    )  # fmt: skip
    static, _ = pair.run([b"run"], cwd=tmp_path)
    assert static.stderr == f"{cases._WHY}\n".encode()


# --- the other machine, and the compiler --------------------------------------------------------

MACHINES: Final = ("x86_64", "aarch64")


@pytest.fixture(scope="module")
def released() -> Path:
    try:
        return programs.built(*MACHINES)
    except nodes.NodeError as error:
        pytest.skip(f"the compiler cannot be fetched: {error}")


@fake_node.needs_program("qemu-aarch64-static", package="qemu-user-static")
@pytest.mark.skipif(platform.machine() == "aarch64", reason="this machine runs it itself")
def test_that_for_arm64_does_the_same(released: Path, tmp_path: Path) -> None:
    template = static_wrapper.path("aarch64", released).read_bytes()
    low_level = placed(tmp_path / "low", b"#!/bin/sh\nprintf '%s|' low \"$@\"\nexit 9\n")
    real = placed(tmp_path / "real", b'#!/bin/sh\nprintf \'%s|\' real "$@" "$PATH"\nexit 8\n')
    (tmp_path / "config.json").write_text(cases.ASKING["variable"], encoding="utf-8")
    wrapper = Wrapper(
        real=str(real), prepends=(("PATH", "/t"),), low_level=str(low_level),
        signs=(f"{tmp_path}/none", f"{tmp_path}/driver"), refuses=True,
    )  # fmt: skip
    path = placed(tmp_path / "wrapper", static_wrapper.render(wrapper, template))

    def run(*words: str) -> tuple[int, bytes, bytes]:
        done = subprocess.run(
            ["qemu-aarch64-static", str(path), *words], env={"PATH": "/usr/bin:/bin"},
            cwd=tmp_path, capture_output=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    assert run("state", "a b") == (9, b"low|state|a b|", b"")
    assert run("create", "x") == (1, b"", f"{cases._WHY}\n".encode())
    (tmp_path / "driver").touch()
    assert run("create", "x") == (8, b"real|create|x|/t:/usr/bin:/bin|", b"")
    real.unlink()
    assert run("x") == (127, b"", f"{path}: exec: {real}: not found\n".encode())


def test_the_same_source_makes_the_same_bytes(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another directory, by another user's settings, and for one machine alone."""
    shutil.copytree(programs.ROOT / "deploy/programs", tmp_path / "a b/programs")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CFLAGS", "-O0")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    subprocess.run(
        [sys.executable, "-IB", str(tmp_path / "a b/programs/build.py"), str(tmp_path), "aarch64",
         f"--wheels={programs.wheels()}"],
        check=True, capture_output=True,
    )  # fmt: skip
    made, other = (static_wrapper.path("aarch64", place) for place in (tmp_path, released))
    assert made.read_bytes() == other.read_bytes()
