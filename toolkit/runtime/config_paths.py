"""Paths of the root config and the drop-in on this node, from settings or the running daemon."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import Final

from runtimes import distributions
from runtimes.adapter import Adapter
from runtimes.dataclass import dataclass, replace
from runtimes.distributions import DISTRIBUTIONS, Distribution
from runtimes.model import ConfigDelivery, DeliveryKind
from toolkit.errors import UsageProblem
from toolkit.node import files
from toolkit.node.host import Host, same_place
from toolkit.node.processes import RuntimeProcess
from toolkit.settings.defaults import runtime_default
from toolkit.settings.resolve import Settings

_VARIABLE: Final = {
    "containerd": "CONTAINERD_CONFIG",
    "docker": "DOCKER_CONFIG",
    "crio": "CRIO_CONFIG",
}

# --- paths named by the settings or by the daemon -------------------------------------------------


def find_socket(settings: Settings, host: Host) -> Path:
    """Return the runtime socket's local path: below the node's root unless mounted separately."""
    path = Path(settings.socket)
    if settings.is_given("socket") or host.is_here or os.path.exists(path):
        return path
    below = host.resolve(str(path))
    return below if below is not None and os.path.exists(below) else path


def find_config(
    settings: Settings, host: Host, adapter: Adapter, given: str | None, *, is_known: bool = True
) -> Path:
    """Return the local path of the root config: the configured one, else the one the daemon reads.

    `given` is the root config on the daemon's command line, and `is_known` whether the daemon is
    known. A runtime with a drop-in directory gets its keys there and its root config is only read,
    so the path that the daemon reads is returned even if another one is configured.
    """
    named = Path(os.path.abspath(settings.config))
    if not settings.is_given("config"):
        if given is None and is_known and settings.discovered.get("config"):
            # What was discovered earlier is not what a daemon without that option reads.
            given = runtime_default(adapter.name, "config")
        return host.seen(given) if given is not None else named
    is_only_read = bool(adapter.directory_flags and settings.drop_in_config)
    is_there = os.path.exists(named) and (host.is_here or not is_known)
    if not is_only_read or (is_there and given is None):
        return named
    read = given or runtime_default(adapter.name, "config")
    node_path = host.node(named, read)
    return host.mapped(str(Path(node_path).parent), named.parent).seen(read)


def unread(host: Host, adapter: Adapter, given: str | None, config: str) -> str:
    """Return why a root config is not the one that the running daemon reads, or "" if it may be.

    `config` is its path on the node, `given` the root config on the daemon's command line. On the
    node itself, where paths are not mapped, a daemon without that option is assumed to read
    `config`.
    """
    read = given or ("" if host.is_here else runtime_default(adapter.name, "config"))
    if not read.startswith("/") or read == config:
        return ""
    path = host.resolve(read)
    if path is None or same_place(host.file(config), path):
        return ""
    how = f"was started with {read}" if given else f"reads its default config {read}"
    return f"{host.local(config)} is not the file that {adapter.name} reads: it {how}"


def unread_hint(adapter: Adapter, given: str | None) -> str:
    """Return what to set where the configured root config is not the one that the daemon reads."""
    read = given or runtime_default(adapter.name, "config")
    return (
        f"set {_VARIABLE[adapter.name]}={read} (--config); in a pod, with the directory of that"
        " file mounted writable"
    )


def find_drop_in(settings: Settings, host: Host, adapter: Adapter) -> str:
    """Return the drop-in's path on the node.

    As upstream, only the directory of `drop_in_config_host_path` is used, with the name of the
    drop-in.
    """
    path = Path(settings.drop_in_config)
    if given := settings.drop_in_config_host_path:
        return str(Path(given).parent / path.name)
    return host.node(path, runtime_default(adapter.name, "drop_in_config"))


def check_source(settings: Settings, host: Host, config: Path, binary: str | None) -> None:
    """Raise UsageProblem if a configured `config_source` cannot be used.

    `config` is the local path of the root config, `binary` the program that validates a change, if
    any.

    Upstream copies handlers from the first source that it can read. Here they always come from the
    file that the runtime reads, so another file is rejected unless a binary makes it unnecessary.
    """
    if binary is not None:
        return
    sources = [source.partition("=") for source in settings.config_source]
    kinds = {kind.strip() for kind, _, _ in sources}
    origin = settings.origins["config_source"]
    if "file" not in kinds:
        raise UsageProblem(
            [f"{origin}=command: no runtime binary found that can validate the change"],
            hint="set --executable-path, or add `file` to the sources to rely on the files alone",
        )
    for kind, _, path in sources:
        other = path.strip()
        if kind.strip() == "file" and other and not _is_same(host, Path(other), config):
            raise UsageProblem(
                [
                    (
                        f"{origin}=file={other}: handlers come from the file that the runtime"
                        f" reads, {config}"
                    )
                ],
                hint="set --config to the file that the runtime reads, and leave out `=PATH` here",
            )


def _is_same(host: Host, other: Path, config: Path) -> bool:
    if other == config or str(other) == host.node(config):
        return True
    try:
        return os.path.samefile(other, config)
    except OSError:
        return False


# --- where our keys go ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigPaths:
    """The node paths of the root config and the drop-in, and how the runtime gets our keys.

    `host` maps both to local paths. `drop_in` is empty if only the root config is edited. `note`
    says why the configured root config is not used; empty if it is.
    """

    host: Host
    config: str
    drop_in: str
    delivery: ConfigDelivery
    note: str = ""


def find(
    settings: Settings,
    host: Host,
    adapter: Adapter,
    process: RuntimeProcess | None,
    *,
    config_argument: str | None,
    directory_argument: str | None,
) -> ConfigPaths:
    """Return the files that receive our keys.

    The last two arguments are the root config and the drop-in directory on the daemon's command
    line, None if it has no such option. Raises NodeConfigError if the root config cannot be read.
    """
    if generated := _generated_instead(settings, host, adapter, process, config_argument):
        usual = replace(settings, origins={**settings.origins, "config": "default"})
        paths = find(
            usual,
            host,
            adapter,
            process,
            config_argument=generated[1],
            directory_argument=directory_argument,
        )
        option = f"{settings.by('config')}={_default(adapter, 'config')}"
        return _in_place_of_default(paths, adapter, generated[0], option)
    is_given = settings.is_given("config")
    config = find_config(settings, host, adapter, config_argument, is_known=process is not None)
    configs = [each.config for each in DISTRIBUTIONS if each.runtime == adapter.name]
    node = host.node(
        config,
        *([config_argument] if config_argument else []),
        _default(adapter, "config"),
        *configs,
    )
    distribution = _distribution(settings, host, adapter, process, node, config_argument)
    delivery = distribution.delivery
    if delivery.kind is DeliveryKind.TEMPLATE:
        is_usual = distribution.reads(node)
        if config_argument and not is_given and not is_usual:
            # The daemon was started with a file rendered elsewhere, from the template beside it.
            delivery = replace(delivery, rendered=config_argument)
        is_moved = is_given or (config_argument is not None and not is_usual)
        node, config = _template(distribution, host, node, config, is_given=is_moved)
    if is_given and config_argument != node:
        _refuse_drop_in(settings, adapter, node)
    host = host.mapped(posixpath.dirname(node), config.parent)
    delivery = _effective_delivery(delivery, host, config)
    is_plain = distribution == distributions.plain(adapter.name)
    own = None if is_plain else distribution.relocated(distribution.drop_in, node)
    host, drop_in = _drop_in(settings, host, adapter, process, own, directory_argument)
    others: list[str] = []
    if drop_in and delivery.is_regenerated:
        others = [
            distribution.relocated(path, node)
            for path in (distribution.drop_in, *delivery.drop_ins)
        ]
        others = [path for path in others if path and path != drop_in]
    for path in others:
        host = _with_directory_of(host, path)
    return ConfigPaths(
        host=host, config=node, drop_in=drop_in, delivery=replace(delivery, drop_ins=tuple(others))
    )


def _in_place_of_default(
    paths: ConfigPaths, adapter: Adapter, distribution: Distribution, option: str
) -> ConfigPaths:
    """Return the paths of a distribution whose daemon does not read the default named by `option`.

    If the directory is not writable, no drop-in is desired: the distribution itself adds the
    handlers.
    """
    name = distribution.name
    note = (
        f"{option} is the default of {adapter.name}, which {name} does not read: it generates"
        f" {paths.config}"
    )
    if not files.immutable_reason(paths.host.file(paths.config)):
        return replace(paths, note=note)
    note += (
        f", whose directory is not writable here, so {name} itself adds the handlers that it knows;"
        f" to add all of them, set {_VARIABLE[adapter.name]}={paths.config}"
    )
    return replace(paths, drop_in="", delivery=replace(paths.delivery, drop_ins=()), note=note)


def _generated_instead(
    settings: Settings,
    host: Host,
    adapter: Adapter,
    process: RuntimeProcess | None,
    config_argument: str | None,
) -> tuple[Distribution, str] | None:
    """Return the distribution whose root config is not the configured default, and its path.

    The GPU Operator names and mounts the default root config if only the socket is set, which is
    all that RKE2's documentation asks for. None if the settings name another file, or if the daemon
    reads the default.
    """
    default = _default(adapter, "config")
    given = Path(os.path.abspath(settings.config))
    if not settings.is_given("config") or host.node(given, default) != default:
        return None
    rows = [
        row
        for row in DISTRIBUTIONS
        if row.runtime == adapter.name and row.delivery.kind is DeliveryKind.AUTO_DETECTED
    ]
    socket = host.node(Path(settings.socket), *(path for row in rows for path in row.sockets))
    if process is None:
        there = ((row, host.resolve(row.config)) for row in rows if socket in row.sockets)
        return next(
            ((row, row.config) for row, path in there if path is not None and path.exists()), None
        )
    found = distributions.of(
        adapter.name,
        executable=process.executable,
        config=config_argument or "",
        unit=process.unit or "",
        socket=socket,
    )
    config = config_argument or found.config
    return (found, config) if found in rows and config != default else None


def _refuse_drop_in(settings: Settings, adapter: Adapter, config: str) -> None:
    """Raise UsageProblem if the configured root config is in a directory of drop-ins."""
    if not settings.no_runtime_config and posixpath.dirname(config).endswith(".d"):
        given = f"{settings.by('config')}={settings.config}"
        raise UsageProblem(
            [f"{given}: this is a drop-in, not the main configuration file of {adapter.name}"],
            hint=f"set RUNTIME_DROP_IN_CONFIG={settings.config} instead",
        )


def _drop_in(
    settings: Settings,
    host: Host,
    adapter: Adapter,
    process: RuntimeProcess | None,
    own: str | None,
    directory_argument: str | None,
) -> tuple[Host, str]:
    """Return the drop-in's path on the node, empty if none, and the host with its directory.

    `own` is the path that a distribution has for it; None without a distribution.
    """
    is_given = settings.is_given("drop_in_config")
    drop_in = ""
    if directory_argument is not None and not is_given:
        # The daemon reads a directory other than the default one.
        drop_in = f"{directory_argument.rstrip('/')}/{Path(settings.drop_in_config).name}"
    elif own is not None and not is_given:
        drop_in = own
    elif process is not None and settings.discovered.get("drop_in_config") and not is_given:
        # What was discovered earlier is not what a daemon without that option reads.
        drop_in = _default(adapter, "drop_in_config")
    elif settings.drop_in_config:
        drop_in = find_drop_in(settings, host, adapter)
        return (
            host.mapped(posixpath.dirname(drop_in), Path(settings.drop_in_config).parent),
            drop_in,
        )
    return _with_directory_of(host, drop_in), drop_in


def _distribution(
    settings: Settings,
    host: Host,
    adapter: Adapter,
    process: RuntimeProcess | None,
    config: str,
    daemon_config: str | None,
) -> Distribution:
    """Return the distribution whose root config this is.

    A distribution's daemon may also be configured with a file that it does not read; that file
    belongs to the plain runtime.
    """
    executable, unit = (process.executable, process.unit or "") if process is not None else ("", "")
    socket = host.node(
        Path(settings.socket), *(path for row in DISTRIBUTIONS for path in row.sockets)
    )
    distribution = distributions.of(
        adapter.name, executable=executable, config=config, unit=unit, socket=socket
    )
    is_read = distribution.reads(config) or distribution.reads_elsewhere(config)
    if is_read or config == daemon_config:
        return distribution
    return distributions.plain(adapter.name)


def _template(
    distribution: Distribution, host: Host, node: str, config: Path, *, is_given: bool
) -> tuple[str, Path]:
    """Return the template's node path, which must survive distribution updates, and local path."""
    if not is_given:
        return distribution.config, host.seen(distribution.config)
    name = posixpath.basename(distribution.config)
    return f"{posixpath.dirname(node)}/{name}", config.with_name(name)


def _effective_delivery(delivery: ConfigDelivery, host: Host, config: Path) -> ConfigDelivery:
    """Return the delivery, or a plain file's if the root config lacks the distribution's mark.

    Without the mark a person maintains the file, and the distribution does not generate it.
    """
    snapshot = files.read(host.target(config)) if delivery.mark else None
    if snapshot is None or snapshot.data.startswith(delivery.mark.encode()):
        return delivery
    return ConfigDelivery(imports=False)


def _with_directory_of(host: Host, path: str) -> Host:
    """Return the host with a mapping for the directory of a file."""
    return host.mapped(posixpath.dirname(path), host.seen(path).parent) if path else host


def _default(adapter: Adapter, name: str) -> str:
    return runtime_default(adapter.name, name)
