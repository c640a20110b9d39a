"""What was asked: from the command line, else from the first variable that is set, else the default.

A default may depend on the runtime, and a variable such as `CONTAINERD_CONFIG`
counts only where the runtime is containerd.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, Final

from toolkit.errors import UsageProblem
from toolkit.options import SETTINGS, Kind, Setting

TRUE: Final = frozenset({"true", "1", "yes", "on"})
_DAY: Final = 86400
FALSE: Final = frozenset({"false", "0", "no", "off"})
_PREFIXES: Final = MappingProxyType({"containerd": "CONTAINERD_", "docker": "DOCKER_", "crio": "CRIO_"})
_BY_RUNTIME: Final = MappingProxyType(
    {
        "containerd": {
            "config": "/etc/containerd/config.toml",
            "drop_in_config": "/etc/containerd/conf.d/99-nvidia.toml",
            "socket": "/run/containerd/containerd.sock",
        },
        "docker": {
            "config": "/etc/docker/daemon.json",
            "drop_in_config": "",
            "socket": "/var/run/docker.sock",
        },
        "crio": {
            "config": "/etc/crio/crio.conf",
            "drop_in_config": "/etc/crio/crio.conf.d/99-nvidia.toml",
            "socket": "/var/run/crio/crio.sock",
        },
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What was asked: a value for each row of the table, and where each comes from."""

    values: Mapping[str, Any]
    origins: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def text(self, name: str) -> str:
        """Return a setting that is a text; empty where it has no value."""
        return str(self.values[name] or "")

    def flag(self, name: str) -> bool:
        """Return a setting that is a flag."""
        return bool(self.values[name])

    def items(self, name: str) -> tuple[str, ...]:
        """Return a setting that is a list."""
        return tuple(self.values[name] or ())

    def seconds(self, name: str) -> float:
        """Return a setting that is a time in seconds."""
        return float(self.values[name])

    def is_given(self, name: str) -> bool:
        """Tell whether a setting was given rather than left at its default."""
        return self.origins[name] != "default"


def resolve(options: Mapping[str, str], environment: Mapping[str, str]) -> Settings:
    """Return the settings for the options given (by row name) and the variables set.

    Raises UsageProblem that lists everything wrong with them at once.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    runtime = "docker"
    for row in SETTINGS:
        text, origin = _source(row, options, environment, runtime)
        values[row.name], origins[row.name] = _default(row, runtime), "default"
        if text is not None:
            problem = _read(row, text, origin, values)
            origins[row.name] = origin
            problems += [problem] if problem else []
        if row.name == "runtime":
            runtime = str(values["runtime"])
    problems += _contradictions(values, origins)
    if problems:
        raise UsageProblem(problems, hint="`nvidia-toolkit --help` lists the options and their variables")
    return Settings(values=MappingProxyType(values), origins=MappingProxyType(origins))


def runtime_default(runtime: str, name: str) -> str:
    """Return the default of a setting that depends on the runtime."""
    return _BY_RUNTIME[runtime][name]


def applies(variable: str, runtime: str) -> bool:
    """Tell whether a variable counts for a runtime: `CONTAINERD_*` only for containerd, and so on."""
    return not any(variable.startswith(prefix) for other, prefix in _PREFIXES.items() if other != runtime)


def _source(
    row: Setting, options: Mapping[str, str], environment: Mapping[str, str], runtime: str
) -> tuple[str | None, str]:
    if row.name in options:
        return options[row.name], row.flags[0]
    for variable in row.variables:
        text = environment.get(variable)
        # An empty variable is one that is not set, except where empty has a meaning.
        if applies(variable, runtime) and text is not None and (text or row.name == "drop_in_config"):
            return text, variable
    return None, ""


def _default(row: Setting, runtime: str) -> Any:
    if row.default is None:
        return _BY_RUNTIME.get(runtime, _BY_RUNTIME["docker"]).get(row.name)
    return row.default


def _read(row: Setting, text: str, origin: str, values: dict[str, Any]) -> str | None:
    match row.kind:
        case Kind.FLAG:
            values[row.name] = _truth(text)
            if values[row.name] is None:
                return f"{origin}={text}: this is neither true nor false (true/false, 1/0, yes/no, on/off)"
        case Kind.LIST:
            values[row.name] = tuple(item.strip() for item in text.split(",") if item.strip())
        case Kind.SECONDS:
            values[row.name] = _seconds(text)
            if values[row.name] is None:
                return f"{origin}={text}: this is no number of seconds between 0 and {_DAY}"
        case Kind.VALUE if row.choices and text not in row.choices:
            return f"{origin}={text}: this is none of {', '.join(row.choices)}"
        case Kind.VALUE:
            values[row.name] = text
    return f"{origin}: {row.pending}" if row.pending and values[row.name] is True else None


def _truth(text: str) -> bool | None:
    word = text.lower()
    return word in TRUE if word in TRUE | FALSE else None


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        return None
    return seconds if 0 < seconds < _DAY else None


def _contradictions(values: Mapping[str, Any], origins: Mapping[str, str]) -> list[str]:
    problems = []
    pid_file = values["pid_file"]
    if PurePosixPath(pid_file).name != "toolkit.pid":
        problems.append(f"{_named(origins, 'pid_file')}{pid_file}: the file must be called toolkit.pid")
    problems += [
        f"{_named(origins, 'config_source')}{source}: this is neither command nor file"
        for source in values["config_source"]
        if source.split("=", 1)[0].strip() not in ("command", "file")
    ]
    problems += [
        f"{_named(origins, name)}{values[name]}: this is no absolute path"
        for name in ("socket", "toolkit_install_dir", "host_root", "drop_in_config")
        if values[name] and not values[name].startswith("/")
    ]
    name = values["runtime_class"]
    if not name or any(c.isspace() or c in "\"'\\/" or not c.isprintable() for c in name):
        problems.append(f"{_named(origins, 'runtime_class')}{name}: this is no name of a handler")
    if values["runtime"] != "containerd":
        problems += [
            f"{origins[only]}: this is an option for containerd, but the runtime is {values['runtime']}"
            for only in ("use_legacy_config", "runtime_type")
            if origins[only].startswith("--")
        ]
    return problems


def _named(origins: Mapping[str, str], name: str) -> str:
    return "" if origins[name] == "default" else f"{origins[name]}="
