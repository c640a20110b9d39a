"""The management CDI specification, made by the real nvidia-ctk of a driver that is made up.

Nothing else about it is: its libraries, its device nodes and what the kernel says are what
nvidia-ctk goes by. What a GPU does is not seen here.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes import registry
from runtimes.errors import ConfigError
from runtimes.model import RuntimeName
from tests.support import binaries, driver, fake_node, nodes, pods
from tests.support.fake_node import Node
from toolkit.cdi import spec_document
from toolkit.node.host import Host
from toolkit.reconcile import cdi
from toolkit.runtime import locate
from toolkit.state import journal

pytestmark = [pytest.mark.binary, fake_node.needs_root]

NAME: Final = "management.nvidia.com-gpu.yaml"
CONFIG: Final = ".config/nvidia-container-runtime/config.toml"
FOLDER: Final = nodes.CHECKOUT.parent / "shared" / "peer-cases"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    made = fake_node.make_node(tmp_path)
    program = made.source / "usr/bin/nvidia-ctk"
    program.unlink()
    program.symlink_to(binaries.toolkit("nvidia-ctk"))
    return made


@pytest.fixture
def root(node: Node) -> Path:
    return driver.make(node.root / "driver")


def spec(node: Node) -> Path:
    return node.root / "var/run/cdi" / NAME


def options(node: Node, **changed: str | None) -> list[str]:
    given: dict[str, str | None] = {
        "no_runtime_config": "true",
        "cdi_enabled": "true",
        "cdi_output_dir": str(spec(node).parent),
        "driver_root": str(node.root / "driver"),
        "driver_root_ctr_path": "/nonexistent",
    }
    return node.options(**{**given, **changed})


def run(
    node: Node, *words: str, prefix: Sequence[str] = (), **changed: str | None
) -> subprocess.CompletedProcess[str]:
    given = (*words, *options(node, **changed))
    return fake_node.cli(*given, *(() if words else ("--no-daemon",)), prefix=prefix)


def files(node: Node) -> dict[str, tuple[int, str]]:
    """Return all of the node, but for the lock that every command leaves."""
    found = fake_node.content(node.root)
    found.pop(str(node.pid_file.relative_to(node.root)), None)
    return found


def content(node: Node) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(spec(node).read_bytes())
    return tree


# --- it is made ---------------------------------------------------------------------------------


def test_the_real_nvidia_ctk_describes_the_driver(node: Node, root: Path) -> None:
    done = run(node, prefix=driver.loaded(root))
    assert done.returncode == 0, done.stderr
    tree = content(node)
    assert tree["kind"] == "management.nvidia.com/gpu"
    [device] = tree["devices"]
    nodes = {each["path"]: each["hostPath"] for each in device["containerEdits"]["deviceNodes"]}
    assert nodes == {f"/dev/{name}": f"{root}/dev/{name}" for name in (*driver.CONTROL, "nvidia0")}
    edits = tree["containerEdits"]
    assert {hook["path"] for hook in edits["hooks"]} == {f"{node.toolkit}/nvidia-cdi-hook"}
    mounts = {each["containerPath"]: each["hostPath"] for each in edits["mounts"]}
    assert mounts["/usr/bin/nvidia-smi"] == f"{root}/usr/bin/nvidia-smi"
    library = f"/usr/lib/x86_64-linux-gnu/libcuda.so.{driver.VERSION}"
    assert mounts[library] == f"{root}{library}"
    assert spec(node).stat().st_mode & 0o777 == 0o644


def test_a_second_run_changes_nothing(node: Node, root: Path) -> None:
    run(node, prefix=driver.loaded(root))
    before = fake_node.snapshot(node.root, node.pid_file)
    done = run(node, prefix=driver.loaded(root))
    assert (done.returncode, done.stderr) == (0, fake_node.NOTHING_TO_DO)
    assert fake_node.snapshot(node.root, node.pid_file) == before


def test_the_same_roots_in_other_words_are_no_other_roots(node: Node, root: Path) -> None:
    """The operator's entry point reads the roots from a file unknown to commands in its pod."""
    run(node, prefix=driver.loaded(root), dev_root=str(root), dev_root_ctr_path="/nonexistent")
    shown = fake_node.cli("status", *options(node), prefix=driver.loaded(root)).stdout
    assert shown.startswith("in sync\n")
    assert run(node, prefix=driver.loaded(root)).stderr == fake_node.NOTHING_TO_DO


