"""Replace a file so that no reader ever sees a mix, and read one without being fooled.

A write is: temporary file, data, owner, attributes, mode, label, fsync, rename, fsync of
the directory. Where the target lies in a drop-in directory the temporary file
may not: the daemon would read it. So the caller says where temporary files go.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from toolkit.errors import NodeNotUnderstood, StepFailed
from toolkit.log import LOGGER

LABEL: Final = "security.selinux"
LARGEST: Final = 64 * 1024 * 1024
_O_TMPFILE: Final = getattr(os, "O_TMPFILE", 0)
# What else a file has is about its bytes (IMA, capabilities), or an overlay's own note of where it came from.
_ATTRIBUTES: Final = ("system.posix_acl_", "user.", "trusted.")
_OVERLAY: Final = ".overlay."
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK

Attributes: TypeAlias = tuple[tuple[str, bytes], ...]
"""Extended attributes of a file by their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A file as it was read: its bytes and what has to be kept of it."""

    data: bytes
    mode: int
    uid: int
    gid: int
    label: bytes | None
    attributes: Attributes = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dress:
    """What a file gets besides its bytes; None leaves that as a new file has it."""

    mode: int = 0o644
    owner: tuple[int, int] | None = None
    selinux: bytes | None = None
    attributes: Attributes | None = None


def read(path: Path) -> Seen | None:
    """Return a regular file's bytes and attributes, or None where it is absent.

    Raises NodeNotUnderstood for what is no regular file, cannot be read, is larger
    than 64 MiB, or changes while it is read.
    """
    try:
        fd = os.open(path, _FLAGS)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None
    except OSError as error:
        raise NodeNotUnderstood(f"{path} cannot be read: {error.strerror}", hint=_hint(error)) from error
    try:
        return _read(fd, path)
    except OSError as error:
        raise NodeNotUnderstood(f"{path} cannot be read: {error.strerror}", hint=_hint(error)) from error
    finally:
        os.close(fd)


def _read(fd: int, path: Path) -> Seen:
    before = os.fstat(fd)
    if not stat.S_ISREG(before.st_mode):
        kind = "a directory" if stat.S_ISDIR(before.st_mode) else "not a regular file"
        raise NodeNotUnderstood(f"{path} is {kind}", hint="name the configuration file itself")
    if before.st_size > LARGEST:
        raise NodeNotUnderstood(f"{path} has {before.st_size} bytes, too many for a configuration")
    with open(fd, "rb", closefd=False) as stream:
        data = stream.read(LARGEST + 1)
    after = os.fstat(fd)
    if (after.st_mtime_ns, after.st_size) != (before.st_mtime_ns, before.st_size):
        raise NodeNotUnderstood(f"{path} changed while it was read", hint="run again when it is at rest")
    return Seen(
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
    dress: Dress | None = None,
    aside: Path | None = None,
    check: Callable[[], object] | None = None,
) -> None:
    """Replace a file with bytes, durably and in one step.

    `dress` goes before `mode`. `aside` is the directory for the temporary file
    where the file's own one is read by a daemon. Where it cannot serve (another
    mount), the temporary file gets its name only when its content is complete.
    `check` is called when all is written, and keeps the file as it was by raising.
    Raises StepFailed, and then the file is as it was.
    """
    try:
        worn = dress or Dress(mode=mode)
        if aside is None or not _put_from(aside, path, data, worn, check):
            _put_whole(path, data, worn, check)
    except OSError as error:
        raise StepFailed(f"{path} cannot be written: {error.strerror}", hint=_hint(error)) from error


def put_on(fd: int, dress: Dress) -> None:
    """Give an open file its owner, its attributes, its mode and, where there is one, its SELinux label."""
    if dress.owner is not None and dress.owner != (os.fstat(fd).st_uid, os.fstat(fd).st_gid):
        os.fchown(fd, *dress.owner)
    # Before the mode, which with an ACL says less: nobody may read it meanwhile who shall not.
    if dress.attributes is not None:
        _set_attributes(fd, dict(dress.attributes))
    os.fchmod(fd, dress.mode)
    if dress.selinux is not None:
        try:
            os.setxattr(fd, LABEL, dress.selinux)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return  # a file system without labels keeps none
            name = os.readlink(f"/proc/self/fd/{fd}")
            LOGGER.warning("%s cannot get the label %s: %s", name, dress.selinux.decode(), error.strerror)


def _attributes(fd: int) -> Attributes:
    """Return the extended attributes of a file that belong to the file, whatever is in it."""
    try:
        return tuple((name, os.getxattr(fd, name)) for name in sorted(os.listxattr(fd)) if _is_kept(name))
    except OSError:
        return ()


def _is_kept(name: str) -> bool:
    return name.startswith(_ATTRIBUTES) and _OVERLAY not in name


def _set_attributes(fd: int, wanted: dict[str, bytes]) -> None:
    """Let a file have exactly these; what the file system refuses it does without."""
    for name, _ in _attributes(fd):
        if name not in wanted:  # passed on by the directory
            with contextlib.suppress(OSError):
                os.removexattr(fd, name)
    for name, value in wanted.items():
        try:
            os.setxattr(fd, name, value)
        except OSError as error:
            where = os.readlink(f"/proc/self/fd/{fd}")
            LOGGER.debug("%s cannot get the attribute %s: %s", where, name, error.strerror)


def remove(path: Path) -> None:
    """Remove a file durably; one that is absent already is fine. Raises StepFailed."""
    try:
        os.unlink(path)
        sync(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StepFailed(f"{path} cannot be removed: {error.strerror}", hint=_hint(error)) from error


def writable(directory: Path) -> str | None:
    """Return why nothing can be written in a directory or in its nearest parent that exists, or None."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    if not directory.is_dir():
        return f"{directory} is no directory"
    if os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        return None
    read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
    return f"{directory} is {'on a read-only file system' if read_only else 'not writable'}"


