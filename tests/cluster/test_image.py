"""The image, built for real and run on booted nodes through the chart's own mounts."""

from __future__ import annotations

import copy
import email
import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import (
    artifacts,
    containers,
    crio,
    documents,
    gpu_operator,
    helm,
    image_modules,
    images,
    nodes,
    real,
)
from tests.support.documents import Block
from tests.support.nodes import Node
from toolkit import __version__
from toolkit.artifacts import manifest
from toolkit.cli import parser
from tools import release

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]

ROOT: Final = images.ROOT
LARGEST: Final = 25_000_000
"""How many bytes the image may have above the C library and the toolkit's files."""
SLOWEST: Final = 0.060
"""In how many seconds Python has to be up in it."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[images.Store]:
    if reason := images.why_not():
        pytest.skip(reason)
    made = images.Store(tmp_path_factory.mktemp("images"))
    made.take_base()
    yield made
    made("rm", "--all")


@pytest.fixture(scope="module")
def built(store: images.Store) -> tuple[str, str]:
    return store.build()


@pytest.fixture(scope="module")
def root(store: images.Store, built: tuple[str, str]) -> Path:
    return store.mounted()


@pytest.fixture(scope="module")
def archive(store: images.Store, built: tuple[str, str]) -> Path:
    return store.archive()


def versions(path: Path) -> dict[str, str]:
    """Return names and versions of a list of requirements."""
    lines = re.findall(r"^([\w.-]+)==([^\s\\]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in lines}


def inside(root: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ("chroot", str(root), *argv),
        env={"PATH": nodes.PATH}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_the_locked_wheels_are_those_that_the_tests_run_with() -> None:
    tested = versions(ROOT / "constraints.txt")
    shipped = versions(ROOT / "requirements.txt")
    assert shipped
    assert {name: tested.get(name) for name in shipped} == shipped
    listed = re.findall(
        r'^    "([\w-]+)[><=]', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    needed = listed[: listed.index("tomlkit") + 1]
    assert set(needed) <= set(shipped)


def test_the_wheels_for_arm64_are_locked_as_well(tmp_path: Path) -> None:
    images.fetch(
        ROOT / "requirements.txt",
        tmp_path,
        "--platform=manylinux2014_aarch64",
        "--python-version=3.13",
    )
    assert len(list(tmp_path.glob("*.whl"))) == len(versions(ROOT / "requirements.txt"))
    assert list(tmp_path.glob("psutil-*aarch64*.whl"))


def test_a_release_has_the_same_image_with_its_version_and_its_commit(
    store: images.Store,
    built: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Built once more, as `make release` does: the same layer, in an archive with a digest."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", images.EPOCH)
    artifacts.make(tmp_path / "artifacts/deb")
    store.put("localhost/artifacts", tmp_path)
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    output = tmp_path / "dist"
    assert (
        release.main([
            "--uncommitted", "--only=image", f"--architecture={architecture}",
            f"--output={output}", f"--python-image={images.BASE}",
            "--artifacts-image=localhost/artifacts", f"--wheels={images.wheels()}",
            *(f"--buildah={each}" for each in store.options),
        ])
        == 0
    )  # fmt: skip
    stem = f"nvidia-toolkit-{__version__}-image-{architecture}"
    names = [f"{stem}.cdx.json", f"{stem}.oci.tar"]
    assert sorted(path.name for path in output.iterdir()) == [release.SUMS, *names]
    store("pull", "--quiet", f"oci-archive:{output / names[1]}")
    made = json.loads(
        store("inspect", "--type=image", f"localhost/nvidia-toolkit:{__version__}-{architecture}")
    )["OCIv1"]
    tested = json.loads(store("inspect", "--type=image", built[0]))["OCIv1"]
    assert made["rootfs"]["diff_ids"] == tested["rootfs"]["diff_ids"]
    labels = made["config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    commit = release.export(tmp_path / "source", is_dirty_allowed=True).revision
    assert labels["org.opencontainers.image.revision"] == commit
    found = json.loads((output / names[0]).read_text(encoding="utf-8"))
    assert found["metadata"]["component"]["version"] == __version__


def test_it_is_small(root: Path, built: tuple[str, str]) -> None:
    above, libc = (megabytes * 1e6 for megabytes in images.sizes(built[1]))
    toolkit = root / "artifacts"
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    ours = sum(path.lstat().st_size for path in files if not path.is_relative_to(toolkit))
    real.USED.add(
        f"image: {(ours - libc) / 1e6:.1f} MB above the C library ({libc / 1e6:.1f} MB) and the"
        " toolkit"
    )
    assert ours - libc <= LARGEST
    assert abs(ours - libc - above) < 1e6


def test_it_names_the_hashes_of_the_toolkit_s_files(root: Path) -> None:
    deb = root / "artifacts/deb"
    check = ["sha256sum", "--check", "--strict", "--quiet", manifest.SUMS]
    assert subprocess.run(check, cwd=deb, check=False).returncode == 0
    listed = {
        line.partition("  ")[2]
        for line in (deb / manifest.SUMS).read_text(encoding="utf-8").splitlines()
    }
    files = [path for path in deb.rglob("*") if path.is_file() and not path.is_symlink()]
    assert listed == {str(path.relative_to(deb)) for path in files} - {manifest.SUMS}


def test_python_starts_fast(root: Path) -> None:
    commands = {
        "Python": ("python3", "-I", "-c", ""),
        "nvidia-toolkit --version": ("nvidia-toolkit", "--version"),
    }
    # The fastest of ten: what else the machine does is not the image's.
    taken = {name: min(_timed(root, *argv) for _ in range(10)) for name, argv in commands.items()}
    real.USED.add(
        "image: " + ", ".join(f"{name} in {took * 1000:.0f} ms" for name, took in taken.items())
    )
    assert taken["Python"] <= SLOWEST


def _timed(root: Path, *argv: str) -> float:
    began = time.monotonic()
    done = inside(root, *argv)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began


def test_both_names_and_what_the_operator_needs_are_on_the_path(root: Path) -> None:
    for name in ("nvidia-toolkit", "nvidia-ctk-installer"):
        assert (
            inside(root, "sh", "-c", f"exec {name} --version").stdout
            == f"nvidia-toolkit, version {__version__}\n"
        )
    done = inside(root, "sh", "-c", "sleep 0; echo there > /dev/null; cat /etc/passwd")
    assert done.stdout.startswith("root:")
    # bash becomes what it starts; another shell would stay the parent and get the pod's SIGTERM.
    assert os.readlink(root / "usr/bin/sh") == "/usr/bin/bash"


def test_nothing_else_is_in_it(root: Path) -> None:
    programs = {
        path.name
        for where in ("usr/bin", "usr/local/bin", "usr/sbin")
        for path in (root / where).glob("*")
    }
    ours = {"nvidia-toolkit", "nvidia-toolkit.py", "nvidia-ctk-installer", "entrypoint.sh"}
    known = {"cat", "sh", "sleep", "dash", "bash", "python3", *ours}
    assert {name for name in programs - known if not re.fullmatch(r"python3\.\d+", name)} == set()
    assert ours <= programs
    # The commands are static programs. The only script is the one that starts Python.
    for name in ("nvidia-toolkit", "nvidia-ctk-installer"):
        assert (root / "usr/local/bin" / name).read_bytes().startswith(b"\x7fELF")
    names = {path.name for path in root.rglob("*")}
    assert not names & {
        "pip",
        "setuptools",
        "ensurepip",
        "tests",
        "test",
        "conftest.py",
        "gcc",
        "idlelib",
    }


def compiled(root: Path) -> dict[str, Path]:
    """Return the modules that the image has as bytecode, by their names."""
    [stdlib] = root.glob("usr/lib/python3*")
    [packages] = root.glob("usr/local/lib/python3*/*-packages")
    return {
        ".".join(path.relative_to(top).with_suffix("").parts).removesuffix(".__init__"): path
        for top in (stdlib, packages)
        for path in top.rglob("*.pyc")
    }


def test_every_module_finds_what_it_imports(root: Path) -> None:
    names = sorted(compiled(root))
    own = {name for name in image_modules.own(ROOT) if name != "toolkit.__main__"}
    assert own <= set(names)
    lines = f"import importlib\nfor each in {names!r}: importlib.import_module(each)"
    done = inside(root, "python3", "-IB", "-c", lines)
    assert done.returncode == 0, done.stderr


def test_there_is_bytecode_alone_which_is_compared_with_no_source(root: Path) -> None:
    # The agent runs the one by its path, and the launcher the other one.
    sources = {"/".join(path.parts[-2:]) for path in root.rglob("*.py")}
    assert sources == {"toolkit/__main__.py", "bin/nvidia-toolkit.py"}
    assert not list(root.rglob("__pycache__"))
    for path in compiled(root).values():
        # The flags of PEP 552: by its hash, and not to be compared with its source.
        assert path.read_bytes()[4:8] == b"\x01\x00\x00\x00"


def test_nothing_is_there_that_is_not_imported_or_loaded(root: Path) -> None:
    """Each shared object is an extension module that is reached, or needed by one that is there."""
    elf = [
        path
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink() and path.read_bytes()[:4] == b"\x7fELF"
        if not path.is_relative_to(root / "artifacts")
    ]
    told = subprocess.run(
        ("readelf", "--dynamic", *map(str, elf)), capture_output=True, text=True, check=True
    ).stdout
    needed = set(re.findall(r"\(NEEDED\) .*\[(.+)\]", told))
    there = {path.name for path in elf if re.search(r"\.so\.\d+$", path.name)}
    # What a toolkit's programs may be linked with is there in any case.
    libc = {"libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "libresolv.so.2"}
    libc |= {"librt.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
    assert there - libc <= needed
    assert needed <= there
    assert not [name for name in compiled(root) if image_modules.REACH.left_out(name)]


def test_what_goes_wrong_is_told_by_file_line_and_function(root: Path) -> None:
    done = inside(root, "python3", "-IB", "-c", "import json\njson.loads('{')")
    assert re.search(
        r'File "/usr/lib/python3\.\d+/json/__init__\.py", line \d+, in loads\n', done.stderr
    )
    assert done.stderr.splitlines()[-1].startswith("json.decoder.JSONDecodeError: Expecting ")


def test_the_help_is_that_of_the_sources(root: Path) -> None:
    for name, command in parser.app().commands.items():
        if not command.hidden:
            words = (name, "--help")
            here = subprocess.run(
                (sys.executable, "-m", "toolkit", *words),
                cwd=ROOT, env={"PATH": nodes.PATH, "LC_ALL": "C.UTF-8"},
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert inside(root, "nvidia-toolkit", *words).stdout == here.stdout


def test_each_wheel_says_what_it_is_and_under_which_licence(root: Path) -> None:
    [packages] = root.glob("usr/local/lib/python3*/*-packages")
    named = {}
    for info in packages.glob("*.dist-info"):
        fields = email.message_from_string((info / "METADATA").read_text(encoding="utf-8"))
        named[str(fields["Name"]).lower().replace("_", "-")] = fields["Version"]
        assert [path for path in info.rglob("*") if path.name.upper().startswith("LICENSE")]
    assert named == versions(ROOT / "requirements.txt")


def test_the_bill_of_materials_names_what_is_there(root: Path) -> None:
    bill = json.loads((root / "usr/share/nvidia-toolkit/sbom.cdx.json").read_text(encoding="utf-8"))
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["version"] == __version__
    named = {part["purl"].split("?")[0] for part in bill["components"]}
    for name, version in versions(ROOT / "requirements.txt").items():
        assert f"pkg:pypi/{name}@{version}" in named
    assert any(url.startswith("pkg:deb/debian/libc6@") for url in named)
    assert any(url.startswith("pkg:generic/python@3.") for url in named)
    assert {path.name for path in (root / "var/lib/dpkg/status.d").iterdir()} >= {
        "libc6",
        "libssl3t64",
        "bash",
    }


def test_its_labels_say_what_it_is(store: images.Store, built: tuple[str, str]) -> None:
    told = json.loads(store("inspect", "--type=image", images.IMAGE))["OCIv1"]
    labels = told["config"]["Labels"]
    assert labels["org.opencontainers.image.title"] == "nvidia-toolkit"
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert told["created"].startswith("2023-11-14T22:13:20")


@pytest.mark.parametrize("block", documents.of_kind("sh image"), ids=lambda block: block.place)
def test_the_documented_line_builds_it(store: images.Store, tmp_path: Path, block: Block) -> None:
    """Both bases are in the store, by the names of the line and the Dockerfile: none is fetched."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    artifacts.make(tmp_path / "artifacts/deb")
    for line in block.commands:
        bases = dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", dockerfile, re.MULTILINE))
        bases |= dict(re.findall(r"--build-arg[ =](\w+)=(\S+)", line))
        [tag] = re.findall(r"--tag[ =](\S+)", line)
        store.put(bases["PYTHON_IMAGE"], images.base())
        store.put(bases["ARTIFACTS_IMAGE"], tmp_path)
        store.as_written(line)
        config = json.loads(store("inspect", "--type=image", tag))["OCIv1"]["config"]
        assert config["Entrypoint"] == ["/usr/local/bin/entrypoint.sh"]
        assert config["Labels"]["nvidia-toolkit.artifacts"] == bases["ARTIFACTS_IMAGE"]
        real.USED.add(f"buildah, by the words of {block.place}")


