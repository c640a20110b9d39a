"""The toolkit's files on the node: a whole version beside the running one, then one atomic switch.

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
import hashlib
import os
import platform
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from runtimes.model import Key
from toolkit import files, wrapper
from toolkit.errors import StepFailed, UsageProblem
from toolkit.host import Host
from toolkit.settings import Settings

VERSIONS: Final = ".toolkit-versions"
BEFORE: Final = ".toolkit-before"
_LIBRARIES: Final = ("libnvidia-container.so.1", "libnvidia-container-go.so.1")
_LIBRARY_DIRECTORIES: Final = ("usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu")
_RUNTIMES: Final = (
    "nvidia-container-runtime",
    "nvidia-container-runtime.cdi",
    "nvidia-container-runtime.legacy",
)
_WRAPPED: Final = (
    *_RUNTIMES,
    "nvidia-ctk",
    "nvidia-container-cli",
    "nvidia-container-runtime-hook",
)
_PLAIN: Final = ("nvidia-cdi-hook",)
_MACHINES: Final = {"x86_64": 62, "aarch64": 183}
_RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file of a version: its place, its mode, its content (a file here, bytes, or a link's target)."""

    name: str
    mode: int
    content: Path | bytes | str

    def digest(self) -> str:
        """Return a hash of everything that the entry is."""
        match self.content:
            case bytes():
                content = hashlib.sha256(self.content).hexdigest()
            case str():
                content = "-> " + self.content
            case _:
                content = _file_hash(self.content)
        return f"{self.name}\0{self.mode:o}\0{content}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What shall stand at `ROOT/toolkit`, and which of it does not (names, in order)."""

    digest: str
    entries: tuple[Entry, ...]
    differing: tuple[str, ...]

    @property
    def is_installed(self) -> bool:
        """Tell whether the node has exactly this."""
        return not self.differing


def wanted(settings: Settings, host: Host, install_dir: Path, low_level: tuple[str, ...]) -> Version:
    """Return the version that the source and the settings make, compared with the one that is installed.

    `low_level` are the node's low-level runtimes, the default one first. Raises
    UsageProblem where the source lacks something or is for another machine.
    """
    source = _source(settings, host)
    toolkit = f"{host.node(install_dir)}/toolkit"
    found = list(_entries(source, toolkit, low_level[0] if low_level else "runc"))
    present = files.read(install_dir / "toolkit" / wrapper.CONFIG)
    config = wrapper.configuration(
        present.data if present else None,
        f"{toolkit}/{wrapper.CONFIG}",
        _asked(settings, toolkit, low_level),
    )
    found.append(Entry(name=wrapper.CONFIG, mode=0o644, content=config))
    lines = "".join(sorted(entry.digest() for entry in found))
    digest = hashlib.sha256(lines.encode()).hexdigest()[:16]
    differing = tuple(e.name for e in found if not _is_same(install_dir / "toolkit" / e.name, e))
    if not differing and not (install_dir / "toolkit").is_symlink():
        differing = ("toolkit",)  # the files are right, but they are another installer's
    return Version(digest=digest, entries=tuple(found), differing=differing)


def install(version: Version, install_dir: Path) -> None:
    """Write a version and switch to it.

    Raises StepFailed; then the version that was there is there still.
    """
    target = install_dir / VERSIONS / version.digest
    files.make_directory(install_dir)
    files.make_directory(target.parent)
    _sweep(target.parent)
    try:
        if not all(_is_same(target / entry.name, entry) for entry in version.entries):
            _write(version, target, previous=install_dir / "toolkit")
        _switch(install_dir, version.digest)
    except OSError as error:
        raise StepFailed(f"{target} cannot be written: {error.strerror}") from error
    _forget_others(install_dir, version.digest)


def in_the_way(install_dir: Path) -> str | None:
    """Return where the plain directory at `ROOT/toolkit` will be kept, or None where there is none."""
    link = install_dir / "toolkit"
    kept = install_dir / BEFORE
    return str(kept) if kept.is_dir() or (link.is_dir() and not link.is_symlink()) else None


def remove(install_dir: Path, replaced: Path | None) -> None:
    """Take the toolkit away; put back the plain directory that was there before us. Raises StepFailed."""
    link = install_dir / "toolkit"
    try:
        if replaced is not None and replaced.is_dir():
            if link.is_symlink():
                _exchange(replaced, link)
                os.unlink(replaced)
            else:
                os.rename(replaced, link)
            files.sync(install_dir)
        elif link.is_symlink():
            os.unlink(link)
            files.sync(install_dir)
        shutil.rmtree(install_dir / VERSIONS, ignore_errors=True)
    except OSError as error:
        raise StepFailed(f"{link} cannot be removed: {error.strerror}") from error


# --- what a version is made of ------------------------------------------------------------------


def _source(settings: Settings, host: Host) -> Path:
    given = settings.text("toolkit_source_root")
    if given:
        source = Path(given)
    else:
        kind = settings.text("toolkit_package_type")
        if kind == "auto":
            kind = "rpm" if host.below("/usr/bin/rpm").exists() else "deb"
        source = Path("/artifacts") / kind
    if not source.is_dir():
        raise UsageProblem(
            [f"the toolkit's source {source} is no directory"],
            hint="name the directory that holds the toolkit's usr/bin with --toolkit-source-root",
        )
    return source


