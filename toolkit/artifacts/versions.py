"""Installation of toolkit versions side by side, and the atomic switch between them.

`ROOT/toolkit` is a link to `ROOT/.toolkit-versions/DIGEST`. A version is completely and durably
written before the link is replaced, so that a path that a runtime executes is never missing or
incomplete. A directory that another installer left at `ROOT/toolkit` is exchanged with the link
atomically and kept; an uninstall puts it back.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from toolkit import log
from toolkit.artifacts import manifest
from toolkit.artifacts.manifest import Entry, Version, is_same, named
from toolkit.errors import StepError
from toolkit.log import LOGGER
from toolkit.node import command, files, mounts, trust
from toolkit.node.files import FileMetadata
from toolkit.node.host import Host
from toolkit.settings.layout import VERSIONS, InstallDir

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

BEFORE: Final = ".toolkit-before"
_NEXT: Final = ".toolkit-next"
_FULL: Final = ".toolkit-probe-full"
_UNMOVED: Final = (errno.EXDEV, errno.EBUSY)
# Of a copy in the kernel: the file systems or the kernel cannot do it.
_NOT_COPIED: Final = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
_ANSWERS: Final = "nvidia-ctk.real"
TRIAL_SECONDS: Final = 10.0


def install(version: Version, install_dir: Path, host: Host, *, like: str = "") -> None:
    """Write a version, check that it is complete and runs, and switch to it.

    `like` is a program of the node whose SELinux label new files get. Raises StepError; the
    previously installed version is still in use then.
    """
    target = InstallDir(install_dir).versions / version.digest
    files.make_directory(install_dir)
    files.make_directory(target.parent)
    try:
        _own(target.parent)
        _sweep(target.parent)
        if not _is_whole(version, target):
            text = host.executable(like) if like else None
            _write(
                version,
                target,
                previous=InstallDir(install_dir).toolkit,
                label=files.label(host.below(text)) if text else None,
            )
        _run(target, host)
        _switch(install_dir, version.digest)
    except OSError as error:
        raise StepError(f"{target} cannot be written: {error.strerror}") from error


def _own(directory: Path) -> None:
    """Make a directory belong to this user, and let no other user write to it. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        mode = os.fstat(fd).st_mode
        if trust.status_problem(directory):
            os.fchown(fd, os.geteuid(), os.getegid())
            os.fchmod(fd, mode & 0o7755)
    finally:
        os.close(fd)


def switch_back(
    install_dir: Path, digest: str | None, failed: str | None, replaced: Path | None
) -> str | None:
    """Switch back to the previous version and remove the one that `failed`; return the one in use.

    `digest` is the previous version; None if there was none, then the toolkit is removed.
    `replaced` is the path of the displaced directory. If the previous version was removed
    meanwhile, the newer one stays in use. Raises StepError.
    """
    if digest is None:
        remove(install_dir, replaced)
        return None
    link = InstallDir(install_dir).toolkit
    is_ours = link.is_symlink() and not _is_foreign(link)
    # Nothing was switched, unless a killed run has left the link at another version.
    if failed in {None, digest} and not (is_ours and os.readlink(link) != f"{VERSIONS}/{digest}"):
        return digest
    before = InstallDir(install_dir).versions / digest
    if problem := _unusable(before):
        if is_ours and link.is_dir():
            LOGGER.warning(
                "%s, the previous version, %s; the newer one stays in use", before, problem
            )
            return named(link)
        raise StepError(f"{before}, the previous version, {problem}")
    try:
        _switch(install_dir, digest)
    except OSError as error:
        raise StepError(f"{link} cannot be switched: {error.strerror}") from error
    _sweep(InstallDir(install_dir).versions)
    if failed is not None and failed != digest:
        _remove_tree(InstallDir(install_dir).versions / failed, ignore_errors=True)
    return digest


def _unusable(version: Path) -> str:
    """Return why a version that was in use earlier cannot be used again; empty if it can."""
    if not version.is_dir():
        return "was not found"
    paths = (version.parent, version, *version.rglob("*"))
    try:
        controlled = next((path for path in paths if trust.status_problem(path)), None)
    except OSError as error:
        return f"cannot be examined ({error.strerror})"
    return (
        f"is controlled by other users ({trust.status_problem(controlled)})" if controlled else ""
    )


def room_needed(version: Version, install_dir: Path) -> int:
    """Return the bytes that installing a version needs; files that can be linked need none."""
    missing = [
        e for e in version.entries if not is_same(InstallDir(install_dir).toolkit / e.name, e)
    ]
    return sum(
        e.content.stat().st_size if isinstance(e.content, Path) else len(e.content) for e in missing
    )


