"""The kernel's word that something in a directory changed (inotify(7)): it only shortens a wait.

A watch is no open handle: what is watched can still be unmounted. The three
calls are made through ctypes, since Python has them not and a library for them
would be larger than this room.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Iterator
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


class Watches:
    """The directories that are watched, each with the names in it that matter; none are all of them.

    `fd` can be waited for. Where the kernel has no watches left, it says nothing:
    whoever waits looks now and then as well.
    """

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._add = libc.inotify_add_watch
        self._remove = libc.inotify_rm_watch
        self.fd: int = libc.inotify_init1(_FLAGS)
        self._names: dict[int, frozenset[str] | None] = {}
        self.lost: tuple[str, ...] = ()

    def follow(self, wanted: Iterable[tuple[str, frozenset[str] | None]]) -> None:
        """Watch these directories and no others. Those that cannot be watched are `lost`."""
        if self.fd < 0:
            self.lost = ("anything (the kernel gives no inotify instance)",)
            return
        names: dict[int, frozenset[str] | None] = {}
        lost = []
        for directory, of in wanted:
            number: int = self._add(self.fd, os.fsencode(directory), _WATCHED)
            if number < 0:
                lost.append(f"{directory}: {os.strerror(ctypes.get_errno())}")
                continue
            # Two names of one directory are one watch.
            there = names.get(number, frozenset())
            names[number] = None if of is None or there is None else there | of
        for number in self._names.keys() - names.keys():
            self._remove(self.fd, number)
        self._names, self.lost = names, tuple(lost)

    def changed(self) -> bool:
        """Tell whether something that matters has changed since this was asked last."""
        found = False
        for event in self._events():  # all of them are taken, whatever the first ones say
            found = self._matters(*event) or found
        return found

    def close(self) -> None:
        """Let go of everything."""
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
