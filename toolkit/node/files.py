"""Atomic and durable replacement of files, and consistent reads.

A write consists of: temporary file, data, owner, attributes, mode, label, fsync, rename, fsync of
the directory. The temporary file must not be in a drop-in directory, since the daemon would read
it, so the caller may pass another directory for it.

A file that others may change is exchanged with the new one, not replaced: what came back is
checked, so that a content that another program wrote at the last moment is put back instead of
being lost. A lease shows whether another program has the file open for writing (fcntl(2),
F_SETLEASE).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

from runtimes.dataclass import dataclass
from toolkit.errors import Conflict, NodeConfigError, StepError
from toolkit.log import LOGGER
from toolkit.node import procfs

_OWNERS: Final = procfs.CAP_CHOWN | procfs.CAP_DAC_OVERRIDE
LABEL: Final = "security.selinux"
LARGEST: Final = 64 * 1024 * 1024
O_TMPFILE: Final = getattr(os, "O_TMPFILE", 0)
# Attributes with other prefixes depend on the content (IMA, capabilities) or belong to an
# overlayfs.
_ATTRIBUTES: Final = ("system.posix_acl_", "user.", "trusted.")
_OVERLAY: Final = ".overlay."
_AT_FDCWD: Final = -100
_RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
# The errors of a directory in which nothing can be put aside.
_NOT_ASIDE: Final = (errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)
_GET_INODE_FLAGS: Final = 0x80086601  # FS_IOC_GETFLAGS of 64-bit systems
_IMMUTABLE: Final = 0x10
_APPEND_ONLY: Final = 0x20
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK

Attributes: TypeAlias = tuple[tuple[str, bytes], ...]
"""Extended attributes of a file by their names."""

_Check: TypeAlias = Callable[[Path], object]
"""A function that raises if the file at a path is not the expected one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSnapshot:
    """The content of a file and the metadata that is kept when the file is replaced."""

    data: bytes
    mode: int
    uid: int
    gid: int
    label: bytes | None
    attributes: Attributes = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FileMetadata:
    """The metadata of a new file; a field that is None keeps the default of a new file."""

    mode: int = 0o644
    owner: tuple[int, int] | None = None
    selinux: bytes | None = None
    attributes: Attributes | None = None


