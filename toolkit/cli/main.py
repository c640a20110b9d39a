"""The entry point of the program. It turns errors into messages on stderr and an exit code.

What a command prints is collected and written to stdout at its
end, so that a failure to write it is one message, whichever command and library printed it.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, TextIO

from toolkit import __version__, log
from toolkit.cli import command_line
from toolkit.errors import Answer, Interrupted, StepError, ToolkitError, UsageProblem

_BUG: Final = 1
_ANSWERS: Final = (0, *Answer)
_HINTS: Final[Mapping[int, str]] = MappingProxyType(
    {
        _BUG: "please report it with the text above and the output of `nvidia-toolkit diagnose`",
        2: "`nvidia-toolkit --help` lists the commands and options",
        3: "correct that file, then run the command again",
        4: "`nvidia-toolkit diagnose` lists all problems of the node, the most important first",
        6: "the log of the runtime says why; `nvidia-toolkit diagnose` lists all problems",
        7: "correct what is named, then run the command again",
    }
)
"""The hints of errors that have none of their own, by exit code."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program and exit the process with its exit code."""
    _open_standard_streams()
    _require_utf8()
    stdout, output = sys.stdout, _Output(sys.stdout)
    sys.stdout = output
    try:
        code = _run(command_line.explicit(list(sys.argv[1:] if argv is None else argv)))
        _use_default_signals()
    except Interrupted as end:  # just before that
        code = int(end.exit_code)
    finally:
        sys.stdout = stdout
    if problem := log.write(stdout, output.text()):
        problem = f"the result cannot be written to stdout: {problem}"
        error = StepError(problem, hint="the command was carried out; write to another place")
        code = _report([problem], error) if code in _ANSWERS else code
    log.write(sys.stderr, "")
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """Run the command that the arguments name; return the exit code."""
    if arguments[:1] == ["sync"]:
        from toolkit.agent import child  # noqa: PLC0415  # no other command needs it here

        # The stream stays open until the process exits.
        stream = open(child.LOG, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
        log.start(stream, debug=False, as_json=True)
    try:
        if (parsed := command_line.parse(arguments)) is not None:
            return command_line.execute(parsed, arguments[1:])
        return _run_with_click(arguments)
    except SystemExit as end:  # of a completion
        return int(end.code or 0)
    except KeyboardInterrupt:
        return _BUG
    except Exception as error:  # noqa: BLE001  # every other error is reported as a bug
        _use_default_signals()
        return _report_error(error, arguments)


def _use_default_signals() -> None:
    """Let SIGTERM and SIGINT end the process: it only has to write messages and its result.

    If no process reads them, a write to a full pipe does not return.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _run_with_click(arguments: list[str]) -> int:
    from toolkit.cli import parser  # noqa: PLC0415  # it imports click, which is large

    try:
        return parser.run(arguments)
    except parser.Misuse as error:
        from toolkit.cli import misuse  # noqa: PLC0415  # only needed for an error

        problem, hint = misuse.explain(error, arguments)
        raise UsageProblem([problem], hint=hint) from error


# --- standard streams -----------------------------------------------------------------------------


class _Output(io.TextIOWrapper):
    """The output of a command, collected; a terminal if stdout is one."""

    def __init__(self, stream: TextIO) -> None:
        self._bytes = io.BytesIO()
        super().__init__(
            self._bytes, encoding="utf-8", errors="surrogatepass", newline="", write_through=True
        )
        self._stream = stream

    def isatty(self) -> bool:
        return self._stream.isatty()

    def text(self) -> str:
        """Return what was printed."""
        return self._bytes.getvalue().decode(errors="surrogatepass")


def _open_standard_streams() -> None:
    """Open /dev/null as every standard stream that is closed.

    Otherwise the next file that is opened, such as the lock, gets its descriptor, and the log is
    written to that file. The descriptors are inheritable, since the agent and its children use them
    too.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003  # no keyword
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _require_utf8() -> None:
    """Execute Python again in UTF-8 mode if the locale has another encoding for the names of files.

    The files of the runtimes are UTF-8, so a path that was decoded otherwise would name another
    file there.
    """
    if sys.getfilesystemencoding() != "utf-8" and sys.executable:
        words = sys.orig_argv[1:]
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *words])  # noqa: S606  # itself


# --- messages -------------------------------------------------------------------------------------


def _wants_json(words: Sequence[str]) -> bool:
    """Return whether JSON output is requested, even if the rest of the command line is invalid."""
    pairs = zip(words, [*words[1:], ""], strict=True)
    return any(
        word in {"-ojson", "--output=json"} or (word in {"-o", "--output"} and value == "json")
        for word, value in pairs
    )


def _report_error(error: Exception, arguments: Sequence[str]) -> int:
    """Report an error that ended a command; return the exit code."""
    as_json = _wants_json(arguments)
    match error:
        case UsageProblem():
            return _report(error.problems, error, as_json=as_json)
        case ToolkitError():
            return _report([error.message], error, as_json=as_json)
        case OSError():
            # An I/O error of the node is not a bug of this program, wherever it occurs.
            log.LOGGER.debug("%s", "".join(traceback.format_exception(error)))
            problem = f"{error.filename or 'the node'}: {error.strerror or error}"
            return _report([problem], StepError(str(error)), as_json=as_json)
        case _:
            log.write(sys.stderr, "".join(traceback.format_exception(error)))
            problem = f"this is a bug in nvidia-toolkit {__version__}: {error!r}"
            return _report([problem], error, as_json=as_json)


def _report(problems: Sequence[str], error: Exception, *, as_json: bool = False) -> int:
    """Write problems and a hint to stderr, with `as_json` also to stdout; return the exit code."""
    code = int(getattr(error, "exit_code", _BUG))
    hint = getattr(error, "hint", "") or _HINTS.get(code, "")
    colour = log.is_colourful(sys.stderr)
    for problem in problems:
        if log.is_json():
            log.LOGGER.error("%s", problem, extra=log.facts(hint=hint, code=code))
        else:
            log.write(sys.stderr, f"{log.coloured('error:', log.RED, wanted=colour)} {problem}\n")
    if hint and not log.is_json():
        log.write(sys.stderr, f"{log.coloured('hint:', log.CYAN, wanted=colour)} {hint}\n")
    if as_json:
        # A program that parses stdout gets a JSON object for errors, too.
        document = {"error": {"problems": list(problems), "hint": hint, "code": code}}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    return code
