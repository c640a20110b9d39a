"""Resolution of the settings: command line, then environment variables, then defaults.

Of the variables of a setting the first one that is set is used. A default may depend on the
runtime. A path such as `CONTAINERD_CONFIG` is used only if the runtime is containerd. Variables
that mean the same for every runtime, such as `CONTAINERD_SET_AS_DEFAULT`, are used after those of
the runtime itself.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from runtimes.dataclass import dataclass, field, replace
from toolkit.errors import Contradiction, UsageProblem
from toolkit.settings import checks, defaults
from toolkit.settings.layout import RunDir
from toolkit.settings.options import SETTINGS, Kind, Setting
from toolkit.settings.values import Values

_MAY_BE_EMPTY: Final = frozenset({"drop_in_config", "cdi_output_dir", "create_device_nodes"})
_OF_ANY_RUNTIME: Final = frozenset({"runtime_class", "set_as_default"})
"""Settings whose variables for another runtime are used, as upstream does: they are not paths."""
_SOCKETS: Final = frozenset({"socket", "nri_socket"})
TRUE: Final = frozenset({"true", "t", "1", "yes", "on"})
_DAY: Final = 86400
FALSE: Final = frozenset({"false", "f", "0", "no", "off"})

_KINDS: Final = tuple((row.name, row.kind) for row in SETTINGS)
_EMPTY: Final[Mapping[Kind, Any]] = MappingProxyType(
    {Kind.FLAG: False, Kind.LIST: (), Kind.SECONDS: 0.0, Kind.COUNT: 0, Kind.VALUE: ""}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Values):
    """A value for each row of the table, and the option or variable that each value comes from.

    `remarks` are log levels and messages about options that have no effect. `found` holds the
    values that were detected on the node: the runtime, and its paths if they are not the usual
    ones. `contradictions` are conflicts between the settings and the node: if there are any,
    commands may inspect the node but not change it.
    """

    values: Mapping[str, Any]
    origins: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    remarks: tuple[tuple[int, str], ...] = ()
    discovered: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    contradictions: tuple[Contradiction, ...] = ()

    if not TYPE_CHECKING:  # mypy takes the names and types from Values

        def __getattr__(self, name):
            try:
                return self.values[name]
            except KeyError:
                raise AttributeError(name) from None

    @property
    def readiness(self) -> Path:
        """Return the path of the readiness record."""
        path = self.readiness_file
        return Path(path) if path else RunDir.of(self.pid_file).readiness

    @property
    def runs_plugin(self) -> bool:
        """Return whether the agent runs the NRI plugin; the runtime is not configured then."""
        return checks.runs_plugin(self.values)

    def with_runtime_config(self) -> Settings:
        """Return the settings with the runtime managed although the agent runs the NRI plugin."""
        if self.origins["no_runtime_config"] != self.origins["enable_nri_plugin"]:
            return self
        return replace(self, values=MappingProxyType({**self.values, "no_runtime_config": False}))

    def is_given(self, name: str) -> bool:
        """Return whether a setting was given as an option or variable."""
        return self.origins[name] != "default"

    def by(self, name: str) -> str:
        """Return the option or variable that a setting comes from; its option if not given."""
        return self.origins[name] if self.is_given(name) else f"--{name.replace('_', '-')}"


def resolve(
    options: Mapping[str, str],
    environment: Mapping[str, str],
    result: Mapping[str, str] | None = None,
) -> Settings:
    """Return the settings for options (by row name) and environment variables.

    `result` holds the values that were detected on the node. They replace defaults, and the runtime
    `auto`. Raises UsageProblem, which lists every invalid value.
    """
    result = result or {}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    runtime = defaults.AUTO
    for row in SETTINGS:
        text, origin = _source(row, options, environment, runtime)
        if row.name == "runtime" and text == defaults.AUTO:
            text = None
        values[row.name], origins[row.name] = (
            result.get(row.name, defaults.default(row, runtime)),
            "default",
        )
        if text is not None:
            problem = _encoding_problem(text, origin) or _taken(row, text, origin, values)
            origins[row.name] = origin
            problems += [problem] if problem else []
        if row.name == "runtime":
            runtime = str(values["runtime"])
    problems += checks.contradictions(values, origins)
    if problems:
        raise UsageProblem(
            problems, hint="`nvidia-toolkit run --help-all` lists the options and their variables"
        )
    remarks = tuple(checks.remarks(values, origins))
    if checks.runs_plugin(values) and not values["no_runtime_config"]:
        values["no_runtime_config"], origins["no_runtime_config"] = (
            True,
            origins["enable_nri_plugin"],
        )
    return Settings(
        values=MappingProxyType(
            {
                name: _EMPTY[kind] if (value := values[name]) is None else value
                for name, kind in _KINDS
            }
        ),
        origins=MappingProxyType(origins),
        remarks=(*remarks, *_variables_without_effect(environment, origins, runtime)),
        discovered=MappingProxyType(dict(result)),
    )


def _source(
    row: Setting, options: Mapping[str, str], environment: Mapping[str, str], runtime: str
) -> tuple[str | None, str]:
    if row.name in options:
        return options[row.name], row.flags[0]
    for variable in _usable(row, runtime):
        text = environment.get(variable)
        # An empty variable counts as not set, except for settings where empty has a meaning.
        if text is not None and (text or row.name in _MAY_BE_EMPTY):
            return text, variable
        if text is not None and row.kind is Kind.FLAG:
            return "false", variable  # as upstream
    return None, ""


def _encoding_problem(text: str, origin: str) -> str:
    """Return a message if a text is not UTF-8, unlike the files it may be written to; else ""."""
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(text).decode(errors="backslashreplace")
        return f"{origin}={shown}: is not valid UTF-8"
    return ""


def _usable(row: Setting, runtime: str) -> tuple[str, ...]:
    """Return the variables that are used for a runtime, in order of precedence."""
    own = tuple(variable for variable in row.variables if defaults.applies(variable, runtime))
    if row.name not in _OF_ANY_RUNTIME or runtime == defaults.AUTO:
        return own
    return (*own, *(variable for variable in row.variables if variable not in own))


def _variables_without_effect(
    environment: Mapping[str, str], origins: Mapping[str, str], runtime: str
) -> Iterator[tuple[int, str]]:
    """Yield a log level and a message for every variable that is set for another runtime only.

    Where the runtime is detected, it is no warning: the variables may be those of all nodes.
    """
    level = logging.INFO if origins["runtime"] == "default" else logging.WARNING
    for row in SETTINGS if runtime != defaults.AUTO else ():
        if origins[row.name] != "default":
            continue
        usable = _usable(row, runtime)
        for variable in row.variables:
            if variable not in usable and environment.get(variable, "") not in {"", row.default}:
                own = next(
                    (each for each in usable if not defaults.applies(each, defaults.AUTO)), ""
                )
                instead = f"; {own} applies to {runtime}" if own else ""
                yield level, f"{variable} has no effect: the runtime is {runtime}{instead}"


def _taken(row: Setting, text: str, origin: str, values: dict[str, Any]) -> str | None:
    """Parse the text of a setting and store its value in `values`; return a message if invalid."""
    if text or origin not in row.flags:
        return _read(row, text, origin, values)
    if row.empty is None:
        return f"{origin}=: must not be empty; leave it out to use the default"
    return _read(row, row.empty, origin, values)


def _read(row: Setting, text: str, origin: str, values: dict[str, Any]) -> str | None:
    value: Any = _plain(row, text)
    expected = ""
    match row.kind:
        case Kind.FLAG:
            value, expected = _truth(text), "true or false (true/false, 1/0, yes/no, on/off)"
        case Kind.LIST:
            value = tuple(item.strip() for item in text.split(",") if item.strip())
        case Kind.SECONDS:
            value, expected = _seconds(text), f"a number of seconds between 0 and {_DAY}"
        case Kind.COUNT:
            value, expected = _count(text), "a whole number between 0 and 999999999"
        case Kind.VALUE if row.choices and text not in row.choices:
            value, expected = None, f"one of {', '.join(row.choices)}"
        case Kind.VALUE:
            pass
    values[row.name] = value
    if value is None:
        return f"{origin}={text}: must be {expected}{_meant(row, text)}"
    return f"{origin}: {row.pending}" if row.pending and value is True else None


def _meant(row: Setting, text: str) -> str:
    """Return the end of a message about a wrong value: the similar one that is allowed, if any."""
    if not row.choices:
        return ""
    from toolkit import suggest  # noqa: PLC0415  # only needed for a message

    return suggest.did_you_mean(text, row.choices)


def _plain(row: Setting, text: str) -> str:
    """Return a text without the scheme that kubelet's and crictl's options put before a socket."""
    return text.removeprefix("unix://").removeprefix("unix:") if row.name in _SOCKETS else text


def _count(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def _truth(text: str) -> bool | None:
    word = text.lower()
    return word in TRUE if word in TRUE | FALSE else None


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        return None
    return seconds if 0 < seconds < _DAY else None
