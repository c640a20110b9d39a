"""The image, built for real by buildah, and run on booted nodes as the chart says.

Where no registry can be reached, a root file system made of Debian packages stands in for the
official Python image, and a directory with stand-ins for the toolkit's files for NVIDIA's image.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from tests.support import artifacts, containers, helm, nodes
from tests.support.nodes import Node, NodeError
from toolkit import __version__
from tools import source

ROOT: Final = Path(__file__).resolve().parents[2]
IMAGE: Final = f"localhost/nvidia-toolkit:{__version__}"
EPOCH: Final = "1700000000"
SUITE: Final = "trixie"
LOCKS: Final = (
    ROOT / "requirements.txt",
    ROOT / "deploy/image/requirements.txt",
    ROOT / "deploy/programs/requirements.txt",
)
BASE: Final = "localhost/base"
_RECIPE: Final = (
    "mmdebstrap", "--quiet", "--variant=minbase", "--include=python3,python3-pip",
    '--aptopt=Acquire::Check-Valid-Until "false"',
)  # fmt: skip
_BUILD_TIME: Final = 900


def why_not() -> str | None:
    """Return the reason why this machine cannot build the image, or None."""
    if os.geteuid() != 0:
        return "an image needs root, to be built without a daemon"
    if missing := [name for name in ("buildah", "mmdebstrap") if shutil.which(name) is None]:
        return f"an image needs {', '.join(missing)}"
    return None


def _base() -> Path:
    recipe = hashlib.sha256("\0".join(_RECIPE).encode()).hexdigest()[:10]
    return nodes.cache() / "image" / f"{SUITE}-{recipe}.tar"


def _wheels() -> Path:
    name = hashlib.sha256(b"".join(lock.read_bytes() for lock in LOCKS)).hexdigest()[:10]
    return nodes.cache() / "image" / f"wheels-{name}"


def lacking() -> str:
    """Return why an image would have to fetch something first; empty where all is there."""
    return (
        ""
        if _base().exists() and _wheels().exists()
        else "its base is not there (`make test` makes it)"
    )


def sizes(said: str) -> tuple[float, float]:
    """Return what a build says of the image: MB above the C library, and those of the C library."""
    (found,) = re.findall(r"image: ([\d.]+) MB above the C library \(([\d.]+) MB\)", said)
    return float(found[0]), float(found[1])


@cache
def base() -> Path:
    """Return an archive of a root file system with python3 and pip, made on first use."""
    wanted = _base()
    wanted.parent.mkdir(parents=True, exist_ok=True)
    with wanted.with_suffix(".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not wanted.exists():
            made = wanted.with_suffix(".new")
            _run(*_RECIPE, "--format=tar", SUITE, str(made))
            made.rename(wanted)
    return wanted


@cache
def wheels() -> Path:
    """Return a directory with this architecture's locked wheels, fetched on first use."""
    wanted = _wheels()
    wanted.parent.mkdir(parents=True, exist_ok=True)
    with wanted.with_suffix(".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not wanted.exists():
            made = Path(tempfile.mkdtemp(dir=wanted.parent))
            for listed in LOCKS:
                fetch(listed, made)
            made.rename(wanted)
    return wanted


def fetch(listed: Path, target: Path, *options: str) -> None:
    """Fetch locked wheels; refuse one whose hash is another."""
    _run(
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
        "--require-hashes", "--disable-pip-version-check", *options, f"--dest={target}",
        f"--requirement={listed}",
    )  # fmt: skip


class Store:
    """A store of buildah's below a directory of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.options = (f"--root={home}/root", f"--runroot={home}/run", "--storage-driver=vfs")
        self._buildah = ("buildah", *self.options)

    def __call__(self, *words: str) -> str:
        """Run buildah."""
        return _run(*self._buildah, *words)

    def take_base(self) -> None:
        """Make the base image out of the root file system."""
        self.put(BASE, base())

    def put(self, name: str, content: Path) -> None:
        """Make an image out of an archive or of what is in a directory."""
        container = self("from", "scratch").strip()
        self("add", "--quiet", container, str(content), "/")
        self("commit", "--quiet", container, name)
        self("rm", container)

    def build(self) -> tuple[str, str]:
        """Build the image from the tracked files; return its ID and what was said."""
        with tempfile.TemporaryDirectory(dir=self.home) as scratch:
            context, toolkit, name = (Path(scratch) / part for part in ("context", "toolkit", "id"))
            _lay(context)
            artifacts.make(toolkit / "artifacts/deb")
            said = self(
                "bud", "--isolation=chroot", "--no-cache", f"--timestamp={EPOCH}",
                f"--iidfile={name}", f"--build-arg=SOURCE_DATE_EPOCH={EPOCH}",
                f"--build-arg=PYTHON_IMAGE={BASE}", f"--build-arg=VERSION={__version__}",
                f"--build-context=artifacts={toolkit}", f"--tag={IMAGE}", str(context),
            )  # fmt: skip
            return name.read_text(encoding="utf-8"), said

    def as_written(self, line: str) -> None:
        """Build by a line of `docker build`, with all the words behind that as they are.

        What stands for docker: `buildah bud`, which fetches no image but finds those that were put
        here, and as the directory to be in a copy of the tracked files with the wheels, so that pip
        fetches nothing.
        """
        program, command, *words = shlex.split(line)
        if (program, command) != ("docker", "build"):
            raise ValueError(f"this is no `docker build`: {line}")
        with tempfile.TemporaryDirectory(dir=self.home) as scratch:
            context = Path(scratch) / "context"
            _lay(context)
            _run(*self._buildah, "bud", "--isolation=chroot", "--pull=never", *words, cwd=context)

    def archive(self) -> Path:
        """Return the image as an archive."""
        target = self.home / "image.tar"
        target.unlink(missing_ok=True)
        self("push", "--quiet", IMAGE, f"docker-archive:{target}:{IMAGE}")
        return target

    def mounted(self) -> Path:
        """Return the image's root, in a copy of its own."""
        container = self("from", IMAGE).strip()
        return Path(self("mount", container).strip())


def _lay(context: Path) -> None:
    """Copy what git tracks or would track, so that nothing of this checkout's leftovers gets in."""
    for name in source.listed(ROOT, with_new=True):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, context / name)
    shutil.copytree(wheels(), context / "wheels")