def opener(path: str, flags: int) -> int:
    """Open a file for `open` without following a link at its path or waiting for a FIFO."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def read(path: Path) -> FileSnapshot | None:
    """Return the content and metadata of a regular file; None if it does not exist.

    Raises NodeConfigError if it is not a regular file, cannot be read, is larger than 64 MiB, or
    changes while it is read.
    """
    try:
        fd = os.open(path, _FLAGS)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None
    except OSError as error:
        raise NodeConfigError(
            f"{path} cannot be read: {error.strerror}", hint=hint(error)
        ) from error
    try:
        return _read(fd, path)
    except OSError as error:
        raise NodeConfigError(
            f"{path} cannot be read: {error.strerror}", hint=hint(error)
        ) from error
    finally:
        os.close(fd)


def _read(fd: int, path: Path) -> FileSnapshot:
    before = os.fstat(fd)
    if not stat.S_ISREG(before.st_mode):
        kind = "a directory" if stat.S_ISDIR(before.st_mode) else "not a regular file"
        raise NodeConfigError(f"{path} is {kind}", hint="name the configuration file itself")
    if before.st_size > LARGEST:
        raise NodeConfigError(f"{path} has {before.st_size} bytes, too many for a configuration")
    with open(fd, "rb", closefd=False) as stream:
        data = stream.read(LARGEST + 1)
    after = os.fstat(fd)
    if (after.st_mtime_ns, after.st_size) != (before.st_mtime_ns, before.st_size):
        raise NodeConfigError(
            f"{path} changed while it was read", hint="run again when nothing writes to it"
        )
    return FileSnapshot(
        data=data,
        mode=stat.S_IMODE(before.st_mode),
        uid=before.st_uid,
        gid=before.st_gid,
        label=label(fd),
        attributes=_attributes(fd),
    )


def put(
    path: Path,
    data: bytes,
    *,
    mode: int = 0o644,
    metadata: FileMetadata | None = None,
    aside: Path | None = None,
    check: _Check | None = None,
) -> None:
    """Replace the content of a file atomically and durably.

    `metadata` takes precedence over `mode`. `aside` is the directory of the temporary file, if a
    daemon reads the directory of `path`. If `aside` cannot be used (for example on another mount),
    the temporary file is created unnamed beside `path`, and gets a name only when it is complete.
    `check` is called with the path before the file is replaced, and with the place of the old file
    afterwards; if it raises, the old file stays, or is put back. Raises StepError if the file
    cannot be written, and Conflict if another program has it open for writing; it is unchanged
    then.
    """
    try:
        metadata = metadata or FileMetadata(mode=mode)
        if aside is None or not _put_from(aside, path, data, metadata, check):
            _put_whole(path, data, metadata, check)
    except OSError as error:
        raise StepError(f"{path} cannot be written: {error.strerror}", hint=hint(error)) from error


def apply_metadata(fd: int, metadata: FileMetadata) -> None:
    """Set the owner, attributes, mode and, if given, SELinux label of an open file."""
    if metadata.owner is not None and metadata.owner != (os.fstat(fd).st_uid, os.fstat(fd).st_gid):
        os.fchown(fd, *metadata.owner)
    # An ACL is set before the mode, so that the file is not readable for too many users in between.
    if metadata.attributes is not None:
        _set_attributes(fd, dict(metadata.attributes))
    os.fchmod(fd, metadata.mode)
    if metadata.selinux is not None:
        try:
            os.setxattr(fd, LABEL, metadata.selinux)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return  # the file system does not support labels
            name = os.readlink(f"/proc/self/fd/{fd}")
            LOGGER.warning(
                "cannot set the label of %s to %s: %s",
                name,
                metadata.selinux.decode(),
                error.strerror,
            )


def _attributes(fd: int) -> Attributes:
    """Return the extended attributes of a file that do not depend on its content."""
    try:
        return tuple(
            (name, os.getxattr(fd, name)) for name in sorted(os.listxattr(fd)) if _is_kept(name)
        )
    except OSError:
        return ()


def _is_kept(name: str) -> bool:
    return name.startswith(_ATTRIBUTES) and _OVERLAY not in name


def _set_attributes(fd: int, wanted: dict[str, bytes]) -> None:
    """Set exactly these extended attributes of a file. Errors are logged (debug) and ignored."""
    for name, _ in _attributes(fd):
        if name not in wanted:  # inherited from the directory
            with contextlib.suppress(OSError):
                os.removexattr(fd, name)
    for name, value in wanted.items():
        try:
            os.setxattr(fd, name, value)
        except OSError as error:
            path = os.readlink(f"/proc/self/fd/{fd}")
            LOGGER.debug("cannot set the attribute %s of %s: %s", name, path, error.strerror)


def remove(path: Path, *, aside: Path | None = None, check: _Check | None = None) -> None:
    """Remove a file durably; do nothing if it does not exist.

    `aside` and `check` are those of `put`. Raises StepError, and Conflict as `put` does.
    """
    try:
        if check is None or not _remove_checked(path, aside or path.parent, check):
            os.unlink(path)
        sync(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StepError(f"{path} cannot be removed: {error.strerror}", hint=hint(error)) from error


def writable(directory: Path, *, is_tried: bool = True) -> str | None:
    """Return why a directory, or its nearest existing parent, is not writable; None if it is.

    What only the permissions of an ordinary user forbid counts if this process itself is going to
    write there (`is_tried`).
    """
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    if not directory.is_dir():
        return f"{directory} is no directory"
    if problem := attribute(directory):
        return problem
    if os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        return None
    read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
    if not (read_only or is_tried or os.geteuid() == 0):
        return None
    return f"{directory} is {'on a read-only file system' if read_only else 'not writable'}"


def immutable_reason(path: Path) -> str:
    """Return why no user, root included, can replace an existing file; empty if one can."""
    for place in (path, path.parent):
        if _inode_flags(place) & (_IMMUTABLE | _APPEND_ONLY):
            what = "it" if place == path else f"its directory {place}"
            return f"cannot be replaced: {what} has the attribute i or a (lsattr)"
    try:
        is_read_only = bool(os.statvfs(path.parent).f_flag & os.ST_RDONLY)
    except OSError:
        return ""
    return "is on a read-only file system" if is_read_only else ""


def attribute(path: Path) -> str:
    """Return that a path has an attribute which keeps even root from changing it; else empty."""
    if not _inode_flags(path) & (_IMMUTABLE | _APPEND_ONLY):
        return ""
    return f"{path} has the attribute i or a (lsattr): remove it with `chattr -ia {path}`"


def _inode_flags(path: Path) -> int:
    """Return the attributes that chattr(1) sets; 0 if the file system has none."""
    flags = bytearray(8)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fcntl.ioctl(fd, _GET_INODE_FLAGS, flags)
    except OSError:
        return 0
    finally:
        os.close(fd)
    return int.from_bytes(flags[:4], sys.byteorder)


def status(path: Path) -> os.stat_result | None:
    """Return the status of a path; None if it does not exist or stat(2) fails."""
    try:
        return os.stat(path)
    except OSError:
        return None


def missing_directories(path: Path) -> list[Path]:
    """Return the missing directories of a path, the path included, outermost first."""
    result = []
    while not path.is_dir() and path != path.parent:
        result.append(path)
        path = path.parent
    return result[::-1]


def make_directory(path: Path, mode: int = 0o755, *, is_durable: bool = True) -> None:
    """Create a directory durably, regardless of the umask. Missing parents get mode 0755.

    If it is not `is_durable`, the caller syncs the directories above it. Raises StepError.
    """
    for directory in missing_directories(path):
        own = mode if directory == path else 0o755
        try:
            os.mkdir(directory, own)
            os.chmod(directory, own)
            if is_durable:
                sync(directory.parent)
        except FileExistsError:
            continue
        except OSError as error:
            message = f"the directory {directory} cannot be made: {error.strerror}"
            raise StepError(message, hint=hint(error)) from error


def sync(directory: Path) -> None:
    """Make the entries of a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def label(path: Path | int) -> bytes | None:
    """Return the SELinux label of a file; None if it has none."""
    try:
        return os.getxattr(path, LABEL)
    except OSError:
        return None


