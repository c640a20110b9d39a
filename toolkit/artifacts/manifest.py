"""The files of a toolkit version: those of its packages, their wrappers, and its configuration."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from runtimes.dataclass import dataclass
from runtimes.lazy_pattern import lazy_pattern
from runtimes.model import Key
from toolkit.artifacts import static_wrapper, toolkit_config, wrappers
from toolkit.errors import UsageProblem
from toolkit.log import LOGGER
from toolkit.node import files, trust
from toolkit.node.host import Host
from toolkit.settings.layout import VERSIONS, InstallDir
from toolkit.settings.resolve import Settings

_LIBRARIES: Final = ("libnvidia-container.so.1", "libnvidia-container-go.so.1")
_LIBRARY_DIRECTORIES: Final = (
    "usr/lib64",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
)
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
# Two of them fit into the second cache of every processor that has a GPU beside it.
_CHUNK: Final = 256 * 1024
# Two threads hash, and each has to wait for the interpreter's lock after each piece.
_HASHED_AT_ONCE: Final = 1 << 20
SUMS: Final = "SHA256SUMS"
"""A file in the source with the hashes of the others, as sha256sum(1) writes it."""
_SUM: Final = lazy_pattern(r"([0-9a-f]{64}) [ *](.+)")
_DIGEST: Final = lazy_pattern(r"[0-9a-f]{16}")
"""The directory of the versions, relative to the install directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file of a version: its relative path, its mode, and its content.

    The content is the path of a file to copy, bytes, or the target of a symbolic link. `sha256` is
    the hash of a file to copy that its source names; it is empty if the source names none.
    """

    name: str
    mode: int
    content: Path | bytes | str
    sha256: str = ""

    def digest(self) -> str:
        """Return a line with the name, mode and content hash of the entry."""
        match self.content:
            case bytes():
                content = hashlib.sha256(self.content).hexdigest()
            case str():
                content = "-> " + self.content
            case _:
                content = self.sha256 or _file_hash(self.content)
        return f"{self.name}\0{self.mode:o}\0{content}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """The desired content of `ROOT/toolkit`, and the names of entries that differ on the node.

    `resets` are messages about keys of the present config.toml that get another value.
    """

    digest: str
    entries: tuple[Entry, ...]
    differing: tuple[str, ...]
    resets: tuple[str, ...] = ()

    @property
    def is_installed(self) -> bool:
        """Return whether exactly this version is installed."""
        return not self.differing


def desired_version(
    settings: Settings, host: Host, install_dir: Path, low_level: tuple[str, ...]
) -> Version:
    """Return the version that results from source and settings, compared with the installed one.

    `low_level` are the node's low-level runtimes, the default one first. Raises UsageProblem if the
    source is incomplete, unreadable, or for another machine.
    """
    try:
        return _wanted(settings, host, install_dir, low_level)
    except OSError as error:
        raise UsageProblem(
            [f"{error.filename} cannot be read: {error.strerror}"],
            hint="run as root, or choose another source with --toolkit-source-root",
        ) from error


def _wanted(
    settings: Settings, host: Host, install_dir: Path, low_level: tuple[str, ...]
) -> Version:
    source = _source(settings, host)
    toolkit = f"{host.node(install_dir)}/toolkit"
    link = InstallDir(install_dir).toolkit
    present, path = _present(link / toolkit_config.CONFIG), f"{toolkit}/{toolkit_config.CONFIG}"
    if settings.runs_plugin:
        # The runtime's files are not read; handlers of an earlier run may still be in use.
        low_level = toolkit_config.low_level_runtimes(present, path)
    low_level = settings.nvidia_container_runtime_runtimes or low_level
    result = list(_entries(source, toolkit, settings, low_level[0] if low_level else "runc"))
    # A feature that is no longer among the settings must be switched off.
    features: dict[Key, Any] = {
        ("features", name): False for name in toolkit_config.enabled_features(present, path)
    }
    features |= {("features", name): True for name in settings.opt_in_features}
    chosen = _chosen(settings, source)
    asked = {
        **toolkit_config.reset(link, without=chosen),
        **toolkit_config.desired_keys(settings, toolkit, low_level),
        **features,
        **chosen,
    }
    config = toolkit_config.configuration(present, path, asked)
    result.append(Entry(name=toolkit_config.CONFIG, mode=0o644, content=config))
    if chosen:
        content = toolkit_config.record(chosen)
        result.append(Entry(name=toolkit_config.CHOSEN, mode=0o644, content=content))
    names = differing(link, result)
    digest = named(link)
    if digest and _is_controlled(InstallDir(install_dir).versions):
        names = (*names, VERSIONS)
    if not names and not digest:
        names = ("toolkit",)  # the files are the same, but another installer has put them there
    return Version(
        digest=_digest(result) if names else digest,
        entries=tuple(result),
        differing=names,
        resets=(
            toolkit_config.resets(present, config, path) if present not in {None, config} else ()
        ),
    )


def _present(path: Path) -> bytes | None:
    """Return the content of the toolkit's config; None if there is none or others control it.

    Keys in it that are not among the settings are kept, so they have to be an administrator's.
    """
    if problem := trust.place_problem(path):
        LOGGER.warning("%s is replaced, since it is not trusted: %s", path, problem)
        return None
    snapshot = files.read(path)
    return snapshot.data if snapshot else None


def _chosen(settings: Settings, source: Path) -> dict[Key, Any]:
    """Return the keys of `--toolkit-config`. Raises UsageProblem if this toolkit lacks one."""
    if not settings.toolkit_config:
        return {}
    from toolkit.artifacts import config_keys  # noqa: PLC0415  # runs nvidia-ctk

    return config_keys.chosen(settings, source / "usr/bin/nvidia-ctk")


def named(link: Path) -> str:
    """Return the digest of the version that a link points to; empty if it points elsewhere."""
    directory, _, digest = os.readlink(link).rpartition("/") if link.is_symlink() else ("", "", "")
    return digest if directory == VERSIONS and _DIGEST.fullmatch(digest) else ""


def _digest(entries: Sequence[Entry]) -> str:
    """Return the digest of a version. Two files are hashed at a time, since this takes long."""
    if all(entry.sha256 or not isinstance(entry.content, Path) for entry in entries):
        return _digest_of([entry.digest() for entry in entries])
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  # needed for an install only

    try:
        with ThreadPoolExecutor(2) as two:
            digests = list(two.map(Entry.digest, entries))
    except RuntimeError:  # no more threads can be started (pids.max)
        digests = [entry.digest() for entry in entries]
    return _digest_of(digests)


def _digest_of(digests: Sequence[str]) -> str:
    lines = "".join(sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


# --- the source ---------------------------------------------------------------------------------


def _source(settings: Settings, host: Host) -> Path:
    path = settings.toolkit_source_root
    if path:
        source = Path(path)
    else:
        kind = settings.toolkit_package_type
        if kind == "auto":
            kind = "rpm" if host.below("/usr/bin/rpm").exists() else "deb"
        source = Path("/artifacts") / kind
    if not source.is_dir():
        raise UsageProblem(
            [f"the toolkit's source {source} is no directory"],
            hint="set --toolkit-source-root to the directory that contains the toolkit's usr/bin",
        )
    return source


def _entries(source: Path, toolkit: str, settings: Settings, low_level: str) -> Iterator[Entry]:
    missing: list[str] = []
    template = static_wrapper.template()
    sums = _sums(source)
    refuses, prefixes = (
        settings.require_driver,
        toolkit_config.annotation_prefixes(settings),
    )
    for name in (*_WRAPPED, *_PLAIN):
        path = source / "usr/bin" / name
        if not path.is_file():
            missing.append(f"usr/bin/{name}")
            continue
        _refuse_other_machine(path)
        known = sums.get(f"usr/bin/{name}", "")
        if name in _PLAIN:
            yield Entry(name=name, mode=0o755, content=path, sha256=known)
            continue
        passing = low_level if name in _RUNTIMES else None
        yield Entry(name=f"{name}.real", mode=0o755, content=path, sha256=known)
        wrapper = wrappers.describe(
            name, toolkit, low_level=passing, refuses=refuses, prefixes=prefixes
        )
        yield Entry(name=name, mode=0o755, content=wrappers.render(wrapper, template))
    yield Entry(
        name="nvidia-container-toolkit", mode=0o777, content="nvidia-container-runtime-hook"
    )
    for name in _LIBRARIES:
        library = _library(source, name)
        if library is None:
            missing.append(name)
            continue
        _refuse_other_machine(library)
        known = sums.get(os.path.relpath(library, source), "")
        yield Entry(name=library.name, mode=0o755, content=library, sha256=known)
        if library.name != name:
            yield Entry(name=name, mode=0o777, content=library.name)
    if missing:
        raise UsageProblem(
            [f"the toolkit's source {source} lacks {', '.join(missing)}"],
            hint="set --toolkit-source-root to the directory that contains the toolkit's usr/bin",
        )


def _sums(source: Path) -> dict[str, str]:
    """Return the hashes that a source names, by the path in it; none if it has no such file.

    They only save reading all files before the first is copied: `versions` hashes the copies.
    """
    try:
        lines = (source / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    return {match[2]: match[1] for match in map(_SUM.fullmatch, lines) if match}


def _library(source: Path, name: str) -> Path | None:
    """Return the file that a library's name links to, or None; links must stay in the source."""
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
    own = os.uname().machine
    expected = _MACHINES.get(own)
    if head[:4] != b"\x7fELF" or expected is None:
        return
    machine = int.from_bytes(head[18:20], "big" if head[5] == 2 else "little")
    if machine != expected:
        name = next((k for k, v in _MACHINES.items() if v == machine), f"ELF machine {machine}")
        raise UsageProblem(
            [f"{path} is for {name}, but this node is {own}"],
            hint="use the image for this node's architecture",
        )


