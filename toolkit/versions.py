"""Versions of the toolkit side by side on the node, and the one atomic switch between them.

`ROOT/toolkit` is a link to `ROOT/.toolkit-versions/DIGEST`. A version is
written completely and made durable before the link moves, so no path that a
runtime could execute is ever missing or half written. A plain directory that
another installer left at `ROOT/toolkit` is exchanged with the link in one step
and kept, to be put back on revert.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import psutil

from toolkit import files
from toolkit.artifacts import Entry, Version, is_same
from toolkit.errors import StepFailed

VERSIONS: Final = ".toolkit-versions"
BEFORE: Final = ".toolkit-before"
_RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100


def install(version: Version, install_dir: Path) -> None:
    """Write a version and switch to it.

    Raises StepFailed; then the version that was there is there still.
    """
    target = install_dir / VERSIONS / version.digest
    files.make_directory(install_dir)
    files.make_directory(target.parent)
    _sweep(target.parent)
    try:
        if not all(is_same(target / entry.name, entry) for entry in version.entries):
            _write(version, target, previous=install_dir / "toolkit")
        _switch(install_dir, version.digest)
    except OSError as error:
        raise StepFailed(f"{target} cannot be written: {error.strerror}") from error
    _forget_others(install_dir, version.digest)


def in_the_way(install_dir: Path) -> str | None:
    """Return where what stands at `ROOT/toolkit` and is not ours will be kept; None where nothing does."""
    kept = install_dir / BEFORE
    return str(kept) if _is_foreign(kept) or _is_foreign(install_dir / "toolkit") else None


def _is_foreign(link: Path) -> bool:
    if link.is_symlink():
        return not os.readlink(link).startswith(f"{VERSIONS}/")
    return os.path.lexists(link)


def remove(install_dir: Path, replaced: Path | None) -> None:
    """Take the toolkit away; put back the plain directory that was there before us. Raises StepFailed."""
    link = install_dir / "toolkit"
    try:
        is_ours = os.path.lexists(link) and not _is_foreign(link)
        if replaced is not None and _is_foreign(replaced) and not _is_foreign(link):
            if is_ours:
                _exchange(replaced, link)
                os.unlink(replaced)
            else:
                os.rename(replaced, link)
            files.sync(install_dir)
        elif is_ours:
            os.unlink(link)
            files.sync(install_dir)
        if replaced is not None and replaced.is_symlink() and not _is_foreign(replaced):
            os.unlink(replaced)  # ours, left by a kill right after the exchange
        shutil.rmtree(install_dir / VERSIONS, ignore_errors=True)
    except OSError as error:
        raise StepFailed(f"{link} cannot be removed: {error.strerror}") from error


def _write(version: Version, target: Path, *, previous: Path) -> None:
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    directories = [partial]
    files.make_directory(partial)
    for entry in version.entries:
        place = partial / entry.name
        directories += files.missing_directories(place.parent)
        files.make_directory(place.parent)
        _write_entry(entry, place, previous / entry.name)
    for directory in reversed(directories):
        files.sync(directory)
    if target.is_dir():  # damaged: nothing runs from it that the link names unless it is the current one
        spare = target.with_name(target.name + ".damaged")
        shutil.rmtree(spare, ignore_errors=True)
        _exchange(partial, target)
        os.rename(partial, spare)
    else:
        os.rename(partial, target)
    files.sync(target.parent)


def _write_entry(entry: Entry, place: Path, previous: Path) -> None:
    if isinstance(entry.content, str):
        os.symlink(entry.content, place)
        return
    if is_same(previous, entry):
        try:
            os.link(os.path.realpath(previous), place)  # the same file is not written twice
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP):
                raise
        else:
            return
    fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb", closefd=True) as stream:
        if isinstance(entry.content, bytes):
            stream.write(entry.content)
        else:
            _copy(entry.content, fd)
        stream.flush()
        files.dress(fd, mode=entry.mode, owner=None, selinux=files.label(previous))
        os.fsync(fd)


def _copy(source: Path, fd: int) -> None:
    """Copy a file's content inside the kernel where it can do that."""
    with open(source, "rb") as stream:
        left = os.fstat(stream.fileno()).st_size
        try:
            while left > 0:
                done = os.copy_file_range(stream.fileno(), fd, left)
                if done == 0:
                    break
                left -= done
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        if left > 0:
            with open(os.dup(fd), "wb") as out:
                shutil.copyfileobj(stream, out, 1 << 20)


def _switch(install_dir: Path, digest: str) -> None:
    link = install_dir / "toolkit"
    target = f"{VERSIONS}/{digest}"
    if link.is_symlink() and os.readlink(link) == target:
        return
    foreign = _is_foreign(link)
    kept = install_dir / BEFORE
    # A link of ours at the keeping place was left by a kill; only a foreign thing is kept.
    spare = install_dir / ".toolkit-next" if not foreign or _is_foreign(kept) else kept
    _clear(spare)
    os.symlink(target, spare)
    if foreign:
        _exchange(spare, link)
        if spare != kept:  # the oldest one is kept already; this one came after us
            _clear(spare)
    else:
        os.rename(spare, link)
    files.sync(install_dir)


def _clear(path: Path) -> None:
    """Remove whatever a killed switch left at a name of ours."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _exchange(one: Path, other: Path) -> None:
    """Swap two names in one step (renameat2 with RENAME_EXCHANGE, Linux 3.15)."""
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    if done != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one))


def _sweep(versions: Path) -> None:
    """Remove what a killed install left half written."""
    for leftover in versions.iterdir():
        if leftover.name.endswith((".partial", ".damaged")):
            shutil.rmtree(leftover, ignore_errors=True)


def _forget_others(install_dir: Path, digest: str) -> None:
    """Remove versions that nothing runs from, but for the newest: a wrapper may be under way in it."""
    versions = install_dir / VERSIONS
    others = [v for v in versions.iterdir() if v.name != digest and v.is_dir()]
    others.sort(key=lambda version: version.stat().st_mtime_ns, reverse=True)
    for version in others[1:]:
        if not _runs_from(version):
            shutil.rmtree(version, ignore_errors=True)


def _runs_from(version: Path) -> bool:
    inodes = {(s.st_dev, s.st_ino) for s in _stats(version.rglob("*"))}
    running = _stats(Path(f"/proc/{pid}/exe") for pid in psutil.pids())
    return any((s.st_dev, s.st_ino) in inodes for s in running)


def _stats(paths: Iterable[Path]) -> Iterator[os.stat_result]:
    for path in paths:
        with contextlib.suppress(OSError):
            yield os.stat(path)