def files_of(node: Node, *tops: str) -> Mapping[str, tuple[bytes, int]]:
    """Return bytes and mode of everything below directories of a node."""
    found = [path for top in tops for path in nodes.path(node, top).rglob("*")]
    return {
        str(path): (b"" if path.is_dir() else path.read_bytes(), path.lstat().st_mode)
        for path in found
        if not path.is_symlink()
    }


@pytest.mark.parametrize(
    ("suite", "privileged"),
    [("trixie", "true"), ("bookworm", "auto"), ("trixie", "auto"), ("forky", "auto")],
)
def test_it_does_the_job_through_the_chart_s_mounts(
    archive: Path, suite: str, privileged: str
) -> None:
    if reason := nodes.why_not():
        pytest.skip(reason)
    found = helm.rendered(*helm.DOCUMENTED, "--set", f"toolkit.privileged={privileged}")
    with nodes.boot(suite) as node:
        if reason := containers.why_no_containers(node):
            pytest.skip(reason)
        containers.prepare_images(node)
        images.load(node, archive)
        nodes.path(node, "/etc/containerd").mkdir(exist_ok=True)
        before = files_of(node, "/etc/containerd", "/usr/local")
        container = images.Container(node, found, TOOLKIT_ON_EXIT="revert", TOOLKIT_VERIFY="run")
        try:
            container.waits_for("set up; watching")
            assert container.probe() == 0
            pod = containers.run_pod(node, handler="nvidia", argv=["echo", "a pod"])
            assert (pod.exit_code, pod.output) == (0, "a pod\n")
            # What it says of that may be lost on the way: ctr does not wait for it.
            for place in ("/etc/anything", "/host/etc/anything"):
                assert container.execute("sh", "-c", f"echo no > {place}").returncode != 0, place
            assert not nodes.path(node, "/etc/anything").exists()
        finally:
            code = container.end()
        assert code == 0, container.told()
        assert "the node was reverted" in container.told()
        after = files_of(node, "/etc/containerd", "/usr/local")
        made_by_kubelet = {str(nodes.path(node, "/usr/local/nvidia"))}
        assert {name: seen for name, seen in after.items() if name not in made_by_kubelet} == before
    kind = "privileged" if privileged == "true" else "with four capabilities"
    real.USED.add(f"image run by the chart's own words, {kind}, on a booted {suite} node")


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_it_sets_docker_up_with_four_capabilities(archive: Path, suite: str) -> None:
    if reason := nodes.why_not():
        pytest.skip(reason)
    found = helm.rendered("--set", "operator.defaultRuntime=docker")
    with nodes.boot(suite, units=("containerd", "docker")) as node:
        images.load(node, archive)
        before = files_of(node, "/etc/docker", "/etc/containerd", "/usr/local")
        container = images.Container(node, found, TOOLKIT_ON_EXIT="revert")
        try:
            container.waits_for("set up; watching")
            assert container.probe() == 0
            said = nodes.run(node, ["docker", "info", "--format={{json .Runtimes}}"]).stdout
            assert {"nvidia", "nvidia-cdi", "nvidia-legacy"} <= json.loads(said).keys()
            assert "a container was started through each handler in " in container.told()
        finally:
            code = container.end()
        assert code == 0, container.told()
        after = files_of(node, "/etc/docker", "/etc/containerd", "/usr/local")
        made_by_kubelet = {
            str(nodes.path(node, each)) for each in ("/etc/docker", "/usr/local/nvidia")
        }
        assert {name: seen for name, seen in after.items() if name not in made_by_kubelet} == before
    real.USED.add(
        f"image run by the chart's own words for Docker, with four capabilities, on {suite}"
    )


