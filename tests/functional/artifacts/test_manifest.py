"""The toolkit's files: what they are, the switch between versions, and what stood there before."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes import edits
from tests.support import artifacts, fake_node
from toolkit.artifacts import manifest, versions
from toolkit.artifacts.manifest import Version
from toolkit.errors import StepError, UsageProblem
from toolkit.node.host import Host
from toolkit.settings.layout import VERSIONS

CONFIG: Final = ".config/nvidia-container-runtime/config.toml"
LAYOUT: Final = {
    ".config",
    ".config/nvidia-container-runtime",
    CONFIG,
    "libnvidia-container-go.so.1",
    "libnvidia-container-go.so.1.1",
    "libnvidia-container.so.1",
    "libnvidia-container.so.1.1",
    "nvidia-cdi-hook",
    "nvidia-container-cli",
    "nvidia-container-cli.real",
    "nvidia-container-runtime",
    "nvidia-container-runtime-hook",
    "nvidia-container-runtime-hook.real",
    "nvidia-container-runtime.cdi",
    "nvidia-container-runtime.cdi.real",
    "nvidia-container-runtime.legacy",
    "nvidia-container-runtime.legacy.real",
    "nvidia-container-runtime.real",
    "nvidia-container-toolkit",
    "nvidia-ctk",
    "nvidia-ctk.real",
}
"""As upstream lays it out, with the libraries of release 1."""
# Looks at every path over and over, runs a wrapper each time, and says what was ever missing.
_WATCHER: Final = """
import os, subprocess, sys
toolkit, stop, *names = sys.argv[1:]
print("watches", flush=True)
rounds, missing = 0, set()
while not os.path.exists(stop):
    for name in names:
        try:
            os.stat(f"{toolkit}/{name}")
        except OSError as error:
            missing.add(f"{name}: {error.strerror}")
    done = subprocess.run([f"{toolkit}/nvidia-ctk", "x"], capture_output=True)
    if done.returncode != 0:
        missing.add(done.stderr.decode())
    rounds += 1