def test_revert_gives_back_every_byte(node: Node, root: Path) -> None:
    spec(node).parent.mkdir(parents=True)
    spec(node).write_text("# of another installer\n", encoding="utf-8")
    spec(node).chmod(0o600)
    before = files(node)
    assert run(node, prefix=driver.loaded(root)).returncode == 0
    assert files(node) != before
    assert run(node, prefix=driver.loaded(root)).returncode == 0
    done = fake_node.done("revert", *options(node))
    assert files(node) == before, done.stderr


def test_revert_removes_what_was_not_there(node: Node, root: Path) -> None:
    before = files(node)
    assert run(node, prefix=driver.loaded(root)).returncode == 0
    # The driver may be gone by then, and the options forgotten.
    fake_node.done("revert", *node.options(no_runtime_config="true"))
    assert files(node) == before


def test_it_is_found_where_its_directory_is_mounted_no_more(node: Node, root: Path) -> None:
    """A revert may run in another container than the install: the node's root must show it."""
    assert run(node, prefix=driver.loaded(root)).returncode == 0
    record = journal.load(node.install_dir)
    assert record.specification is not None
    owned = replace(record.specification, path=f"/{NAME}", local=f"/nowhere/{NAME}")
    record = replace(record, specification=owned)
    left, stayed = cdi.take_back(Host(root=spec(node).parent), node.install_dir, record)
    assert (left.specification, stayed, spec(node).exists()) == (None, "", False)


def test_what_somebody_edited_stays_on_revert_and_is_named(node: Node, root: Path) -> None:
    assert run(node, prefix=driver.loaded(root)).returncode == 0
    spec(node).write_text("{}\n", encoding="utf-8")
    done = fake_node.done("revert", *options(node))
    assert spec(node).read_text(encoding="utf-8") == "{}\n"
    assert f"kept, because it was modified: {spec(node)}" in done.stdout


def test_it_goes_where_it_is_not_wanted_any_more(node: Node, root: Path) -> None:
    assert run(node, prefix=driver.loaded(root)).returncode == 0
    assert run(node, cdi_enabled="false").returncode == 0
    assert not spec(node).exists()
    assert node.toolkit.exists()


def test_another_kind_is_another_file(node: Node, root: Path) -> None:
    assert run(node, prefix=driver.loaded(root)).returncode == 0
    assert run(node, prefix=driver.loaded(root), cdi_kind="example.com/class").returncode == 0
    assert [path.name for path in spec(node).parent.iterdir()] == ["example.com-class.yaml"]


# --- what it is made of -------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["driver", "device", "edit", "removal"])
def test_it_is_made_again(node: Node, root: Path, what: str) -> None:
    assert run(node, prefix=driver.loaded(root)).returncode == 0
    before = content(node)
    match what:
        case "driver":
            driver.make(root, "1000.1")
        case "device":
            driver.node(root, "nvidia-caps/nvidia-cap1", 235, 1)
        case "edit":
            spec(node).write_text("{}\n", encoding="utf-8")
        case _:
            spec(node).unlink()
    done = fake_node.cli("status", *options(node), prefix=driver.loaded(root))
    assert "would be generated by nvidia-ctk" in done.stdout
    assert run(node, prefix=driver.loaded(root)).returncode == 0
    assert (content(node) == before) is (what in ("edit", "removal"))
    if what == "driver":
        assert "libcuda.so.1000.1" in spec(node).read_text(encoding="utf-8")


def test_missing_control_nodes_are_made(node: Node, root: Path) -> None:
    driver.make(root, nodes=False)
    assert run(node, prefix=driver.loaded(root)).returncode == 0
    made = {name: (root / "dev" / name).stat() for name in driver.CONTROL}
    assert {name: (os.major(s.st_rdev), os.minor(s.st_rdev)) for name, s in made.items()} == {
        "nvidiactl": (195, 255),
        "nvidia-modeset": (195, 254),
        "nvidia-uvm": (196, 0),
        "nvidia-uvm-tools": (196, 1),
    }
    [device] = content(node)["devices"]
    assert {each["path"] for each in device["containerEdits"]["deviceNodes"]} == {
        f"/dev/{n}" for n in driver.CONTROL
    }