def status(path: Path) -> os.stat_result | None:
    """Return a path's status, or None where it is absent or cannot be looked at."""
    try:
        return os.stat(path)
    except OSError:
        return None


def missing_directories(path: Path) -> list[Path]:
    """Return the directories that a path needs and that are not there, outermost first."""
    found = []
    while not path.is_dir() and path != path.parent:
        found.append(path)
        path = path.parent
    return found[::-1]


def make_directory(path: Path, mode: int = 0o755) -> None:
    """Make a directory, durably and whatever the umask is; parents are for all. Raises StepFailed."""
    for directory in missing_directories(path):
        own = mode if directory == path else 0o755
        try:
            os.mkdir(directory, own)
            os.chmod(directory, own)
            sync(directory.parent)
        except FileExistsError:
            continue
        except OSError as error:
            message = f"the directory {directory} cannot be made: {error.strerror}"
            raise StepFailed(message, hint=_hint(error)) from error


def sync(directory: Path) -> None:
    """Make the entries of a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def label(path: Path | int) -> bytes | None:
    """Return the SELinux label of a file, or None where it has none."""
    try:
        return os.getxattr(path, LABEL)
    except OSError:
        return None


def sweep(path: Path, aside: Path | None) -> None:
    """Remove a temporary file that a killed process left; one writer per node makes its name known."""
    for directory in {path.parent, aside or path.parent}:
        with contextlib.suppress(OSError):
            os.unlink(_spare(directory, path))


def _spare(directory: Path, path: Path) -> Path:
    return directory / f".{path.name}.nvidia-toolkit-new"


def _put_from(aside: Path, path: Path, data: bytes, dress: Dress, check: Callable[[], object] | None) -> bool:
    """Stage in another directory; False where the file cannot be moved from there."""
    spare = _spare(aside, path)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(spare)
        fd = os.open(spare, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
            return False
        raise
    try:
        _fill(fd, data, dress)
        if check is not None:
            check()
        os.rename(spare, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(spare)
        if isinstance(error, OSError) and error.errno == errno.EXDEV:
            return False
        raise
    sync(path.parent)
    return True


def _put_whole(path: Path, data: bytes, dress: Dress, check: Callable[[], object] | None) -> None:
    """Stage beside the target in a file without a name, so that no half file ever has one."""
    spare = _spare(path.parent, path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(spare)
    try:
        try:
            fd = os.open(path.parent, os.O_WRONLY | _O_TMPFILE | os.O_CLOEXEC, 0o600)
            nameless = True
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                raise
            # Some file systems have no nameless files.
            fd = os.open(spare, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            nameless = False
        _fill(fd, data, dress, link=spare if nameless else None)
        if check is not None:
            check()
        os.rename(spare, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(spare)
        raise
    sync(path.parent)


def _fill(fd: int, data: bytes, dress: Dress, *, link: Path | None = None) -> None:
    with open(fd, "wb", closefd=True) as stream:
        stream.write(data)
        stream.flush()
        put_on(fd, dress)
        os.fsync(fd)
        if link is not None:
            _name(fd, link)


def _name(fd: int, path: Path) -> None:
    """Give a nameless file a name. Only with a directory descriptor does os.link follow /proc's links."""
    descriptors = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(str(fd), path, src_dir_fd=descriptors, follow_symlinks=True)
    finally:
        os.close(descriptors)


def _hint(error: OSError) -> str:
    match error.errno:
        case errno.EROFS:
            return "the file system is read-only: mount it writable, or name another path"
        case errno.EACCES | errno.EPERM:
            return "run as root, or with the directory mounted into the container"
        case errno.ENOSPC | errno.EDQUOT:
            return "make room on that file system"
        case errno.EISDIR:
            return "a directory is in its place: move it away, or name another path"
        case _:
            return ""