def foreign_directory(install_dir: Path) -> str | None:
    """Return the path that a foreign directory at `ROOT/toolkit` is moved to, or None."""
    displaced = install_dir / BEFORE
    return (
        str(displaced)
        if _is_foreign(displaced) or _is_foreign(InstallDir(install_dir).toolkit)
        else None
    )


def immovable_reason(install_dir: Path) -> str:
    """Return why a foreign `ROOT/toolkit` cannot be moved aside, and the remedy; "" if it can.

    A mount point cannot be renamed, and neither can a directory of a lower layer of an overlay. The
    kernel is asked by a rename that it refuses in any case, since the target is a directory with a
    file in it.
    """
    link = InstallDir(install_dir).toolkit
    if not _is_foreign(link):
        return ""
    if str(Path(os.path.realpath(install_dir)) / link.name) in mounts.mount_points():
        return (
            f"{link} is a mount point and cannot be moved aside"
            f" (unmount it, mount {link.parent} instead, or choose another --toolkit-install-dir)"
        )
    if link.is_symlink() or not link.is_dir():
        return ""
    number = _refused(link, install_dir / _FULL)
    if number in (errno.ENOTEMPTY, errno.EEXIST):
        return ""
    if number == errno.EXDEV:
        copy = f"{link}.copy"
        return (
            f"{link} is in a lower layer of an overlay file system and cannot be moved aside (make"
            f" it a directory of the upper layer with `cp -a {link} {copy} && rm -r {link} && mv"
            f" {copy} {link}`, or choose another --toolkit-install-dir)"
        )
    why = os.strerror(number)
    return (
        f"{link} cannot be moved aside: {why} (remove it, or choose another --toolkit-install-dir)"
    )


def _refused(directory: Path, full: Path) -> int:
    """Return the error of renaming a directory to a non-empty one, which is made and removed."""
    sweep_probe(full.parent)
    try:
        os.mkdir(full, 0o700)
        os.mkdir(full / "x", 0o700)
        os.rename(directory, full)
    except OSError as error:
        return error.errno or errno.EIO
    else:
        os.rename(full, directory)  # no file system that follows POSIX gets here
        return errno.ENOTEMPTY
    finally:
        sweep_probe(full.parent)


def sweep_probe(install_dir: Path) -> None:
    """Remove the directory that `immovable` makes, and a killed run leaves."""
    for path in (install_dir / _FULL / "x", install_dir / _FULL):
        with contextlib.suppress(OSError):
            os.rmdir(path)


def _is_foreign(link: Path) -> bool:
    if link.is_symlink():
        return not os.readlink(link).startswith(f"{VERSIONS}/")
    return os.path.lexists(link)


def remove(install_dir: Path, replaced: Path | None) -> None:
    """Remove the toolkit, and put back the foreign directory that it replaced. Raises StepError."""
    link = InstallDir(install_dir).toolkit
    try:
        is_ours = os.path.lexists(link) and not _is_foreign(link)
        if replaced is not None and _is_foreign(replaced) and not _is_foreign(link):
            _put_back(replaced, link, is_ours=is_ours)
            files.sync(install_dir)
        elif is_ours:
            os.unlink(link)
            files.sync(install_dir)
        if replaced is not None and replaced.is_symlink() and not _is_foreign(replaced):
            os.unlink(replaced)  # a link of this program: a run was killed right after the exchange
        if (install_dir / _NEXT).is_symlink():
            os.unlink(install_dir / _NEXT)  # a run was killed right before a switch
        if InstallDir(install_dir).versions.is_dir():
            _remove_tree(InstallDir(install_dir).versions)
    except OSError as error:
        raise StepError(
            f"{link} cannot be removed: {error.strerror}", hint="run revert again"
        ) from error


def _put_back(replaced: Path, link: Path, *, is_ours: bool) -> None:
    """Move the displaced directory back. Raises StepError if it cannot be moved, and OSError."""
    try:
        if is_ours:
            _exchange(replaced, link)
            os.unlink(replaced)
        else:
            os.rename(replaced, link)
    except OSError as error:
        if error.errno not in _UNMOVED:
            raise
        raise StepError(
            f"{replaced} cannot be moved back to {link}: {error.strerror}",
            hint=(
                f"put a copy there (rm -f {link} && cp -a {replaced} {link} && rm -r {replaced})"
                " and run revert again"
            ),
        ) from error


def _is_whole(version: Version, target: Path) -> bool:
    return not manifest.differing(target, version.entries)


