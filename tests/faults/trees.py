"""What lies on a node: read whole, compared by kind, mode, owner and content."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

TOOLKIT: Final = "usr/local/nvidia/toolkit"
MEMORY: Final = "usr/local/nvidia/.nvidia-toolkit/"
STATE: Final = f"{MEMORY}state.json"
CONFIG: Final = "etc/containerd/config.toml"
DROP_IN: Final = "etc/containerd/conf.d/99-nvidia.toml"
NOTES: Final = ("run/toolkit.pid", "run/ready.json", "run/restarts.json", "run/answers.json")
"""What is of one boot only and names PIDs and times."""
READY: Final = "run/ready.json"


class Item(NamedTuple):
    """A file, a directory or a link, whose target is its data."""

    mode: int
    owner: tuple[int, int]
    data: bytes


Tree: TypeAlias = Mapping[str, Item]


def read(root: Path) -> dict[str, Item]:
    """Return everything below a directory but for sockets."""
    found: dict[str, Item] = {}
    _read(str(root), "", found)
    return found


def _read(directory: str, prefix: str, found: dict[str, Item]) -> None:
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISSOCK(status.st_mode):
                continue
            data = b""
            if stat.S_ISREG(status.st_mode):
                with open(entry.path, "rb", buffering=0) as stream:
                    data = stream.read()
            elif stat.S_ISLNK(status.st_mode):
                data = os.readlink(os.fsencode(entry.path))
            name = prefix + entry.name
            found[name] = Item(status.st_mode, (status.st_uid, status.st_gid), data)
            if stat.S_ISDIR(status.st_mode):
                _read(entry.path, f"{name}/", found)


def settled(tree: Tree) -> dict[str, Item]:
    """Return a tree without what differs between runs: notes of one boot, times in the record."""
    found = {name: item for name, item in tree.items() if name not in NOTES}
    if STATE in found:
        found[STATE] = found[STATE]._replace(data=_timeless(found[STATE].data))
    return found


def _timeless(record: bytes) -> bytes:
    try:
        content = json.loads(record)
    except ValueError:
        return record
    for each in (content, (content.get("open") or {}).get("previous", {})):
        each.pop("sequence", None)
        if pending := each.get("pending_reload"):
            pending |= {"since": 0, "uptime": pending["uptime"] is not None}
    return json.dumps(content, sort_keys=True).encode()


def differences(tree: Tree, wanted: Tree) -> list[str]:
    """Return where a tree is not as wanted, in words."""
    one, other = settled(tree), settled(wanted)
    found = [f"{name} is there" for name in one.keys() - other.keys()]
    found += [f"{name} is missing" for name in other.keys() - one.keys()]
    found += [
        f"{name} differs in {_how(one[name], other[name])}"
        for name in one.keys() & other.keys()
        if one[name] != other[name]
    ]
    return sorted(found)


def _how(one: Item, other: Item) -> str:
    named = zip(("mode", "owner", "content"), one, other, strict=True)
    return " and ".join(name for name, a, b in named if a != b)


def key(tree: Tree, *more: object) -> str:
    """Return a hash of everything that lies there, whatever the times are."""
    notes = [len(tree[name].data) > 0 if name in tree else None for name in NOTES[:2]]
    text = repr((sorted(settled(tree).items()), notes, more))
    return hashlib.sha256(text.encode()).hexdigest()


def without_partial(tree: Tree) -> Tree:
    """Return a tree in which a version that is being written is empty."""
    return {name: item for name, item in tree.items() if ".partial/" not in name}


def below(tree: Tree, directory: str) -> dict[str, Item] | None:
    """Return what a directory, or a link's target, holds by relative names; None without one."""
    item = tree.get(directory)
    if item is not None and stat.S_ISLNK(item.mode):
        directory = os.path.normpath(
            os.path.join(os.path.dirname(directory), os.fsdecode(item.data))
        )
        item = tree.get(directory)
    if item is None or not stat.S_ISDIR(item.mode):
        return None
    prefix = f"{directory}/"
    return {
        name.removeprefix(prefix): each for name, each in tree.items() if name.startswith(prefix)
    }


def traces(root: Path, ignored: Iterable[str]) -> dict[str, tuple[int, int, int]]:
    """Return inode, mtime and ctime of everything below a directory; every touch changes them."""
    skipped = set(ignored)
    found = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if name not in skipped:
            status = path.lstat()
            found[name] = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    return found
