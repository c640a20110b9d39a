"""The packages for distributions: one directory with the program and its locked wheels, by nfpm.

A package brings everything but Python. It needs the distribution's own, 3.11 or newer.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from deploy.programs import build
from tests.support import nodes, versions
from tools import archives, licenses
from tools.emulation import MACHINES

NAME: Final = "nvidia-toolkit"
HOME: Final = f"usr/lib/{NAME}"
"""Where the program is, without the leading slash."""
PLATFORMS: Final[Mapping[str, str]] = {
    "amd64": "manylinux2014_x86_64",
    "arm64": "manylinux2014_aarch64",
}
"""Architectures as Debian names them, and the tag of their wheels."""
PACKAGERS: Final = ("deb", "rpm")
OLDEST_PYTHON: Final = "3.11"
_DEPENDS: Final[Mapping[str, str]] = {
    "deb": f"python3 (>= {OLDEST_PYTHON})",
    "rpm": f"python3 >= {OLDEST_PYTHON}",
}
_LAUNCHER: Final = f"""#!/usr/bin/python3 -ISB
# -S: the packages are all in a directory of their own, and those of the host are not used.
import sys

sys.path.insert(0, "/{HOME}")

from toolkit.program import main

main()
"""
_OURS: Final = ("runtimes", "toolkit")
_OF_PIP: Final = ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json")
"""Files by which pip would manage a wheel, which the package manager does here."""
_DOCUMENTATION: Final = f"usr/share/doc/{NAME}"
_FILES: Final[Mapping[str, str]] = {
    "deploy/completions/bash/nvidia-toolkit": (
        "usr/share/bash-completion/completions/nvidia-toolkit"
    ),
    "deploy/completions/fish/nvidia-toolkit.fish": (
        "usr/share/fish/vendor_completions.d/nvidia-toolkit.fish"
    ),
}
_SYSTEMD: Final[Mapping[str, str]] = {
    ".service": "usr/lib/systemd/system",
    ".target": "usr/lib/systemd/system",
    ".env": _DOCUMENTATION,
}
"""Where the files of deploy/systemd go, by their suffix. The settings are an example to copy."""
_ZSH: Final[Mapping[str, str]] = {
    "deb": "usr/share/zsh/vendor-completions/_nvidia-toolkit",
    "rpm": "usr/share/zsh/site-functions/_nvidia-toolkit",
}
_DIRECTORIES: Final = (
    _DOCUMENTATION,
    "usr/share/bash-completion",
    "usr/share/bash-completion/completions",
    "usr/share/fish",
    "usr/share/fish/vendor_completions.d",
    "usr/share/zsh",
    "usr/share/zsh/site-functions",
)
"""Directories that may not be there where the shells are not installed."""
_BUILD_SECONDS: Final = 900


class PackageError(Exception):
    """A package could not be made."""


@cache
def nfpm() -> Path:
    """Return the nfpm program, built on first use. Raises PackageError if it cannot be built."""
    home = nodes.cache() / "go" / f"nfpm-{versions.NFPM}"
    home.mkdir(parents=True, exist_ok=True)
    wanted = home / "nfpm"
    with home.with_suffix(".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not wanted.exists():
            _build(wanted)
    return wanted


def _build(wanted: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise PackageError("nfpm is not built: it needs Go 1.26 or newer on PATH")
    done = subprocess.run(
        (go, "install", "-trimpath", "-ldflags=-s -w",
         f"github.com/goreleaser/nfpm/v2/cmd/nfpm@{versions.NFPM}"),
        env={**os.environ, "CGO_ENABLED": "0", "GOBIN": str(wanted.parent)},
        capture_output=True, text=True, check=False, timeout=_BUILD_SECONDS,
    )  # fmt: skip
    if done.returncode != 0:
        raise PackageError(f"nfpm {versions.NFPM} cannot be built here: {done.stderr[-500:]}")


def tree(source: Path, target: Path, architecture: str, *, wheels: Path | None = None) -> None:
    """Lay out what both packages of an architecture install, below a directory.

    `source` is the source of the release. `wheels` is a directory with the locked wheels; without
    it they are downloaded. Raises PackageError for a wheel that is not there or has another hash,
    and if the static programs cannot be built.
    """
    home = target / HOME
    _install(source / "requirements.txt", home, architecture, wheels)
    for name in _OURS:
        shutil.copytree(
            source / name, home / name, ignore=shutil.ignore_patterns("__pycache__", "*.toml")
        )
    try:
        build.build(home / "toolkit/artifacts", [MACHINES[architecture]], wheels=wheels)
    except build.BuildError as error:
        raise PackageError(f"the static programs for {architecture}: {error}") from error
    launcher = target / f"usr/bin/{NAME}"
    launcher.parent.mkdir(parents=True)
    launcher.write_text(_LAUNCHER, encoding="utf-8")
    launcher.chmod(0o755)
    units = {
        f"deploy/systemd/{path.name}": f"{_SYSTEMD[path.suffix]}/{path.name}"
        for path in (source / "deploy/systemd").glob("*")
    }
    for name, place in {**_FILES, **units}.items():
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / place)
    rights = target / f"{_DOCUMENTATION}/copyright"
    own = (source / "LICENSE").read_text(encoding="utf-8")
    rights.write_text(licenses.statement(own, home, f"/{HOME}"), encoding="utf-8")
    manual = target / f"usr/share/man/man1/{NAME}.1.gz"
    manual.parent.mkdir(parents=True)
    text = (source / f"docs/man/{NAME}.1").read_bytes()
    manual.write_bytes(archives.compressed(text, 0))


def _install(requirements: Path, home: Path, architecture: str, wheels: Path | None) -> None:
    here = () if wheels is None else ("--no-index", f"--find-links={wheels}")
    done = subprocess.run(
        (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile",
         "--only-binary=:all:", "--require-hashes", "--disable-pip-version-check",
         "--root-user-action=ignore", f"--platform={PLATFORMS[architecture]}",
         f"--python-version={OLDEST_PYTHON}", *here, f"--target={home}",
         f"--requirement={requirements}"),
        capture_output=True, text=True, check=False, timeout=_BUILD_SECONDS,
    )  # fmt: skip
    if done.returncode != 0:
        raise PackageError(f"the wheels for {architecture}: {done.stderr.strip()[-1000:]}")
    shutil.rmtree(home / "bin", ignore_errors=True)
    for tests in home.glob("*/tests"):
        shutil.rmtree(tests)
    for metadata in home.glob("*.dist-info"):
        for name in _OF_PIP:
            (metadata / name).unlink(missing_ok=True)
    if strange := [path.name for path in home.rglob("*.cpython-*")]:
        raise PackageError(f"only for one version of Python: {', '.join(sorted(strange))}")


def describe(
    source: Path, laid: Path, packager: str, architecture: str, version: str, maintainer: str
) -> dict[str, Any]:
    """Return nfpm's description of a package: what it holds, needs, and runs."""
    scripts = source / "deploy/packages"
    zsh = source / "deploy/completions/zsh/_nvidia-toolkit"
    return {
        "name": NAME,
        "arch": architecture,
        "version": version,
        "release": "1",
        "section": "admin",
        "priority": "optional",
        "maintainer": maintainer,
        "description": (
            "Installs the NVIDIA Container Toolkit on a host\n"
            "Configures containerd, CRI-O or Docker, verifies the change with the running\n"
            "daemon, rolls it back if it fails, and reverts it byte for byte."
        ),
        "license": licenses.together(each for each, _ in licenses.bundled(laid / HOME).values()),
        "depends": [_DEPENDS[packager]],
        "umask": 0o022,
        "contents": [
            {"src": str(laid / HOME), "dst": f"/{HOME}", "type": "tree"},
            *(
                {"src": str(path), "dst": f"/{path.relative_to(laid)}"}
                for path in sorted(laid.rglob("*"))
                if path.is_file() and not path.is_relative_to(laid / HOME)
            ),
            {"src": str(zsh), "dst": f"/{_ZSH[packager]}", "file_info": {"mode": 0o644}},
            # rpm removes no directory that no package has.
            *({"dst": f"/{name}", "type": "dir"} for name in _DIRECTORIES if packager == "rpm"),
        ],
        "scripts": {
            "postinstall": str(scripts / "postinstall.sh"),
            "preremove": str(scripts / "preremove.sh"),
        },
        "rpm": {"buildhost": "localhost", "group": "System Environment/Base"},
    }


def make(description: Mapping[str, Any], packager: str, target: Path, epoch: int) -> Path:
    """Make a package below a directory and return it. Raises PackageError with nfpm's message.

    `epoch` is the time of every file in it and of the package itself, in seconds since 1970.
    """
    before = set(target.iterdir())
    # nfpm reads YAML, and every JSON document is one.
    config = target / f".{packager}.yaml"
    config.write_text(json.dumps(description), encoding="utf-8")
    try:
        done = subprocess.run(
            (str(nfpm()), "package", f"--config={config}", f"--packager={packager}",
             f"--target={target}/"),
            env={"PATH": nodes.PATH, "HOME": str(target), "SOURCE_DATE_EPOCH": str(epoch)},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    finally:
        config.unlink()
    if done.returncode != 0:
        raise PackageError(f"nfpm: {(done.stderr or done.stdout).strip()[-1000:]}")
    (made,) = set(target.iterdir()) - before
    return made
