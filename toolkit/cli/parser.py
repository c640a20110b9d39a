"""The command line for click: commands, options from the table of settings, shell completion.

Only loaded for help, completion and words that are not plainly correct; all others are read by
`toolkit.cli.command_line`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from toolkit import __version__
from toolkit.cli import command_line
from toolkit.errors import StepError, UsageProblem
from toolkit.settings.options import SETTINGS, Kind, Setting

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    _Choice = click.Choice[str]
else:
    _Choice = click.Choice  # a class of generic type since click 8.2

Misuse: Final = click.ClickException
"""A command line that click refuses; `toolkit.cli.misuse` explains it."""
NAME: Final = command_line.NAME
_IS_FULL: Final = "nvidia_toolkit.is_full"
_SHELLS: Final = ("bash", "zsh", "fish")
_PATHS: Final = ("config", "dir", "file", "path", "root", "socket")
"""Parts of the names of settings whose value is completed as a path."""
USAGE: Final = 2
_EPILOG: Final = (
    "Exit codes: 0 success; 1 bug; 2 usage error; 3 a file on the node cannot be parsed, nothing"
    " was changed; 4 a step on the node failed; 5 another instance holds the lock; 6 the change"
    " failed and was rolled back; 7 the change failed and could not be rolled back; 8 changes are"
    " pending (--exit-code), not ready (--quiet), or not alive (--live); 9 `run` would be refused"
    " (--exit-code, detect)."
)


def run(arguments: Sequence[str]) -> int:
    """Run the command that explicit arguments name; return the exit code. Raises Misuse."""
    try:
        code = app()(
            list(arguments), prog_name=NAME, standalone_mode=False, obj=list(arguments[1:])
        )
    except click.exceptions.Abort:
        return 1
    return code or 0


def app() -> click.Group:
    """Return the click group with all commands."""
    context = {"help_option_names": ["--help", "-h"], "max_content_width": 100}
    group = _Group(
        NAME,
        help=(
            "Install the NVIDIA Container Toolkit on this node and add the nvidia handlers to the"
            " configuration of its container runtime. Without a subcommand, `run` is executed; at a"
            " terminal, the program alone shows this help."
        ),
        epilog=_EPILOG,
        context_settings=context,
    )
    group.params.append(
        click.version_option(__version__, prog_name=NAME)(lambda: None).__click_params__[0]  # type: ignore[attr-defined]
    )
    for command in (
        _command(
            "run",
            "Install and configure, then keep the node in sync as an agent. The DaemonSet runs this"
            " command.",
            _output(),
        ),
        _command(
            "plan",
            "Show as a diff what `run` would change; change nothing.",
            _exit_code(),
            _output(),
            _diff(),
            _revert(),
        ),
        _command("revert", "Uninstall: remove everything that `run` added and changed.", _output()),
        _command(
            "status",
            "Show whether the node is in sync and ready, and what differs.",
            _exit_code(),
            _output(),
            _quiet(),
            _live(),
        ),
        _command(
            "detect",
            "List the node's runtimes and the one `run` would configure.",
            _output(),
        ),
        _command(
            "diagnose",
            "Print what a bug report should contain; change nothing.",
            _output(),
        ),
        _completion(),
        _command(
            "sync",
            "Run one sync as a child process of the agent.",
            _kind(),
            _output(),
            hidden=True,
        ),
    ):
        group.add_command(command)
    return group


class _Group(click.Group):
    """A group for which a broken pipe on the node is an error. click exits without a message."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order of their use."""
        del ctx
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands; click cuts their description on a narrow terminal."""
        from toolkit.cli import help as pages  # noqa: PLC0415  # only needed for the help

        del ctx
        shown = [(n, each.help or "") for n, each in self.commands.items() if not each.hidden]
        with formatter.section("Commands"):
            formatter.write(pages.entries(shown, formatter.width))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise StepError(f"{error.filename or 'the node'}: {error.strerror or error}") from error


class UnexpectedWords(click.UsageError):
    """Words on the command line that belong to no option."""

    def __init__(self, words: Sequence[str], context: click.Context) -> None:
        super().__init__(f"unexpected words: {' '.join(words)}", context)
        self.words = tuple(words)


class NotOneOf(click.BadParameter):
    """A value that is none of those that an option of a command takes."""


class _OneOf(_Choice):
    """A choice with the same message as the choices of the settings."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value. Raises NotOneOf."""
        if value in self.choices:
            return value
        from toolkit import suggest  # noqa: PLC0415  # only needed for an error

        is_option = isinstance(param, click.Option)
        name = f"{param.opts[-1]}={value}" if param is not None and is_option else str(value)
        allowed = ", ".join(map(str, self.choices))
        meant = suggest.did_you_mean(str(value), map(str, self.choices))
        raise NotOneOf(f"{name}: must be one of {allowed}{meant}", ctx=ctx, param=param)


class _Command(click.Command):
    """A command whose help lists the options grouped by topic."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words of the command. Raises UnexpectedWords for those of no option."""
        ctx.allow_extra_args = True
        rest = super().parse_args(ctx, args)
        if rest and not ctx.resilient_parsing:
            raise UnexpectedWords(rest, ctx)
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of this command only, then those of all commands."""
        from toolkit.cli import help as pages  # noqa: PLC0415  # only needed for the help

        is_full = bool(ctx.meta.get(_IS_FULL))
        records = {each.name: each.get_help_record(ctx) for each in self.get_params(ctx)}
        settings = {row.name for row in SETTINGS}
        own = tuple(str(name) for name in records if name not in settings)
        if not is_full:
            records |= {
                row.name: _option(row, variables=False).get_help_record(ctx) for row in SETTINGS
            }
        for title, names in (("Options", own), *pages.sections(self.name or "", is_full=is_full)):
            shown = [record for name in names if (record := records[name]) is not None]
            with formatter.section(title):
                formatter.write(pages.entries(shown, formatter.width))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write where the rest is."""
        from toolkit.cli import help as pages  # noqa: PLC0415  # only needed for the help

        path = ctx.command_path
        more = "" if ctx.meta.get(_IS_FULL) else f"`{path} --help-all` lists all options. "
        text = f"{more}`{NAME} --help` lists the exit codes."
        formatter.write(f"\n{pages.paragraph(text, formatter.width)}")


