"""Validation of settings: values with a syntax of their own, and forbidden combinations."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from runtimes.lazy_pattern import lazy_pattern
from toolkit.settings import defaults
from toolkit.settings.options import SETTINGS

_PATHS: Final = (
    "config", "socket", "toolkit_install_dir", "host_root", "drop_in_config", "readiness_file",
    "env_file", "toolkit_bin_dir", "drop_in_config_host_path", "hooks_dir",
    "driver_root", "driver_root_ctr_path", "dev_root", "dev_root_ctr_path", "cdi_output_dir",
    "nri_socket",
)  # fmt: skip
_KIND: Final = lazy_pattern(
    r"[A-Za-z]([A-Za-z0-9._-]*[A-Za-z0-9])?/[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"
)
_QUALIFIED: Final = lazy_pattern(
    r"(?=[^/]{1,253}/)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/"
    r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
)
"""A name with the DNS subdomain of its owner. Those without one are Kubernetes' or private."""
_OF_KUBERNETES: Final = lazy_pattern(r"([^/]*\.)?(kubernetes|k8s)\.io/")
_CONFIG_KEY: Final = lazy_pattern(r"([a-z][a-z0-9-]*(?:\.[a-z][a-z0-9-]*)*)=")
_CONFIG_OPTIONS: Final = {
    "nvidia-container-cli.root": "--driver-root",
    "features": "--opt-in-features",
}
_CONFIG_PATHS: Final = frozenset(
    {"nvidia-container-cli.path", "nvidia-container-runtime-hook.path", "nvidia-ctk.path"}
)
_QUALIFIED_NAMES: Final = {
    "node_label": "nvidia-toolkit.io/ready",
    "node_condition": "nvidia-toolkit.io/Ready",
}
_PORTS: Final = 65536
_MOST_PLUGINS: Final = 99
_FIXED_NAMES: Final = ("nvidia-cdi", "nvidia-legacy")
"""The names of the handlers that have the same name whatever the runtime class is."""
_NRI: Final = ("nri_plugin_index", "nri_socket", "nri_namespace", "nri_namespaces")
_OF_INSTALLED_TOOLKIT: Final = (
    "toolkit_source_root", "toolkit_package_type", "nvidia_container_runtime_debug",
    "nvidia_container_runtime_log_level", "nvidia_container_runtime_mode", "cdi_default_kind",
    "nvidia_container_runtime_runtimes", "hook_skip_mode_detection", "nvidia_container_cli_debug",
    "accept_envvar_when_unprivileged", "accept_volume_mounts", "opt_in_features", "require_driver",
    "toolkit_config",
)  # fmt: skip


_RESERVED: Final = frozenset({"binaryname", "runtime"})
"""Options that name a handler's program, in lower case. Only the installer sets them."""
_LARGEST: Final = 1 << 63


def read_override(text: str) -> dict[str, Any]:
    """Return the keys of RUNTIME_CONFIG_OVERRIDE, a JSON object.

    Raises ValueError if the text is not a JSON object, sets a reserved key, or contains a value
    that containerd's configuration cannot contain.
    """
    try:
        result = json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error})") from error
    if not isinstance(result, dict):
        raise ValueError("must be a JSON object")  # noqa: TRY004  # the value is wrong, not a type
    _check(result, "")
    options = result.get("options", {})
    reserved = (
        sorted(key for key in options if key.lower() in _RESERVED)
        if isinstance(options, dict)
        else ["options"]
    )
    if reserved:
        raise ValueError(f"{reserved[0]} is set by the installer and cannot be replaced")
    return result


def _refused(word: str) -> float:
    raise ValueError(f"{word} is not a JSON number")


def _check(item: Any, where: str) -> None:
    """Raise ValueError for a value that TOML or a handler of containerd cannot contain.

    `where` is the path of the value's key, with dots.
    """
    if isinstance(item, Mapping):
        for key, below in item.items():
            _check(key, where)
            _check(below, f"{where}.{key}" if where else key)
    elif isinstance(item, list):
        for below in item:
            if isinstance(below, Mapping | list):
                raise ValueError(f"{where} must not contain lists or objects inside a list")  # noqa: TRY004
            _check(below, where)
    elif problem := _scalar_problem(item):
        raise ValueError(f"{where or 'a key'} {problem}")


def _scalar_problem(item: Any) -> str:
    """Return why a value that is no list or object cannot be written to TOML; empty if it can."""
    if item is None:
        return "must not be null"
    if isinstance(item, int) and not -_LARGEST <= item < _LARGEST:
        return "must fit into 64 bits"
    if isinstance(item, str) and any("\ud800" <= c <= "\udfff" for c in item):
        return "contains an unpaired surrogate"
    return ""


