"""The record of a node: the files that were changed, the open transaction, the pending reload."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from runtimes.dataclass import dataclass
from runtimes.model import Edit, Effective

UNTOLD: Final = Effective()


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """A file that this program changed or created.

    `path` is the path on the node, `local` the path that this program used. `original` is the
    SHA-256 of the original content; None if the file did not exist. `written` holds the hash of the
    content that was written last and, as long as a write is not confirmed, those of earlier writes.
    `label` is the SELinux label and `attributes` are the extended attributes, both in base64; None
    if unknown.
    """

    path: str
    local: str
    original: str | None
    mode: int
    uid: int
    gid: int
    label: str | None
    written: tuple[str, ...]
    edits: tuple[Edit, ...]
    attributes: tuple[tuple[str, str], ...] | None = None


class Operation(StrEnum):
    """The purpose of a transaction."""

    INSTALL = "install"
    REVERT = "revert"


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The state of the runtime before a transaction, used to detect regressions.

    `has` is the effective configuration of the running daemon, `files` that of its configuration
    files. `identity` identifies the runtime's binary and its files without owned keys, `boot` the
    boot, for which the baseline is valid. `dependents` are the units that ran and depend on the
    runtime's.
    """

    has: Effective = UNTOLD
    files: Effective = UNTOLD
    was_healthy: bool = True
    supports_cri: bool = False
    has_network: bool = False
    identity: str = ""
    boot: str = ""
    dependents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """A transaction that is not committed, with everything that its rollback needs.

    `previous` is the record before the transaction. `files` are the files that it changes, each
    with its state before. `notified` is set if the runtime may have read the change. `failure` is
    set if the change failed and is being rolled back: the reason.
    """

    operation: Operation
    previous: Record
    baseline: Baseline
    files: tuple[Owned, ...] = ()
    notified: bool = False
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingReload:
    """A change that was or may have been written, and that the runtime may not have loaded yet.

    `since` is the time of the change in seconds since the epoch. `uptime` is the same time in
    seconds since the boot `boot_id`; None as long as the files are not known to be written.
    `process` is the daemon that ran at that time: its PID, and its start in clock ticks since boot;
    None if unknown.
    """

    since: float
    process: tuple[int, int | None] | None = None
    boot_id: str = ""
    uptime: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The record of everything that this program changed on a node.

    `sequence` counts the writes of the record. `restarting` is set while a run stops or restarts
    the runtime. `directories` are the directories that were created, outermost first.
    `toolkit_digest` identifies the installed version of the toolkit. `displaced` is the path that a
    foreign directory at the toolkit's path was moved to. `unit` is the systemd service of the
    runtime. `location` holds the node paths at which the runtime was found, by setting, if they are
    not the usual ones. `specification` is the generated CDI specification, `specification_source`
    identifies its input. `open` is the open transaction; None if there is none.
    """

    sequence: int = 0
    runtime: str = ""
    pending_reload: PendingReload | None = None
    restarting: bool = False
    owned: tuple[Owned, ...] = ()
    directories: tuple[str, ...] = ()
    toolkit_digest: str | None = None
    displaced: str | None = None
    unit: str | None = None
    location: tuple[tuple[str, str], ...] = ()
    specification: Owned | None = None
    specification_source: str = ""
    open: Transaction | None = None

    @property
    def is_empty(self) -> bool:
        """Return whether nothing of this program is on the node."""
        has_files = bool(self.owned) or self.specification is not None
        return not has_files and self.toolkit_digest is None and not self.directories