def test_no_nodes_are_made_where_none_are_wanted(node: Node, root: Path) -> None:
    driver.make(root, nodes=False)
    driver.node(root, "nvidia0", 195, 0)
    done = run(node, prefix=driver.loaded(root), create_device_nodes="none")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (root / "dev").iterdir()] == ["nvidia0"]


def test_a_node_that_ships_the_toolkit_has_its_own_nvidia_ctk_and_hook(
    node: Node, root: Path
) -> None:
    shipped = node.root / "bin"
    shipped.mkdir()
    for name in ("nvidia-container-runtime", "nvidia-ctk", "nvidia-cdi-hook"):
        shutil.copyfile(binaries.toolkit(name), shipped / name)
        (shipped / name).chmod(0o755)
    changed = {"no_install": "true", "no_runtime_config": None, "toolkit_bin_dir": str(shipped)}
    given = {"toolkit_source_root": None, "restart_mode": "none", **changed}
    before = files(node)
    for name, says in {
        "nvidia-ctk": f"{shipped}/nvidia-ctk not found on the node",
        "nvidia-cdi-hook": (
            f"{shipped}/nvidia-cdi-hook, a hook in nvidia-ctk's output, not found on the node"
        ),
    }.items():
        (shipped / name).rename(node.root / "aside")
        done = run(node, prefix=driver.loaded(root), **given)
        assert done.returncode == 4
        assert done.stderr.splitlines()[-2:] == [
            (
                f"error: the CDI specification was not made: {says}; the runtime and its files are"
                " in sync"
            ),
            (
                "hint: --no-install uses the node's toolkit: install it there, or leave out"
                " --no-install"
            ),
        ]
        assert not spec(node).exists()
        (node.root / "aside").rename(shipped / name)
    done = run(node, prefix=driver.loaded(root), **given)
    assert done.returncode == 0, done.stderr
    assert {hook["path"] for hook in content(node)["containerEdits"]["hooks"]} == {
        f"{shipped}/nvidia-cdi-hook"
    }
    assert f"{shipped}/nvidia-container-runtime" in node.config.read_text(encoding="utf-8")
    assert not os.path.lexists(node.toolkit)
    trace = fake_node.trace(spec(node))
    assert run(node, prefix=driver.loaded(root), **given).stderr == fake_node.NOTHING_TO_DO
    assert fake_node.trace(spec(node)) == trace
    # What it is made with counts, as what it is made of does.
    os.utime(shipped / "nvidia-ctk", ns=(0, 0))
    shown = fake_node.cli("status", *options(node, **given), prefix=driver.loaded(root)).stdout
    assert "would be generated by nvidia-ctk" in shown
    fake_node.done("revert", *options(node, **given))
    assert files(node) == before


def test_a_driver_seen_at_another_place_is_named_as_the_node_names_it(
    node: Node, root: Path
) -> None:
    root.rename(node.root / "seen")
    done = run(
        node,
        prefix=driver.loaded(node.root / "seen"),
        driver_root="/run/nowhere/driver",
        driver_root_ctr_path=str(node.root / "seen"),
    )
    assert done.returncode == 0, done.stderr
    text = spec(node).read_text(encoding="utf-8")
    assert str(node.root / "seen") not in text
    assert '"/run/nowhere/driver/dev/nvidia0"' in text
    assert '"/run/nowhere/driver/usr/bin/nvidia-smi"' in text
    assert f'"{node.toolkit}/nvidia-cdi-hook"' in text


# --- it cannot be made --------------------------------------------------------------------------


