"""Make the files of a release in dist/: `python -m tools.release` (`make release`).

The same commit makes the same bytes: every file gets the time of the commit, and the tools are
those of constraints.txt, requirements.txt and tests/support/versions.py. docs/release.md says what
each file is, and what decides about its bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from tests.support import helm
from tests.support.availability import Unavailable
from toolkit import __version__
from tools import archives, bills, emulation, packages
from tools import source as sources
from tools.emulation import EmulationError
from tools.licenses import LicenseError
from tools.packages import PackageError

ROOT: Final = Path(__file__).resolve().parents[1]
SUMS: Final = "SHA256SUMS"
_SECONDS: Final = 1800
_BACKEND: Final = "import sys\nfrom setuptools import build_meta\nbuild_meta.{}(sys.argv[1])"


class ReleaseError(Exception):
    """A release could not be made. The message says why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The source of a release: a directory, its commit (or empty), the commit's time in seconds."""

    directory: Path
    revision: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every part gets: the source, where its files go, a directory of its own, the options."""

    source: Source
    output: Path
    scratch: Path
    options: argparse.Namespace

    def run(self, *argv: str, cwd: Path | None = None, emulated: str = "") -> str:
        """Run a program with the time of the release; return its standard output.

        `emulated` is an architecture whose programs it runs, by an emulator if it is not this
        machine's. Raises ReleaseError with the end of what it printed if it fails.
        """
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
            "SOURCE_DATE_EPOCH": str(self.source.epoch),
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
        }
        if emulated and emulation.is_needed(emulated):
            done = emulation.run(argv, emulated, cwd=cwd, env=environment, timeout=_SECONDS)
        else:
            done = subprocess.run(
                argv, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
                text=True, check=False, timeout=_SECONDS,
            )  # fmt: skip
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()[-2000:]
            raise ReleaseError(f"{argv[0]} ended with {done.returncode}: {said}")
        return done.stdout


_FAILURES: Final = (
    ReleaseError, PackageError, LicenseError, EmulationError, subprocess.SubprocessError,
    Unavailable,
)  # fmt: skip


def main(words: Sequence[str] | None = None) -> int:
    """Make the release; return the exit status."""
    options = _options(words)
    os.umask(0o022)
    try:
        made = release(options)
    except _FAILURES as error:
        sys.stderr.write(f"tools.release: {error}\n")
        return 1
    for path in made:
        sys.stdout.write(f"{path}\n")
    return 0


def release(options: argparse.Namespace) -> list[Path]:
    """Make the parts that the options name; return the files. Raises ReleaseError.

    The output directory is replaced at the end, so that it never holds half a release.
    """
    output: Path = options.output
    check(options)
    with tempfile.TemporaryDirectory(prefix="nvidia-toolkit-release-") as place:
        scratch = Path(place)
        source = export(scratch / "source", is_dirty_allowed=options.uncommitted)
        made = scratch / "output"
        made.mkdir()
        for name in dict.fromkeys(options.only or PARTS):
            part = scratch / name
            part.mkdir()
            PARTS[name](Job(source=source, output=made, scratch=part, options=options))
        (made / SUMS).write_text(sums(made), encoding="utf-8")
        if output.exists():
            shutil.rmtree(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(made, output)
    return sorted(output.iterdir())


def check(options: argparse.Namespace) -> None:
    """Find out what would end a release late. Raises ReleaseError."""
    output: Path = options.output
    there = {path.name for path in output.iterdir()} if output.exists() else set()
    if SUMS in there:
        lines = (output / SUMS).read_text(encoding="utf-8").splitlines()
        there -= {SUMS, *(line.partition("  ")[2] for line in lines)}
    if there:
        raise ReleaseError(f"{output} holds something else than a release: name another --output")
    if "image" not in (options.only or PARTS):
        return
    if shutil.which("buildah") is None:
        raise ReleaseError("the image needs buildah: apt-get install buildah")
    for architecture in options.architecture:
        if emulation.is_needed(architecture):
            try:
                emulation.check(architecture)
            except EmulationError as error:
                raise ReleaseError(
                    f"the image for {architecture}: {error}; or leave {architecture} out with"
                    " --architecture"
                ) from error


# --- the source ---------------------------------------------------------------------------------


def export(target: Path, *, is_dirty_allowed: bool = False) -> Source:
    """Copy the source to a directory; return it with its commit and the commit's time.

    A source archive has no commit, and the time of its PKG-INFO is that of the commit. The
    variable SOURCE_DATE_EPOCH overrides both times. Raises ReleaseError if there are changes that
    are not committed.
    """
    revision, epoch = "", int((ROOT / "pyproject.toml").stat().st_mtime)
    if (ROOT / ".git").exists():
        changed = _git(ROOT, "status", "--porcelain").splitlines()
        if changed and not is_dirty_allowed:
            raise ReleaseError(
                f"{len(changed)} files are not committed, the first is {changed[0][3:]}: commit or"
                " stash them, or try a release with --uncommitted"
            )
        revision = _git(ROOT, "rev-parse", "HEAD").strip() + ("-dirty" if changed else "")
        epoch = int(_git(ROOT, "log", "-1", "--format=%ct"))
    elif (ROOT / "PKG-INFO").exists():
        epoch = int((ROOT / "PKG-INFO").stat().st_mtime)
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or epoch)
    for name in sources.listed(ROOT):
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, place)
        place.chmod(0o755 if (ROOT / name).stat().st_mode & 0o100 else 0o644)
    return Source(directory=target, revision=revision, epoch=epoch)


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ("git", "-C", str(root), *words), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ReleaseError(f"git {words[0]}: {done.stderr.strip()}")
    return done.stdout


# --- the parts ----------------------------------------------------------------------------------


def python(job: Job) -> None:
    """Make the source archive, and the wheel from what that archive holds."""
    plain = job.scratch / "plain"
    plain.mkdir()
    job.run(
        sys.executable, "-c", _BACKEND.format("build_sdist"), str(plain),
        cwd=job.source.directory,
    )  # fmt: skip
    (built,) = plain.iterdir()
    name = built.name.removesuffix(".tar.gz")
    archives.unpack(built, job.scratch)
    inside = job.scratch / name
    if missing := sorted(set(sources.listed(job.source.directory)) - set(sources.listed(inside))):
        raise ReleaseError(f"MANIFEST.in leaves out {', '.join(missing[:5])}")
    archives.pack(inside, job.output / built.name, job.source.epoch, top=f"{name}/")
    job.run(sys.executable, "-c", _BACKEND.format("build_wheel"), str(job.output), cwd=inside)


def chart(job: Job) -> None:
    """Make the chart's package, which helm makes with other bytes each time."""
    plain = job.scratch / "plain"
    plain.mkdir()
    done = helm.run(
        "package", str(job.source.directory / helm.CHART.relative_to(ROOT)),
        f"--destination={plain}",
    )  # fmt: skip
    if done.returncode != 0:
        raise ReleaseError(f"helm package: {done.stderr.strip()}")
    (built,) = plain.iterdir()
    inside = job.scratch / "inside"
    archives.unpack(built, inside)
    archives.pack(inside, job.output / built.name, job.source.epoch)