def _require_whole(version: Version, directory: Path, *, is_hashed: bool = False) -> None:
    """Raise StepError if the files in a directory are not those of a version.

    `is_hashed` as in `manifest.is_same`.
    """
    if manifest.differing(directory, version.entries, is_hashed=is_hashed):
        raise StepError(
            f"the files in {directory} differ from what was written",
            hint="check the disk and the file system",
        )


def _run(target: Path, host: Host) -> None:
    """Check that a version runs on this node, by executing one of its programs with `--version`.

    It is executed in the node's root, with the node's loader and libraries. Raises StepError.
    """
    node_path = f"{host.node(target)}/{_ANSWERS}"
    if not host.is_here and not host.below(node_path).exists():
        LOGGER.debug("%s was not found below %s, so it is not executed", node_path, host.root)
        return
    if not host.is_here and os.geteuid() != 0:
        return
    result = command.run([node_path, "--version"], root=host.root, timeout=TRIAL_SECONDS)
    if not result.ok:
        raise StepError(
            f"the new `{_ANSWERS} --version` does not run on this node (exit {result.code}):"
            f" {result.err}",
            hint="is the toolkit for this node's architecture and C library?",
        )


def _write(version: Version, target: Path, *, previous: Path, label: bytes | None) -> None:
    """Write a version, completely and durably, and give it its name at the end.

    The order lets the disk work while this process does: writing a file to it is started when it
    is copied, the copies are compared with their source meanwhile, or hashed if the source names
    their hashes, and then each file is synced.
    """
    partial = target.with_name(target.name + ".partial")
    _remove_tree(partial, ignore_errors=True)
    directories = [partial]
    files.make_directory(partial, is_durable=False)
    with contextlib.ExitStack() as open_files, _Hashes() as hashes:
        written = []
        for number, entry in enumerate(version.entries):
            log.tick(f", {number} of {len(version.entries)} files")
            path = partial / entry.name
            directories += files.missing_directories(path.parent)
            files.make_directory(path.parent, is_durable=False)
            fd = _write_entry(entry, path, previous / entry.name, label)
            if fd is not None:
                open_files.callback(os.close, fd)
                written.append(fd)
            if isinstance(entry.content, Path) and entry.sha256:
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                open_files.callback(os.close, fd)
                hashes.add(fd, entry.sha256, entry.content)
        _require_whole(version, partial, is_hashed=True)
        for fd in written:
            os.fsync(fd)
        hashes.require()
    for directory in reversed(directories):
        files.sync(directory)
    if target.is_dir():  # it is damaged; exchanged atomically, since it may be the version in use
        _repair(version, partial, target)
    else:
        os.rename(partial, target)
    files.sync(target.parent)