@pytest.mark.parametrize("mode", ["config", "hook"])
def test_it_sets_cri_o_up_with_four_capabilities(archive: Path, mode: str) -> None:
    """The container itself is containerd's, because only its rights on the node count."""
    if reason := crio.why_not():
        pytest.skip(reason)
    options = (
        "--set",
        "toolkit.env[0].name=CRIO_CONFIG_MODE",
        "--set",
        f"toolkit.env[0].value={mode}",
    )
    found = helm.rendered("--set", "operator.defaultRuntime=crio", *options)
    tops = ("/etc/crio", "/usr/share/containers", "/usr/local")
    with nodes.boot("trixie") as node:
        crio.install(node)
        crio.prepare_images(node)
        crio.start(node)
        images.load(node, archive)
        pid, before = nodes.main_pid(node, "crio"), files_of(node, *tops)
        container = images.Container(node, found, TOOLKIT_ON_EXIT="revert")
        try:
            container.waits_for("set up; watching")
            if mode == "config":
                assert nodes.main_pid(node, "crio") != pid
                assert {"nvidia", "nvidia-cdi", "nvidia-legacy"} <= crio.handlers(node).keys()
                assert "a container was started through each handler in " in container.told()
        finally:
            code = container.end()
        assert code == 0, container.told()
        after = files_of(node, *tops)
        made = [path for path in after.keys() - before if Path(path).is_dir()]
        assert {name: seen for name, seen in after.items() if name not in made} == before
        assert crio.answers(node)
    real.USED.add(
        f"image run by the chart's own words for CRI-O {crio.VERSION}, with four capabilities"
    )


