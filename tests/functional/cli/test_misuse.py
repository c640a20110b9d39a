"""A command line that cannot be parsed: what is wrong, and which command was meant."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import requires

import pytest

from tests.support import fake_node
from toolkit import suggest
from toolkit.cli import main, misuse, parser

PLAN = "`nvidia-toolkit plan --help` lists the commands and options"
ALL = "`nvidia-toolkit --help` lists the commands and options"
ONE_OF = "must be one of run, plan, revert, status, detect, diagnose, completion"

CASES = {
    "plann": (f"there is no command 'plann': {ONE_OF}", f"`nvidia-toolkit plan`; {ALL}"),
    "install": (f"there is no command 'install': {ONE_OF}", f"`nvidia-toolkit run`; {ALL}"),
    "apply": (f"there is no command 'apply': {ONE_OF}", f"`nvidia-toolkit run`; {ALL}"),
    "uninstall": (f"there is no command 'uninstall': {ONE_OF}", f"`nvidia-toolkit revert`; {ALL}"),
    "version": (f"there is no command 'version': {ONE_OF}", f"`nvidia-toolkit --version`; {ALL}"),
    "help": (f"there is no command 'help': {ONE_OF}", ALL),
    "help plan": (f"there is no command 'help': {ONE_OF}", ALL),
    "qqqq": (f"there is no command 'qqqq': {ONE_OF}", ALL),
    "--dry-run": (
        "there is no option --dry-run",
        "`nvidia-toolkit plan` shows what `run` would change, and changes nothing",
    ),
    "revert --dry-run": (
        "there is no option --dry-run",
        (
            "there is no preview of a revert: `nvidia-toolkit diagnose` lists under `state` and"
            " `owned` the files that it restores, byte for byte"
        ),
    ),
    "revert --yes": ("there is no option --yes", "leave it out: no command asks a question"),
    "plan --bogus": ("there is no option --bogus", PLAN),
    "plan -x": ("there is no option -x", PLAN),
    "plan --runtme=docker": ("there is no option --runtme; did you mean --runtime?", PLAN),
    "plan --live": ("--live is an option of status", PLAN),
    "plan --config": (
        "--config: a value is missing",
        f"write --config=VALUE; {PLAN}",
    ),
    "plan --exit-code=1": (
        "--exit-code takes no value",
        "write --exit-code alone, or leave it out",
    ),
    "plan -o yaml": ("--output=yaml: must be one of text, json", PLAN),
    "plan --diff=ful": (
        "--diff=ful: must be one of full, keys; did you mean full?",
        PLAN,
    ),
    "plan --runtime=cri-o": (
        "--runtime=cri-o: must be one of auto, docker, containerd, crio; did you mean crio?",
        None,
    ),
    "plan --set-as-default false": (
        "'false' is no value of --set-as-default: a flag takes its value after an equals sign",
        "--set-as-default=false",
    ),
    "--debug plan": (
        "there are options before the command plan",
        "write the command first: `nvidia-toolkit plan ...`",
    ),
    "plan here": ("unexpected word 'here'", f"write options as --name=value; {PLAN}"),
    "plan etc/config.toml": (
        "unexpected word 'etc/config.toml'",
        f"is it a configuration? --config=etc/config.toml; {PLAN}",
    ),
    "completion": (
        "nvidia-toolkit completion: SHELL is missing",
        "`nvidia-toolkit completion --help` lists the commands and options",
    ),
    "completion bsh": (
        "bsh: must be one of bash, zsh, fish; did you mean bash?",
        "`nvidia-toolkit completion --help` lists the commands and options",
    ),
}


@pytest.fixture(autouse=True)
def in_utf8() -> Iterator[None]:
    """Keep the streams of the test as they are: the program replaces closed ones."""
    stdout, stderr = sys.stdout, sys.stderr
    yield
    sys.stdout, sys.stderr = stdout, stderr


@pytest.mark.parametrize("line", CASES)
def test_what_is_wrong_is_said_with_what_to_type_instead(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    problem, hint = CASES[line]
    with pytest.raises(SystemExit) as caught:
        main.main(line.split())
    shown = capsys.readouterr()
    assert (caught.value.code, shown.out) == (2, "")
    first, second = shown.err.splitlines()
    assert first == f"error: {problem}"
    assert second.startswith("hint: ")
    assert hint is None or second == f"hint: {hint}"


def test_it_is_said_in_json_as_well() -> None:
    done = fake_node.cli("plan", "-o", "json", "--bogus")
    error = json.loads(done.stdout)["error"]
    assert error == {"problems": ["there is no option --bogus"], "hint": PLAN, "code": 2}


def test_no_text_of_click_is_shown() -> None:
    """Its messages differ between the versions that may be installed."""
    (click,) = (each for each in requires("nvidia-toolkit") or () if each.startswith("click"))
    assert click.replace(" ", "") in {"click<9,>=8.1", "click>=8.1,<9"}
    source = (fake_node.CHECKOUT / "toolkit/cli/misuse.py").read_text(encoding="utf-8")
    assert "format_message" not in source


def test_what_is_only_needed_for_an_error_is_not_loaded() -> None:
    script = (
        "import sys\nfrom toolkit.cli import main\ntry: main.main(['--version'])\n"
        "except SystemExit: pass\nprint([name for name in sys.modules if name in"
        " ('difflib', 'toolkit.suggest', 'toolkit.cli.misuse')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_command_that_is_suggested_exists() -> None:
    known = {*parser.app().commands, "--help", "--version"}
    assert set(misuse._COMMANDS.values()) <= known
    assert set(misuse._COMMANDS).isdisjoint(parser.app().commands)
    assert suggest.nearest("RUNTIM", ["runtime", "root"]) == "runtime"
    assert suggest.nearest("x" * 1000, ["x" * 999]) == ""