def sweep(path: Path, aside: Path | None) -> None:
    """Remove the temporary file of a killed process. Its name is known: one writer per node."""
    for directory in {path.parent, aside or path.parent}:
        with contextlib.suppress(OSError):
            os.unlink(_spare(directory, path))


def exchanged(path: Path, aside: Path | None) -> Path | None:
    """Return the complete file that a killed process left from exchanging `path`, or None.

    It is the new file if the process was killed before the exchange, else the old one.
    """
    directories = dict.fromkeys((aside or path.parent, path.parent))
    return next(
        (p for d in directories if (p := _swap(d, path)).is_file() and not p.is_symlink()), None
    )


def keep(left: Path, path: Path) -> None:
    """Keep a file from `exchanged` under a name that no later write replaces, and log the name."""
    kept = left.with_name(f".{path.name}.nvidia-toolkit-kept-{left.stat().st_ino:x}")
    os.rename(left, kept)
    LOGGER.warning(
        "%s holds what was at %s and is not known: compare them, then remove it", kept, path
    )


def refuse_writers(path: Path) -> None:
    """Raise Conflict if another program has a file open for writing."""
    with _unwritten(path):
        pass


def _spare(directory: Path, path: Path) -> Path:
    return directory / f".{path.name}.nvidia-toolkit-new"


def _swap(directory: Path, path: Path) -> Path:
    return directory / f".{path.name}.nvidia-toolkit-swap"


def _install(spare: Path, path: Path, check: _Check | None) -> None:
    """Put a complete temporary file in the place of `path`."""
    if check is None:
        os.rename(spare, path)
        return
    swap = _swap(spare.parent, path)
    with _unwritten(path) as is_awaited:
        check(path)
        os.rename(spare, swap)
        try:
            if not rename(swap, path, RENAME_EXCHANGE if path.exists() else _RENAME_NOREPLACE):
                os.rename(swap, path)
        except BaseException as error:
            os.unlink(swap)
            if isinstance(error, FileExistsError):
                check(path)  # it was created meanwhile: that is the better message
            raise
        if not os.path.lexists(swap):
            return  # there was no file before, or it cannot be exchanged here
        new = os.lstat(path)
        try:
            check_moved(swap, path, check, is_awaited)
        except BaseException:
            rename(swap, path, RENAME_EXCHANGE)
            if not os.path.samestat(os.lstat(swap), new):
                rename(swap, path, RENAME_EXCHANGE)  # the new file was replaced meanwhile
            os.unlink(swap)
            raise
        os.unlink(swap)


def _remove_checked(path: Path, aside: Path, check: _Check) -> bool:
    """Move a file aside, check what was moved and remove it; return False if it cannot be moved."""
    swap = _swap(aside, path)
    with _unwritten(path) as is_awaited:
        check(path)
        try:
            if not rename(path, swap, _RENAME_NOREPLACE):
                return False
        except OSError as error:
            if error.errno in _NOT_ASIDE:
                return False
            raise
        try:
            check_moved(swap, path, check, is_awaited)
        except BaseException:
            try:
                rename(swap, path, _RENAME_NOREPLACE)
            except FileExistsError:
                keep(swap, path)  # a new file was created meanwhile
            raise
        os.unlink(swap)
    return True


def check_moved(swap: Path, path: Path, check: _Check, is_awaited: Callable[[], bool]) -> None:
    """Raise if the result of an exchange is not the expected file, or is still open for writing."""
    check(swap)
    if is_awaited():
        raise _busy(path)