print(rounds, *sorted(missing), sep="\\n")
"""


def wanted(node: fake_node.Node, *low_level: str, **options: str) -> Version:
    return manifest.desired_version(
        node.settings(**options), Host(root=Path("/")), node.install_dir, low_level
    )


def install(node: fake_node.Node, *low_level: str, **options: str) -> Version:
    version = wanted(node, *low_level, **options)
    versions.install(version, node.install_dir, Host(root=Path("/")))
    versions.remove_old(node.install_dir, version.digest)
    assert wanted(node, *low_level, **options).is_installed
    return version


def config(node: fake_node.Node) -> dict[str, Any]:
    return tomllib.loads((node.toolkit / CONFIG).read_text(encoding="utf-8"))


# --- the layout ---------------------------------------------------------------------------------


def test_the_layout_is_upstreams(node: fake_node.Node) -> None:
    install(node)
    real = node.toolkit.resolve()
    assert {str(path.relative_to(real)) for path in real.rglob("*")} == LAYOUT
    assert os.readlink(node.toolkit / "nvidia-container-toolkit") == "nvidia-container-runtime-hook"
    for library in fake_node.LIBRARIES:
        assert os.readlink(node.toolkit / library) == f"{library}.1"


def test_the_programs_are_those_of_the_source_and_can_be_run(node: fake_node.Node) -> None:
    install(node)
    for program in fake_node.PROGRAMS:
        installed = node.toolkit / (program if program == "nvidia-cdi-hook" else f"{program}.real")
        assert installed.read_bytes() == (node.source / "usr/bin" / program).read_bytes()
        assert os.access(installed, os.X_OK)
        assert os.access(node.toolkit / program, os.X_OK)


def test_modes_do_not_depend_on_the_umask_or_the_source(node: fake_node.Node) -> None:
    (node.source / "usr/bin/nvidia-ctk").chmod(0o600)
    before = os.umask(0o077)
    try:
        install(node)
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o7777 for p in node.toolkit.resolve().rglob("*")}
    assert modes.pop("config.toml") == 0o644
    assert set(modes.values()) == {0o755}
    assert node.toolkit.resolve().stat().st_mode & 0o7777 == 0o755


def test_a_wrapper_runs_the_installed_program(node: fake_node.Node) -> None:
    install(node)
    done = subprocess.run(
        [node.toolkit / "nvidia-ctk", "a b"], capture_output=True, timeout=10, check=True
    )
    assert done.stdout == f"{node.toolkit}/nvidia-ctk.real\0a b\0".encode()


@pytest.mark.parametrize(
    "directory", ["usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu"]
)
def test_libraries_are_found_where_packages_put_them(node: fake_node.Node, directory: str) -> None:
    if directory != "usr/lib64":
        (node.source / directory).parent.mkdir(parents=True)
        (node.source / "usr/lib64").rename(node.source / directory)
    install(node)
    assert (
        node.toolkit / "libnvidia-container.so.1"
    ).read_bytes() == b"libnvidia-container.so.1, release 1\n"


def test_a_library_that_is_no_link_is_taken_as_it_is(node: fake_node.Node) -> None:
    link = node.source / "usr/lib64/libnvidia-container.so.1"
    link.with_name("libnvidia-container.so.1.1").rename(link)
    install(node)
    assert not (node.toolkit / "libnvidia-container.so.1").is_symlink()


def test_an_absolute_link_of_a_library_is_one_inside_the_source(node: fake_node.Node) -> None:
    link = node.source / "usr/lib64/libnvidia-container.so.1"
    link.unlink()
    link.symlink_to("/usr/lib64/libnvidia-container.so.1.1")
    install(node)
    assert os.readlink(node.toolkit / link.name) == "libnvidia-container.so.1.1"


def test_the_package_type_follows_the_node(node: fake_node.Node) -> None:
    host = Host(root=node.root)
    for kind, rpm in (("deb", False), ("rpm", True)):
        if rpm:
            (node.root / "usr/bin").mkdir(parents=True)
            (node.root / "usr/bin/rpm").touch()
        with pytest.raises(UsageProblem) as caught:
            manifest.desired_version(
                node.settings(toolkit_source_root=""), host, node.install_dir, ()
            )
        assert str(caught.value) == f"the toolkit's source /artifacts/{kind} is no directory"


# --- what is refused ----------------------------------------------------------------------------


def test_everything_that_the_source_lacks_is_named_at_once(node: fake_node.Node) -> None:
    (node.source / "usr/bin/nvidia-ctk").unlink()
    (node.source / "usr/bin/nvidia-cdi-hook").unlink()
    (node.source / "usr/lib64/libnvidia-container-go.so.1.1").unlink()
    with pytest.raises(UsageProblem) as caught:
        wanted(node)
    assert (
        str(caught.value)
        == f"the toolkit's source {node.source} lacks usr/bin/nvidia-ctk, usr/bin/nvidia-cdi-hook,"
        " libnvidia-container-go.so.1"
    )
    assert (
        caught.value.hint
        == "set --toolkit-source-root to the directory that contains the toolkit's usr/bin"
    )


def test_a_library_outside_of_the_source_is_none_of_it(node: fake_node.Node) -> None:
    outside = node.root / "outside.so"
    outside.write_bytes(b"outside")
    link = node.source / "usr/lib64/libnvidia-container.so.1"
    link.unlink()
    link.symlink_to("../../../outside.so")
    with pytest.raises(UsageProblem, match=r" lacks libnvidia-container\.so\.1$"):
        wanted(node)


@pytest.mark.skipif(
    platform.machine() not in fake_node.MACHINES, reason="the toolkit is not for this machine"
)
@pytest.mark.parametrize(
    "name", ["usr/bin/nvidia-ctk", "usr/bin/nvidia-cdi-hook", "usr/lib64/libnvidia-container.so.1"]
)
def test_a_file_for_another_machine_is_refused(node: fake_node.Node, name: str) -> None:
    other, number = fake_node.other_machine()
    path = node.source / name
    path.write_bytes(fake_node.elf(number))
    with pytest.raises(UsageProblem) as caught:
        wanted(node)
    shown = path.with_name("libnvidia-container.so.1.1") if path.is_symlink() else path
    assert str(caught.value) == f"{shown} is for {other}, but this node is {platform.machine()}"
    assert caught.value.hint == "use the image for this node's architecture"


@pytest.mark.skipif(
    platform.machine() not in fake_node.MACHINES, reason="the toolkit is not for this machine"
)
def test_a_file_for_this_machine_is_taken(node: fake_node.Node) -> None:
    path = node.source / "usr/bin/nvidia-ctk"
    path.write_bytes(Path("/bin/true").resolve().read_bytes())
    assert install(node).digest


def test_new_files_get_the_label_of_a_program_of_the_node(node: fake_node.Node) -> None:
    like = node.root / "runc"
    like.touch(mode=0o755)
    try:
        os.setxattr(like, "security.selinux", b"system_u:object_r:container_runtime_exec_t:s0")
    except OSError as error:
        pytest.skip(f"no labels here: {error}")
    versions.install(wanted(node), node.install_dir, Host(root=Path("/")), like=str(like))
    label = os.getxattr(node.toolkit / "nvidia-container-runtime", "security.selinux")
    assert label == b"system_u:object_r:container_runtime_exec_t:s0"


@pytest.mark.parametrize("first", [True, False], ids=["first", "upgrade"])
def test_a_version_that_does_not_run_here_is_not_switched_to(
    node: fake_node.Node, *, first: bool
) -> None:
    if not first:
        install(node)
    before = fake_node.content(node.toolkit) if not first else None
    # The right machine, but no executable: a library of another C library looks so.
    (node.source / "usr/bin/nvidia-ctk").write_bytes(
        fake_node.elf(fake_node.MACHINES[platform.machine()])
    )
    with pytest.raises(
        StepError, match=r"nvidia-ctk.real --version` (cannot be started|does not run)"
    ):
        versions.install(wanted(node), node.install_dir, Host(root=Path("/")))
    assert node.toolkit.exists() is not first
    assert before is None or fake_node.content(node.toolkit) == before


# --- the toolkit's own configuration ------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "text", "key", "value"),
    [
        ("nvidia_container_runtime.debug", "/l.log", "nvidia-container-runtime debug", "/l.log"),
        (
            "nvidia_container_runtime.log_level",
            "debug",
            "nvidia-container-runtime log-level",
            "debug",
        ),
        ("nvidia_container_runtime.mode", "cdi", "nvidia-container-runtime mode", "cdi"),
        (
            "nvidia_container_runtime.modes.cdi.default_kind",
            "x.com/gpu",
            "nvidia-container-runtime modes cdi default-kind",
            "x.com/gpu",
        ),
        (
            "nvidia_container_runtime.modes.cdi.annotation_prefixes",
            "a/,b/",
            "nvidia-container-runtime modes cdi annotation-prefixes",
            ["a/", "b/"],
        ),
        (
            "nvidia_container_runtime.runtimes",
            "youki",
            "nvidia-container-runtime runtimes",
            ["youki"],
        ),
        (
            "nvidia_container_runtime_hook.skip_mode_detection",
            "false",
            "nvidia-container-runtime-hook skip-mode-detection",
            False,
        ),
        ("nvidia_container_cli.debug", "/c.log", "nvidia-container-cli debug", "/c.log"),
        (
            "accept_nvidia_visible_devices_envvar_when_unprivileged",
            "false",
            "accept-nvidia-visible-devices-envvar-when-unprivileged",
            False,
        ),
        (
            "accept_nvidia_visible_devices_as_volume_mounts",
            "true",
            "accept-nvidia-visible-devices-as-volume-mounts",
            True,
        ),
        ("driver_root", "/driver", "nvidia-container-cli root", "/driver"),
        ("driver_root", "/driver/", "nvidia-container-cli ldconfig", "@/driver/sbin/ldconfig"),
    ],
)
def test_an_option_lands_in_the_toolkits_config(
    node: fake_node.Node, option: str, text: str, key: str, value: Any
) -> None:
    fake_node.done("run", "-n", "--no-runtime-config", *node.options(**{option: text}))
    assert edits.value(config(node), tuple(key.split())) == value


def test_the_config_names_the_installed_programs(node: fake_node.Node) -> None:
    install(node, "/usr/sbin/runc", "youki")
    tree = config(node)
    assert tree["nvidia-container-cli"]["path"] == f"{node.toolkit}/nvidia-container-cli"
    assert tree["nvidia-ctk"]["path"] == f"{node.toolkit}/nvidia-ctk"
    assert (
        tree["nvidia-container-runtime-hook"]["path"]
        == f"{node.toolkit}/nvidia-container-runtime-hook"
    )
    assert tree["nvidia-container-runtime"]["runtimes"] == [
        "/usr/sbin/runc",
        "youki",
        "runc",
        "crun",
    ]


def test_the_drivers_own_ldconfig_is_preferred(node: fake_node.Node) -> None:
    (node.root / "driver/sbin").mkdir(parents=True)
    (node.root / "driver/sbin/ldconfig.real").touch()
    install(node, driver_root_ctr_path=str(node.root / "driver"), driver_root="/run/nvidia/driver")
    assert (
        config(node)["nvidia-container-cli"]["ldconfig"] == "@/run/nvidia/driver/sbin/ldconfig.real"
    )


def test_what_a_user_added_survives_an_upgrade(node: fake_node.Node) -> None:
    install(node)
    path = node.toolkit / CONFIG
    path.write_bytes(
        b"# mine\n"
        + path.read_bytes().replace(b"disable-require = false", b"disable-require = true")
    )
    fake_node.make_artifacts(node.source, release="2")
    install(node)
    assert path.read_bytes().startswith(b"# mine\n")
    assert config(node)["disable-require"] is True


def test_an_option_that_is_taken_back_does_not_stay_in_effect(node: fake_node.Node) -> None:
    # The GPU Operator sets the mode with CDI and no mode without.
    install(node, nvidia_container_runtime_mode="cdi")
    assert config(node)["nvidia-container-runtime"]["mode"] == "cdi"
    install(node)
    assert config(node)["nvidia-container-runtime"]["mode"] == "auto"


# --- a second time ------------------------------------------------------------------------------


def test_a_second_install_touches_nothing(node: fake_node.Node) -> None:
    version = install(node)
    before = fake_node.snapshot(node.install_dir)
    again = wanted(node)
    assert (again.differing, again.digest) == ((), version.digest)
    versions.install(version, node.install_dir, Host(root=Path("/")))
    assert fake_node.snapshot(node.install_dir) == before


def test_where_no_thread_may_be_started_files_are_hashed_one_after_the_other(
    node: fake_node.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = wanted(node).digest

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert wanted(node).digest == digest


@pytest.mark.parametrize("damage", ["content", "mode", "missing", "link"])
def test_damage_is_seen_and_repaired(node: fake_node.Node, damage: str) -> None:
    install(node)
    before = fake_node.content(node.toolkit.resolve())
    path = node.toolkit / "nvidia-ctk.real"
    match damage:
        case "content":
            path.write_bytes(path.read_bytes().swapcase())
        case "mode":
            path.chmod(0o644)
        case "missing":
            path.unlink()
        case _:
            path = node.toolkit / "libnvidia-container.so.1"
            path.unlink()
            path.symlink_to("elsewhere")
    assert wanted(node).differing == (path.name,)
    install(node)
    assert fake_node.content(node.toolkit.resolve()) == before


@pytest.mark.parametrize(
    "to", ["elsewhere", ".toolkit-versions/mine", "../nvidia/.toolkit-versions/{}"]
)
def test_a_link_of_somebody_else_is_no_version_of_ours(node: fake_node.Node, to: str) -> None:
    """The files are right, and yet another installer may change them."""
    digest = install(node).digest
    real = node.toolkit.resolve()
    to = to.format(digest)
    if not (node.install_dir / to).exists():
        real.rename(node.install_dir / to)
    node.toolkit.unlink()
    node.toolkit.symlink_to(to)
    found = wanted(node)
    assert (found.differing, found.digest) == (("toolkit",), digest)


def test_unchanged_files_are_links_to_the_earlier_version(node: fake_node.Node) -> None:
    install(node)
    earlier = node.toolkit.resolve()
    fake_node.write_program(node.source / "usr/bin/nvidia-ctk", "#!/bin/sh\necho new\n")
    install(node)
    later = node.toolkit.resolve()
    assert later != earlier
    files = [p for p in earlier.rglob("*") if p.is_file() and not p.is_symlink()]
    moved = {
        p.name for p in files if p.stat().st_ino != (later / p.relative_to(earlier)).stat().st_ino
    }
    assert moved == {"nvidia-ctk.real"}
    assert (earlier / "nvidia-ctk.real").read_bytes() != (later / "nvidia-ctk.real").read_bytes()


def test_only_one_earlier_version_is_kept(node: fake_node.Node) -> None:
    for release in "1234":
        fake_node.make_artifacts(node.source, release=release)
        install(node)
    kept = list((node.install_dir / VERSIONS).iterdir())
    assert len(kept) == 2
    assert any((v / "libnvidia-container.so.1.3").exists() for v in kept)
    assert any((v / "libnvidia-container.so.1.4").exists() for v in kept)


def test_a_version_that_something_runs_from_is_kept(node: fake_node.Node) -> None:
    sleeper = Path("/bin/sleep").resolve().read_bytes()
    (node.source / "usr/bin/nvidia-ctk").write_bytes(sleeper)
    install(node)
    running = node.toolkit.resolve()
    # Found by its executable: a coreutils of one binary for all goes by the name it is called by.
    with fake_node.started(
        ["sh", "-c", 'exec "$0" 60', str(node.toolkit / "nvidia-ctk.real")]
    ) as process:
        exe = Path(f"/proc/{process.pid}/exe")
        fake_node.wait_for(lambda: exe.readlink() == running / "nvidia-ctk.real", "it does not run")
        for release in "234":
            fake_node.make_artifacts(node.source, release=release)
            install(node)
        assert running.is_dir()
    fake_node.make_artifacts(node.source, release="5")
    install(node)
    assert not running.is_dir()


def test_a_half_written_version_of_a_killed_install_goes(node: fake_node.Node) -> None:
    partial = node.install_dir / VERSIONS / "0123.partial"
    (partial / "sub").mkdir(parents=True)
    install(node)
    assert not partial.exists()


# --- the switch ---------------------------------------------------------------------------------


def test_no_path_is_ever_missing_during_upgrades(node: fake_node.Node) -> None:
    install(node)
    stop = node.root / "stop"
    names = sorted(LAYOUT - {"libnvidia-container.so.1.1", "libnvidia-container-go.so.1.1"})
    words = [sys.executable, "-I", "-S", "-c", _WATCHER, str(node.toolkit), str(stop), *names]
    with fake_node.started(words) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "watches\n"
        for release in range(50):
            fake_node.make_artifacts(node.source, release=f"2.{release}")
            versions.install(wanted(node), node.install_dir, Host(root=Path("/")))
        stop.touch()
        _, out, err = fake_node.ended(watcher)
    rounds, *missing = out.split()
    assert (missing, err) == ([], "")
    assert int(rounds) > 10


def test_a_failure_leaves_the_version_that_was_there(
    node: fake_node.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(node)
    before = fake_node.snapshot(node.toolkit.resolve())
    link = os.readlink(node.toolkit)
    fake_node.make_artifacts(node.source, release="2")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "copy_file_range", fail)
        with pytest.raises(StepError, match=r"cannot be written: No space left on device$"):
            versions.install(wanted(node), node.install_dir, Host(root=Path("/")))
    assert os.readlink(node.toolkit) == link
    assert fake_node.snapshot(node.toolkit.resolve()) == before
    install(node)


@pytest.mark.parametrize("refused", ["copy_file_range", "sendfile", ""])
def test_files_are_copied_by_what_the_kernel_can_do(
    node: fake_node.Node, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """Between two file systems copy_file_range(2) is refused, and sendfile(2) by some."""
    used = []

    def known(name: str) -> Any:
        real = getattr(os, name)

        def call(*arguments: Any) -> int:
            used.append(name)
            if refused in {name, "sendfile"}:
                raise OSError(errno.EXDEV if name == "copy_file_range" else errno.EINVAL, "no")
            return int(real(*arguments))

        return call

    for name in ("copy_file_range", "sendfile"):
        monkeypatch.setattr(os, name, known(name))
    test_the_programs_are_those_of_the_source_and_can_be_run(node)
    calls = {"": {"copy_file_range"}}.get(refused, {"copy_file_range", "sendfile"})
    assert set(used) == calls


@pytest.mark.parametrize("is_listed", [False, True])
def test_a_copy_that_differs_from_its_source_gets_no_name(
    node: fake_node.Node, monkeypatch: pytest.MonkeyPatch, *, is_listed: bool
) -> None:
    problem = r"[.]partial differ from what was written$"
    if is_listed:
        artifacts.list_hashes(node.source)
        problem = r"copy of \S+/usr/bin/\S+ has another hash than SHA256SUMS"

    def other(_: int, fd: int, count: int) -> int:
        return os.write(fd, bytes(count))

    version = wanted(node)
    with monkeypatch.context() as patch:
        patch.setattr(os, "copy_file_range", other)
        with pytest.raises(StepError, match=problem):
            versions.install(version, node.install_dir, Host(root=Path("/")))
    assert not os.path.lexists(node.toolkit)
    assert not (node.install_dir / VERSIONS / version.digest).exists()
    install(node)


SIZES: Final = (0, 1, manifest._CHUNK - 1, manifest._CHUNK, manifest._CHUNK + 1)


@pytest.mark.parametrize("size", [*SIZES, *(2 * manifest._CHUNK + each for each in SIZES)])
def test_files_are_compared_to_their_last_byte(tmp_path: Path, size: int) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    content = os.urandom(size)
    one.write_bytes(content)
    other.write_bytes(content)
    assert manifest._is_equal(one, other)
    other.write_bytes(content + b"x")
    assert not manifest._is_equal(one, other)
    assert not manifest._is_equal(other, one)
    for place in {0, manifest._CHUNK - 1, manifest._CHUNK, size - 1} & set(range(size)):
        changed = bytearray(content)
        changed[place] ^= 1
        other.write_bytes(changed)
        assert not manifest._is_equal(one, other)


# --- hashes that the source names ---------------------------------------------------------------


def test_the_list_of_the_image_is_one_that_sha256sum_reads(node: fake_node.Node) -> None:
    artifacts.list_hashes(node.source)
    command = ["sha256sum", "--check", "--strict", "--quiet", manifest.SUMS]
    assert subprocess.run(command, cwd=node.source, check=False).returncode == 0
    listed = (node.source / manifest.SUMS).read_text(encoding="utf-8")
    assert len(listed.splitlines()) == len(fake_node.PROGRAMS) + len(fake_node.LIBRARIES)


def test_with_hashes_of_the_source_no_file_is_read_to_name_a_version(
    node: fake_node.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = wanted(node).digest
    artifacts.list_hashes(node.source)
    monkeypatch.delattr(manifest, "_file_hash")
    assert wanted(node).digest == digest
    assert install(node).digest == digest


def test_a_file_that_the_list_does_not_name_is_read(node: fake_node.Node) -> None:
    digest = wanted(node).digest
    artifacts.list_hashes(node.source)
    sums = node.source / manifest.SUMS
    kept = [line for line in sums.read_text(encoding="utf-8").splitlines() if "-ctk" not in line]
    sums.write_text("\n".join(["# no hash", "", *kept, f"{'0' * 63}  usr/bin/nvidia-ctk"]) + "\n")
    assert install(node).digest == digest


@pytest.mark.parametrize("kind", ["copied", "linked", "without threads"])
def test_a_file_with_another_hash_than_its_source_names_is_not_installed(
    node: fake_node.Node, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Under a name that is not made of its content, it could replace the version in use."""
    if kind == "linked":
        install(node)
    before = fake_node.snapshot(node.install_dir) if kind == "linked" else {}
    artifacts.list_hashes(node.source)
    sums = node.source / manifest.SUMS
    right = sums.read_text(encoding="utf-8")
    name = "usr/bin/nvidia-ctk"
    sums.write_text(
        "".join(
            f"{'0' * 64}  {name}\n" if line.endswith(f"  {name}\n") else line
            for line in right.splitlines(keepends=True)
        ),
        encoding="utf-8",
    )
    version = wanted(node, nvidia_container_runtime_log_level="debug")

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        if kind == "without threads":
            patch.setattr(threading.Thread, "start", refused)
        with pytest.raises(StepError, match=r"nvidia-ctk has another hash than SHA256SUMS"):
            versions.install(version, node.install_dir, Host(root=Path("/")))
    shutil.rmtree(node.install_dir / VERSIONS / f"{version.digest}.partial")
    if kind == "linked":
        after = fake_node.snapshot(node.install_dir)
        assert after.keys() == before.keys()
        assert {p for p in after if after[p].inode != before[p].inode} == set()
    else:
        assert not os.path.lexists(node.toolkit)
    assert threading.active_count() == 1
    sums.write_text(right, encoding="utf-8")
    install(node)