SAID: Final = {
    "CHOWN": "or the capability CHOWN)",
    "DAC_OVERRIDE": "or the capabilities CHOWN and DAC_OVERRIDE",
    "SYS_CHROOT": "or the capability SYS_CHROOT",
    "SYS_PTRACE": "or the capability SYS_PTRACE)",
}
"""What a container says that lacks a capability."""


def without(found: list[dict[str, Any]], name: str | None) -> list[dict[str, Any]]:
    """Return the chart's objects with one capability less."""
    found = copy.deepcopy(found)
    given = helm.container(found)["securityContext"]["capabilities"]
    given["add"] = [each for each in given["add"] if each != name]
    return found


def refuses(node: Node, found: list[dict[str, Any]], name: str) -> None:
    """Run the container without a capability; it ends by one line that names it."""
    container = images.Container(node, without(found, name), TOOLKIT_ON_EXIT="revert")
    try:
        container.ends_itself()
        # The shim copies what it said; to delete the task would end that as well.
        nodes.wait_for(node, lambda: '"error"' in container.told(), 10)
    finally:
        container.end()
    errors = [json.loads(line) for line in container.told().splitlines() if '"error"' in line]
    assert len(errors) == 1, container.told()
    assert SAID[name] in f"{errors[0]['message']} {errors[0].get('hint')}", container.told()
    assert "rolling back" not in container.told()