class _Hashes:
    """The hashes of copies, computed while others are copied and synced.

    They are compared with those that the source names. The name of the version is made of these,
    and a version that has the name of another one would replace it, so that a failed change could
    not be rolled back.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._found: list[tuple[Path, str, Callable[[], str]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the threads: none may be there when a process is started."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def add(self, fd: int, expected: str, source: Path) -> None:
        """Hash the open copy of a source file. It must stay open until the end of this context.

        `expected` is the hash that the source names.
        """
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  # for an install only

            self._pool = ThreadPoolExecutor(2)
        try:
            found = self._pool.submit(manifest.sha256, fd).result
        except RuntimeError:  # no more threads can be started (pids.max)
            found = functools.partial(manifest.sha256, fd)
        self._found.append((source, expected, found))

    def require(self) -> None:
        """Raise StepError if the hash of a copy is not the one that the source names."""
        for source, expected, found in self._found:
            if found() != expected:
                raise StepError(
                    f"the copy of {source} has another hash than {manifest.SUMS} names",
                    hint=f"pull the image again; if the file was replaced, remove {manifest.SUMS}",
                )


def _repair(version: Version, partial: Path, target: Path) -> None:
    """Replace the files of a damaged version, by a whole one beside it."""
    spare = target.with_name(target.name + ".damaged")
    _remove_tree(spare, ignore_errors=True)
    try:
        _exchange(partial, target)
    except OSError as error:
        if error.errno not in _UNMOVED:
            raise
        # A directory in a lower layer of an overlay cannot be renamed, but each file in it can be
        # replaced.
        for entry in version.entries:
            if not is_same(target / entry.name, entry):
                files.make_directory((target / entry.name).parent)
                os.rename(partial / entry.name, target / entry.name)
                files.sync((target / entry.name).parent)
        for name in manifest.differing(target, version.entries):
            if name in manifest.directories(version.entries):
                _own(target / name)
            else:
                _clear(target / name)
        _require_whole(version, target)
        _remove_tree(partial)
        return
    os.rename(partial, spare)


def _write_entry(entry: Entry, path: Path, previous: Path, label: bytes | None) -> int | None:
    """Write an entry; return the descriptor of a file that must still be synced, or None."""
    if isinstance(entry.content, str):
        os.symlink(entry.content, path)
        return None
    if is_same(previous, entry):
        try:
            os.link(os.path.realpath(previous), path)  # share the file with the previous version
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP):
                raise
        else:
            return None
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if isinstance(entry.content, bytes):
            with open(fd, "wb", closefd=False) as stream:
                stream.write(entry.content)
        else:
            _copy(entry.content, fd)
        files.apply_metadata(
            fd, FileMetadata(mode=entry.mode, selinux=files.label(previous) or label)
        )
        with contextlib.suppress(OSError):  # starts writing to the disk without waiting for it
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _copy(source: Path, fd: int) -> None:
    """Copy a file's content in the kernel, or through this process where that is unsupported.

    copy_file_range(2) shares the blocks where the file system can, and works within one file
    system only; sendfile(2) copies from the layer of an image, which is another one, too.
    """
    with open(source, "rb") as stream:
        remaining = os.fstat(stream.fileno()).st_size
        for copy in (os.copy_file_range, _send):
            try:
                while remaining > 0:
                    done = copy(stream.fileno(), fd, remaining)
                    if done == 0:
                        break
                    remaining -= done
            except OSError as error:
                if error.errno not in _NOT_COPIED:
                    raise
        if remaining > 0:
            import shutil  # noqa: PLC0415  # as below

            with open(os.dup(fd), "wb") as out:
                shutil.copyfileobj(stream, out, 1 << 20)


def _remove_tree(path: Path, *, ignore_errors: bool = False) -> None:
    if ignore_errors and not os.path.lexists(path):
        return

    import shutil  # noqa: PLC0415  # with what it imports 1.5 ms, which most starts do not need

    shutil.rmtree(path, ignore_errors=ignore_errors)


def _send(source: int, fd: int, count: int) -> int:
    """Copy from one file to another by sendfile(2), with the arguments of `copy_file_range`."""
    return os.sendfile(fd, source, None, count)


def _switch(install_dir: Path, digest: str) -> None:
    link = InstallDir(install_dir).toolkit
    target = f"{VERSIONS}/{digest}"
    if link.is_symlink() and os.readlink(link) == target:
        return
    foreign = _is_foreign(link)
    displaced = install_dir / BEFORE
    # A link of this program at the path for a displaced directory was left by a killed run.
    spare = install_dir / _NEXT if not foreign or _is_foreign(displaced) else displaced
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
    if foreign and spare != displaced:  # a directory from before the first run is kept already
        _clear(spare)
    files.sync(install_dir)


def _clear(path: Path) -> None:
    """Remove the file, link or directory that a killed run left at a path."""
    if path.is_dir() and not path.is_symlink():
        _remove_tree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _exchange(one: Path, other: Path) -> None:
    """Exchange two paths atomically. Raises OSError, also if that is not supported."""
    if not files.rename(one, other, files.RENAME_EXCHANGE):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(one))


def _sweep(versions: Path) -> None:
    """Remove the incomplete versions that a killed run left."""
    for leftover in versions.iterdir():
        if leftover.name.endswith((".partial", ".damaged")):
            _remove_tree(leftover, ignore_errors=True)


def remove_old(install_dir: Path, digest: str, before: str | None = None) -> None:
    """Remove old versions, except those that a process runs from, and the previous one.

    `digest` is the version in use, `before` the previous one; if it is not given or the same, the
    newest of the others is kept. It is kept because a wrapper may be running in it. Errors are
    ignored.
    """
    with contextlib.suppress(OSError):
        _tidy(InstallDir(install_dir).versions, digest, before)


def _tidy(versions: Path, digest: str, before: str | None) -> None:
    _sweep(versions)
    others = [v for v in versions.iterdir() if v.name != digest and v.is_dir()]
    others.sort(
        key=lambda version: (version.name == before, version.stat().st_mtime_ns), reverse=True
    )
    for version in others[1:]:
        if not _runs_from(version):
            _remove_tree(version, ignore_errors=True)


def _runs_from(version: Path) -> bool:
    inodes = {(s.st_dev, s.st_ino) for s in _stats(version.rglob("*"))}
    import psutil  # noqa: PLC0415  # needed only if a version is removed

    running = _stats(Path(f"/proc/{pid}/exe") for pid in psutil.pids())
    return any((s.st_dev, s.st_ino) in inodes for s in running)


def _stats(paths: Iterable[Path]) -> Iterator[os.stat_result]:
    for path in paths:
        with contextlib.suppress(OSError):
            yield os.stat(path)