def test_a_missing_driver_is_one_clear_line(node: Node) -> None:
    done = run(node)
    assert done.returncode == 4
    assert done.stderr.splitlines()[-2:] == [
        (
            "error: the CDI specification was not made: the driver is not loaded;"
            " the runtime and its files are in sync"
        ),
        "hint: run again once the driver is available; without --no-daemon the agent waits for it",
    ]
    assert not spec(node).parent.exists()
    assert node.toolkit.exists()
    shown = json.loads(fake_node.cli("plan", *options(node), "-o", "json").stdout)
    assert shown["in_sync"] is True
    assert shown["specification"] == {
        "path": str(spec(node)),
        "node_path": str(spec(node)),
        "in_sync": False,
        "waits_for": "the driver is not loaded",
    }
    assert (
        f"the CDI specification {spec(node)} is not generated yet: the driver is not loaded"
        in shown["notes"]
    )
    status = fake_node.cli("status", *options(node)).stdout
    assert (
        status
        == "in sync\nnot ready: the CDI specification is not generated yet: the driver is not"
        " loaded\n"
    )


@pytest.mark.parametrize("what", ["root", "nodes", "libraries"])
def test_nvidia_ctk_s_own_error_is_told_and_nothing_is_half(
    node: Node, root: Path, what: str
) -> None:
    prefix = driver.loaded(root)
    spec(node).parent.mkdir(parents=True)
    spec(node).write_text("# from before\n", encoding="utf-8")
    before = fake_node.trace(spec(node))
    if what == "nodes":
        shutil.rmtree(root / "dev")
        (root / "dev").mkdir()
        (root / "devices").write_text("Character devices:\n", encoding="ascii")
    elif what == "libraries":
        shutil.rmtree(root / "usr/lib")
    driver_root = f"{node.root}/nowhere"
    wrong = {"driver_root": driver_root} if what == "root" else {}
    done = run(node, prefix=prefix, **wrong)
    said = {
        "root": f"the driver's root {driver_root} does not exist or is empty",
        "nodes": (
            "`nvidia-ctk system create-device-nodes` failed: failed to create devices info: no"
            " NVIDIA"
        ),
        "libraries": "`nvidia-ctk cdi generate` failed: failed to generate CDI spec: ",
    }[what]
    assert done.returncode == 4
    [line] = [
        line for line in done.stderr.splitlines() if "the CDI specification was not made" in line
    ]
    assert said in line
    assert fake_node.trace(spec(node)) == before
    assert "specification" not in json.loads(node.state.read_bytes())


def test_the_runtime_s_configuration_stays_where_nvidia_ctk_fails(node: Node, root: Path) -> None:
    shutil.rmtree(root / "usr/lib")
    with fake_node.daemon(node.socket, home=node.root / "home") as runtime:
        done = run(node, prefix=driver.loaded(root), no_runtime_config=None)
        assert done.returncode == 4
        assert b"nvidia-container-runtime" in node.config.read_bytes()
        state = json.loads(node.state.read_bytes())
        assert (state["open"], state["pending_reload"], runtime.signals()) == (
            None,
            None,
            ["SIGHUP"],
        )
        driver.make(root)
        assert run(node, prefix=driver.loaded(root), no_runtime_config=None).returncode == 0
        assert runtime.signals() == ["SIGHUP"]
    assert content(node)["kind"] == "management.nvidia.com/gpu"


@fake_node.needs_program("strace", package="strace")
def test_a_kill_leaves_the_old_file_or_the_new_one(node: Node, root: Path) -> None:
    """Kill at every rename, where changes happen; the next run makes it, and can revert it."""
    old = "# of another installer\n"
    spec(node).parent.mkdir(parents=True)
    spec(node).write_text(old, encoding="utf-8")
    before = files(node)
    assert run(node, cdi_enabled="false").returncode == 0
    for number in range(1, 20):
        kill = f"inject=rename:signal=KILL:when={number}"
        strace = ("strace", "-qq", "-o", "/dev/null", "-e", "trace=rename", "-e", kill)
        code = run(node, prefix=(*driver.loaded(root), *strace)).returncode
        text = spec(node).read_text(encoding="utf-8")
        assert text == old or json.loads(text)["kind"]
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert run(node, prefix=driver.loaded(root)).returncode == 0
        assert content(node)["kind"] == "management.nvidia.com/gpu"
        assert run(node, cdi_enabled="false").returncode == 0
        assert spec(node).read_text(encoding="utf-8") == old
    assert number > 3
    fake_node.done("revert", *options(node))
    assert files(node) == before


