"""A release, made for real: twice with the same bytes, and its parts installed and removed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.support import artifacts, boot, containers, helm, images, nodes, programs, real
from tests.support.nodes import Node
from toolkit import __version__
from toolkit.artifacts import static_wrapper
from tools import packages, release

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

ROOT: Final = Path(__file__).resolve().parents[2]
PARTS: Final = ("python", "chart", "manifests", "bill", "packages")
"""All but the image, which tests/cluster/test_image.py builds twice."""
OPTIONS: Final = (*(f"--only={part}" for part in PARTS), "--architecture=amd64")
SOURCE: Final = "/artifacts/deb"
LOG: Final = "/run/agent.log"
OF_NODE: Final = (f"--toolkit-source-root={SOURCE}", "--runtime=containerd")
UNIT: Final = "/usr/lib/systemd/system/nvidia-toolkit.service"
PROGRAM: Final = "/usr/lib/nvidia-toolkit"
INSTALL: Final = {"deb": ("dpkg", "--install"), "rpm": ("rpm", "--install", "--nodeps")}
REMOVE: Final = {"deb": ("dpkg", "--remove"), "rpm": ("rpm", "--erase", "--nodeps")}
"""The node has Python by a package of Debian, of which rpm knows nothing."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.uname().machine != "x86_64":
        pytest.skip("the packages are tried on amd64")
    output = tmp_path_factory.mktemp("release") / "dist"
    assert release.main(["--uncommitted", f"--output={output}", *OPTIONS]) == 0
    return output


def one(directory: Path, pattern: str) -> Path:
    [found] = directory.glob(pattern)
    return found


def test_a_release_has_each_of_its_files(made: Path) -> None:
    assert sorted(path.name for path in made.iterdir()) == [
        "SHA256SUMS",
        f"nvidia-toolkit-{__version__}-1.x86_64.rpm",
        f"nvidia-toolkit-{__version__}-python.cdx.json",
        f"nvidia-toolkit-{__version__}.tgz",
        f"nvidia-toolkit-{__version__}.yaml",
        f"nvidia-toolkit_{__version__}-1_amd64.deb",
        f"nvidia_toolkit-{__version__}-py3-none-any.whl",
        f"nvidia_toolkit-{__version__}.tar.gz",
    ]