def load(node: Node, archive: Path) -> None:
    """Give a node's containerd the image."""
    target = nodes.path(node, "/root/image.tar")
    shutil.copy(archive, target)
    nodes.run(node, ("ctr", "--namespace=k8s.io", "images", "import", "/root/image.tar"))
    target.unlink()


def give(node: Node, name: str) -> None:
    """Give the image that a node has another name, as if it had been pulled by that."""
    if name != IMAGE:
        nodes.run(node, ("ctr", "--namespace=k8s.io", "images", "tag", "--force", IMAGE, name))
    # CRI learns of images by events, a moment later.
    nodes.wait_for(node, lambda: containers.has_image(node, name))


class Container:
    """A DaemonSet's container on a node, made as kubelet's runtime would, without a kubelet."""

    def __init__(self, node: Node, found: Sequence[dict[str, Any]], **variables: str) -> None:
        self.node = node
        self.name = "nvidia-toolkit"
        self.log = f"/run/{self.name}.log"
        nodes.path(node, self.log).unlink(missing_ok=True)
        pod = helm.one(found, "DaemonSet")["spec"]["template"]["spec"]
        for volume in pod["volumes"]:
            if volume["hostPath"].get("type") == "DirectoryOrCreate":
                nodes.run(node, ("mkdir", "-p", volume["hostPath"]["path"]))
        wanted = helm.container(found)
        words = (
            *_privileges(wanted["securityContext"]),
            *(("--with-ns=pid:/proc/1/ns/pid",) if pod["hostPID"] else ()),
            *(f"--mount={each}" for each in _mounts(found)),
            *(
                f"--env={name}={value}"
                for name, value in (helm.environment(found) | variables).items()
            ),
        )
        argv = (*wanted.get("command", ()), *wanted.get("args", ()))
        nodes.run(node, ("ctr", "--namespace=k8s.io", "run", "--detach",
                         f"--log-uri=file://{self.log}",
                         *words, IMAGE, self.name, *argv))  # fmt: skip

    def told(self) -> str:
        """Return what it wrote."""
        return nodes.path(self.node, self.log).read_text(encoding="utf-8", errors="replace")

    def waits_for(self, words: str, timeout: float = 60) -> None:
        """Wait until it wrote something."""
        try:
            nodes.wait_for(
                self.node, lambda: words in self.told() or not self.is_running(), timeout
            )
        except NodeError as error:
            raise NodeError(f"{error}: {self.told()}") from error
        assert words in self.told(), self.told()

    def probe(self) -> int:
        """Run the chart's readiness probe; return its exit code."""
        return self.execute("nvidia-toolkit", "status", "--quiet").returncode

    def execute(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a program in the container."""
        return nodes.run(
            self.node,
            ("ctr", "--namespace=k8s.io", "tasks", "exec", "--exec-id=probe", self.name, *argv),
            check=False,
        )  # fmt: skip

    def state(self) -> str:
        """Return what containerd says of its task, once it answers; empty where it has none."""
        said: list[str] = []

        def answers() -> bool:
            # It is being restarted by this very container, now and then.
            listed = nodes.run(
                self.node, ("ctr", "--namespace=k8s.io", "tasks", "list"), check=False
            )
            said[:] = listed.stdout.splitlines()
            return listed.returncode == 0

        nodes.wait_for(self.node, answers)
        return next((line.split()[2] for line in said if line.startswith(f"{self.name} ")), "")

    def is_running(self) -> bool:
        """Return whether it runs."""
        return self.state() == "RUNNING"

    def ends_itself(self, timeout: float = 60) -> None:
        """Wait until it ended."""
        nodes.wait_for(self.node, lambda: not self.is_running(), timeout)

    def end(self, timeout: float = 60) -> int:
        """Stop it as kubelet does; return its exit code, and forget it."""
        if self.is_running():
            nodes.run(
                self.node,
                ("ctr", "--namespace=k8s.io", "tasks", "kill", "--signal=SIGTERM", self.name),
            )
        try:
            self.ends_itself(timeout)
        finally:
            done = nodes.run(
                self.node,
                ("ctr", "--namespace=k8s.io", "tasks", "delete", "--force", self.name),
                check=False,
            )
            nodes.run(self.node, ("ctr", "--namespace=k8s.io", "containers", "delete", self.name))
        return done.returncode


def _privileges(context: Mapping[str, Any]) -> tuple[str, ...]:
    words = ["--read-only"] if context.get("readOnlyRootFilesystem") else []
    if context.get("privileged"):
        return (*words, "--privileged")
    # ctr gives what the runtime gives by default; the chart drops all of it first.
    usual = [
        "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID",
        "SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
    ]  # fmt: skip
    given = context["capabilities"]["add"]
    words += [f"--cap-drop=CAP_{name}" for name in usual if name not in given]
    return (*words, *(f"--cap-add=CAP_{name}" for name in given if name not in usual), "--seccomp")


def _mounts(found: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"type=bind,src={source},dst={target},options=rbind:{'rw' if writable else 'ro'}:rslave"
        for target, (source, writable) in sorted(
            helm.mounts(found).items(), key=lambda each: each[0].count("/")
        )
    ]


def _run(*argv: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        argv, cwd=cwd, capture_output=True, text=True, check=False, timeout=_BUILD_TIME,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode != 0:
        raise NodeError(
            f"{argv[0]} ended with {done.returncode}: {(done.stderr or done.stdout)[-3000:]}"
        )
    return done.stdout + done.stderr
