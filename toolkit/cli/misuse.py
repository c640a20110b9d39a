"""Explain a command line that cannot be parsed: what is wrong, and which command was meant.

The text does not depend on the version of click. Only imported for an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import click

from toolkit import suggest
from toolkit.cli import parser

_COMMANDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(
            ("install", "apply", "setup", "set-up", "configure", "start", "daemon", "agent",
             "upgrade", "update", "up", "deploy", "repair"), "run",
        ),
        **dict.fromkeys(
            ("uninstall", "remove", "delete", "undo", "rollback", "purge", "destroy", "down",
             "restore", "cleanup"), "revert",
        ),
        **dict.fromkeys(("diff", "preview", "dry-run", "dryrun", "simulate", "what-if"), "plan"),
        **dict.fromkeys(("state", "ready", "health", "info", "show", "verify"), "status"),
        **dict.fromkeys(("list", "ls", "runtimes", "discover", "find"), "detect"),
        **dict.fromkeys(("doctor", "debug", "report", "support", "bugreport"), "diagnose"),
        **dict.fromkeys(("version",), "--version"),
        **dict.fromkeys(("help", "usage", "?", "/?"), "--help"),
        **dict.fromkeys(("completions", "complete"), "completion"),
    }
)  # fmt: skip
"""The command that does what people type, as they know it from other programs."""
_OPTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(
            ("--dry-run", "--dryrun", "--check", "--preview", "--what-if", "--noop", "--simulate"),
            "`nvidia-toolkit plan` shows what `run` would change, and changes nothing",
        ),
        **dict.fromkeys(
            ("--yes", "-y", "--assume-yes", "--non-interactive", "--auto-approve"),
            "leave it out: no command asks a question",
        ),
        **dict.fromkeys(
            ("--verbose", "-v", "-d"), "--debug writes more to stderr; --version is the version"
        ),
        **dict.fromkeys(("-V",), "`nvidia-toolkit --version`"),
        **dict.fromkeys(
            ("--uninstall", "--remove", "--undo"), "`nvidia-toolkit revert` undoes everything"
        ),
        **dict.fromkeys(("--json",), "-o json"),
        **dict.fromkeys(("--no-set-as-default", "--set-as-default-off"), "--set-as-default=false"),
        **dict.fromkeys(
            ("--once", "--one-shot", "--oneshot", "--foreground"),
            "--no-daemon ends `run` after the installation",
        ),
        **dict.fromkeys(("--daemon",), "leave it out: `run` stays, unless --no-daemon is given"),
    }
)
"""What to use in place of options that other programs have."""
_OF_REVERT: Final = (
    "there is no preview of a revert: `nvidia-toolkit diagnose` lists under `state` and `owned` the"
    " files that it restores, byte for byte"
)
_WORDS: Final = frozenset({"true", "false", "yes", "no", "on", "off", "0", "1"})


def explain(error: click.ClickException, arguments: Sequence[str]) -> tuple[str, str]:
    """Return what is wrong with a command line, and a hint what to type instead.

    `arguments` are the words that were parsed, with the command first (`command_line.explicit`).
    """
    group = parser.app()
    name = arguments[0] if arguments else ""
    command = group.commands.get(name, group)
    path = parser.NAME if command is group else f"{parser.NAME} {name}"
    hint = f"`{path} --help` lists the commands and options"
    match error:
        case parser.UnexpectedWords():
            return _unexpected(error.words, arguments, group, hint)
        case click.NoSuchOption():
            return _no_such_option(error.option_name, command, group, hint)
        case click.BadOptionUsage():
            return _wrong_option(error.option_name, command, hint)
        case click.MissingParameter() if error.param is not None:
            return f"{path}: {error.param.human_readable_name} is missing", hint
        case _ if command is group and not isinstance(error, parser.NotOneOf):
            return _no_such_command(name, group)
    return error.message, hint


def _no_such_command(word: str, group: click.Group) -> tuple[str, str]:
    names = [name for name, each in group.commands.items() if not each.hidden]
    meant = _COMMANDS.get(word.lower(), "") or suggest.nearest(word, names)
    shown = f"`{parser.NAME} --help` lists the commands and options"
    hint = f"`{parser.NAME} {meant}`; {shown}" if meant and meant != "--help" else shown
    return f"there is no command {word!r}: must be one of {', '.join(names)}", hint


def _no_such_option(
    name: str, command: click.Command, group: click.Group, hint: str
) -> tuple[str, str]:
    problem = f"there is no option {name}"
    if meant := _OPTIONS.get(name):
        is_preview = meant == _OPTIONS["--dry-run"]
        return problem, _OF_REVERT if is_preview and command.name == "revert" else meant
    commands = [each for each in group.commands.values() if not each.hidden]
    if owners := [str(each.name) for each in commands if name in _flags(each)]:
        return f"{name} is an option of {', '.join(owners)}", hint
    long = [flag for flag in _flags(command) if flag.startswith("--")]
    return f"{problem}{suggest.did_you_mean(name, long)}", hint


def _wrong_option(name: str, command: click.Command, hint: str) -> tuple[str, str]:
    option = next((each for each in command.params if name in each.opts), None)
    if isinstance(option, click.Option) and option.is_flag:
        return f"{name} takes no value", f"write {name} alone, or leave it out"
    return f"{name}: a value is missing", f"write {name}=VALUE; {hint}"


def _unexpected(
    words: Sequence[str], arguments: Sequence[str], group: click.Group, hint: str
) -> tuple[str, str]:
    """Explain words that belong to no option."""
    first = words[0]
    before = arguments[list(arguments).index(first) - 1] if first in arguments else ""
    if first in group.commands and not group.commands[first].hidden:
        return (
            f"there are options before the command {first}",
            f"write the command first: `{parser.NAME} {first} ...`",
        )
    flag = before.removesuffix("=true")
    if first.lower() in _WORDS and flag != before:
        return (
            f"{first!r} is no value of {flag}: a flag takes its value after an equals sign",
            f"{flag}={first}",
        )
    if "/" in first:
        return f"unexpected word {first!r}", f"is it a configuration? --config={first}; {hint}"
    return f"unexpected word {first!r}", f"write options as --name=value; {hint}"


def _flags(command: click.Command) -> set[str]:
    return {flag for each in command.params for flag in each.opts} | {"--help"}
