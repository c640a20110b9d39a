"""What was asked: from the command line, else from the first variable that is set, else the default.

A default may depend on the runtime, and a variable such as `CONTAINERD_CONFIG`
counts only where the runtime is containerd.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Final

from toolkit import override
from toolkit.errors import Contradiction, UsageProblem
from toolkit.options import SETTINGS, Kind, Setting

_PATHS: Final = (
    "socket", "toolkit_install_dir", "host_root", "drop_in_config", "readiness_file", "env_file",
    "toolkit_bin_dir", "drop_in_config_host_path", "hooks_dir",
    "driver_root", "driver_root_ctr_path", "dev_root", "dev_root_ctr_path", "cdi_output_dir",
)  # fmt: skip
_MAY_BE_EMPTY: Final = frozenset({"drop_in_config", "cdi_output_dir", "create_device_nodes"})
_KIND: Final = re.compile(r"[A-Za-z]([A-Za-z0-9._-]*[A-Za-z0-9])?/[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
AUTO: Final = "auto"
"""The runtime of settings for which nobody has looked at the node yet."""
TRUE: Final = frozenset({"true", "t", "1", "yes", "on"})
_DAY: Final = 86400
_PORTS: Final = 65536
_MOST_PLUGINS: Final = 99
FALSE: Final = frozenset({"false", "f", "0", "no", "off"})
_NRI: Final = ("nri_plugin_index", "nri_socket", "nri_namespace", "nri_namespaces")
_OF_OUR_TOOLKIT: Final = (
    "toolkit_source_root", "toolkit_package_type", "nvidia_container_runtime_debug",
    "nvidia_container_runtime_log_level", "nvidia_container_runtime_mode", "cdi_default_kind",
    "nvidia_container_runtime_runtimes", "hook_skip_mode_detection", "nvidia_container_cli_debug",
    "accept_envvar_when_unprivileged", "accept_volume_mounts", "opt_in_features", "require_driver",
)  # fmt: skip
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
    """What was asked: a value for each row of the table, and where each comes from.

    `remarks` say, each with its level, what was given and is of no effect here.
    `found` holds what the node itself said where nobody asked for something else: the
    runtime, and its paths where they are not the usual ones. `against` is what speaks
    against these settings: with it a node may be looked at, but not changed.
    """

    values: Mapping[str, Any]
    origins: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    remarks: tuple[tuple[int, str], ...] = ()
    found: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    against: tuple[Contradiction, ...] = ()

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

    def count(self, name: str) -> int:
        """Return a setting that is a number of things."""
        return int(self.values[name])

    @property
    def readiness(self) -> Path:
        """Return where the readiness record lies."""
        given = self.text("readiness_file")
        return Path(given) if given else Path(self.text("pid_file")).with_name("ready.json")

    def is_given(self, name: str) -> bool:
        """Tell whether a setting was given rather than left at its default."""
        return self.origins[name] != "default"

    def by(self, name: str) -> str:
        """Return the option or variable that gave a setting; its option where none did."""
        return self.origins[name] if self.is_given(name) else f"--{name.replace('_', '-')}"


def resolve(
    options: Mapping[str, str], environment: Mapping[str, str], found: Mapping[str, str] | None = None
) -> Settings:
    """Return the settings for the options given (by row name) and the variables set.

    `found` is what the node said: it stands in the place of defaults, and of a
    runtime that is `auto`. Raises UsageProblem that lists everything wrong with
    them at once.
    """
    found = found or {}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    runtime = AUTO
    for row in SETTINGS:
        text, origin = _source(row, options, environment, runtime)
        if row.name == "runtime" and text == AUTO:
            text = None
        values[row.name], origins[row.name] = found.get(row.name, _default(row, runtime)), "default"
        if text is not None:
            problem = _taken(row, text, origin, values)
            origins[row.name] = origin
            problems += [problem] if problem else []
        if row.name == "runtime":
            runtime = str(values["runtime"])
    problems += _contradictions(values, origins)
    if problems:
        raise UsageProblem(problems, hint="`nvidia-toolkit --help` lists the options and their variables")
    return Settings(
        values=MappingProxyType(values),
        origins=MappingProxyType(origins),
        remarks=tuple(_remarks(values, origins)),
        found=MappingProxyType(dict(found)),
    )


def runtime_default(runtime: str, name: str) -> str:
    """Return the default of a setting that depends on the runtime."""
    return _BY_RUNTIME[runtime][name]


def applies(variable: str, runtime: str) -> bool:
    """Tell whether a variable counts for a runtime: `CONTAINERD_*` only for containerd, and so on."""
    return not any(variable.startswith(prefix) for other, prefix in _PREFIXES.items() if other != runtime)


def endpoint(address: str) -> tuple[str, int] | None:
    """Return the host and port of HOST:PORT, [IPV6]:PORT or :PORT (of this host alone); None for others."""
    host, colon, port = address.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if is_bracketed else host
    is_number = port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) < _PORTS
    if (
        not colon
        or not is_number
        or not re.fullmatch("[0-9A-Za-z.:%_-]*", host)
        or (":" in host) != is_bracketed
    ):
        return None
    return host or "127.0.0.1", int(port)


def _source(
    row: Setting, options: Mapping[str, str], environment: Mapping[str, str], runtime: str
) -> tuple[str | None, str]:
    if row.name in options:
        return options[row.name], row.flags[0]
    for variable in row.variables:
        text = environment.get(variable)
        # An empty variable is one that is not set, except where empty has a meaning.
        if applies(variable, runtime) and text is not None and (text or row.name in _MAY_BE_EMPTY):
            return text, variable
    return None, ""


def _default(row: Setting, runtime: str) -> Any:
    if row.default is None:
        return _BY_RUNTIME.get(runtime, {}).get(row.name)
    return row.default


def _taken(row: Setting, text: str, origin: str, values: dict[str, Any]) -> str | None:
    """Take a text for a setting's value; return what is wrong with it."""
    if text or origin not in row.flags:
        return _read(row, text, origin, values)
    if row.empty is None:
        return f"{origin}=: this is empty; leave it out for its default"
    return _read(row, row.empty, origin, values)


