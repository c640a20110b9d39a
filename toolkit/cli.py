"""The command line: the only room that knows click. Errors become one clear line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import click

from runtimes import registry
from runtimes.adapter import Adapter
from runtimes.model import RuntimeName
from toolkit import __version__, daemon, journal, lock, log, removal, report, transaction
from toolkit.errors import ToolkitError, UsageProblem
from toolkit.options import SETTINGS, Kind, Setting
from toolkit.settings import Settings, resolve

_COMMANDS: Final = ("run", "plan", "revert", "status")
_BUG: Final = 1
_USAGE: Final = 2
_EPILOG: Final = (
    "Exit codes: 0 done; 1 a bug; 2 wrong usage (and `plan --exit-code` with changes pending);"
    " 3 a file on the node cannot be understood, nothing was touched; 4 a step on the node failed;"
    " 5 another instance holds the lock."
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program and end the process with its exit code."""
    arguments = explicit(list(sys.argv[1:] if argv is None else argv))
    try:
        code = _app()(arguments, prog_name="nvidia-toolkit", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = _USAGE
    except click.exceptions.Abort:
        code = _BUG
    except UsageProblem as error:
        code = _tell(error.problems, error)
    except ToolkitError as error:
        code = _tell([error.message], error)
    except Exception as error:  # noqa: BLE001  # the edge: a bug is reported as one
        traceback.print_exc()
        code = _tell([f"this is a bug in nvidia-toolkit {__version__}: {error!r}"], error)
    sys.exit(code or 0)


def explicit(arguments: list[str]) -> list[str]:
    """Return arguments with a subcommand and a value for every flag.

    Options without a subcommand mean `run`. A flag never takes the next word as
    its value (`--set-as-default plan`), only one behind an equals sign, as with
    the upstream installer.
    """
    if not arguments or arguments[0] not in (*_COMMANDS, "--help", "--version"):
        arguments = ["run", *arguments]
    long = {flag: row.flags[0] for row in SETTINGS if row.kind is Kind.FLAG for flag in row.flags}
    words = []
    for word in arguments:
        flag, equals, value = word.partition("=")
        words.append(f"{long[flag]}={value if equals else 'true'}" if flag in long else word)
    return words


def _say(text: str) -> None:
    """Write the answer. A reader that has seen enough is no bug."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(problems: Sequence[str], error: Exception) -> int:
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    hint = getattr(error, "hint", "")
    if hint:
        click.echo(f"hint: {hint}", err=True)
    return int(getattr(error, "exit_code", _BUG))


# --- the commands -------------------------------------------------------------------------------


def _run(settings: Settings, adapter: Adapter, _extra: dict[str, Any]) -> int:
    stop = daemon.Stop()
    stop.listen()
    with lock.held(Path(settings.text("pid_file"))):
        transaction.converge(settings, adapter)
        if not settings.flag("no_daemon"):
            daemon.stay(stop)
        elif stop.signal is not None:
            return 128 + stop.signal
    return 0


def _plan(settings: Settings, adapter: Adapter, extra: dict[str, Any]) -> int:
    found = transaction.view(settings, adapter)
    if extra["output"] == "json":
        _say(report.plan_json(found))
    else:
        _say(report.plan_text(found, colour=_colour()))
    return _USAGE if extra["exit_code"] and not found.is_noop else 0


def _status(settings: Settings, adapter: Adapter, extra: dict[str, Any]) -> int:
    found = transaction.view(settings, adapter)
    text = report.status_json(found) if extra["output"] == "json" else report.status_text(found)
    _say(text)
    return _USAGE if extra["exit_code"] and not found.is_noop else 0


def _revert(settings: Settings, adapter: Adapter, extra: dict[str, Any]) -> int:
    stop = daemon.Stop()
    stop.listen()
    with lock.held(Path(settings.text("pid_file"))):
        done = removal.revert(settings, adapter)
    text = report.removal_json(done) if extra["output"] == "json" else report.removal_text(done)
    _say(text)
    return 128 + stop.signal if stop.signal is not None else 0


def _colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _adapter(settings: Settings) -> Adapter:
    name = RuntimeName(settings.text("runtime"))
    found = registry.adapter(name)
    if found is None:
        known = ", ".join(registry.ADAPTERS)
        raise UsageProblem([f"--runtime={name}: this version knows {known} only"])
    return found


# --- how they are built from the table ----------------------------------------------------------


def _app() -> click.Group:
    context = {"help_option_names": ["--help", "-h"], "max_content_width": 100}
    group = click.Group(
        "nvidia-toolkit",
        help="Install the NVIDIA Container Toolkit on this node and teach its container runtime"
        " the nvidia handlers. Options without a subcommand mean `run`.",
        epilog=_EPILOG,
        context_settings=context,
    )
    group.params.append(
        click.version_option(__version__, prog_name="nvidia-toolkit")(lambda: None).__click_params__[0]  # type: ignore[attr-defined]
    )
    group.add_command(_command("run", _run, "Bring the node about and stay (what the DaemonSet starts)."))
    group.add_command(
        _command(
            "plan",
            _plan,
            "Show what would change, as a diff of every file; change nothing.",
            _exit_code(),
            _output(),
        )
    )
    group.add_command(_command("revert", _revert, "Take back everything that is ours.", _output()))
    group.add_command(
        _command(
            "status",
            _status,
            "Say whether the node is as wanted, and what differs.",
            _exit_code(),
            _output(),
        )
    )
    return group


def _command(
    name: str,
    action: Callable[[Settings, Adapter, dict[str, Any]], int],
    text: str,
    *own: click.Option,
) -> click.Command:
    extras = {option.name for option in own}

    def callback(**given: Any) -> int:
        extra = {key: given.pop(key) for key in list(given) if key in extras}
        options = {key: value for key, value in given.items() if value is not None}
        settings = resolve(options, os.environ)
        if name == "revert" and not settings.is_given("runtime"):
            # What was set up is known; nobody has to remember it.
            recorded = journal.load(Path(settings.text("toolkit_install_dir"))).runtime
            settings = resolve({**options, "runtime": recorded}, os.environ) if recorded else settings
        log.start(debug=settings.flag("debug"))
        return action(settings, _adapter(settings), extra)

    rows: list[click.Parameter] = [_option(row) for row in SETTINGS]
    context = {"help_option_names": ["--help", "-h"], "max_content_width": 100}
    return click.Command(
        name,
        callback=callback,
        params=[*own, *rows],
        help=text,
        epilog=_EPILOG,
        context_settings=context,
    )


def _exit_code() -> click.Option:
    return click.Option(["--exit-code"], is_flag=True, help="Exit with 2 when changes are pending.")


def _output() -> click.Option:
    return click.Option(
        ["-o", "--output"],
        type=click.Choice(["text", "json"]),
        default="text",
        help="How the answer is written.",
    )


def _option(row: Setting) -> click.Option:
    metavar = {Kind.FLAG: "[=true|false]", Kind.LIST: "A,B", Kind.SECONDS: "SECONDS"}.get(
        row.kind, "|".join(row.choices) or "TEXT"
    )
    named = f" [env: {', '.join(row.variables)}]" if row.variables else ""
    default = row.default
    if isinstance(default, bool):
        default = str(default).lower()
    if isinstance(default, tuple):
        default = ",".join(default)
    shown = f" [default: {default}]" if default not in (None, "") else ""
    # Lists may be given word by word as well, as with the upstream installer.
    repeated: dict[str, Any] = {"multiple": True, "callback": _joined} if row.kind is Kind.LIST else {}
    return click.Option([*row.flags, row.name], metavar=metavar, help=row.help + named + shown, **repeated)


def _joined(_context: click.Context, _option: click.Parameter, words: tuple[str, ...]) -> str | None:
    return ",".join(words) if words else None