# --- the peer's own cases -----------------------------------------------------------------------


VOID = """\
        - hostPath: /dev/null
          containerPath: /var/run/nvidia-container-devices/void
          options:
            - ro
            - nosuid
            - nodev
            - bind
"""
"""What nvidia-ctk 1.20.2 adds to every specification; the cases are older."""


def peer_cases() -> dict[str, Any]:
    path = FOLDER / "installer-toolkit.json"
    return (
        {each["id"]: each for each in json.loads(path.read_bytes())["cases"]}
        if path.exists()
        else {}
    )


@pytest.mark.parametrize("key", sorted(peer_cases()) or ["absent"])
def test_the_peer_s_cases_have_the_peer_s_effect(node: Node, key: str) -> None:
    """The specification is the same, byte by byte after nvidia-ctk itself wrote ours as YAML."""
    if key == "absent":
        pytest.skip("there are no peer cases beside the project (../shared/peer-cases)")
    case = peer_cases()[key]
    args, tree = case["args"], case["fixtures"][1]
    seen = plant(node.root / "seen", tree)
    done = run(
        node,
        prefix=driver.loaded(driver.make(node.root / "driver", nodes=False)),
        driver_root=args["driver_root"],
        driver_root_ctr_path=str(seen),
        cdi_enabled=str(args["cdi_enabled"]),
        cdi_kind=args["cdi_kind"],
        create_device_nodes="none",
    )
    error = case["expected_error"]
    assert done.returncode == (4 if error else 0), done.stderr
    assert (error or "") in done.stderr
    config = tomllib.loads((node.toolkit / CONFIG).read_text(encoding="utf-8"))
    for name, wanted in case["expected"]["config_values"].items():
        section, _, word = name.partition(".")
        assert config[section][word] == wanted.replace("{{ .toolkitRoot }}", str(node.toolkit))
    place = spec(node).with_name("example.com-class.yaml")
    expected = case["expected_cdi_spec"]
    assert place.exists() is (expected is not None)
    if expected is not None:
        made = as_yaml(place)
        assert made.count(VOID) == 1
        assert made.replace(VOID, "") == expected.replace("{{ .toolkitRoot }}", str(node.toolkit))


def plant(root: Path, name: str) -> Path:
    """Make a tree of the peer's; its device nodes, plain files there, are such here."""
    root.mkdir()
    trees = json.loads((FOLDER / "fixtures.json").read_bytes())["trees"]
    for entry in trees[name]:
        place = root / entry["path"]
        match entry["type"]:
            case "dir":
                place.mkdir()
            case "symlink":
                place.symlink_to(entry["target"])
            case _ if entry["path"].startswith("dev/"):
                os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(195, 0))
            case _:
                place.write_text(entry.get("text", ""), encoding="utf-8")
    return root


def as_yaml(place: Path) -> str:
    tree = json.loads(place.read_bytes())
    for each in tree["devices"][0]["containerEdits"]["deviceNodes"]:
        for name in ("major", "minor", "fileMode", "permissions"):  # a plain file has none
            each.pop(name, None)
    place.write_text(json.dumps(tree), encoding="utf-8")
    words = ("cdi", "transform", "root", f"--input={place}", "--from=/none", "--to=/none")
    done = subprocess.run(
        (str(binaries.toolkit("nvidia-ctk")), *words), capture_output=True, text=True, check=True
    )
    return done.stdout


# --- a GPU without the module nvidia ------------------------------------------------------------

_TEGRA: Final = """
mount -t tmpfs fake /sys/module
mkdir /sys/module/nvgpu
mount -t tmpfs fake /mnt
mkdir /mnt/upper /mnt/work
mount -t overlay -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work overlay /etc
mkdir -p /etc/nvidia-container-runtime
mount --bind "$1" /etc/nvidia-container-runtime
shift
"""
_WSL2: Final = """
mount -t tmpfs fake /sys/module
mount -t tmpfs fake /dev
mknod -m 666 /dev/null c 1 3
mknod -m 666 /dev/urandom c 1 9
mknod -m 666 /dev/dxg c 10 63
"""