def _read(row: Setting, text: str, origin: str, values: dict[str, Any]) -> str | None:
    value: Any = text
    what = ""
    match row.kind:
        case Kind.FLAG:
            value, what = _truth(text), "neither true nor false (true/false, 1/0, yes/no, on/off)"
        case Kind.LIST:
            value = tuple(item.strip() for item in text.split(",") if item.strip())
        case Kind.SECONDS:
            value, what = _seconds(text), f"no number of seconds between 0 and {_DAY}"
        case Kind.COUNT:
            value, what = _count(text), "no whole number between 0 and 999999999"
        case Kind.VALUE if row.choices and text not in row.choices:
            value, what = None, f"none of {', '.join(row.choices)}"
        case Kind.VALUE:
            pass
    values[row.name] = value
    if value is None:
        return f"{origin}={text}: this is {what}"
    return f"{origin}: {row.pending}" if row.pending and value is True else None


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
    if not values["config_source"]:
        problems.append(f"{_named(origins, 'config_source')}: this names neither command nor file")
    problems += [
        f"{_named(origins, name)}{values[name]}: this is no absolute path"
        for name in _PATHS
        if values[name] and not values[name].startswith("/")
    ]
    if (address := values["metrics_address"]) and endpoint(address) is None:
        problems.append(f"{_named(origins, 'metrics_address')}{address}: this is not HOST:PORT")
    name = values["runtime_class"]
    if any(c.isspace() or c in "\"'\\/" or not c.isprintable() for c in name):
        problems.append(f"{_named(origins, 'runtime_class')}{name}: this is no name of a handler")
    problems += _of_cdi(values, origins)
    return [*problems, *_of_switches(values, origins), *_of_runtimes(values, origins)]


def _of_switches(values: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[str]:
    """Yield, in words, where the switches leave nothing to do, or nothing to an option."""
    bare = values["no_install"]
    if bare and values["no_runtime_config"]:
        switches = f"{origins['no_install']} and {origins['no_runtime_config']}"
        yield f"{switches}: together they leave nothing to do; `status` looks without changing anything"
    if values["toolkit_bin_dir"] and not bare:
        yield (
            f"{_named(origins, 'toolkit_bin_dir')}{values['toolkit_bin_dir']}: this is for --no-install;"
            " what is installed lies below the install directory"
        )
    if bare:
        yield from (
            f"{origins[name]}: with --no-install the toolkit's own files and configuration are the node's"
            for name in _OF_OUR_TOOLKIT
            if origins[name].startswith("-")
        )


def _of_runtimes(values: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[str]:
    """Yield, in words, what is wrong for this runtime, or is for another one."""
    for row in SETTINGS:
        is_other = row.only not in {"", values["runtime"]} and values["runtime"] in _BY_RUNTIME
        # A variable may be set for all nodes, to what is the default anyway.
        is_meant = origins[row.name].startswith("-") or values[row.name] != row.default
        if is_other and origins[row.name] != "default" and is_meant:
            runtime = values["runtime"]
            yield f"{origins[row.name]}: this is an option for {row.only}, but the runtime is {runtime}"
    index = str(values["nri_plugin_index"])
    if not (index.isascii() and index.isdecimal() and int(index[:9]) <= _MOST_PLUGINS):
        yield f"{_named(origins, 'nri_plugin_index')}{index}: this is no whole number between 0 and 99"
    if values["runtime_config_override"] not in {"", "{}"}:
        try:
            override.read(values["runtime_config_override"])
        except ValueError as error:
            yield f"{_named(origins, 'runtime_config_override')}{values['runtime_config_override']}: {error}"


def _remarks(values: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Yield what was given and is of no effect here, as with the upstream installer."""
    given = {name for name, origin in origins.items() if origin != "default"}
    # The GPU Operator always sets the namespace.
    yield from (
        (logging.DEBUG, f"{origins[name]} is of no effect without the NRI plugin")
        for name in _NRI
        if name in given
    )
    if values["runtime"] == "docker" and "drop_in_config" in given and values["drop_in_config"]:
        yield logging.WARNING, f"{origins['drop_in_config']} is of no effect: docker reads no drop-ins"
    yield from (
        (logging.WARNING, f"{origins['config_source']}={source}: the command takes no argument")
        for source in values["config_source"]
        if source.strip().startswith("command=")
    )
    if values["no_install"]:
        yield from (
            (logging.DEBUG, f"{origins[name]} is of no effect with --no-install: the toolkit is the node's")
            for name in _OF_OUR_TOOLKIT
            if name in given
        )


def _of_cdi(values: Mapping[str, Any], origins: Mapping[str, str]) -> list[str]:
    problems = [
        f"{_named(origins, 'create_device_nodes')}{nodes}: this is neither control nor none"
        for nodes in values["create_device_nodes"]
        if nodes not in ("control", "none")
    ]
    kind = values["cdi_kind"]
    if not _KIND.fullmatch(kind):
        problems.append(f"{_named(origins, 'cdi_kind')}{kind}: this is no kind of CDI devices (VENDOR/CLASS)")
    return problems


def _named(origins: Mapping[str, str], name: str) -> str:
    return "" if origins[name] == "default" else f"{origins[name]}="
