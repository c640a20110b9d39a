"""State of the management CDI specification: its path, whether it is current, what it waits for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from runtimes.dataclass import dataclass
from runtimes.model import fingerprint
from toolkit.artifacts import programs
from toolkit.cdi import driver
from toolkit.node import files
from toolkit.node.host import Host
from toolkit.settings.layout import InstallDir
from toolkit.settings.resolve import Settings
from toolkit.state.record import Record

HOOK: Final = "nvidia-cdi-hook"
PROGRAM: Final = "nvidia-ctk.real"


@dataclass(frozen=True, slots=True, kw_only=True)
class Specification:
    """The desired and the observed state of the specification.

    `path` is the node path of the file, "" if no specification is configured; `local` is its local
    path. `made_of` is a digest of the inputs that it would be generated from now, and `waits_for`
    says what prevents that. `is_current` is whether the file is the one that we generated from
    these inputs. `is_stale` is whether the file that we generated does not belong there any more.
    `content` is the fingerprint of the file.
    """

    path: str = ""
    local: Path = Path()
    made_of: str = ""
    waits_for: str = ""
    is_current: bool = False
    is_stale: bool = False
    content: str = ""

    @property
    def is_lacking(self) -> bool:
        """Return whether the specification is configured but missing or outdated."""
        return bool(self.path) and not self.is_current

    @property
    def is_due(self) -> bool:
        """Return whether the specification has to be generated now."""
        return self.is_lacking and not self.waits_for

    @property
    def needs_nothing(self) -> bool:
        """Return whether there is nothing to do now: it is in sync, or waits for the driver."""
        return not self.is_due and not self.is_stale


NONE: Final = Specification()


def observe(settings: Settings, host: Host, install_dir: Path, record: Record) -> Specification:
    """Return the state of the specification. Raises NodeConfigError if its file cannot be read."""
    owned = record.specification
    if not is_wanted(settings):
        return NONE if owned is None else Specification(is_stale=True)
    local = Path(settings.cdi_output_dir) / f"{settings.cdi_kind.replace('/', '-')}.yaml"
    path = host.node(local)
    snapshot = files.read(local)
    content = fingerprint(snapshot.data if snapshot else None)
    is_ours = owned is not None and owned.path == path
    waits_for = driver.absence(settings, host)
    made_of = "" if waits_for else dependencies(settings, host, install_dir)
    is_as_written = owned is not None and is_ours and owned.written[0] == content
    return Specification(
        path=path,
        local=local,
        made_of=made_of,
        waits_for=waits_for,
        is_current=is_as_written and bool(made_of) and record.specification_source == made_of,
        is_stale=owned is not None and not is_ours,
        content=content,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The node paths of nvidia-ctk and of the CDI hook; `seen` is their local directory."""

    ctk: str
    hook: str
    local: Path


def tools(settings: Settings, host: Host, install_dir: Path) -> Tools:
    """Return the tools that generate a specification: those of our toolkit or the node's own."""
    directory = programs.directory(settings, host, install_dir)
    is_ours = directory == f"{host.node(install_dir)}/toolkit"
    return Tools(
        ctk=f"{directory}/{PROGRAM if is_ours else PROGRAM.removesuffix('.real')}",
        hook=f"{directory}/{HOOK}",
        local=InstallDir(install_dir).toolkit if is_ours else host.seen(directory),
    )


def is_wanted(settings: Settings) -> bool:
    """Return whether a specification is configured."""
    return settings.cdi_enabled and bool(settings.cdi_output_dir)


def wants_nodes(settings: Settings) -> bool:
    """Return whether the driver's device nodes are to be created as well."""
    devices = settings.create_device_nodes
    return bool(devices) and "none" not in devices


def dependencies(settings: Settings, host: Host, install_dir: Path) -> str:
    """Return a digest of all that a specification depends on: settings, tools, driver and devices.

    Returns "" if the driver is not found.
    """
    result = driver.roots(settings, host)
    if result is None:
        return ""
    missing = driver.missing_control_nodes(host, result) if wants_nodes(settings) else ()
    commands = tools(settings, host, install_dir)
    inputs = [
        settings.cdi_kind,
        *result.named,
        commands.hook,
        _stamp(commands.local / Path(commands.ctk).name),
        *(f"without {name}" for name in missing),
        *driver.identity(host, result),
    ]
    return fingerprint(json.dumps(inputs).encode())


def _stamp(program: Path) -> str:
    """Return the size and modification time of a program, which differ between versions.

    An unchanged program keeps both, because a new toolkit version contains it as a hard link.
    """
    try:
        status = program.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"
