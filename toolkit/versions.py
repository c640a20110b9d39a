"""Versions of the toolkit side by side on the node, and the one atomic switch between them.

`ROOT/toolkit` is a link to `ROOT/.toolkit-versions/DIGEST`. A version is
written completely and made durable before the link moves, so no path that a
runtime could execute is ever missing or half written. A plain directory that
another installer left at `ROOT/toolkit` is exchanged with the link in one step
and kept, to be put back on revert.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from toolkit import files, log, process
from toolkit.artifacts import VERSIONS, Entry, Version, is_same, named
from toolkit.errors import StepFailed
from toolkit.files import Dress
from toolkit.host import Host
from toolkit.log import LOGGER

BEFORE: Final = ".toolkit-before"
_NEXT: Final = ".toolkit-next"
_RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100
_ANSWERS: Final = "nvidia-ctk.real"
_TRIAL: Final = 10.0


def install(version: Version, install_dir: Path, host: Host, *, like: str = "") -> None:
    """Write a version, see that it is whole and runs, and switch to it.

    `like` is a program of the node whose SELinux label new files get. Raises
    StepFailed; then the version that was there is there still.
    """
    target = install_dir / VERSIONS / version.digest
    files.make_directory(install_dir)
    files.make_directory(target.parent)
    _sweep(target.parent)
    try:
        if not _is_whole(version, target):
            found = host.executable(like) if like else None
            _write(
                version,
                target,
                previous=install_dir / "toolkit",
                label=files.label(host.below(found)) if found else None,
            )
            if not _is_whole(version, target):
                raise StepFailed(f"{target} does not hold what was written: is its disk well?")
        _run(target, host)
        _switch(install_dir, version.digest)
    except OSError as error:
        raise StepFailed(f"{target} cannot be written: {error.strerror}") from error


def go_back(install_dir: Path, digest: str | None, failed: str | None, replaced: Path | None) -> str | None:
    """Switch from a version that `failed` to the one before, and remove it; return which is there then.

    `digest` is the one before; None where there was none of ours. Where somebody
    removed it meanwhile, the newer one stays, which is better than none. Raises StepFailed.
    """
    if digest is None:
        remove(install_dir, replaced)
        return None
    link = install_dir / "toolkit"
    is_ours = link.is_symlink() and not _is_foreign(link)
    # Where the way led to the version from before, a killed run may have left the link at another one.
    if failed in {None, digest} and not (is_ours and os.readlink(link) != f"{VERSIONS}/{digest}"):
        return digest
    before = install_dir / VERSIONS / digest
    if not before.is_dir():
        if is_ours and link.is_dir():
            LOGGER.warning("%s, the version from before, is gone, so the newer one stays", before)
            return named(link)
        raise StepFailed(f"{before}, the version from before, is gone")
    try:
        _switch(install_dir, digest)
    except OSError as error:
        raise StepFailed(f"{link} cannot be switched: {error.strerror}") from error
    _sweep(install_dir / VERSIONS)
    if failed is not None and failed != digest:
        shutil.rmtree(install_dir / VERSIONS / failed, ignore_errors=True)
    return digest


def room_needed(version: Version, install_dir: Path) -> int:
    """Return how many bytes a version takes beside those that are there (links cost nothing)."""
    missing = [e for e in version.entries if not is_same(install_dir / "toolkit" / e.name, e)]
    return sum(e.content.stat().st_size if isinstance(e.content, Path) else len(e.content) for e in missing)


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
        if (install_dir / _NEXT).is_symlink():
            os.unlink(install_dir / _NEXT)  # left by a kill right before a switch
        if (install_dir / VERSIONS).is_dir():
            shutil.rmtree(install_dir / VERSIONS)
    except OSError as error:
        raise StepFailed(f"{link} cannot be removed: {error.strerror}", hint="run revert again") from error


def _is_whole(version: Version, target: Path) -> bool:
    return all(is_same(target / entry.name, entry) for entry in version.entries)


def _run(target: Path, host: Host) -> None:
    """See that the version runs on this node: one of its programs is asked for its own version.

    It is run where the node runs it, with the node's loader and libraries.
    Raises StepFailed.
    """
    node_path = f"{host.node(target)}/{_ANSWERS}"
    if not host.is_here and not host.below(node_path).exists():
        LOGGER.debug("%s is not seen below %s, so it is not tried", node_path, host.root)
        return
    if not host.is_here and os.geteuid() != 0:
        return
    result = process.run([node_path, "--version"], root=host.root, timeout=_TRIAL)
    if not result.ok:
        raise StepFailed(
            f"the new `{_ANSWERS} --version` does not run on this node (exit {result.code}): {result.err}",
            hint="is the toolkit for this node's architecture and C library?",
        )


def _write(version: Version, target: Path, *, previous: Path, label: bytes | None) -> None:
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    directories = [partial]
    files.make_directory(partial)
    with contextlib.ExitStack() as kept_open:
        written = []
        for number, entry in enumerate(version.entries):
            log.beat(f", {number} of {len(version.entries)} files")
            place = partial / entry.name
            directories += files.missing_directories(place.parent)
            files.make_directory(place.parent)
            fd = _write_entry(entry, place, previous / entry.name, label)
            if fd is not None:
                kept_open.callback(os.close, fd)
                written.append(fd)
        # Only now: the disk has written the first ones while the others were copied.
        for fd in written:
            os.fsync(fd)
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


def _write_entry(entry: Entry, place: Path, previous: Path, label: bytes | None) -> int | None:
    """Write an entry; return the descriptor of what has to be synced still, None where nothing has."""
    if isinstance(entry.content, str):
        os.symlink(entry.content, place)
        return None
    if is_same(previous, entry):
        try:
            os.link(os.path.realpath(previous), place)  # the same file is not written twice
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP):
                raise
        else:
            return None
    fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if isinstance(entry.content, bytes):
            with open(fd, "wb", closefd=False) as stream:
                stream.write(entry.content)
        else:
            _copy(entry.content, fd)
        files.put_on(fd, Dress(mode=entry.mode, selinux=files.label(previous) or label))
        with contextlib.suppress(OSError):  # it begins to write, and does not wait
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    except BaseException:
        os.close(fd)
        raise
    return fd


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
    spare = install_dir / _NEXT if not foreign or _is_foreign(kept) else kept
    _clear(spare)
    os.symlink(target, spare)
    try:
        if foreign:
            _exchange(spare, link)
        else:
            os.rename(spare, link)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(spare)
        raise
    if foreign and spare != kept:  # the oldest one is kept already; this one came after us
        _clear(spare)
    files.sync(install_dir)


def _clear(path: Path) -> None:
    """Remove whatever a killed switch left at a name of ours."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _exchange(one: Path, other: Path) -> None:
    """Swap two names in one step (renameat2 with RENAME_EXCHANGE, Linux 3.15)."""
    import ctypes  # noqa: PLC0415  # only where another installer was here before

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


def tidy(install_dir: Path, digest: str, before: str | None = None) -> None:
    """Remove versions that nothing runs from, but for the one `before`: a wrapper may be under way in it.

    Where that is not known, or the same, it is the newest. What cannot be removed stays.
    """
    with contextlib.suppress(OSError):
        _tidy(install_dir / VERSIONS, digest, before)


def _tidy(versions: Path, digest: str, before: str | None) -> None:
    _sweep(versions)
    others = [v for v in versions.iterdir() if v.name != digest and v.is_dir()]
    others.sort(key=lambda version: (version.name == before, version.stat().st_mtime_ns), reverse=True)
    for version in others[1:]:
        if not _runs_from(version):
            shutil.rmtree(version, ignore_errors=True)


def _runs_from(version: Path) -> bool:
    inodes = {(s.st_dev, s.st_ino) for s in _stats(version.rglob("*"))}
    import psutil  # noqa: PLC0415  # only where a version goes

    running = _stats(Path(f"/proc/{pid}/exe") for pid in psutil.pids())
    return any((s.st_dev, s.st_ino) in inodes for s in running)


def _stats(paths: Iterable[Path]) -> Iterator[os.stat_result]:
    for path in paths:
        with contextlib.suppress(OSError):
            yield os.stat(path)