def test_a_tegra_whose_module_is_nvgpu_is_described_by_its_csv_files(
    node: Node, tmp_path: Path
) -> None:
    folder = tmp_path / "csv/host-files-for-container.d"
    folder.mkdir(parents=True)
    table = folder / "devices.csv"
    table.write_text("dev, /dev/null\n", encoding="utf-8")  # for /dev/nvhost-gpu
    prefix = fake_node.in_mounts(_TEGRA, str(folder.parent))
    given: dict[str, str | None] = {"driver_root": "/", "driver_root_ctr_path": "/"}
    done = run(node, prefix=prefix, **given)
    assert done.returncode == 0, done.stderr
    devices = {
        each["name"]: each["containerEdits"]["deviceNodes"] for each in content(node)["devices"]
    }
    assert [each["path"] for each in devices["all"]] == ["/dev/null"]
    assert content(node)["kind"] == "management.nvidia.com/gpu"
    assert run(node, prefix=prefix, **given).stderr == fake_node.NOTHING_TO_DO
    table.write_text("dev, /dev/null\ndev, /dev/zero\n", encoding="utf-8")
    assert run(node, prefix=prefix, **given).returncode == 0
    devices = {
        each["name"]: each["containerEdits"]["deviceNodes"] for each in content(node)["devices"]
    }
    assert [each["path"] for each in devices["all"]] == ["/dev/null", "/dev/zero"]


@pytest.mark.parametrize("script", [_TEGRA, _WSL2], ids=["Tegra", "WSL2"])
def test_the_driver_s_usual_root_is_named_as_the_reason_where_the_node_has_its_own(
    node: Node, tmp_path: Path, script: str
) -> None:
    """The default is that of a driver container, of which there is none for these."""
    (tmp_path / "csv").mkdir()
    words = (str(tmp_path / "csv"),) if script == _TEGRA else ()
    done = run(
        node, prefix=fake_node.in_mounts(script, *words), driver_root="/no", driver_root_ctr_path=""
    )
    assert (
        "the driver's root /no does not exist or is empty; the driver of WSL2 and of a Tegra"
        in done.stderr
    )
    assert "set --driver-root=/" in done.stderr


def test_on_wsl2_nvidia_ctk_is_asked_for_wsl(node: Node) -> None:
    """It asks Windows' driver, which only a WSL2 has: its own error shows that it was asked to."""
    prefix = fake_node.in_mounts(_WSL2)
    done = run(node, prefix=prefix, driver_root="/", driver_root_ctr_path="/")
    assert done.returncode == 4
    assert "failed to initialize dxcore" in done.stderr
    assert "not loaded" not in done.stderr
    found = json.loads(
        fake_node.cli("diagnose", *options(node), "-o", "json", prefix=prefix).stdout
    )
    assert found["driver"]["loaded"] == "/dev/dxg"
    assert not [each for each in found["findings"] if "not loaded" in each["problem"]]


# --- it stays so --------------------------------------------------------------------------------


def test_a_daemon_waits_for_the_driver_and_follows_it(node: Node, root: Path) -> None:
    """The driver comes, is edited away, changes: all that a node does without our restart."""
    # Another name for the module, which comes and goes with a file.
    script = """
mount -t tmpfs fake /sys/module
mount --bind "$1/devices" /proc/devices
ln -s "$1/module" /sys/module/nvidia
shift
"""
    driver.make(root)
    prefix = fake_node.in_mounts(script, str(root))
    argv = [*options(node, check_interval="1"), "--log-format=json"]
    ready = node.pid_file.with_name("ready.json")
    with pods.staying(argv, prefix=prefix) as pod:
        assert "no CDI specification yet: the driver is not loaded" in pod.messages()
        state = pod.state()
        assert (state["ready"], state["unready"]) == (
            False,
            "the CDI specification is not generated yet: the driver is not loaded",
        )
        assert not ready.exists()
        (root / "module").mkdir()
        (root / "module/version").write_text(driver.VERSION, encoding="ascii")
        pods.until(ready.exists, "it does not become ready")
        good = spec(node).read_bytes()
        assert json.loads(ready.read_bytes())["configuration"].keys() == {str(spec(node))}
        spec(node).write_text("{}\n", encoding="utf-8")
        pods.until(lambda: spec(node).read_bytes() == good, "it is not repaired")
        (root / "usr/lib/x86_64-linux-gnu/libnvidia-new.so.999.88.77").touch()
        driver.node(root, "nvidia1", 195, 1)
        pods.until(lambda: b"nvidia1" in spec(node).read_bytes(), "it does not follow the devices")
        assert b"libnvidia-new" in spec(node).read_bytes()
        assert pod.end(signal.SIGTERM) == 0