# --- what stood there before --------------------------------------------------------------------


@pytest.fixture
def other(node: fake_node.Node) -> fake_node.Node:
    """Return a node on which another installer left a plain directory."""
    (node.toolkit / ".config").mkdir(parents=True)
    (node.toolkit / "nvidia-ctk").write_bytes(b"theirs\x00")
    (node.toolkit / "nvidia-ctk").chmod(0o711)
    (node.toolkit / ".config/x").symlink_to("nowhere")
    return node


def test_a_plain_directory_comes_back_as_it_was(other: fake_node.Node) -> None:
    before = fake_node.snapshot(other.install_dir)
    kept = versions.foreign_directory(other.install_dir)
    assert kept is not None
    install(other)
    assert other.toolkit.is_symlink()
    versions.remove(other.install_dir, Path(kept))
    after = fake_node.snapshot(other.install_dir)
    assert after == before


def test_the_oldest_directory_is_the_one_that_comes_back(other: fake_node.Node) -> None:
    before = fake_node.content(other.install_dir)
    kept = versions.foreign_directory(other.install_dir)
    install(other)
    for turn in range(2):  # the other installer runs again and again
        other.toolkit.unlink()
        other.toolkit.mkdir()
        (other.toolkit / "later").write_bytes(b"%d" % turn)
        assert versions.foreign_directory(other.install_dir) == kept
        install(other)
    versions.remove(other.install_dir, Path(kept or ""))
    assert fake_node.content(other.install_dir) == before