def _entries(source: Path, toolkit: str, low_level: str) -> Iterator[Entry]:
    missing: list[str] = []
    for name in (*_WRAPPED, *_PLAIN):
        path = source / "usr/bin" / name
        if not path.is_file():
            missing.append(f"usr/bin/{name}")
            continue
        _refuse_other_machine(path)
        if name in _PLAIN:
            yield Entry(name=name, mode=0o755, content=path)
            continue
        passing = low_level if name in _RUNTIMES else None
        yield Entry(name=f"{name}.real", mode=0o755, content=path)
        yield Entry(name=name, mode=0o755, content=wrapper.render(name, toolkit, low_level=passing))
    yield Entry(name="nvidia-container-toolkit", mode=0o777, content="nvidia-container-runtime-hook")
    for name in _LIBRARIES:
        library = _library(source, name)
        if library is None:
            missing.append(name)
            continue
        _refuse_other_machine(library)
        yield Entry(name=library.name, mode=0o755, content=library)
        if library.name != name:
            yield Entry(name=name, mode=0o777, content=library.name)
    if missing:
        raise UsageProblem(
            [f"the toolkit's source {source} lacks {', '.join(missing)}"],
            hint="name the directory that holds the toolkit's usr/bin with --toolkit-source-root",
        )


def _library(source: Path, name: str) -> Path | None:
    """Return the real file behind a library's name, its links followed inside the source only."""
    for directory in _LIBRARY_DIRECTORIES:
        path = source / directory / name
        for _ in range(8):
            if not path.is_symlink():
                break
            to = os.readlink(path)
            path = source / to.lstrip("/") if to.startswith("/") else path.parent / to
        if path.is_file() and path.resolve().is_relative_to(source.resolve()):
            return path
    return None


def _refuse_other_machine(path: Path) -> None:
    with open(path, "rb") as stream:
        head = stream.read(20)
    ours = _MACHINES.get(platform.machine())
    if head[:4] != b"\x7fELF" or ours is None:
        return
    machine = int.from_bytes(head[18:20], "big" if head[5] == 2 else "little")
    if machine != ours:
        name = next((k for k, v in _MACHINES.items() if v == machine), f"ELF machine {machine}")
        raise UsageProblem(
            [f"{path} is for {name}, but this node is {platform.machine()}"],
            hint="use the image for this node's architecture",
        )


def _asked(settings: Settings, toolkit: str, low_level: tuple[str, ...]) -> dict[Key, Any]:
    runtimes = settings.items("nvidia_container_runtime_runtimes") or tuple(
        dict.fromkeys((*low_level, "runc", "crun"))
    )
    driver = settings.text("driver_root")
    ldconfig = "sbin/ldconfig.real" if _has_real_ldconfig(settings) else "sbin/ldconfig"
    runtime: Key = ("nvidia-container-runtime",)
    asked: dict[Key, Any] = {
        ("accept-nvidia-visible-devices-as-volume-mounts",): settings.flag("accept_volume_mounts"),
        ("accept-nvidia-visible-devices-envvar-when-unprivileged",): settings.flag(
            "accept_envvar_when_unprivileged"
        ),
        ("nvidia-container-cli", "ldconfig"): f"@{driver.rstrip('/')}/{ldconfig}",
        ("nvidia-container-cli", "path"): f"{toolkit}/nvidia-container-cli",
        ("nvidia-container-cli", "root"): driver,
        (*runtime, "runtimes"): list(runtimes),
        ("nvidia-container-runtime-hook", "path"): f"{toolkit}/nvidia-container-runtime-hook",
        ("nvidia-container-runtime-hook", "skip-mode-detection"): settings.flag("hook_skip_mode_detection"),
        ("nvidia-ctk", "path"): f"{toolkit}/nvidia-ctk",
    }
    optional: dict[str, Key] = {
        "nvidia_container_runtime_debug": (*runtime, "debug"),
        "nvidia_container_runtime_log_level": (*runtime, "log-level"),
        "nvidia_container_runtime_mode": (*runtime, "mode"),
        "cdi_default_kind": (*runtime, "modes", "cdi", "default-kind"),
        "nvidia_container_cli_debug": ("nvidia-container-cli", "debug"),
    }
    for name, key in optional.items():
        if settings.is_given(name):
            asked[key] = settings.text(name)
    if settings.is_given("cdi_annotation_prefixes"):
        key = (*runtime, "modes", "cdi", "annotation-prefixes")
        asked[key] = list(settings.items("cdi_annotation_prefixes"))
    return asked


def _has_real_ldconfig(settings: Settings) -> bool:
    seen = settings.text("driver_root_ctr_path")
    return bool(seen) and (Path(seen) / "sbin/ldconfig.real").exists()


# --- comparing ----------------------------------------------------------------------------------


def _file_hash(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_same(path: Path, entry: Entry) -> bool:
    try:
        status = os.lstat(path)
        if isinstance(entry.content, str):
            return stat.S_ISLNK(status.st_mode) and os.readlink(path) == entry.content
        if not stat.S_ISREG(status.st_mode) or stat.S_IMODE(status.st_mode) != entry.mode:
            return False
        if isinstance(entry.content, bytes):
            return status.st_size == len(entry.content) and path.read_bytes() == entry.content
        if status.st_size != entry.content.stat().st_size:
            return False
        return _file_hash(path) == _file_hash(entry.content)
    except OSError:
        return False


# --- writing ------------------------------------------------------------------------------------


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
    if _is_same(previous, entry):
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
    in_the_way = link.is_dir() and not link.is_symlink()
    kept = install_dir / BEFORE
    spare = install_dir / ".toolkit-next" if not in_the_way or kept.is_dir() else kept
    if spare.is_symlink():
        os.unlink(spare)
    os.symlink(target, spare)
    if in_the_way:
        _exchange(spare, link)
        if spare != kept:  # the oldest one is kept already; this one came after us
            shutil.rmtree(spare, ignore_errors=True)
    else:
        os.rename(spare, link)
    files.sync(install_dir)


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