def test_the_capabilities_are_those_that_it_cannot_do_without(archive: Path) -> None:
    """A config of another group that its owner may not read makes it need every capability."""
    if reason := nodes.why_not():
        pytest.skip(reason)
    found = helm.rendered(*helm.DOCUMENTED)
    assert set(SAID) == set(helm.container(found)["securityContext"]["capabilities"]["add"])
    with nodes.boot("trixie") as node:
        images.load(node, archive)
        config = nodes.path(node, "/etc/containerd/config.toml")
        os.chown(config, 0, 1000)
        config.chmod(0o040)
        before = files_of(node, "/etc/containerd")
        container = images.Container(node, found, TOOLKIT_ON_EXIT="revert")
        try:
            container.waits_for("set up; watching")
        finally:
            container.end()
        assert files_of(node, "/etc/containerd") == before
        for name in SAID:
            refuses(node, found, name)
            assert files_of(node, "/etc/containerd") == before, name


@pytest.mark.parametrize("runtime", ["docker", "crio"])
def test_each_runtime_needs_two_of_the_capabilities_in_any_case(
    archive: Path, runtime: str
) -> None:
    if reason := crio.why_not() if runtime == "crio" else nodes.why_not():
        pytest.skip(reason)
    found = helm.rendered("--set", f"operator.defaultRuntime={runtime}")
    units = ("containerd", "docker") if runtime == "docker" else ("containerd",)
    with nodes.boot("trixie", units=units) as node:
        if runtime == "crio":
            crio.install(node)
            crio.prepare_images(node)
            crio.start(node)
        images.load(node, archive)
        before = files_of(node, f"/etc/{runtime}")
        for name in ("SYS_CHROOT", "SYS_PTRACE"):
            refuses(node, found, name)
            assert files_of(node, f"/etc/{runtime}") == before, name


