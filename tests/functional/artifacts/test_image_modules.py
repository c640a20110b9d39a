"""What the program imports while it runs, compared with what its image has (deploy/image/reach.py).

A directory of a virtual environment gets a file that Python reads at each start, which writes down
what each process of the program imports: every one, since its children are started with the same
interpreter. The commands run on a fake node; what needs more is run as the tests of that, with that
interpreter.
"""

from __future__ import annotations

import importlib.machinery
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import fake_node, image_modules
from tests.support.fake_node import Daemon, Node
from toolkit.cli import parser

pytestmark = pytest.mark.timeout(600)

TRACER: Final = '''"""Writes down the name of each module that a process of the program imports."""
import os, sys
words = sys.orig_argv
program = any(word in {"toolkit", "toolkit.node.trust"} for word in words)
if program or any(word.endswith("toolkit/__main__.py") for word in words):
    place = os.path.join(os.path.dirname(__file__), f"{os.getpid()}.imports")
    def write(text):
        # Opened each time: a descriptor that stays open would be one of the program's.
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.write(fd, text.encode())
        os.close(fd)
    write("".join(f"{name}\\n" for name in ["words " + " ".join(words), *sys.modules]))
    sys.addaudithook(lambda event, told: write(f"{told[0]}\\n") if event == "import" else None)
'''
TESTS: Final = (
    "agent/test_daemon.py::test_the_pages",
    "agent/test_daemon.py::test_only_a_pod_that_goes_for_good_takes_everything_back",
    "kube/test_node_report.py::test_the_child_of_the_agent_sends_and_answers_by_its_file",
    "kube/test_node_report_runs.py::test_the_label_is_removed_before_anything_is_reverted",
    "agent/test_nri.py::test_the_metrics_count_what_was_asked",
)
"""Of the agent: metrics, TLS to the API server, the node's report, the NRI plugin."""
HANDLED: Final = {
    "_bz2", "_lzma", "_uuid", "_zstd", "bz2", "compression.zstd", "lzma", "sitecustomize",
    "tracemalloc",
}  # fmt: skip
"""What is looked for and not there; `shutil`, `uuid`, `site` and `warnings` go on without it."""


class Traced:
    """An interpreter whose processes of the program write down what they import."""

    def __init__(self, home: Path) -> None:
        self.python = home / "bin/python"
        self.python.parent.mkdir(parents=True)
        self.python.symlink_to(os.path.realpath(sys.executable))
        base = Path(sys._base_executable).parent  # type: ignore[attr-defined]
        # Otherwise what is installed beside that interpreter is there too, and may import more.
        alone = "include-system-site-packages = false"
        (home / "pyvenv.cfg").write_text(f"home = {base}\n{alone}\n", encoding="utf-8")
        version = ".".join(map(str, sys.version_info[:2]))
        self.packages = home / f"lib/python{version}/site-packages"
        self.packages.mkdir(parents=True)
        (self.packages / "tracer.py").write_text(TRACER, encoding="utf-8")
        lines = ("import tracer", str(fake_node.CHECKOUT), sysconfig.get_path("purelib"))
        (self.packages / "tracer.pth").write_text("\n".join(lines), encoding="utf-8")

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            (self.python, *words),
            cwd=fake_node.CHECKOUT, env=fake_node.ENVIRONMENT,
            capture_output=True, text=True, check=False, timeout=500,
        )  # fmt: skip

    def told(self) -> tuple[list[list[str]], set[str]]:
        """Return the command lines that were traced, and all that they imported."""
        lines = [
            line
            for path in self.packages.glob("*.imports")
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        words = [line.split() for line in lines if line.startswith("words ")]
        return words, {line for line in lines if not line.startswith("words ")}


@pytest.fixture(scope="module")
def library() -> Any:
    """Return what this interpreter could import, as the image's builder sees it."""
    return image_modules.library(Path(sysconfig.get_path("purelib")), fake_node.CHECKOUT)


@pytest.fixture(scope="module")
def reached(library: Any) -> set[str]:
    return set(image_modules.REACH.reached(library, image_modules.own(fake_node.CHECKOUT)))


def check(traced: Traced, library: Any, reached: set[str]) -> list[list[str]]:
    """Compare what was imported with what an image of this interpreter would have."""
    lines, names = traced.told()
    there = {name for name in names if is_in_library(library, name)}
    assert {"toolkit.cli.main", "json"} <= there
    # A package that is handled brings its modules, such as `compression.zstd` of Python 3.14.
    handled = tuple(f"{name}." for name in HANDLED)
    assert {name for name in there - reached if not f"{name}.".startswith(handled)} == set()
    return lines


def is_in_library(library: Any, name: str) -> bool:
    """Return whether a name is one of a module that has a file, and not of the test's own."""
    file = library.file(name)
    if file is None or name.startswith("__editable__"):
        return False
    # A wheel that was compiled by mypy has a module for that; the image's wheels have none.
    return "__mypyc" not in name and importlib.machinery.FrozenImporter.find_spec(name) is None


def test_every_command_imports_only_what_the_image_has(
    node: Node, running: Daemon, tmp_path: Path, library: Any, reached: set[str]
) -> None:
    traced = Traced(tmp_path / "traced")
    program = ("-m", "toolkit")
    options = node.options()
    runs: Sequence[tuple[int, tuple[str, ...]]] = (
        (0, ("--version",)),
        (0, ("--help",)),
        (0, ("plan", "--help")),
        (2, ("plna",)),
        (2, ("plan", "--runtim=containerd")),
        (3, ("plan", *node.options(config=str(tmp_path / "traced/lib")))),
        (0, ("detect", *options)),
        (0, ("plan", "--diff=full", *options)),
        (0, ("plan", "-o", "json", *options)),
        (0, ("run", "--no-daemon", *options)),
        (0, ("status", *options)),
        (0, ("status", "--quiet", *options)),
        (0, ("status", "-o", "json", *options)),
        (0, ("diagnose", *options)),
        (0, ("diagnose", "-o", "json", *options)),
        (0, ("revert", *options)),
        *((0, ("completion", shell)) for shell in ("bash", "zsh", "fish")),
    )
    ended = [(traced(*program, *words), code, words) for code, words in runs]
    assert [(done.returncode, words) for done, _, words in ended if done.returncode != _] == []
    ready = tmp_path / "driver-ready"
    ready.write_text("NVIDIA_DRIVER_ROOT=/\n", encoding="utf-8")
    traced("-IBm", "toolkit.node.trust", str(ready))
    lines = check(traced, library, reached)
    commands = {name for name, each in parser.app().commands.items() if not each.hidden}
    assert commands <= {word for words in lines for word in words}


def test_the_agent_imports_only_what_the_image_has(
    tmp_path: Path, library: Any, reached: set[str]
) -> None:
    traced = Traced(tmp_path / "traced")
    names = [f"tests/functional/{name}" for name in TESTS]
    done = traced("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *names)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = check(traced, library, reached)
    assert {"resident", "node-report", "sync"} <= {word for words in lines for word in words}