def rename(source: Path, destination: Path, flags: int) -> bool:
    """Rename by renameat2(2); return False if the file system or kernel does not support the flags.

    Raises OSError.
    """
    import ctypes  # noqa: PLC0415  # needed only if a file is changed

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False  # glibc before 2.28
    names = os.fsencode(source), os.fsencode(destination)
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(number, os.strerror(number), str(source))


@contextlib.contextmanager
def _unwritten(path: Path) -> Iterator[Callable[[], bool]]:
    """Hold a lease that delays every program that opens a file for writing.

    Yields a function that returns whether a program waits for that. Without a file, or without
    leases on its file system, nothing is held. Raises Conflict if a program has the file open for
    writing.
    """
    try:
        fd = os.open(path, _FLAGS)
    except OSError:
        yield lambda: False
        return
    try:
        is_leased = take_lease(fd, path)
        yield lambda: is_leased and fcntl.fcntl(fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK
    finally:
        os.close(fd)


def take_lease(fd: int, path: Path) -> bool:
    """Take a lease for reading; return False if that is not possible. Raises Conflict."""
    try:
        # The default signal, SIGIO, ends a process; SIGURG is ignored.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            raise _busy(path) from error
        return False
    return True


def _busy(path: Path) -> Conflict:
    return Conflict(
        f"{path} is open for writing by {_writer(path) or 'another program'}; it was not changed",
        hint="run the command again when that program has finished",
    )


def _writer(path: Path) -> str:
    """Return the PID and name of a process that has a file open for writing; empty if none."""
    file = status(path)
    for descriptor in Path("/proc").glob("[0-9]*/fd/*") if file is not None else ():
        with contextlib.suppress(OSError, StopIteration, ValueError):
            if not os.path.samestat(os.stat(descriptor), file):  # type: ignore[arg-type]
                continue
            process = descriptor.parent.parent
            info = (process / "fdinfo" / descriptor.name).read_text(encoding="ascii").splitlines()
            flags = next(int(line.split()[1], 8) for line in info if line.startswith("flags:"))
            if flags & os.O_ACCMODE:
                name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
                return f"PID {process.name} ({name})"
    return ""


def _put_from(
    aside: Path, path: Path, data: bytes, metadata: FileMetadata, check: _Check | None
) -> bool:
    """Write by a temporary file in another directory; return False if that cannot be used."""
    spare = _spare(aside, path)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(spare)
        fd = os.open(spare, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in _NOT_ASIDE:
            return False
        raise
    try:
        fill(fd, data, metadata)
        _install(spare, path, check)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(spare)
        if isinstance(error, OSError) and error.errno == errno.EXDEV:
            return False
        raise
    sync(path.parent)
    return True


def _put_whole(path: Path, data: bytes, metadata: FileMetadata, check: _Check | None) -> None:
    """Write by an unnamed temporary file in the same directory, so no partial file is visible."""
    spare = _spare(path.parent, path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(spare)
    try:
        try:
            fd = os.open(path.parent, os.O_WRONLY | O_TMPFILE | os.O_CLOEXEC, 0o600)
            is_unnamed = True
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                raise
            # The file system does not support O_TMPFILE.
            fd = os.open(spare, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            is_unnamed = False
        fill(fd, data, metadata, link=spare if is_unnamed else None)
        _install(spare, path, check)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(spare)
        raise
    sync(path.parent)


def fill(fd: int, data: bytes, metadata: FileMetadata, *, link: Path | None = None) -> None:
    """Write and sync an open file; give it the metadata and, if it has none, its name `link`."""
    with open(fd, "wb", closefd=True) as stream:
        stream.write(data)
        stream.flush()
        apply_metadata(fd, metadata)
        os.fsync(fd)
        if link is not None:
            _name(fd, link)


def _name(fd: int, path: Path) -> None:
    """Link an unnamed file to a path. os.link follows links in /proc only with a directory fd."""
    descriptors = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(str(fd), path, src_dir_fd=descriptors, follow_symlinks=True)
    finally:
        os.close(descriptors)


def hint(error: OSError) -> str:
    """Return what to do about an error of the file system; empty if there is no usual remedy."""
    match error.errno:
        case errno.EROFS:
            return "the file system is read-only: mount it writable, or choose another path"
        case errno.EACCES | errno.EPERM:
            if os.geteuid() == 0 and procfs.capabilities("CapEff") & _OWNERS != _OWNERS:
                return "a pod needs `privileged: true`, or the capabilities CHOWN and DAC_OVERRIDE"
            return "run as root, or with the directory mounted into the container"
        case errno.ENOSPC | errno.EDQUOT:
            return "free space on that file system"
        case errno.EISDIR:
            return "the path is a directory: move it away, or choose another path"
        case _:
            return ""
