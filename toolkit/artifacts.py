"""What the toolkit consists of: the files of its packages, their wrappers, its own configuration."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtimes.model import Key
from toolkit import files, wrapper
from toolkit.errors import UsageProblem
from toolkit.host import Host
from toolkit.settings import Settings

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
_PREFIXES: Final[Key] = ("nvidia-container-runtime", "modes", "cdi", "annotation-prefixes")
_MACHINES: Final = {"x86_64": 62, "aarch64": 183}
_CHUNK: Final = 1 << 20
_DIGEST: Final = re.compile(r"[0-9a-f]{16}")
VERSIONS: Final = ".toolkit-versions"
"""Where versions lie beside each other in the install directory."""


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
    try:
        return _wanted(settings, host, install_dir, low_level)
    except OSError as error:
        raise UsageProblem(
            [f"{error.filename} cannot be read: {error.strerror}"],
            hint="run as root, or name another source with --toolkit-source-root",
        ) from error


def _wanted(settings: Settings, host: Host, install_dir: Path, low_level: tuple[str, ...]) -> Version:
    source = _source(settings, host)
    toolkit = f"{host.node(install_dir)}/toolkit"
    low_level = settings.items("nvidia_container_runtime_runtimes") or low_level
    found = list(_entries(source, toolkit, settings, low_level[0] if low_level else "runc"))
    seen = files.read(install_dir / "toolkit" / wrapper.CONFIG)
    present, path = seen.data if seen else None, f"{toolkit}/{wrapper.CONFIG}"
    # A feature that is not asked for any more must not stay in effect.
    asked: dict[Key, Any] = {("features", name): False for name in wrapper.enabled_features(present, path)}
    asked |= {("features", name): True for name in settings.items("opt_in_features")}
    config = wrapper.configuration(present, path, {**_asked(settings, toolkit, low_level), **asked})
    found.append(Entry(name=wrapper.CONFIG, mode=0o644, content=config))
    link = install_dir / "toolkit"
    differing = tuple(e.name for e in found if not is_same(link / e.name, e))
    digest = "" if differing else named(link)
    if not differing and not digest:
        differing = ("toolkit",)  # the files are right, but they are another installer's
    return Version(digest=digest or _digest(found), entries=tuple(found), differing=differing)


def named(link: Path) -> str:
    """Return the digest of the version of ours that a link names; empty where it is none."""
    directory, _, digest = os.readlink(link).rpartition("/") if link.is_symlink() else ("", "", "")
    return digest if directory == VERSIONS and _DIGEST.fullmatch(digest) else ""


def _digest(entries: Sequence[Entry]) -> str:
    """Return what names a version; large files are hashed two at a time, for that is much of an install."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  # only for what is to be installed

    try:
        with ThreadPoolExecutor(2) as two:
            digests = list(two.map(Entry.digest, entries))
    except RuntimeError:  # no thread more may be started here (pids.max)
        digests = [entry.digest() for entry in entries]
    lines = "".join(sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


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


def _entries(source: Path, toolkit: str, settings: Settings, low_level: str) -> Iterator[Entry]:
    missing: list[str] = []
    refuses, prefixes = settings.flag("require_driver"), annotation_prefixes(settings)
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
        content = wrapper.render(name, toolkit, low_level=passing, refuses=refuses, prefixes=prefixes)
        yield Entry(name=name, mode=0o755, content=content)
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
    given = settings.items("nvidia_container_runtime_runtimes")
    runtimes = given or tuple(dict.fromkeys((*low_level, "runc", "crun")))
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
        # An option that is not given any more must not stay in effect.
        asked[key] = settings.text(name) or wrapper.DEFAULTS[key]
    asked[_PREFIXES] = list(annotation_prefixes(settings))
    return asked


def annotation_prefixes(settings: Settings) -> tuple[str, ...]:
    """Return how annotations begin that ask for CDI devices."""
    return settings.items("cdi_annotation_prefixes") or tuple(wrapper.DEFAULTS[_PREFIXES])


def _has_real_ldconfig(settings: Settings) -> bool:
    seen = settings.text("driver_root_ctr_path")
    return bool(seen) and (Path(seen) / "sbin/ldconfig.real").exists()


# --- comparing ----------------------------------------------------------------------------------


def _file_hash(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_same(path: Path, entry: Entry) -> bool:
    """Tell whether a path is exactly what an entry says: kind, mode and content."""
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
        return _is_equal(path, entry.content)
    except OSError:
        return False


def _is_equal(one: Path, other: Path) -> bool:
    """Compare two files byte by byte, which costs a fifth of a hash of both. Raises OSError."""
    with open(one, "rb", buffering=0) as first, open(other, "rb", buffering=0) as second:
        while True:
            here, there = first.read(_CHUNK), second.read(_CHUNK)
            if here != there:
                return False
            if not here:
                return True