def test_a_directory_that_a_killed_switch_left_is_no_obstacle(other: fake_node.Node) -> None:
    install(other)
    leftover = other.install_dir / ".toolkit-next"  # killed between the exchange and the removal
    leftover.mkdir()
    fake_node.make_artifacts(other.source, release="2")
    install(other)
    assert (other.toolkit / "libnvidia-container.so.1.2").exists()


@pytest.mark.parametrize("kind", ["link", "file"])
def test_whatever_else_stood_there_comes_back_too(node: fake_node.Node, kind: str) -> None:
    node.install_dir.mkdir(parents=True)
    if kind == "link":
        (node.root / "opt").mkdir()
        node.toolkit.symlink_to(node.root / "opt")
    else:
        node.toolkit.write_bytes(b"precious")
    before = fake_node.content(node.install_dir)
    options = node.options(restart_mode="none")
    if fake_node.cli("run", "-n", *options).returncode == 0:
        fake_node.done("revert", *options)
    assert fake_node.content(node.install_dir) == before


def test_remove_takes_everything_of_ours(node: fake_node.Node) -> None:
    install(node)
    fake_node.make_artifacts(node.source, release="2")
    install(node)
    versions.remove(node.install_dir, None)
    assert list(node.install_dir.iterdir()) == []
    versions.remove(node.install_dir, None)
