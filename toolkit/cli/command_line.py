"""The command line without click: what its words mean, and the command that they name.

click, with what it imports, and the options of all commands take as long as everything else that a
probe does. So the words are read here. Whatever is not plainly correct, and each request for help
or completion, is left to click (`toolkit.cli.parser`), which explains it; what is accepted here
means the same there (`tests/functional/cli/test_command_line.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from runtimes.dataclass import dataclass
from toolkit import log
from toolkit.errors import Answer, UsageProblem
from toolkit.node import trust
from toolkit.settings.layout import RunDir
from toolkit.settings.options import SETTINGS, Kind, LogFormat, Setting
from toolkit.settings.resolve import Settings, resolve

NAME: Final = "nvidia-toolkit"
COMPLETION: Final = "_NVIDIA_TOOLKIT_COMPLETE"
"""The variable by which a shell asks click for completions."""
CONTAINER_FILES: Final = ("/.dockerenv", "/run/.containerenv")
"""Files that Docker and podman create in a container."""
CHOICES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"output": ("text", "json"), "diff": ("full", "keys")}
)
"""The values of the options that a command has besides the settings, if they are few."""
_OUTPUT: Final[Mapping[str, Any]] = MappingProxyType({"output": "text"})
_OWN: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "run": _OUTPUT,
        "plan": {**_OUTPUT, "exit_code": False, "diff": None, "revert": False},
        "revert": _OUTPUT,
        "status": {**_OUTPUT, "exit_code": False, "quiet": False, "live": False},
        "detect": _OUTPUT,
        "diagnose": _OUTPUT,
        "sync": {**_OUTPUT, "kind": None},
    }
)
"""The options that each command has besides the settings, with their defaults."""
_SHORT: Final[Mapping[str, str]] = MappingProxyType({"-o": "--output", "-q": "--quiet"})
_OF_ALL: Final = ("--help", "-h", "--version")
_CONFIG: Final = "config"
_LARGEST: Final = 64 << 20
"""Bytes that are read from standard input at most."""
_OF_ENV_FILE: Final = next(row for row in SETTINGS if row.name == "env_file")


def explicit(arguments: list[str]) -> list[str]:
    """Return arguments with an explicit subcommand and an explicit value for every flag.

    Without a subcommand, `run` is inserted; no argument at all means `--help` at a terminal that is
    no container's. As with the upstream installer, a flag takes its value only behind an equals
    sign, never from the next word (`--set-as-default plan`), and long options may have a single
    dash (`-runtime=docker`).
    """
    if not arguments and _is_person():
        return ["--help"]
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in _OF_ALL):
        arguments = ["run", *arguments]
    known = {flag for row in SETTINGS for flag in row.flags}
    long = {flag: row.flags[0] for row in SETTINGS if row.kind is Kind.FLAG for flag in row.flags}
    words = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        has_one_dash = argument.startswith("-") and flag not in known and f"-{flag}" in known
        word = f"-{argument}" if has_one_dash else argument
        flag = f"-{flag}" if has_one_dash else flag
        if equals and flag in known and not flag.startswith("--") and flag not in long:
            word = (  # click would take the equals sign of `-r=docker` as part of the value
                f"{flag}{value}"
            )
        words.append(f"{long[flag]}={value if equals else 'true'}" if flag in long else word)
    return words


def _is_person() -> bool:
    """Return whether input and output are a terminal of the node itself, not of a container."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    is_container = os.getpid() == 1 or "KUBERNETES_SERVICE_HOST" in os.environ
    return not is_container and not any(map(os.path.exists, CONTAINER_FILES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A command with its options: `options` are those of settings, `extra` those of the command."""

    command: str
    options: Mapping[str, str]
    extra: Mapping[str, Any]


def parse(arguments: Sequence[str]) -> Parsed | None:
    """Return what explicit arguments mean, or None if click has to explain or to answer them."""
    command, *words = arguments
    if command not in _OWN or COMPLETION in os.environ:
        return None
    own = dict(_OWN[command])
    options: dict[str, str] = {}
    rows = {flag: row for row in SETTINGS for flag in row.flags}
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        name = _own_name(flag, own)
        if not equals and isinstance(own.get(name), bool):
            own[name] = True
            continue
        given = value if equals else next(rest, "-")
        # A single dash takes no equals sign, and what begins with a dash is hardly a value.
        if not flag.startswith("--") if equals else given.startswith("-"):
            return None
        if (row := rows.get(flag)) is not None:
            _set(options, row, given)
        elif name and not isinstance(own[name], bool):
            own[name] = given
        else:
            return None
    return Parsed(command=command, options=options, extra=own) if _is_valid(own) else None


def _set(options: dict[str, str], row: Setting, value: str) -> None:
    """Set an option; that of a list may be repeated, as with the upstream installer."""
    is_repeated = row.kind is Kind.LIST and row.name in options
    options[row.name] = f"{options[row.name]},{value}" if is_repeated else value


def _is_valid(own: Mapping[str, Any]) -> bool:
    """Return whether the options of a command itself have values that it takes."""
    are_known = all(own.get(name) in {*values, None} for name, values in CHOICES.items())
    return are_known and own.get("kind", "") is not None


def _own_name(flag: str, own: Mapping[str, Any]) -> str:
    """Return the name of an option that the command itself has; "" if it has no such option."""
    long = _SHORT.get(flag, flag)
    name = long.removeprefix("--").replace("-", "_")
    return name if long.startswith("--") and name in own and "_" not in long else ""


def execute(parsed: Parsed, arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; `arguments` are its words. Raises ToolkitError."""
    options, extra = dict(parsed.options), parsed.extra
    if extra.get("live"):
        return _liveness(options)
    content = _standard_input(parsed.command) if options.get(_CONFIG) == "-" else None
    if content is not None:
        del options[_CONFIG]
    environment = _environment(options)
    settings = resolve(options, environment)
    if os.path.isdir(settings.host_root):
        trust.use_databases_of(Path(settings.host_root))
    if extra.get("quiet"):
        # No other command needs it here.
        from toolkit.state import readiness_probe  # noqa: PLC0415

        return Answer.PENDING if readiness_probe.unready(settings.readiness) else 0
    log_options = _log_options(parsed.command, settings)
    if parsed.command == "sync":
        log.LOGGER.setLevel("DEBUG" if settings.debug else "INFO")
    else:
        log.start(debug=log_options["debug"], as_json=log_options["as_json"])
        _log_remarks(settings)
    # Imported late: the probes above and a usage error do not need these modules and must be fast.
    from toolkit.cli import commands  # noqa: PLC0415

    invocation = commands.Invocation(
        settings=settings,
        options=options,
        environment=environment,
        extra=extra,
        arguments=tuple(arguments),
        log_options=log_options,
        config_content=content,
    )
    return commands.COMMANDS[parsed.command](invocation)


def _standard_input(command: str) -> bytes:
    """Return the root config that is read from standard input. Raises UsageProblem."""
    if command != "plan":
        raise UsageProblem(
            ["--config=-: only `plan` reads a configuration from standard input"],
            hint="name the file, or leave --config out",
        )
    try:
        with open(0, "rb", closefd=False) as stream:
            data = stream.read(_LARGEST + 1)
    except OSError as error:
        raise UsageProblem(
            [f"--config=-: standard input cannot be read: {error.strerror}"],
            hint="nvidia-toolkit plan --config - <FILE",
        ) from error
    if len(data) > _LARGEST:
        raise UsageProblem(
            [f"--config=-: standard input has more than {_LARGEST >> 20} MiB"],
            hint="a configuration is smaller; name its file with --config",
        )
    return data


def _environment(options: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables; those of `--env-file` take precedence."""
    values = [os.environ.get(variable, "") for variable in _OF_ENV_FILE.variables]
    path = options.get(_OF_ENV_FILE.name) or next(filter(None, values), "")
    if not path:
        return dict(os.environ)
    from toolkit.settings import env_file  # noqa: PLC0415  # few nodes have such a file

    return {**os.environ, **env_file.read(Path(path))}


def _log_options(name: str, settings: Settings) -> dict[str, bool]:
    """Return `log.start`'s arguments; --log-format=auto: JSON for an agent without a terminal."""
    wish = settings.log_format
    is_agent = name == "run" and not settings.no_daemon
    as_json = wish == LogFormat.JSON or (
        wish == LogFormat.AUTO and is_agent and not sys.stderr.isatty()
    )
    return {"debug": settings.debug, "as_json": as_json}


def _log_remarks(settings: Settings) -> None:
    """Log the options that have no effect and, with --debug, the origin of every value."""
    for level, remark in settings.remarks:
        log.LOGGER.log(level, "%s", remark)
    if settings.debug:
        from toolkit import redact  # noqa: PLC0415

        for name, origin in settings.origins.items():
            if origin != "default":
                log.LOGGER.debug("%s: %s", origin, redact.text(str(settings.values[name])))


def _liveness(options: Mapping[str, str]) -> int:
    """Print why the agent is not healthy, if it is not; return the exit code.

    Only the PID file is resolved. The agent keeps running when settings become invalid, for example
    by an edit of `--env-file`, so they must not make the probe fail.
    """
    from toolkit.state import liveness  # noqa: PLC0415  # no other command needs it here

    try:
        environment = _environment(options)
    except UsageProblem:
        environment = dict(os.environ)
    row = next(row for row in SETTINGS if row.name == "pid_file")
    settings = resolve(
        {name: value for name, value in options.items() if name == row.name},
        {name: value for name, value in environment.items() if name in row.variables},
    )
    problem = liveness.unhealthy(RunDir.of(settings.pid_file).agent)
    if problem:
        log.write(sys.stderr, f"not alive: {problem}\n")
    return Answer.PENDING if problem else 0