def manifests(job: Job) -> None:
    """Write the plain manifests as one file: the namespace first, what needs all others last."""
    directory = job.source.directory / "deploy/manifests"
    names = {path.name for path in directory.glob("*.yaml")} - {"kustomization.yaml"}
    ends = ("namespace.yaml", "daemonset.yaml")
    order = [ends[0], *sorted(names - set(ends)), ends[1]]
    texts = [(directory / name).read_text(encoding="utf-8").rstrip("\n") for name in order]
    target = job.output / f"nvidia-toolkit-{__version__}.yaml"
    target.write_text("\n---\n".join(texts) + "\n", encoding="utf-8")


def bill(job: Job) -> None:
    """Write the bill of materials of the program without the image."""
    requirements = (job.source.directory / "requirements.txt").read_text(encoding="utf-8")
    target = job.output / f"nvidia-toolkit-{__version__}-python.cdx.json"
    target.write_text(bills.bill(requirements, __version__, job.source.epoch), encoding="utf-8")


def distributions(job: Job) -> None:
    """Make a .deb and an .rpm for every architecture."""
    for architecture in job.options.architecture:
        laid = job.scratch / architecture
        packages.tree(
            job.source.directory, laid, architecture, wheels=job.options.wheels
        )  # fmt: skip
        _age(laid, job.source.epoch)
        for packager in packages.PACKAGERS:
            description = packages.describe(
                job.source.directory, laid, packager, architecture, __version__,
                job.options.maintainer,
            )  # fmt: skip
            packages.make(description, packager, job.output, job.source.epoch)