@pytest.mark.parametrize(
    ("cdi", "reason"), [("false", "Operation not permitted"), ("true", "No such device or address")]
)
def test_a_device_of_the_driver_is_opened_by_a_privileged_container_only(
    archive: Path, cdi: str, reason: str
) -> None:
    """Why the chart makes it privileged for CDI. Only ENXIO says that no driver is loaded here."""
    if why_not := nodes.why_not():
        pytest.skip(why_not)
    options = (
        "--set",
        "toolkit.env[0].name=CDI_ENABLED",
        "--set-string",
        f"toolkit.env[0].value={cdi}",
    )
    found = helm.rendered(*options)
    with nodes.boot("trixie") as node:
        images.load(node, archive)
        device = nodes.path(node, "/opt/nvidiactl")
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(195, 255))
        container = images.Container(node, found)
        try:
            container.waits_for("set up; watching")
            said = container.execute("cat", "/host/opt/nvidiactl").stderr
        finally:
            container.end()
        assert reason in said


def test_it_runs_as_the_gpu_operator_s_container(archive: Path) -> None:
    """The operator's entry point replaces ours; its mounts and variables are used too."""
    if reason := nodes.why_not():
        pytest.skip(reason)
    env = {"TOOLKIT_ON_EXIT": "revert", "TOOLKIT_VERIFY": "run"}
    rendered = gpu_operator.render("containerd", cdi=False, env=env)
    script = "/var/lib/kubelet/entrypoint.sh"
    with nodes.boot("trixie") as node:
        if reason := containers.why_no_containers(node):
            pytest.skip(reason)
        containers.prepare_images(node)
        images.load(node, archive)
        nodes.path(node, script).parent.mkdir(parents=True)
        nodes.path(node, script).write_text(gpu_operator.ENTRYPOINT, encoding="utf-8")
        nodes.path(node, script).chmod(0o700)
        before = files_of(node, "/etc/containerd", "/usr/local")
        container = images.Container(node, rendered.objects(script))
        made_by_kubelet = {str(nodes.path(node, each)) for each in rendered.mounts.values()}

        def left() -> Mapping[str, tuple[bytes, int]]:
            found = files_of(node, "/etc/containerd", "/usr/local")
            return {
                name: seen
                for name, seen in found.items()
                if name in before or name not in made_by_kubelet
            }

        try:
            nodes.wait_for(node, lambda: "waiting for the driver" in container.told())
            assert left() == before
            ready = nodes.path(node, f"{gpu_operator.VALIDATIONS}/driver-ready")
            ready.write_text(gpu_operator.DRIVER_READY, encoding="utf-8")
            container.waits_for("set up; watching")
            assert "a container was started through each handler in " in container.told()
            assert container.probe() == 0
            pod = containers.run_pod(node, handler="nvidia", argv=["echo", "a pod"])
            assert (pod.exit_code, pod.output) == (0, "a pod\n")
            assert left() != before
        finally:
            code = container.end()
        assert code == 0, container.told()
        assert "the node was reverted" in container.told()
        assert left() == before
    real.USED.add(
        "image run by the GPU Operator's entry point, mounts and variables, on a booted trixie node"
    )