def toolkit_config(items: Iterable[str]) -> dict[str, str]:
    """Return the keys and values of --toolkit-config, as text.

    The items were separated by commas: one that does not begin with `KEY=` belongs to the value
    before it. Raises ValueError if the first one does not.
    """
    result: dict[str, str] = {}
    name = ""
    for item in items:
        if match := _CONFIG_KEY.match(item):
            name = match[1]
            result[name] = item[match.end() :]
        elif name:
            result[name] += f",{item}"
        else:
            raise ValueError("must be KEY=VALUE, such as nvidia-container-cli.no-cgroups=true")
    return result


def _of_toolkit_config(values: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[str]:
    """Yield a message for every key of --toolkit-config that has an option of its own."""
    option = origins["toolkit_config"]
    try:
        given = toolkit_config(values["toolkit_config"] or ())
    except ValueError as error:
        from toolkit import redact  # noqa: PLC0415  # Only needed for this message.

        yield f"{option}={redact.text(values['toolkit_config'][0])}: {error}"
        return
    flags = {flag for row in SETTINGS for flag in row.flags} if given else set()
    for name in given:
        own = (
            f"--{name}" if f"--{name}" in flags else _CONFIG_OPTIONS.get(name.partition(".")[0], "")
        )
        own = _CONFIG_OPTIONS.get(name, own)
        if own:
            yield f"{option}={name}: use {own} instead"
        elif name in _CONFIG_PATHS:
            yield f"{option}={name}: is set by the installer and cannot be replaced"


def endpoint(address: str) -> tuple[str, int] | None:
    """Return the host and port of HOST:PORT, [IPV6]:PORT or :PORT (127.0.0.1); else None."""
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


def contradictions(values: Mapping[str, Any], origins: Mapping[str, str]) -> list[str]:
    """Return a message for every value that is invalid, alone or in combination with others."""
    problems = []
    pid_file = values["pid_file"]
    if PurePosixPath(pid_file).name != "toolkit.pid":
        problems.append(
            f"{_named(origins, 'pid_file')}{pid_file}: the file name must be toolkit.pid"
        )
    problems += [
        f"{_named(origins, 'config_source')}{source}: must be command or file"
        for source in values["config_source"]
        if source.split("=", 1)[0].strip() not in ("command", "file")
    ]
    if not values["config_source"]:
        problems.append(f"{_named(origins, 'config_source')}: must name command or file")
    problems += [
        f"{_named(origins, name)}{values[name]}: must be an absolute path"
        for name in _PATHS
        if values[name] and not values[name].startswith("/") and not _is_of_shell(name, origins)
    ]
    problems += _of_drop_ins(values, origins)
    if (address := values["metrics_address"]) and endpoint(address) is None:
        problems.append(f"{_named(origins, 'metrics_address')}{address}: must be HOST:PORT")
    name = values["runtime_class"]
    if any(c.isspace() or c in "\"'\\/" or not c.isprintable() for c in name):
        problems.append(
            f"{_named(origins, 'runtime_class')}{name}: must be a name without spaces, quotes and"
            " slashes"
        )
    problems += [
        f"{_named(origins, name)}{given}: must be PREFIX/NAME, such as {example}, with a prefix"
        " other than kubernetes.io, k8s.io and their subdomains"
        for name, example in _QUALIFIED_NAMES.items()
        if (given := values[name])
        and (not _QUALIFIED.fullmatch(given) or _OF_KUBERNETES.match(given))
    ]
    problems += _of_cdi(values, origins)
    problems += _of_toolkit_config(values, origins)
    if runs_plugin(values) and not values["nri_namespace"].strip():
        problems.append(f"{origins['enable_nri_plugin']}: requires --nri-namespace (NRI_NAMESPACE)")
    return [*problems, *_of_switches(values, origins), *_of_runtimes(values, origins)]


def runs_plugin(values: Mapping[str, Any]) -> bool:
    """Return whether the agent runs the NRI plugin instead of configuring the runtime."""
    return bool(values["enable_nri_plugin"]) and not values["no_daemon"]


def _is_of_shell(name: str, origins: Mapping[str, str]) -> bool:
    """Return whether a path may be relative: the root config's, where a user of `plan` types it.

    A variable comes from a pod, whose working directory is no place of the node.
    """
    return name == "config" and origins[name].startswith("-")


def _of_drop_ins(values: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[str]:
    """Yield a message for every drop-in path that names a directory, which may not exist yet.

    A file of this name would be in the way of all drop-ins. CRI-O reads files of any name.
    """
    for name in ("drop_in_config", "drop_in_config_host_path"):
        path = values[name] or ""
        suffix = PurePosixPath(path).suffix
        needs_suffix = values["runtime"] == "containerd"
        if path.endswith("/") or suffix == ".d" or (path and needs_suffix and not suffix):
            example = PurePosixPath(path) / "99-nvidia.toml"
            yield f"{_named(origins, name)}{path}: must be the path of a file, such as {example}"


def _of_switches(values: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[str]:
    """Yield a message for every invalid combination with --no-install and --no-runtime-config."""
    no_install = values["no_install"]
    if no_install and values["no_runtime_config"]:
        switches = f"{origins['no_install']} and {origins['no_runtime_config']}"
        yield (
            f"{switches}: cannot be combined, nothing would be done; `status` shows the state of"
            " the node"
        )
    if values["toolkit_bin_dir"] and not no_install:
        yield (
            f"{_named(origins, 'toolkit_bin_dir')}{values['toolkit_bin_dir']}: requires"
            " --no-install; without it the toolkit is installed below the install directory"
        )
    if no_install:
        yield from (
            f"{origins[name]}: cannot be used with --no-install, which leaves the toolkit's files"
            " and configuration to the node"
            for name in _OF_INSTALLED_TOOLKIT
            if origins[name].startswith("-")
        )


def _of_runtimes(values: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[str]:
    """Yield a message for every option that is invalid for this runtime or applies to another."""
    for row in SETTINGS:
        is_other = (
            row.only not in {"", values["runtime"]} and values["runtime"] in defaults.BY_RUNTIME
        )
        # A variable that is set to the default is accepted: it may be set for all nodes alike.
        is_meant = origins[row.name].startswith("-") or values[row.name] != row.default
        if is_other and origins[row.name] != "default" and is_meant:
            runtime = values["runtime"]
            yield f"{origins[row.name]}: applies to {row.only} only, but the runtime is {runtime}"
    index = str(values["nri_plugin_index"])
    if not (index.isascii() and index.isdecimal() and int(index[:9]) <= _MOST_PLUGINS):
        yield (
            f"{_named(origins, 'nri_plugin_index')}{index}: must be a whole number between 0 and 99"
        )
    if values["runtime_config_override"] not in {"", "{}"}:
        try:
            read_override(values["runtime_config_override"])
        except ValueError as error:
            yield (
                f"{_named(origins, 'runtime_config_override')}{values['runtime_config_override']}:"
                f" {error}"
            )


def remarks(values: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Yield a log level and a message for every option that is accepted but has no effect."""
    given = {name for name, origin in origins.items() if origin != "default"}
    yield from _of_plugin(values, origins)
    if (name := values["runtime_class"]) in _FIXED_NAMES and not values["set_as_default"]:
        given_as = f"{_named(origins, 'runtime_class')}{name}"
        yield (
            logging.WARNING,
            f"{given_as}: this handler always exists, so nvidia is the main handler",
        )
    if values["runtime"] == "docker" and "drop_in_config" in given and values["drop_in_config"]:
        yield (
            logging.WARNING,
            f"{origins['drop_in_config']} has no effect: docker does not read drop-in files",
        )
    yield from (
        (logging.WARNING, f"{origins['config_source']}={source}: `command` takes no argument")
        for source in values["config_source"]
        if source.strip().startswith("command=")
    )
    if values["no_install"]:
        yield from (
            (
                logging.DEBUG,
                f"{origins[name]} has no effect with --no-install: the node's own toolkit is used",
            )
            for name in _OF_INSTALLED_TOOLKIT
            if name in given
        )


def _of_plugin(values: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Yield a message for options of the NRI plugin without it, and of the runtime with it."""
    if values["enable_nri_plugin"] and values["no_daemon"]:
        what = "the agent runs the plugin, so the runtime is configured instead"
        yield (
            logging.WARNING,
            f"{origins['enable_nri_plugin']} has no effect with --no-daemon: {what}",
        )
    if runs_plugin(values):
        if not values["cdi_enabled"]:
            what = "no specification of the devices is generated; the node needs its own"
            yield logging.WARNING, f"{origins['enable_nri_plugin']} without --cdi-enabled: {what}"
        return
    # On level debug, since the GPU Operator always sets the namespace.
    yield from (
        (logging.DEBUG, f"{origins[name]} has no effect without the NRI plugin")
        for name in _NRI
        if origins[name] != "default"
    )


def _of_cdi(values: Mapping[str, Any], origins: Mapping[str, str]) -> list[str]:
    problems = [
        f"{_named(origins, 'create_device_nodes')}{nodes}: must be control or none"
        for nodes in values["create_device_nodes"]
        if nodes not in ("control", "none")
    ]
    kind = values["cdi_kind"]
    if not _KIND.fullmatch(kind):
        problems.append(f"{_named(origins, 'cdi_kind')}{kind}: must be a CDI kind (VENDOR/CLASS)")
    return problems


def _named(origins: Mapping[str, str], name: str) -> str:
    """Return `OPTION=` for a setting that was given; empty for one that has its default."""
    return "" if origins[name] == "default" else f"{origins[name]}="