# --- comparing ----------------------------------------------------------------------------------


def _file_hash(path: Path) -> str:
    with open(path, "rb") as stream:
        return sha256(stream.fileno())


def sha256(fd: int) -> str:
    """Return the SHA-256 of an open file, whatever its offset is. Raises OSError."""
    result, buffer, offset = hashlib.sha256(), bytearray(_HASHED_AT_ONCE), 0
    content = memoryview(buffer)
    while size := os.preadv(fd, [buffer], offset):
        result.update(content[:size])
        offset += size
    return result.hexdigest()


def differing(
    directory: Path, entries: Sequence[Entry], *, is_hashed: bool = False
) -> tuple[str, ...]:
    """Return the names of the entries that a directory lacks, and of what others control in it.

    The wrappers put the directory on the search path for libraries, so a file that another user
    added to it counts as well. `is_hashed` as in `is_same`.
    """
    names = [e.name for e in entries if not is_same(directory / e.name, e, is_hashed=is_hashed)]
    known = {entry.name for entry in entries}
    for parent in directories(entries):
        place = directory / parent
        with contextlib.suppress(OSError):
            names += [parent] if trust.status_problem(place.resolve()) else []
            added = (str(PurePosixPath(parent, name)) for name in sorted(os.listdir(place)))
            names += [name for name in added if name not in known and _is_added(directory / name)]
    return tuple(dict.fromkeys(names))