def test_a_daemon_stays_where_nvidia_ctk_fails_and_tries_again(node: Node, root: Path) -> None:
    shutil.rmtree(root / "usr/lib")
    ready = node.pid_file.with_name("ready.json")
    with pods.staying([*options(node), "--log-format=json"], prefix=driver.loaded(root)) as pod:
        pod.says("the CDI specification was not made: `nvidia-ctk cdi generate` failed", times=2)
        assert not ready.exists()
        driver.make(root)
        pods.until(ready.exists, "it does not become ready")
        assert content(node)["kind"] == "management.nvidia.com/gpu"


def test_a_diagnosis_tells_of_hooks_that_are_gone_and_of_another_driver(
    node: Node, root: Path
) -> None:
    assert run(node, prefix=driver.loaded(root)).returncode == 0
    (root / "version").write_text("1000.1\n", encoding="ascii")
    (node.toolkit / "nvidia-cdi-hook").unlink()
    done = fake_node.cli("diagnose", *options(node), "-o", "json", prefix=driver.loaded(root))
    found = json.loads(done.stdout)
    [told] = [each for each in found["cdi"]["specifications"] if each["path"] == str(spec(node))]
    assert (told["kind"], told["drivers"]) == ("management.nvidia.com/gpu", [driver.VERSION])
    problems = [each["problem"] for each in found["findings"]]
    assert (
        f"the CDI specification {spec(node)} uses the hook {node.toolkit}/nvidia-cdi-hook, which is"
        " not on the node: containers with its devices fail to start" in problems
    )
    assert (
        f"the CDI specification {spec(node)} is for driver {driver.VERSION}, but 1000.1 is loaded"
        in problems
    )


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, None),
        ({"cdi_enabled": "true"}, True),
        ({"cdi_enabled": "true", "enable_cdi_in_runtime": "false"}, None),
        ({"enable_cdi_in_runtime": "true"}, True),
    ],
)
def test_cdi_in_the_runtime_follows_unless_it_is_set(
    node: Node, given: dict[str, str], *, wanted: bool | None
) -> None:
    adapter = registry.ADAPTERS[RuntimeName.CONTAINERD]
    assert adapter is not None
    assert locate.target(node.settings(**given), adapter).desired.enable_cdi is wanted


# --- what nvidia-ctk says -----------------------------------------------------------------------


def test_moved_paths_lie_below_the_named_roots() -> None:
    tree = {
        "kind": "a/b",
        "devices": [
            {
                "name": "all",
                "containerEdits": {"deviceNodes": [{"path": "/x/dev/a"}, {"path": "/x/devices"}]},
            }
        ],
        "containerEdits": {"mounts": [{"hostPath": "/x/lib", "containerPath": "/x/lib"}]},
    }
    moved = spec_document.moved(tree, (("/x/dev", "/dev"), ("/x", "/run/driver")))
    nodes = moved["devices"][0]["containerEdits"]["deviceNodes"]
    assert [each["hostPath"] for each in nodes] == ["/dev/a", "/run/driver/devices"]
    assert moved["containerEdits"]["mounts"] == [
        {"hostPath": "/run/driver/lib", "containerPath": "/x/lib"}
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not valid JSON"),
        ("[]", "without devices"),
        ('{"cdiVersion": "1", "devices": []}', "without devices"),
        ('{"cdiVersion": "1", "devices": [{}], "kind": "c/d"}', "of kind c/d instead of a/b"),
    ],
)
def test_what_is_no_specification_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        spec_document.parse(text, "a/b")