def _command(name: str, text: str, *own: click.Option, hidden: bool = False) -> click.Command:
    extras = {option.name for option in own}

    @click.pass_obj
    def callback(arguments: list[str], /, **parameters: Any) -> int:
        extra = {key: parameters.pop(key) for key in list(parameters) if key in extras}
        options = {key: value for key, value in parameters.items() if value is not None}
        return command_line.execute(
            command_line.Parsed(command=name, options=options, extra=extra), arguments
        )

    rows: list[click.Parameter] = [_option(row) for row in SETTINGS]
    context = {"help_option_names": ["--help", "-h"], "max_content_width": 100}
    return _Command(
        name,
        callback=callback,
        params=[*own, _help_all(), *rows],
        help=text,
        context_settings=context,
        hidden=hidden,
    )


def _completion() -> click.Command:
    """Return the command that prints the completion script of a shell."""

    def callback(shell: str) -> None:
        from click import shell_completion  # noqa: PLC0415  # no other command needs this module

        kind = shell_completion.get_completion_class(shell)
        if kind is None:
            raise UsageProblem(
                [f"completion {shell}: this version of click does not support that shell"]
            )
        complete = kind(app(), {}, NAME, f"_{NAME.replace('-', '_').upper()}_COMPLETE")
        # The method of the base class: that of bash runs bash to check its version, which the
        # script does not need.
        click.echo(shell_completion.ShellComplete.source(complete))

    return click.Command(
        "completion",
        callback=callback,
        params=[click.Argument(["shell"], type=_OneOf(_SHELLS))],
        help="Print a script that completes commands in bash, zsh or fish.",
    )


def _quiet() -> click.Option:
    return click.Option(
        ["-q", "--quiet"],
        is_flag=True,
        help=(
            "Print nothing and do not query the runtime: exit with 0 if the readiness record is"
            " valid, otherwise with 8."
        ),
    )


def _live() -> click.Option:
    return click.Option(
        ["--live"],
        is_flag=True,
        help=(
            "Do not look at the node: exit with 0 if the agent is running and healthy, otherwise"
            " print why not and exit with 8."
        ),
    )


def _kind() -> click.Option:
    return click.Option(["--kind"], required=True)


def _exit_code() -> click.Option:
    return click.Option(
        ["--exit-code"],
        is_flag=True,
        help="Exit with 8 if changes are pending, with 9 if `run` would be refused.",
    )


def _diff() -> click.Option:
    return click.Option(
        ["--diff"],
        type=_OneOf(command_line.CHOICES["diff"]),
        help=(
            "How a file's change is shown. full: as a unified diff with its context, passwords"
            " included; keys: only the keys that change, with secrets masked. [default: full as"
            " text on a terminal, otherwise keys]"
        ),
    )


def _revert() -> click.Option:
    return click.Option(
        ["--revert"], is_flag=True, help="Show what `revert` would change, in place of `run`."
    )


def _output() -> click.Option:
    return click.Option(
        ["-o", "--output"],
        type=_OneOf(command_line.CHOICES["output"]),
        default="text",
        help="The format of the output on stdout.",
    )


def _help_all() -> click.Option:
    def show(ctx: click.Context, _option: click.Parameter, is_given: bool) -> None:  # noqa: FBT001
        if is_given and not ctx.resilient_parsing:
            ctx.meta[_IS_FULL] = True
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit()

    return click.Option(
        ["--help-all"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Show all options with their variables and exit.",
    )


def _option(row: Setting, *, variables: bool = True) -> click.Option:
    metavar = {
        Kind.FLAG: "[=true|false]",
        Kind.LIST: "A,B",
        Kind.SECONDS: "SECONDS",
        Kind.COUNT: "N",
    }.get(row.kind, "|".join(row.choices) or "TEXT")
    by_variable = f" [env: {', '.join(row.variables)}]" if row.variables and variables else ""
    default = row.default
    if isinstance(default, bool):
        default = str(default).lower()
    if isinstance(default, tuple):
        default = ",".join(default)
    shown = f" [default: {default}]" if default not in (None, "") else ""
    text = row.help + (f" For {row.only} only." if row.only else "")
    text += f" Refused if enabled: {row.pending}." if row.pending else ""
    # The option of a list may be repeated, as with the upstream installer.
    repeated: dict[str, Any] = (
        {"multiple": True, "callback": _joined} if row.kind is Kind.LIST else {}
    )
    return click.Option(
        [*row.flags, row.name],
        metavar=metavar,
        help=text + by_variable + shown,
        shell_complete=lambda _context, _option, incomplete: _completed(row, incomplete),
        **repeated,
    )


def _completed(row: Setting, incomplete: str) -> list[CompletionItem]:
    """Return the completions of an incomplete value."""
    from click.shell_completion import CompletionItem  # noqa: PLC0415  # used only by completion

    if any(part in row.name for part in _PATHS) and not row.choices:
        return [CompletionItem(incomplete, type="file")]
    words = ("true", "false") if row.kind is Kind.FLAG else row.choices
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def _joined(
    _context: click.Context, _option: click.Parameter, words: tuple[str, ...]
) -> str | None:
    return ",".join(words) if words else None
