"""Where a runtime's socket and root config are seen here, and whether what is named is what it reads.

A DaemonSet may mount some directories of the node under other names and leave out others, which are
then seen below the node's root only: the GPU Operator mounts no socket of CRI-O, and names a root
config of CRI-O, `/etc/crio/config.toml`, that CRI-O does not read.
"""

from __future__ import annotations

import os
from pathlib import Path

from runtimes.adapter import Adapter
from toolkit.errors import UsageProblem
from toolkit.host import Host, same_place
from toolkit.settings import Settings, runtime_default


def socket(settings: Settings, host: Host) -> Path:
    """Return where the runtime's socket is seen: below the node's root where it is not mounted by itself."""
    path = Path(settings.text("socket"))
    if settings.is_given("socket") or host.is_here or os.path.exists(path):
        return path
    below = host.through(str(path))
    return below if below is not None and os.path.exists(below) else path


def config(
    settings: Settings, host: Host, adapter: Adapter, given: str | None, *, is_known: bool = True
) -> Path:
    """Return where the root config is seen: the one that was named, else the one that the daemon names.

    `given` is what the daemon was started with, and `is_known` tells whether there is one. Where it
    reads a whole directory of drop-ins, ours lies there and its root config is only read: then it is
    the one that the daemon reads, whatever was named.
    """
    named = Path(os.path.abspath(settings.text("config")))
    if not settings.is_given("config"):
        return host.seen(given) if given is not None else named
    is_only_read = bool(adapter.directory_flags and settings.text("drop_in_config"))
    is_there = os.path.exists(named) and (host.is_here or not is_known)
    if not is_only_read or (is_there and given is None):
        return named
    read = given or runtime_default(adapter.name, "config")
    node_path = host.node(named, read)
    return host.mapped(str(Path(node_path).parent), named.parent).seen(read)


def unread(host: Host, adapter: Adapter, given: str | None, config: str) -> str:
    """Return why a root config is not the one that the running daemon reads; empty where it may be.

    `config` is its path on the node, `given` what the daemon was started with. Straight on a node,
    where nothing is seen under another name, a daemon that was told nothing is believed to read it.
    """
    read = given or ("" if host.is_here else runtime_default(adapter.name, "config"))
    if not read.startswith("/") or read == config:
        return ""
    seen = host.through(read)
    if seen is None or same_place(host.local(config), seen):
        return ""
    how = f"was started with {read}" if given else f"reads {read}, for it was started with no other"
    return f"{adapter.name} {how}, and {host.local(config)} is another file"


def drop_in(settings: Settings, host: Host, adapter: Adapter) -> str:
    """Return the drop-in as the node names it; the path given for that tells its directory, as upstream."""
    path = Path(settings.text("drop_in_config"))
    if given := settings.text("drop_in_config_host_path"):
        return str(Path(given).parent / path.name)
    return host.node(path, runtime_default(adapter.name, "drop_in_config"))


def check_source(settings: Settings, host: Host, config: Path, binary: str | None) -> None:
    """Refuse a source of the configuration that cannot be used as asked. Raises UsageProblem.

    `config` is where the root config is seen, `binary` who judges a change, if anybody.

    Upstream copies handlers from the first source that can be read. Here they come from what the
    runtime reads, whatever judges; so another file is of no use unless it stands for a binary that
    is there.
    """
    if binary is not None:
        return
    sources = [source.partition("=") for source in settings.items("config_source")]
    kinds = {kind.strip() for kind, _, _ in sources}
    origin = settings.origins["config_source"]
    if "file" not in kinds:
        raise UsageProblem(
            [f"{origin}=command: no program of the runtime that could judge the change is known here"],
            hint="name it with --executable-path, or add `file` to the sources: then the files alone count",
        )
    for kind, _, path in sources:
        other = path.strip()
        if kind.strip() == "file" and other and not _is_same(host, Path(other), config):
            raise UsageProblem(
                [f"{origin}=file={other}: handlers are made from what the runtime reads, which is {config}"],
                hint="name the file that the runtime reads with --config, and leave out `=PATH` here",
            )


def _is_same(host: Host, other: Path, config: Path) -> bool:
    if other == config or str(other) == host.node(config):
        return True
    try:
        return os.path.samefile(other, config)
    except OSError:
        return False
