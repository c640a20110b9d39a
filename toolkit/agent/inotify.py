"""Watches on directories with inotify(7). They only make the agent notice a change earlier.

A watch holds no open file, so a watched file system can still be unmounted. The three system calls
are made through ctypes: the standard library lacks them, and a package would be larger than this
module.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

_FLAGS: Final = os.O_CLOEXEC | os.O_NONBLOCK
_ATTRIB, _CLOSE_WRITE = 0x4, 0x8
_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _UNMOUNT, _Q_OVERFLOW, _IGNORED = 0x400, 0x800, 0x2000, 0x4000, 0x8000
_ONLYDIR: Final = 0x1000000
_WITHIN: Final = _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
_WATCHED: Final = _WITHIN | _DELETE_SELF | _MOVE_SELF | _ONLYDIR
_OF_ITSELF: Final = _DELETE_SELF | _MOVE_SELF | _UNMOUNT | _Q_OVERFLOW
_EVENT: Final = struct.Struct("iIII")
_BUFFER: Final = 16384


_SHOWN: Final = 3
_REMEDIES: Final = {
    errno.ENOSPC: (
        "the limit of inotify watches is reached (raise the sysctl fs.inotify.max_user_watches)"
    ),
    errno.EMFILE: (
        "the limit of inotify instances is reached (raise the sysctl fs.inotify.max_user_instances)"
    ),
}


def changed_since(
    seconds: float, directories: Mapping[str, Iterable[str] | None], without: str
) -> bool:
    """Return whether a name that matters in a directory changed after a time of day.

    Its status change is what counts, which no user can set back; for a name that does not exist,
    that of the directory. `without` is a path that does not matter. A directory that is gone has
    changed.
    """
    try:
        for directory, names in directories.items():
            within = os.listdir(directory) if names is None else names
            paths = [os.path.join(directory, name) for name in within]
            if any(_changed(path) > seconds for path in paths if path != without):
                return True
            if names is None and os.stat(directory).st_ctime > seconds:
                return True
    except OSError:
        return True
    return False


def _changed(path: str) -> float:
    """Return when a file changed; if it does not exist, when its directory did. Raises OSError."""
    try:
        return os.lstat(path).st_ctime
    except FileNotFoundError:
        return os.stat(os.path.dirname(path)).st_ctime


class Watches:
    """The watched directories, each with the names in it that matter; None for all names.

    `fd` can be polled; it is negative while the kernel gives no inotify instance. `lost` are the
    directories that cannot be watched, each with the error number, for example because a limit of
    the kernel is reached. The caller checks periodically as well.
    """

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._init = libc.inotify_init1
        self._add = libc.inotify_add_watch
        self._remove = libc.inotify_rm_watch
        self.fd = -1
        self._names: dict[int, frozenset[str] | None] = {}
        self.lost: dict[str, int] = {}

    def follow(self, wanted: Iterable[tuple[str, frozenset[str] | None]]) -> None:
        """Watch these directories and no others; those that cannot be watched become `lost`.

        Every call tries to watch all of them, so that a limit that was raised is used.
        """
        directories = dict(wanted)
        if self.fd < 0 and directories:
            self.fd = self._init(_FLAGS)
        if self.fd < 0:
            self.lost = dict.fromkeys(directories, ctypes.get_errno())
            return
        names: dict[int, frozenset[str] | None] = {}
        self.lost = self._watch(directories, names)
        unused = self._names.keys() - names.keys()
        for number in unused:
            self._remove(self.fd, number)
        if unused and self.lost:  # the watches that were removed may have been the ones that lacked
            self.lost = self._watch({path: directories[path] for path in self.lost}, names)
        self._names = names

    def _watch(
        self, directories: dict[str, frozenset[str] | None], names: dict[int, frozenset[str] | None]
    ) -> dict[str, int]:
        """Add watches, and the names in them to `names`; return the unwatchable directories."""
        lost = {}
        for directory, of in directories.items():
            number: int = self._add(self.fd, os.fsencode(directory), _WATCHED)
            if number < 0:
                lost[directory] = ctypes.get_errno()
                continue
            # The kernel returns the same watch for two paths of one directory.
            known = names.get(number, frozenset())
            names[number] = None if of is None or known is None else known | of
        return lost

    def problems(self) -> list[str]:
        """Return what cannot be watched, why, and the remedy: one message per kind of error."""
        result = []
        for number in dict.fromkeys(self.lost.values()):
            paths = [path for path, each in self.lost.items() if each == number]
            shown = ", ".join(paths[:_SHOWN])
            more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
            why = _REMEDIES.get(number) or os.strerror(number)
            result.append(f"cannot watch {shown}{more}: {why}")
        return result

    def changed(self) -> bool:
        """Return whether a name that matters has changed since the last call."""
        result = False
        for event in self._events():  # reads all pending events, also after the first match
            result = self._matters(*event) or result
        return result

    def close(self) -> None:
        """Close the inotify instance and with it all watches."""
        if self.fd >= 0:
            os.close(self.fd)

    def _matters(self, number: int, mask: int, name: str) -> bool:
        if mask & _OF_ITSELF:
            return True
        if mask & _IGNORED or number not in self._names:
            return False
        names = self._names[number]
        return names is None or name in names or not name

    def _events(self) -> Iterator[tuple[int, int, str]]:
        while self.fd >= 0:
            try:
                data = os.read(self.fd, _BUFFER)
            except BlockingIOError:
                return
            at = 0
            while at < len(data):
                number, mask, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size
                yield number, mask, os.fsdecode(data[at : at + length].rstrip(b"\0"))
                at += length
