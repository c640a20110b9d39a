"""The entry point of the program. It turns errors into messages on stderr and an exit code.

Only this package imports click.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Final

import click

from toolkit import __version__, log
from toolkit.agent import child
from toolkit.cli import parser
from toolkit.errors import StepError, ToolkitError, UsageProblem

_BUG: Final = 1


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program and exit the process with its exit code."""
    arguments = parser.explicit(list(sys.argv[1:] if argv is None else argv))
    if arguments[:1] == ["sync"]:
        # The stream stays open until the process exits.
        stream = open(child.LOG, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
        log.start(stream, debug=False, as_json=True)
    as_json = _wants_json(arguments)
    try:
        code = parser.app()(arguments, prog_name=parser.NAME, standalone_mode=False, obj=arguments[1:])
    except click.ClickException as error:
        code = _report([error.format_message()], _Misuse(error), as_json=as_json)
    except click.exceptions.Abort:
        code = _BUG
    except UsageProblem as error:
        code = _report(error.problems, error, as_json=as_json)
    except ToolkitError as error:
        code = _report([error.message], error, as_json=as_json)
    except OSError as error:
        # An I/O error of the node is not a bug of this program, wherever it occurs.
        log.LOGGER.debug("%s", traceback.format_exc())
        problem = f"{error.filename or 'the node'}: {error.strerror or error}"
        code = _report([problem], StepError(str(error)), as_json=as_json)
    except Exception as error:  # noqa: BLE001  # the outermost handler reports every other error as a bug
        traceback.print_exc()
        problem = f"this is a bug in nvidia-toolkit {__version__}: {error!r}"
        code = _report([problem], error, as_json=as_json)
    _flush()
    sys.exit(code or 0)


def _flush() -> None:
    """Flush stdout and stderr, and ignore write errors, for example of a full disk under the log."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Misuse(ToolkitError):
    """A usage error that click reports, with a hint that names the help option."""

    exit_code = parser.USAGE

    def __init__(self, error: click.ClickException) -> None:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else parser.NAME
        super().__init__(error.format_message(), hint=f"`{path} --help` lists the commands and options")


def _wants_json(words: Sequence[str]) -> bool:
    """Return whether JSON output is requested, even if the rest of the command line is invalid."""
    pairs = zip(words, [*words[1:], ""], strict=True)
    return any(
        word in {"-ojson", "--output=json"} or (word in {"-o", "--output"} and value == "json")
        for word, value in pairs
    )


def _report(problems: Sequence[str], error: Exception, *, as_json: bool = False) -> int:
    """Write problems and the error's hint to stderr, with `as_json` also to stdout; return the exit code."""
    hint, code = getattr(error, "hint", ""), int(getattr(error, "exit_code", _BUG))
    colour = log.is_colourful(sys.stderr)
    for problem in problems:
        if log.is_json():
            log.LOGGER.error("%s", problem, extra=log.facts(hint=hint, code=code))
        else:
            click.echo(f"{log.coloured('error:', log.RED, wanted=colour)} {problem}", err=True)
    if hint and not log.is_json():
        click.echo(f"{log.coloured('hint:', log.CYAN, wanted=colour)} {hint}", err=True)
    if as_json:
        # A program that parses stdout gets a JSON object for errors, too.
        document = {"error": {"problems": list(problems), "hint": hint, "code": code}}
        click.echo(json.dumps(document, indent=2))
    return code