def directories(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Return the relative paths of the directories that contain the entries, outermost first."""
    return tuple(sorted({str(parent) for e in entries for parent in PurePosixPath(e.name).parents}))


def _is_added(path: Path) -> bool:
    return not trust.is_trusted(os.lstat(path).st_uid)


def _is_controlled(directory: Path) -> bool:
    try:
        return bool(trust.status_problem(directory)) or directory.is_symlink()
    except OSError:
        return False


def is_same(path: Path, entry: Entry, *, is_hashed: bool = False) -> bool:
    """Return whether a path has the type, mode and content of an entry, and a trusted owner.

    If it `is_hashed`, the caller compares the hash of the path with the one that the source names,
    and if the source names one, only the sizes are compared here.
    """
    try:
        status = os.lstat(path)
        is_owned = trust.is_trusted(status.st_uid)
        if isinstance(entry.content, str):
            return is_owned and stat.S_ISLNK(status.st_mode) and os.readlink(path) == entry.content
        is_regular = is_owned and stat.S_ISREG(status.st_mode)
        if not is_regular or stat.S_IMODE(status.st_mode) != entry.mode:
            return False
        if isinstance(entry.content, bytes):
            size = len(entry.content)
            with open(path, "rb", opener=files.opener) as stream:
                return status.st_size == size and stream.read(size + 1) == entry.content
        if status.st_size != entry.content.stat().st_size:
            return False
        return bool(is_hashed and entry.sha256) or _is_equal(path, entry.content)
    except OSError:
        return False


def _is_equal(one: Path, other: Path) -> bool:
    """Return whether two files are equal: five times faster than hashing both. Raises OSError.

    The same two buffers are filled again and again: new ones would be memory that the kernel has
    to clear first, which takes three times as long as the comparison.
    """
    mine, theirs = bytearray(_CHUNK), bytearray(_CHUNK)
    with (
        open(one, "rb", buffering=0, opener=files.opener) as first,
        open(other, "rb", buffering=0) as second,
    ):
        while True:
            size = first.readinto(mine)
            # What a short read leaves in the buffers was compared before.
            if size != second.readinto(theirs) or mine != theirs:
                return False
            if not size:
                return True
