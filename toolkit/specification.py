"""The management CDI specification: where it belongs, whether it is as it should be, what it waits for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtimes.model import fingerprint
from toolkit import driver, files, programs
from toolkit.host import Host
from toolkit.memory import Record
from toolkit.settings import Settings

HOOK: Final = "nvidia-cdi-hook"
PROGRAM: Final = "nvidia-ctk.real"


@dataclass(frozen=True, slots=True, kw_only=True)
class Specification:
    """What is wanted of a specification and what is there; `path` is empty where none is wanted.

    `path` is the file as the node names it, `local` as we do. `made_of` names
    what it would be made of now, `waits_for` what keeps it from being made.
    `is_current` tells that the file is there as we made it of just that, and
    `is_stale` that the one we made is not wanted there any more.
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
        """Tell whether one is wanted that is not there as it should be."""
        return bool(self.path) and not self.is_current

    @property
    def is_due(self) -> bool:
        """Tell whether one has to be made now."""
        return self.is_lacking and not self.waits_for

    @property
    def is_settled(self) -> bool:
        """Tell whether nothing can be done about it: it is as wanted, or it waits."""
        return not self.is_due and not self.is_stale


NONE: Final = Specification()


def look(settings: Settings, host: Host, install_dir: Path, record: Record) -> Specification:
    """Return how the specification stands. Raises NodeNotUnderstood where what is there cannot be read."""
    owned = record.specification
    if not is_wanted(settings):
        return NONE if owned is None else Specification(is_stale=True)
    local = Path(settings.text("cdi_output_dir")) / f"{settings.text('cdi_kind').replace('/', '-')}.yaml"
    path = host.node(local)
    seen = files.read(local)
    content = fingerprint(seen.data if seen else None)
    is_ours = owned is not None and owned.path == path
    waits_for = driver.absence(settings, host)
    made_of = "" if waits_for else mark(settings, host, install_dir)
    is_as_written = owned is not None and is_ours and owned.written[0] == content
    return Specification(
        path=path,
        local=local,
        made_of=made_of,
        waits_for=waits_for,
        is_current=is_as_written and bool(made_of) and record.made_of == made_of,
        is_stale=owned is not None and not is_ours,
        content=content,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """nvidia-ctk and the hook that it shall name, as the node names them; `seen` is their directory here."""

    ctk: str
    hook: str
    seen: Path


def tools(settings: Settings, host: Host, install_dir: Path) -> Tools:
    """Return what makes a specification: of our toolkit, or of the one that the node brings."""
    directory = programs.directory(settings, host, install_dir)
    is_ours = directory == f"{host.node(install_dir)}/toolkit"
    return Tools(
        ctk=f"{directory}/{PROGRAM if is_ours else PROGRAM.removesuffix('.real')}",
        hook=f"{directory}/{HOOK}",
        seen=install_dir / "toolkit" if is_ours else host.seen(directory),
    )


def is_wanted(settings: Settings) -> bool:
    """Tell whether a specification is wanted."""
    return settings.flag("cdi_enabled") and bool(settings.text("cdi_output_dir"))


def wants_nodes(settings: Settings) -> bool:
    """Tell whether device nodes are to be made with it."""
    asked = settings.items("create_device_nodes")
    return bool(asked) and "none" not in asked


def mark(settings: Settings, host: Host, install_dir: Path) -> str:
    """Return what names everything that a specification is made of: the driver, its devices, our words."""
    found = driver.roots(settings, host)
    if found is None:
        return ""
    missing = driver.missing_control_nodes(found) if wants_nodes(settings) else ()
    found_tools = tools(settings, host, install_dir)
    words = [
        settings.text("cdi_kind"),
        *found.named,
        found_tools.hook,
        _stamp(found_tools.seen / Path(found_tools.ctk).name),
        *(f"without {name}" for name in missing),
        *driver.traits(host, found),
    ]
    return fingerprint(json.dumps(words).encode())


def _stamp(program: Path) -> str:
    """Return what tells one version of a program from another: one that stayed the same is a hard link."""
    try:
        status = program.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"