def image(job: Job) -> None:
    """Build the image for every architecture, each as an OCI archive with its bill of materials."""
    for architecture in job.options.architecture:
        context, oci = job.scratch / f"context-{architecture}", job.scratch / f"oci-{architecture}"
        shutil.copytree(job.source.directory, context)
        if job.options.wheels is not None:
            shutil.copytree(job.options.wheels, context / "wheels")
        buildah = ("buildah", *job.options.buildah)
        if emulation.is_needed(architecture) and not job.options.buildah:
            # A user namespace marks an overlay otherwise, and its mounts are seen there alone.
            store = job.scratch / f"store-{architecture}"
            buildah += (f"--root={store}", f"--runroot={store}-run", "--storage-driver=vfs")
        run = partial(job.run, emulated=architecture)
        name = f"localhost/nvidia-toolkit:{__version__}-{architecture}"
        bases = {
            "PYTHON_IMAGE": job.options.python_image,
            "ARTIFACTS_IMAGE": job.options.artifacts_image,
        }
        given = {
            "VERSION": __version__,
            "REVISION": job.source.revision,
            "SOURCE_DATE_EPOCH": str(job.source.epoch),
            **{key: value for key, value in bases.items() if value},
        }
        run(
            *buildah, "bud", "--isolation=chroot", "--no-cache", f"--arch={architecture}",
            f"--timestamp={job.source.epoch}", f"--tag={name}",
            *(f"--build-arg={key}={value}" for key, value in given.items()), str(context),
        )  # fmt: skip
        run(*buildah, "push", "--quiet", name, f"oci:{oci}:{__version__}")
        stem = f"nvidia-toolkit-{__version__}-image-{architecture}"
        archives.pack(oci, job.output / f"{stem}.oci.tar", job.source.epoch)
        container = run(*buildah, "from", "--pull=never", name).strip()
        root = Path(run(*buildah, "mount", container).strip())
        shutil.copyfile(
            root / "usr/share/nvidia-toolkit/sbom.cdx.json", job.output / f"{stem}.cdx.json"
        )
        run(*buildah, "rm", container)


PARTS: Final[Mapping[str, Callable[[Job], None]]] = {
    "image": image,  # it alone asks a registry of images, so a failure comes first
    "python": python,
    "chart": chart,
    "manifests": manifests,
    "bill": bill,
    "packages": distributions,
}


def sums(directory: Path) -> str:
    """Return the SHA-256 sums of the files in a directory, in the format of sha256sum(1)."""
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(directory.iterdir())
        if path.name != SUMS
    )


def _age(directory: Path, epoch: int) -> None:
    for path in (directory, *directory.rglob("*")):
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.release", description="Make the files of a release."
    )
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="where they go")
    parser.add_argument(
        "--only", action="append", choices=list(PARTS), help="a part; repeated for more than one"
    )
    parser.add_argument(
        "--architecture", action="append", choices=list(packages.PLATFORMS), help="of packages and"
        " image; repeated for more than one (both)"
    )  # fmt: skip
    parser.add_argument(
        "--uncommitted", action="store_true", help="take changes that are not committed, to try it"
    )
    parser.add_argument("--maintainer", default="nvidia-toolkit maintainers <root@localhost>")
    parser.add_argument("--wheels", type=Path, help="a directory with the locked wheels")
    parser.add_argument("--python-image", help="what the image's Python is taken from, by digest")
    parser.add_argument("--artifacts-image", help="what the toolkit is taken from, by digest")
    parser.add_argument(
        "--buildah", action="append", default=[], metavar="OPTION", help="an option for buildah"
    )
    asked = parser.parse_args(words)
    asked.architecture = asked.architecture or list(packages.PLATFORMS)
    return asked


if __name__ == "__main__":
    sys.exit(main())
