"""What the program reads of a command line itself means the same to click, which reads the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import click
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support import fake_node
from toolkit.cli import command_line, main, parser
from toolkit.settings.options import SETTINGS, Kind

_COMMANDS = ("run", "plan", "revert", "status", "detect", "diagnose", "sync")
_OWN = (
    "-o", "--output", "-q", "--quiet", "--live", "--exit-code", "--exit_code", "--diff", "--kind",
    "--help", "-h", "--help-all", "--version", "--", "-", "", "word",
)  # fmt: skip
_FLAGS = [flag for row in SETTINGS for flag in row.flags]
_VALUES = st.sampled_from(
    ["", "true", "json", "text", "full", "check", "a,b", "-x", "--quiet", "=", "a=b", "ä", "-"]
)
_WORDS = st.sampled_from([*_FLAGS, *_OWN])
_WORD = st.one_of(_WORDS, st.builds("{}={}".format, _WORDS, _VALUES), _VALUES)


def by_click(arguments: list[str]) -> command_line.Parsed | None:
    """Return what click makes of explicit arguments; None if it refuses them or shows a help."""
    name, *words = arguments
    command = parser.app().commands.get(name)
    if command is None:
        return None
    try:
        context = command.make_context(name, list(words), resilient_parsing=False)
    except (click.ClickException, click.exceptions.Exit):
        return None
    own = {str(each.name) for each in command.params} - {row.name for row in SETTINGS}
    parameters: dict[str, Any] = context.params
    return command_line.Parsed(
        command=name,
        options={k: v for k, v in parameters.items() if k not in own and v is not None},
        extra={k: v for k, v in parameters.items() if k in own},
    )


@given(st.sampled_from(_COMMANDS), st.lists(_WORD, max_size=5))
@example("plan", ["--config=a", "--exit-code", "-o", "json", "--diff=keys"])
@example("status", ["-q", "--runtime", "docker", "--live"])
@example("sync", ["--kind", "check"])
@example("sync", [])
@example("run", ["--quiet"])
@example("run", ["--output=xml"])
def test_what_is_read_without_click_means_the_same_to_it(command: str, words: list[str]) -> None:
    arguments = command_line.explicit([command, *words])
    parsed = command_line.parse(arguments)
    assert parsed is None or parsed == by_click(arguments)


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_option_is_read_without_click(command: str) -> None:
    """An option that is left to click would cost a start tens of milliseconds."""
    words = ["--kind=check"] if command == "sync" else []
    for row in SETTINGS:
        value = "true" if row.kind is Kind.FLAG else "1"
        words += [f"{row.flags[0]}={value}", row.flags[0], *([] if row.kind is Kind.FLAG else "2")]
    arguments = command_line.explicit([command, *words])
    parsed = command_line.parse(arguments)
    assert parsed is not None
    assert parsed == by_click(arguments)
    assert parsed.options.keys() == {row.name for row in SETTINGS}
    assert {parsed.options[row.name] for row in SETTINGS if row.kind is Kind.LIST} == {"1,2"}


@pytest.mark.parametrize("command", _COMMANDS)
def test_the_options_of_a_command_itself_are_those_that_click_knows(command: str) -> None:
    known = {each.name: each for each in parser.app().commands[command].params}
    own = known.keys() - {row.name for row in SETTINGS} - {"help_all"}
    assert command_line._OWN[command].keys() == own


def test_a_shell_that_asks_for_completions_starts_nothing() -> None:
    """Such a shell names no command, which otherwise means `run`."""
    for words in ("", "nvidia-toolkit ", "nvidia-toolkit plan --con"):
        done = subprocess.run(
            [sys.executable, "-m", "toolkit"],
            env={
                **fake_node.ENVIRONMENT,
                command_line.COMPLETION: "bash_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(max(len(words.split(" ")) - 1, 0)),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), words
        assert "--con" not in words or "plain,--config" in done.stdout.split()


def test_an_interruption_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "execute", interrupted)
    assert main._run(["detect"]) == 1


def test_the_variable_for_completions_is_click_s() -> None:
    name = parser.NAME.replace("-", "_").upper()
    assert f"_{name}_COMPLETE" == command_line.COMPLETION
    assert command_line.COMPLETION not in os.environ
