"""Which files hold our keys on this node: the root config and the drop-in, by the daemon's word."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, replace
from pathlib import Path

from runtimes import distributions
from runtimes.adapter import Adapter
from runtimes.distributions import DISTRIBUTIONS, Distribution
from runtimes.model import Reach, ReachKind
from toolkit import files, whereabouts
from toolkit.host import Host
from toolkit.owner import Owner
from toolkit.settings import Settings, runtime_default


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The root config and the drop-in as the node names them, and how our keys reach what is effective.

    `host` knows where both are seen here.
    """

    host: Host
    config: str
    drop_in: str
    reach: Reach


def find(
    settings: Settings,
    host: Host,
    adapter: Adapter,
    found: Owner | None,
    *,
    told: str | None,
    told_directory: str | None,
) -> Places:
    """Return where our keys go.

    `told` and `told_directory` are the root config and the directory of drop-ins that the daemon was
    started with, where its command line says so. Raises StepFailed for a root config that cannot be read.
    """
    is_given = settings.is_given("config")
    config = whereabouts.config(settings, host, adapter, told, is_known=found is not None)
    rows = [row.config for row in DISTRIBUTIONS if row.runtime == adapter.name]
    node = host.node(config, *([told] if told else []), _default(adapter, "config"), *rows)
    row = _row(adapter, found, node, told)
    if row.reach.kind is ReachKind.TEMPLATE:
        node, config = _template(row, host, node, config, is_given=is_given)
    host = host.mapped(posixpath.dirname(node), config.parent)
    reach = _read_as_it_is(row.reach, config)
    drop_in = ""
    if told_directory is not None and not settings.is_given("drop_in_config"):
        # The daemon reads another directory than the usual one.
        drop_in = f"{told_directory.rstrip('/')}/{Path(settings.text('drop_in_config')).name}"
        host = _seen(host, drop_in)
    elif row != distributions.plain(adapter.name) and not settings.is_given("drop_in_config"):
        drop_in = _beside(row, row.drop_in, node)
        host = _seen(host, drop_in)
    elif settings.text("drop_in_config"):
        given = Path(settings.text("drop_in_config"))
        drop_in = whereabouts.drop_in(settings, host, adapter)
        host = host.mapped(posixpath.dirname(drop_in), given.parent)
    others = [_beside(row, path, node) for path in (row.drop_in, *reach.drop_ins)] if drop_in else []
    others = [path for path in others if path and path != drop_in] if reach.is_made_anew else []
    for path in others:
        host = _seen(host, path)
    return Places(host=host, config=node, drop_in=drop_in, reach=replace(reach, drop_ins=tuple(others)))


def _row(adapter: Adapter, found: Owner | None, config: str, told: str | None) -> Distribution:
    """Return whose root config it is; a distribution's daemon may be given another one than it reads."""
    executable, unit = (found.executable, found.unit or "") if found is not None else ("", "")
    row = distributions.of(adapter.name, executable=executable, config=config, unit=unit)
    if row.reads(config) or config == told:
        return row
    return distributions.plain(adapter.name)


def _template(row: Distribution, host: Host, node: str, config: Path, *, is_given: bool) -> tuple[str, Path]:
    """Return the template, by the name that stays when the distribution is updated, and where it is seen."""
    if not is_given:
        return row.config, host.seen(row.config)
    name = posixpath.basename(row.config)
    return f"{posixpath.dirname(node)}/{name}", config.with_name(name)


def _read_as_it_is(reach: Reach, config: Path) -> Reach:
    """Return the reach, or that of a root config which a person has taken over from the distribution."""
    seen = files.read(config) if reach.mark else None
    if seen is None or seen.data.startswith(reach.mark.encode()):
        return reach
    return Reach(imports=False)


def _beside(row: Distribution, path: str, config: str) -> str:
    """Return a path of a row where the root config is at another place than the row has it."""
    if not path or config == row.config or row.reach.kind is ReachKind.TEMPLATE:
        return path
    relative = posixpath.relpath(path, posixpath.dirname(row.config))
    return posixpath.normpath(posixpath.join(posixpath.dirname(config), relative))


def _seen(host: Host, path: str) -> Host:
    """Return the host that knows where a file's directory is seen here."""
    return host.mapped(posixpath.dirname(path), host.seen(path).parent) if path else host


def _default(adapter: Adapter, name: str) -> str:
    return runtime_default(adapter.name, name)