@pytest.fixture(scope="module")
def unpacked(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the source archive, unpacked somewhere else."""
    target = tmp_path_factory.mktemp("elsewhere") / "a b"
    with tarfile.open(one(made, "*.tar.gz")) as archive:
        archive.extractall(target, filter="data")
    return target / f"nvidia_toolkit-{__version__}"


def test_the_source_archive_makes_the_same_bytes_elsewhere(made: Path, unpacked: Path) -> None:
    output = unpacked.parent / "again"
    done = subprocess.run(
        ["sh", "-c", 'umask 077; exec "$@"', "sh", sys.executable, "-m", "tools.release",
         f"--output={output}", *OPTIONS],
        cwd=unpacked, env={**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "7"},
        capture_output=True, text=True, check=False, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (output / "SHA256SUMS").read_text() == (made / "SHA256SUMS").read_text()


def test_the_tests_run_from_the_source_archive(unpacked: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         "tests/unit/test_planner.py", "tests/project/test_layout.py"],
        cwd=unpacked, capture_output=True, text=True, check=False, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]


# --- the wheel ----------------------------------------------------------------------------------


def test_the_wheel_adds_one_name_and_the_manual_and_the_completions(made: Path) -> None:
    with zipfile.ZipFile(one(made, "*.whl")) as wheel:
        names = wheel.namelist()
    tops = {name.partition("/")[0] for name in names}
    stem = f"nvidia_toolkit-{__version__}"
    assert tops == {"nvidia_toolkit", f"{stem}.data", f"{stem}.dist-info"}
    shared = {name.partition(".data/data/")[2] for name in names if ".data/" in name}
    assert shared == {
        "share/man/man1/nvidia-toolkit.1",
        "share/bash-completion/completions/nvidia-toolkit",
        "share/fish/vendor_completions.d/nvidia-toolkit.fish",
        "share/zsh/site-functions/_nvidia-toolkit",
    }


def test_the_wheel_works_beside_others_of_the_same_names(made: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True
    )
    python = tmp_path / "venv/bin/python"
    subprocess.run(
        [sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet",
         "--disable-pip-version-check", "--require-hashes", "--no-deps", "--no-index",
         f"--find-links={images.wheels()}", f"--requirement={ROOT / 'requirements.txt'}"],
        check=True, timeout=200,
    )  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-deps",
         "--disable-pip-version-check", "--no-index", str(one(made, "*.whl"))],
        check=True, timeout=100,
    )  # fmt: skip
    site = one(tmp_path / "venv/lib", "python*/site-packages")
    for name in ("toolkit", "runtimes"):
        assert not (site / name).exists()
        (site / f"{name}.py").write_text("raise SystemExit('another')", encoding="utf-8")
    for program in (
        ["bin/nvidia-toolkit"],
        ["bin/nvidia-ctk-installer"],
        ["bin/python", "-m", "nvidia_toolkit"],
    ):
        done = subprocess.run(
            [str(tmp_path / "venv" / program[0]), *program[1:], "plan", "--runtime=docker",
             f"--config={ROOT / 'examples/docker/daemon.json'}", "--output=json"],
            cwd="/", env={}, capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["runtime"] == "docker"


# --- the chart and the manifests ----------------------------------------------------------------


def test_the_chart_s_package_makes_the_same_objects_as_the_source(made: Path) -> None:
    done = helm.run(
        "template", helm.RELEASE, str(one(made, "*.tgz")), f"--namespace={helm.NAMESPACE}"
    )
    assert done.returncode == 0, done.stderr
    assert helm.objects(done.stdout) == helm.rendered()


def test_the_one_file_of_manifests_has_every_object_and_the_namespace_first(made: Path) -> None:
    found = helm.objects(one(made, "*.yaml").read_text(encoding="utf-8"))
    names = yaml.safe_load(
        (ROOT / "deploy/manifests/kustomization.yaml").read_text(encoding="utf-8")
    )
    texts = [
        (ROOT / "deploy/manifests" / name).read_text(encoding="utf-8")
        for name in names["resources"]
    ]
    wanted = [each for text in texts for each in helm.objects(text)]
    assert found[0]["kind"] == "Namespace"
    assert found[-1]["kind"] == "DaemonSet"
    assert sorted(map(str, found)) == sorted(map(str, wanted))


# --- the packages of distributions --------------------------------------------------------------


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """Yield a booted node with Python and rpm, and the pieces of a toolkit."""
    with boot.booted("trixie", "for packages", packages=nodes.FOR_PACKAGES) as booted:
        if reason := containers.why_no_containers(booted):
            pytest.skip(reason)
        containers.prepare_images(booted)
        artifacts.make(nodes.path(booted, SOURCE))
        yield booted


def everything(node: Node) -> dict[str, str]:
    """Return every file of the node that a package could leave behind, with a sum of its bytes."""
    skipped = re.compile(r"/var/(lib/(dpkg|rpm|containerd|systemd)|cache|log|tmp)\b|/root/package")
    found = {}
    for top in ("/etc", "/usr", "/var", "/opt", "/root"):
        base = nodes.path(node, top)
        for path in base.rglob("*"):
            name = f"{top}/{path.relative_to(base)}"
            if not skipped.match(name):
                found[name] = ""
                if path.is_file() and not path.is_symlink():
                    found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.mark.parametrize("kind", packages.PACKAGERS)
def test_a_package_is_installed_run_and_removed(made: Path, node: Node, kind: str) -> None:
    package = one(made, f"*.{kind}")
    before = everything(node)
    nodes.path(node, f"/root/package.{kind}").write_bytes(package.read_bytes())
    install(node, kind)
    said = nodes.run(node, ("nvidia-toolkit", "--version")).stdout
    assert said == f"nvidia-toolkit, version {__version__}\n"
    assert nodes.path(node, "/usr/share/man/man1/nvidia-toolkit.1.gz").is_file()
    assert one(nodes.path(node, f"{PROGRAM}/toolkit"), "__pycache__/errors.*.pyc").is_file()
    planned = nodes.run(node, ("nvidia-toolkit", "plan", "--output=json", *OF_NODE)).stdout
    assert json.loads(planned)["runtime"] == "containerd"
    if kind == "deb":  # the program is the same, and restarts of the runtime are counted
        does_the_job(node, kind)
    nodes.run(node, (*REMOVE[kind], "nvidia-toolkit"))
    after = everything(node)
    left = after.keys() ^ before.keys()
    assert {name for name in left if not name.startswith("/usr/local/nvidia")} == set()
    assert {name for name in before if before[name] != after.get(name)} == set()
    real.USED.add(f".{kind} made by nfpm, installed and removed on a booted trixie node")


def install(node: Node, kind: str) -> None:
    nodes.run(node, (*INSTALL[kind], f"/root/package.{kind}"))


def does_the_job(node: Node, kind: str) -> None:
    """Run the service: it repairs a change, an upgrade restarts it, a removal stops it; revert."""
    config = nodes.path(node, "/etc/containerd/config.toml")
    original = config.read_bytes()
    start(node)
    pid = nodes.main_pid(node, "nvidia-toolkit")
    command = nodes.path(node, f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    assert f"{PROGRAM}/toolkit/__main__.py".encode() in command
    assert b"-S" in command
    # Only a child of the agent can repair this.
    config.write_bytes(original)
    nodes.wait_for(node, lambda: b"nvidia" in config.read_bytes(), 60)
    nodes.wait_for(node, lambda: is_ready(node), 60)
    install(node, kind)
    assert nodes.main_pid(node, "nvidia-toolkit") not in {0, pid}
    nodes.wait_for(node, lambda: is_ready(node), 60)
    nodes.run(node, (*REMOVE[kind], "nvidia-toolkit"))
    assert not nodes.is_active(node, "nvidia-toolkit")
    assert not nodes.path(node, PROGRAM).exists()
    assert b"nvidia" in config.read_bytes()
    install(node, kind)
    assert not nodes.is_active(node, "nvidia-toolkit")
    nodes.run(node, ("nvidia-toolkit", "revert", "--runtime=containerd"))
    assert config.read_bytes() == original
    nodes.run(node, ("rm", "-rf", "/etc/nvidia-toolkit"))


def start(node: Node) -> None:
    """Start the packaged service, or one of its name where the source has none."""
    if nodes.path(node, UNIT).exists():
        settings = nodes.path(node, "/etc/nvidia-toolkit/nvidia-toolkit.env")
        settings.parent.mkdir()
        settings.write_text(f"RUNTIME=containerd\nTOOLKIT_SOURCE_ROOT={SOURCE}\n", encoding="utf-8")
        nodes.run(node, ("systemctl", "start", "nvidia-toolkit"))
        return
    nodes.run(
        node,
        ("systemd-run", "--unit=nvidia-toolkit", f"--property=StandardError=file:{LOG}",
         "nvidia-toolkit", "run", *OF_NODE),
    )  # fmt: skip
    # Before that the directories are not watched yet.
    log = nodes.path(node, LOG)
    nodes.wait_for(
        node, lambda: log.exists() and "set up; watching" in log.read_text(encoding="utf-8"), 60
    )


def is_ready(node: Node) -> bool:
    asked = ("nvidia-toolkit", "status", "--quiet", *OF_NODE)
    return nodes.run(node, asked, check=False).returncode == 0


def test_a_package_brings_all_that_it_needs_but_python(made: Path, tmp_path: Path) -> None:
    """Each wheel in it is one of the lock, and none is for one version of Python."""
    subprocess.run(["dpkg-deb", "--extract", str(one(made, "*.deb")), str(tmp_path)], check=True)
    home = tmp_path / packages.HOME
    locked = dict(
        re.findall(
            r"^([\w-]+)==([^\s\\]+)", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.M
        )
    )
    there = dict(
        path.name.removesuffix(".dist-info").split("-") for path in home.glob("*.dist-info")
    )
    assert {name.replace("_", "-"): version for name, version in there.items()} == locked
    wrapper = static_wrapper.path("x86_64", home / "toolkit/artifacts")
    assert wrapper.read_bytes() == (programs.built("x86_64") / wrapper.name).read_bytes()
    for path in (ROOT / "deploy/systemd").glob("*.*"):
        assert list(tmp_path.rglob(path.name)), f"the package lacks {path.name}"
    fields = subprocess.run(
        ["dpkg-deb", "--field", str(one(made, "*.deb")), "Depends"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert fields == "python3 (>= 3.11)\n"
