"""The command line: the only room that knows click. Errors become one clear line and an exit code."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from toolkit import __version__, handover, log, probe, terminal, variables
from toolkit.errors import StepFailed, ToolkitError, UsageProblem
from toolkit.options import SETTINGS, Kind, LogFormat, Setting, grouped
from toolkit.settings import Settings, resolve

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_NAME: Final = "nvidia-toolkit"
_OF_ALL: Final = ("--help", "-h", "--version")
_SHELLS: Final = ("bash", "zsh", "fish")
_PLACES: Final = ("config", "dir", "file", "path", "root", "socket")
_OF_ENV_FILE: Final = next(row for row in SETTINGS if row.name == "env_file")
_BUG: Final = 1
_USAGE: Final = 2
_EPILOG: Final = (
    "Exit codes: 0 done; 1 a bug; 2 wrong usage (and `plan --exit-code` with changes pending);"
    " 3 a file on the node cannot be understood, nothing was touched; 4 a step on the node failed;"
    " 5 another instance holds the lock; 6 the change failed and was taken back;"
    " 7 the change failed and could not be taken back."
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program and end the process with its exit code."""
    arguments = explicit(list(sys.argv[1:] if argv is None else argv))
    if arguments[:1] == ["round"]:
        # It is told to until the end, so nobody closes it.
        told = open(handover.LOG, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
        log.start(told, debug=False, as_json=True)
    as_json = _wants_json(arguments)
    try:
        code = app()(arguments, prog_name=_NAME, standalone_mode=False, obj=arguments[1:])
    except click.ClickException as error:
        code = _tell([error.format_message()], _Misuse(error), as_json=as_json)
    except click.exceptions.Abort:
        code = _BUG
    except UsageProblem as error:
        code = _tell(error.problems, error, as_json=as_json)
    except ToolkitError as error:
        code = _tell([error.message], error, as_json=as_json)
    except OSError as error:
        # A disk or a kernel that says no is no bug, wherever it says so.
        log.LOGGER.debug("%s", traceback.format_exc())
        problem = f"{error.filename or 'the node'}: {error.strerror or error}"
        code = _tell([problem], StepFailed(str(error)), as_json=as_json)
    except Exception as error:  # noqa: BLE001  # the edge: a bug is reported as one
        traceback.print_exc()
        problem = f"this is a bug in nvidia-toolkit {__version__}: {error!r}"
        code = _tell([problem], error, as_json=as_json)
    _flush()
    sys.exit(code or 0)


def _flush() -> None:
    """Let go of what nobody can take: a full disk under the log is no failure of the work."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def explicit(arguments: list[str]) -> list[str]:
    """Return arguments with a subcommand and a value for every flag.

    Options without a subcommand mean `run`; any other first word is one. A flag
    never takes the next word as its value (`--set-as-default plan`), only one
    behind an equals sign, and one dash does for a long option
    (`-runtime=docker`), as with the upstream installer.
    """
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in _OF_ALL):
        arguments = ["run", *arguments]
    known = {flag for row in SETTINGS for flag in row.flags}
    long = {flag: row.flags[0] for row in SETTINGS if row.kind is Kind.FLAG for flag in row.flags}
    words = []
    for given in arguments:
        flag, equals, value = given.partition("=")
        is_short = given.startswith("-") and flag not in known and f"-{flag}" in known
        word = f"-{given}" if is_short else given
        flag = f"-{flag}" if is_short else flag
        words.append(f"{long[flag]}={value if equals else 'true'}" if flag in long else word)
    return words


class _Misuse(ToolkitError):
    """What click found wrong, with the way out in our words."""

    exit_code = _USAGE

    def __init__(self, error: click.ClickException) -> None:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else _NAME
        super().__init__(error.format_message(), hint=f"`{path} --help` lists what there is")


def _wants_json(words: Sequence[str]) -> bool:
    """Tell whether the answer shall be JSON, also where the words make no sense otherwise."""
    pairs = zip(words, [*words[1:], ""], strict=True)
    return any(
        word in {"-ojson", "--output=json"} or (word in {"-o", "--output"} and value == "json")
        for word, value in pairs
    )


def _tell(problems: Sequence[str], error: Exception, *, as_json: bool = False) -> int:
    hint, code = getattr(error, "hint", ""), int(getattr(error, "exit_code", _BUG))
    colour = terminal.is_colourful(sys.stderr)
    for problem in problems:
        if log.is_json():
            log.LOGGER.error("%s", problem, extra=log.facts(hint=hint, code=code))
        else:
            click.echo(f"{terminal.painted('error:', terminal.RED, wanted=colour)} {problem}", err=True)
    if hint and not log.is_json():
        click.echo(f"{terminal.painted('hint:', terminal.CYAN, wanted=colour)} {hint}", err=True)
    if as_json:
        # A program that reads the answer finds one in any case.
        answer = {"error": {"problems": list(problems), "hint": hint, "code": code}}
        click.echo(json.dumps(answer, indent=2))
    return code


# --- how they are built from the table ----------------------------------------------------------


def app() -> click.Group:
    """Return the command line as a tree of commands."""
    context = {"help_option_names": ["--help", "-h"], "max_content_width": 100}
    group = click.Group(
        _NAME,
        help="Install the NVIDIA Container Toolkit on this node and teach its container runtime"
        " the nvidia handlers. Options without a subcommand mean `run`.",
        epilog=_EPILOG,
        context_settings=context,
    )
    group.params.append(
        click.version_option(__version__, prog_name=_NAME)(lambda: None).__click_params__[0]  # type: ignore[attr-defined]
    )
    for command in (
        _command("run", "Set the node up and stay (what the DaemonSet starts).", _output()),
        _command(
            "plan",
            "Show what would change, as a diff; change nothing.",
            _exit_code(),
            _output(),
        ),
        _command("revert", "Take back everything that is ours.", _output()),
        _command(
            "status",
            "Say whether the node is as wanted, and what differs.",
            _exit_code(),
            _output(),
            _quiet(),
        ),
        _command(
            "detect",
            "Say which runtimes are there, and which one would be set up.",
            _output(),
        ),
        _command("diagnose", "Tell everything that a bug report should hold; change nothing.", _output()),
        _completion(),
        _command(
            "round", "What a process that stays sends its children to do.", _kind(), _output(), hidden=True
        ),
    ):
        group.add_command(command)
    return group


class _Command(click.Command):
    """A command whose help tells its options by what they are about."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what is the command's own first, then every group under its heading."""
        told = {each.name: each.get_help_record(ctx) for each in self.get_params(ctx)}
        groups = [(title, [row.name for row in rows]) for title, rows in grouped()]
        common = {name for _, names in groups for name in names}
        for title, names in [("Options", [name for name in told if name not in common]), *groups]:
            with formatter.section(title):
                formatter.write_dl([record for name in names if (record := told[name]) is not None])


def _command(name: str, text: str, *own: click.Option, hidden: bool = False) -> click.Command:
    extras = {option.name for option in own}

    @click.pass_obj
    def callback(arguments: list[str], /, **given: Any) -> int:
        extra = {key: given.pop(key) for key in list(given) if key in extras}
        options = {key: value for key, value in given.items() if value is not None}
        environment = _environment(options)
        settings = resolve(options, environment)
        if extra.get("quiet"):
            return _USAGE if probe.unready(settings.readiness) else 0
        manner = _manner(name, settings)
        if name == "round":
            log.LOGGER.setLevel("DEBUG" if settings.flag("debug") else "INFO")
        else:
            log.start(debug=manner["debug"], as_json=manner["as_json"])
            _tell_given(settings)
        # A probe and a child that fails early must not pay for what they do not use.
        from toolkit import commands  # noqa: PLC0415

        order = commands.Order(
            settings=settings,
            options=options,
            environment=environment,
            extra=extra,
            arguments=tuple(arguments),
            manner=manner,
        )
        return commands.COMMANDS[name](order)

    rows: list[click.Parameter] = [_option(row) for row in SETTINGS]
    context = {"help_option_names": ["--help", "-h"], "max_content_width": 100}
    return _Command(
        name,
        callback=callback,
        params=[*own, *rows],
        help=text,
        epilog=_EPILOG,
        context_settings=context,
        hidden=hidden,
    )


def _completion() -> click.Command:
    """Return the command that prints a shell's script; what it completes comes from the same tree."""

    def callback(shell: str) -> None:
        from click import shell_completion  # noqa: PLC0415  # of no use to any other command

        kind = shell_completion.get_completion_class(shell)
        if kind is None:
            raise UsageProblem([f"completion {shell}: this click knows no such shell"])
        wanted = kind(app(), {}, _NAME, f"_{_NAME.replace('-', '_').upper()}_COMPLETE")
        # That of bash starts a bash first to see how old it is. The script itself does not mind.
        click.echo(shell_completion.ShellComplete.source(wanted))

    return click.Command(
        "completion",
        callback=callback,
        params=[click.Argument(["shell"], type=click.Choice(_SHELLS))],
        help="Print a script that completes commands and options in a shell.",
    )


def _environment(options: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that count: those of the file, where one is named, before our own."""
    named = [os.environ.get(variable, "") for variable in _OF_ENV_FILE.variables]
    path = options.get(_OF_ENV_FILE.name) or next(filter(None, named), "")
    return {**os.environ, **(variables.read(Path(path)) if path else {})}


def _manner(name: str, settings: Settings) -> dict[str, bool]:
    """Return how events are told: to people on a terminal, to programs where a process stays without one."""
    wish = settings.text("log_format")
    stays = name == "run" and not settings.flag("no_daemon")
    as_json = wish == LogFormat.JSON or (wish == LogFormat.AUTO and stays and not sys.stderr.isatty())
    return {"debug": settings.flag("debug"), "as_json": as_json}


def _tell_given(settings: Settings) -> None:
    """Say what was given is of no effect and, to who looks closely, where every value comes from."""
    for level, remark in settings.remarks:
        log.LOGGER.log(level, "%s", remark)
    if settings.flag("debug"):
        from toolkit import masking  # noqa: PLC0415

        for name, origin in settings.origins.items():
            if origin != "default":
                log.LOGGER.debug("%s: %s", origin, masking.text(str(settings.values[name])))


def _quiet() -> click.Option:
    return click.Option(
        ["-q", "--quiet"],
        is_flag=True,
        help="Say nothing, ask no runtime: end with 0 where the readiness record is true, else with 2.",
    )


def _kind() -> click.Option:
    return click.Option(["--kind"], required=True)


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
    metavar = {Kind.FLAG: "[=true|false]", Kind.LIST: "A,B", Kind.SECONDS: "SECONDS", Kind.COUNT: "N"}.get(
        row.kind, "|".join(row.choices) or "TEXT"
    )
    named = f" [env: {', '.join(row.variables)}]" if row.variables else ""
    default = row.default
    if isinstance(default, bool):
        default = str(default).lower()
    if isinstance(default, tuple):
        default = ",".join(default)
    shown = f" [default: {default}]" if default not in (None, "") else ""
    told = row.help + (f" For {row.only} only." if row.only else "")
    told += f" Refused when it is asked for: {row.pending}." if row.pending else ""
    # Lists may be given word by word as well, as with the upstream installer.
    repeated: dict[str, Any] = {"multiple": True, "callback": _joined} if row.kind is Kind.LIST else {}
    return click.Option(
        [*row.flags, row.name],
        metavar=metavar,
        help=told + named + shown,
        shell_complete=lambda _context, _option, begun: _completed(row, begun),
        **repeated,
    )


def _completed(row: Setting, begun: str) -> list[CompletionItem]:
    """Return what a value may go on with."""
    from click.shell_completion import CompletionItem  # noqa: PLC0415  # of no use to anything else

    if any(place in row.name for place in _PLACES) and not row.choices:
        return [CompletionItem(begun, type="file")]
    words = ("true", "false") if row.kind is Kind.FLAG else row.choices
    return [CompletionItem(word) for word in words if word.startswith(begun)]


def _joined(_context: click.Context, _option: click.Parameter, words: tuple[str, ...]) -> str | None:
    return ",".join(words) if words else None
