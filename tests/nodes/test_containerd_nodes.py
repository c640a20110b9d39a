"""The main job on real nodes: booted Debian with systemd and containerd 1.6, 1.7, 2.1 and 2.4.

The program runs as its DaemonSet container would: the node's PID namespace, the
node's root read-only at /host, four directories of the node writable.
"""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import artifacts, boot, containers, nodes, versions
from tests.support.nodes import Node
from toolkit.artifacts import static_wrapper, wrappers

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

PROGRAM = str(Path(sys.executable).parent / "nvidia-toolkit")
CONFIG = "/etc/containerd/config.toml"
RESTARTS = "/run/nvidia/toolkit/restarts.json"
TOOLKIT = "/usr/local/nvidia/toolkit"
HANDLERS = {
    "nvidia": f"{TOOLKIT}/nvidia-container-runtime",
    "nvidia-cdi": f"{TOOLKIT}/nvidia-container-runtime.cdi",
    "nvidia-legacy": f"{TOOLKIT}/nvidia-container-runtime.legacy",
}


@pytest.fixture(scope="module", params=[*nodes.SUITES, versions.BOOTED_CONTAINERD])
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    with boot.booted(request.param) as booted:
        yield booted


class Tool:
    """The program on a node, with the settings of a DaemonSet."""

    def __init__(self, node: Node, source: Path) -> None:
        self.node = node
        self.options = ["--runtime=containerd", f"--toolkit-source-root={source}"]

    def __call__(self, *arguments: str, code: int = 0, env: Mapping[str, str] | None = None) -> str:
        done = containers.daemonset(self.node, [PROGRAM, *arguments, *self.options], env=env)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def tool(node: Node, source: Path) -> Iterator[Tool]:
    """A tool on a node that it leaves as it was, so that the next test finds a clean one."""
    found = Tool(node, source)
    before = picture(node)
    # Tests restart more often than systemd allows, and then it would not start a dead one again.
    nodes.run(node, ["systemctl", "reset-failed", "containerd"])
    nodes.path(node, RESTARTS).unlink(missing_ok=True)
    yield found
    found("revert", "--force")
    assert picture(node) == before


def picture(node: Node) -> dict[str, tuple[str, int, bytes]]:
    """Return every file's kind, mode and content below the directories that we may write to."""
    found = {}
    for place in ("/etc/containerd", "/usr/local/nvidia"):
        for path in sorted(nodes.path(node, place).rglob("*")):
            status = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            found[str(path.relative_to(node.root))] = (oct(status.st_mode), status.st_uid, content)
    return found


UPSTREAM = b"""\
version = 4
[plugins."io.containerd.cri.v1.runtime".containerd]
  default_runtime_name = "nvidia"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.nvidia]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.nvidia.options]
  BinaryName = "/usr/local/nvidia/toolkit/nvidia-container-runtime"
"""


def times(node: Node) -> dict[str, tuple[int, int]]:
    """Return every file's inode and time of change: a write that changes nothing shows there."""
    places = [nodes.path(node, place) for place in ("/etc/containerd", "/usr/local/nvidia")]
    return {
        str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns)
        for place in places
        for path in place.rglob("*")
    }


def restart(node: Node) -> None:
    # Tests restart more often than systemd finds healthy.
    nodes.run(node, ["systemctl", "reset-failed", "containerd"])
    nodes.run(node, ["systemctl", "restart", "containerd"])


def dump(node: Node) -> dict[str, Any]:
    return tomllib.loads(nodes.run(node, ["containerd", "config", "dump"]).stdout)


def cri(tree: Mapping[str, Any]) -> dict[str, Any]:
    plugins = tree["plugins"]
    found = plugins.get("io.containerd.cri.v1.runtime") or plugins["io.containerd.grpc.v1.cri"]
    assert isinstance(found, dict)
    return found


def without_ours(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a dump without the keys that are ours to change."""
    section = cri(tree)["containerd"]
    section.pop("default_runtime_name")
    for handler in HANDLERS:
        section["runtimes"].pop(handler, None)
    # A runc that a file defines has no zero values, the built-in one of 1.x spells them out.
    section["runtimes"]["runc"] = without_zeros(section["runtimes"]["runc"])
    tree.pop("imports")
    return tree


def without_zeros(table: dict[str, Any]) -> dict[str, Any]:
    kept = {k: without_zeros(v) if isinstance(v, dict) else v for k, v in table.items()}
    return {k: v for k, v in kept.items() if v not in ("", 0, False, [], {})}


@pytest.mark.smoke
def test_install_repeat_and_revert(node: Node, tool: Tool) -> None:
    pid = nodes.main_pid(node, "containerd")
    before = dump(node)
    assert "containerd.service to restart (unavailable for about 0.1 s)" in tool("plan")
    told = tool("run", "--no-daemon")
    assert "from which the toolkit's handlers inherit" not in told
    # The daemon itself was restarted once, by its unit, and has the handlers.
    installed = nodes.main_pid(node, "containerd")
    assert installed not in {0, pid}
    after = dump(node)
    section = cri(after)["containerd"]
    assert section["default_runtime_name"] == "nvidia"
    seen = {name: section["runtimes"][name]["options"]["BinaryName"] for name in HANDLERS}
    assert seen == HANDLERS
    for name in HANDLERS:
        assert section["runtimes"][name]["runtime_type"] == "io.containerd.runc.v2"
    # Nothing else changed in what this containerd makes of its files.
    assert without_ours(after) == without_ours(before)
    # A second run writes nothing and restarts nothing.
    still = times(node)
    assert "nothing to do" in tool("run", "--no-daemon")
    assert times(node) == still
    assert nodes.main_pid(node, "containerd") == installed
    assert tool("status").startswith("in sync")
    planned = tool("plan", "--revert")
    assert "-plugins." in planned
    assert (
        "the toolkit to remove from /usr/local/nvidia/toolkit, containerd.service to restart"
        in planned
    )
    assert times(node) == still
    assert nodes.main_pid(node, "containerd") == installed
    # And back: the fixture compares every byte.


def test_running_daemon_names_the_handlers(node: Node, tool: Tool) -> None:
    if reason := containers.why_no_containers(node):
        pytest.skip(reason)
    tool("run", "--no-daemon")
    containers.prepare_images(node)
    for handler in HANDLERS:
        done = containers.run_pod(node, handler=handler, argv=["echo", f"through {handler}"])
        assert (done.exit_code, done.output.strip()) == (0, f"through {handler}")


@pytest.mark.smoke
def test_pods_run_through_the_installed_wrapper(node: Node, tool: Tool) -> None:
    if reason := containers.why_no_containers(node):
        pytest.skip(reason)
    tool("run", "--no-daemon")
    containers.prepare_images(node)
    wrapper = nodes.path(node, HANDLERS["nvidia"]).read_bytes()
    assert wrappers.is_script(wrapper) is (static_wrapper.template() is None)
    ran = nodes.path(node, artifacts.RAN)
    # Without the driver the wrapper passes everything on to the node's own low-level runtime.
    assert containers.run_pod(node, handler="", argv=["true"]).exit_code == 0
    assert not ran.exists()
    # With it, the toolkit's own binary runs; the default handler is ours.
    nodes.run(node, ["mount", "-t", "tmpfs", "driver", "/sys/module"])
    try:
        nodes.path(node, "/sys/module/nvidia").mkdir()
        assert containers.run_pod(node, handler="", argv=["true"]).exit_code == 0
    finally:
        nodes.run(node, ["umount", "/sys/module"])
    calls = ran.read_text(encoding="utf-8").splitlines()
    ran.unlink()
    assert any(
        line.startswith("nvidia-container-runtime.real ") and " create " in line for line in calls
    )


def test_pods_run_where_the_node_has_no_shell(node: Node, tool: Tool) -> None:
    if reason := containers.why_no_containers(node):
        pytest.skip(reason)
    if static_wrapper.template() is None:
        pytest.skip("there is no static wrapper for this machine, or no compiler")
    tool("run", "--no-daemon")
    containers.prepare_images(node)
    found = nodes.run(node, ["sh", "-c", "realpath /bin/sh /bin/bash; command -v runc"]).stdout
    *shells, runc = found.split()
    # A stand-in for runc is a script, and gets a shell of its own.
    program, shell = nodes.path(node, runc), nodes.path(node, "/usr/libexec/a-shell")
    content = program.read_bytes()
    shutil.copy(nodes.path(node, shells[0]), shell)
    if content.startswith(b"#!/bin/sh\n"):
        program.write_bytes(content.replace(b"/bin/sh", b"/usr/libexec/a-shell", 1))
    for each in shells:
        nodes.run(node, ["mount", "--bind", "/dev/null", each])
    try:
        assert nodes.run(node, ["/bin/sh", "-c", ":"], check=False).returncode != 0
        done = containers.run_pod(node, handler="nvidia", argv=["true"])
    finally:
        for each in shells:
            nodes.run(node, ["umount", each])
        program.write_bytes(content)
        shell.unlink()
    assert done.exit_code == 0


def test_a_handler_that_starts_nothing_is_taken_back_where_it_is_tried(
    node: Node, source: Path, tool: Tool, tmp_path: Path
) -> None:
    if reason := containers.why_no_containers(node):
        pytest.skip(reason)
    containers.prepare_images(node)
    tool("run", "--no-daemon", "--verify=run")
    installed = picture(node)
    broken = shutil.copytree(source, tmp_path / "broken", symlinks=True)
    program = broken / "usr/bin/nvidia-container-runtime"
    program.write_text(
        '#!/bin/sh\n[ "$1" = --version ] || { echo it is broken >&2; exit 1; }\n', encoding="utf-8"
    )
    upgrade = Tool(node, broken)
    nodes.run(node, ["mount", "-t", "tmpfs", "driver", "/sys/module"])
    try:
        nodes.path(node, "/sys/module/nvidia").mkdir()
        told = upgrade("run", "--no-daemon", "--verify=run", code=6)
        assert "error: no pod starts through the handler nvidia: " in told
        assert containers.run_pod(node, handler="nvidia", argv=["true"]).exit_code == 0
    finally:
        nodes.run(node, ["umount", "/sys/module"])
    after = picture(node)
    record = next(name for name in after if name.endswith("/state.json"))
    # The record counts on, but says the same.
    assert without_sequence(after.pop(record)) == without_sequence(installed.pop(record))
    assert after == installed


def without_sequence(record: tuple[str, int, bytes]) -> dict[str, Any]:
    return {**json.loads(record[2]), "sequence": 0}


def test_containers_survive_install_and_revert(node: Node, tool: Tool) -> None:
    if reason := containers.why_no_containers(node):
        pytest.skip(reason)
    containers.prepare_images(node)
    pod = containers.start_pod(node, handler="", argv=["sleep", "600"])
    try:
        tool("run", "--no-daemon")
        assert containers.is_running(node, pod)
        tool("revert")
        assert containers.is_running(node, pod)
    finally:
        containers.stop_pod(node, pod)


def test_pods_keep_their_handler_through_a_revert(node: Node, tool: Tool) -> None:
    if reason := containers.why_no_containers(node):
        pytest.skip(reason)
    tool("run", "--no-daemon")
    containers.prepare_images(node)
    pods = [
        containers.start_pod(node, handler=h, argv=["sleep", "600"]) for h in ("nvidia-cdi", "")
    ]
    try:
        told = tool("revert", code=4)
        assert "2 containers still use the toolkit's handlers" in told
        # The default is gone, so that nothing new comes; the handlers and their files stay.
        section = cri(dump(node))["containerd"]
        assert section["default_runtime_name"] == "runc"
        assert set(HANDLERS) <= set(section["runtimes"])
        containers.stop_pod(node, pods.pop(0))
        # The other pod asked for no handler, but runs through our binary all the same.
        assert "1 container still uses the toolkit's handlers" in tool("revert", code=4)
    finally:
        for pod in pods:
            containers.stop_pod(node, pod)
    tool("revert")


def test_operator_variables(node: Node, tool: Tool) -> None:
    env = {
        "CONTAINERD_CONFIG": CONFIG,
        "CONTAINERD_SOCKET": "/run/containerd/containerd.sock",
        "CONTAINERD_RUNTIME_CLASS": "gpu",
        "CONTAINERD_SET_AS_DEFAULT": "false",
    }
    before = cri(dump(node))["containerd"]["default_runtime_name"]
    tool("run", "--no-daemon", env=env)
    section = cri(dump(node))["containerd"]
    assert section["default_runtime_name"] == before
    assert section["runtimes"]["gpu"]["options"]["BinaryName"] == HANDLERS["nvidia"]
    assert "nvidia" not in section["runtimes"]
    # The name changes: the former one goes.
    tool("run", "--no-daemon", env=env | {"CONTAINERD_RUNTIME_CLASS": "nvidia"})
    section = cri(dump(node))["containerd"]
    assert "gpu" not in section["runtimes"]
    assert "nvidia" in section["runtimes"]


def test_sighup_reaches_the_owner_of_the_socket_and_comes_back(node: Node, tool: Tool) -> None:
    pid = nodes.main_pid(node, "containerd")
    told = tool("run", "--no-daemon", "--restart-mode=signal")
    assert f"sending SIGHUP to PID {pid} " in told
    assert nodes.main_pid(node, "containerd") not in {0, pid}
    journal = nodes.run(
        node, ["systemctl", "show", "--property=NRestarts", "--value", "containerd"]
    )
    assert int(journal.stdout) >= 1


def test_without_the_hosts_pid_namespace_nothing_is_signalled(node: Node, tool: Tool) -> None:
    pid = nodes.main_pid(node, "containerd")
    before = picture(node)
    done = containers.daemonset(
        node, [PROGRAM, "run", "--no-daemon", *tool.options], host_pid=False
    )
    assert done.returncode == 4
    assert "hostPID" in done.stderr
    assert nodes.main_pid(node, "containerd") == pid
    assert picture(node) == before


def test_default_that_was_there_comes_back(node: Node, tool: Tool) -> None:
    path = nodes.path(node, CONFIG)
    original = path.read_bytes()
    version = tomllib.loads(original.decode()).get("version", 1)
    section = "io.containerd.grpc.v1.cri" if version == 2 else "io.containerd.cri.v1.runtime"
    runc = (
        f'[plugins."{section}".containerd.runtimes.{{0}}]\n  runtime_type ='
        ' "io.containerd.runc.v2"\n'
    )
    extra = f'\n# ours\n[plugins."{section}".containerd]\n  default_runtime_name = "mine"\n\n'
    edited = original + extra.encode() + (runc.format("runc") + runc.format("mine")).encode()
    path.write_bytes(edited)
    restart(node)
    try:
        tool("run", "--no-daemon")
        assert cri(dump(node))["containerd"]["default_runtime_name"] == "nvidia"
        tool("revert")
        assert path.read_bytes() == edited
        assert cri(dump(node))["containerd"]["default_runtime_name"] == "mine"
    finally:
        path.write_bytes(original)
        restart(node)


def test_wrong_socket_changes_nothing(node: Node, tool: Tool) -> None:
    before = picture(node)
    told = tool("run", "--no-daemon", "--socket=/run/containerd/nowhere.sock", code=4)
    assert "/run/containerd/nowhere.sock does not exist" in told
    assert picture(node) == before


def test_sigterm_changes_nothing(node: Node, tool: Tool, tmp_path: Path) -> None:
    story = tmp_path / "story"
    with (
        story.open("w", encoding="utf-8") as log,
        containers.start_daemonset(node, [PROGRAM, "run", *tool.options], log=log) as process,
    ):
        nodes.wait_for(node, lambda: "set up" in story.read_text(encoding="utf-8"))
        installed = picture(node)
        process.terminate()
        assert process.wait(timeout=20) == 0
    assert picture(node) == installed


def test_runtime_that_died_is_started_again_by_a_revert(node: Node, tool: Tool) -> None:
    tool("run", "--no-daemon")
    # Its unit waits five seconds before it starts a process again that was killed.
    nodes.run(node, ["systemctl", "kill", "--signal=KILL", "containerd"])
    nodes.wait_for(node, lambda: not nodes.answers(node))
    assert "restarting containerd.service" in tool("revert")
    assert nodes.answers(node)


def test_files_stay_under_a_runtime_that_was_not_told(node: Node, tool: Tool) -> None:
    tool("run", "--no-daemon")
    # Twice: that the configuration is back already tells the daemon nothing either.
    for _ in range(2):
        assert "was not restarted and still has the toolkit's handlers" in tool(
            "revert", "--restart-mode=none", code=4
        )
        assert nodes.path(node, HANDLERS["nvidia"]).exists()
    restart(node)
    tool("revert", "--restart-mode=none")
    assert not nodes.path(node, HANDLERS["nvidia"]).exists()


def test_comments_in_a_list_of_imports_stay(node: Node, tool: Tool) -> None:
    path = nodes.path(node, CONFIG)
    original = path.read_bytes()
    commented = (
        b'imports = [\n  # of the other team\n  "/etc/containerd/theirs.d/*.toml", # keep\n]\n'
    )
    lines = [line for line in original.splitlines(keepends=True) if not line.startswith(b"imports")]
    path.write_bytes(commented + b"".join(lines))
    restart(node)
    try:
        edited = path.read_bytes()
        tool("run", "--no-daemon")
        text = path.read_text(encoding="utf-8")
        assert '  # of the other team\n  "/etc/containerd/theirs.d/*.toml", # keep\n' in text
        tool("revert")
        assert path.read_bytes() == edited
    finally:
        path.write_bytes(original)
        restart(node)


INLINE: Final = b"""\
version = 2
[plugins."io.containerd.grpc.v1.cri".containerd]
  runtimes = {
    # the usual one
    runc = { runtime_type = "io.containerd.runc.v2", options = {
      SystemdCgroup = true
    } }
  }
"""


def test_inline_tables_over_several_lines_are_edited_where_containerd_loads_them(
    node: Node, tool: Tool
) -> None:
    """Each containerd loads them; only the newest of the three allows a comma at the end."""
    path = nodes.path(node, CONFIG)
    original = path.read_bytes()
    with_comma = INLINE.replace(b"= true\n", b"= true, # \\x is no escape here\n")
    try:
        for data in (INLINE, with_comma):
            path.write_bytes(data)
            if data == with_comma and node.suite != "forky":
                refused = tool("run", "--no-daemon", code=3)
                assert "does not load it: " in refused
                assert "write inline tables on one line without a comma at the end" in refused
                assert path.read_bytes() == data
                return
            restart(node)
            tool("run", "--no-daemon")
            section = cri(dump(node))["containerd"]["runtimes"]
            assert {
                name: section[name]["options"]["SystemdCgroup"] for name in HANDLERS
            } == dict.fromkeys(HANDLERS, True)
            assert b"    # the usual one\n    runc = {" in path.read_bytes()
            assert tool("status").startswith("in sync\nready\n")
            tool("revert")
            assert path.read_bytes() == data
    finally:
        path.write_bytes(original)
        restart(node)


@pytest.mark.parametrize("node", ["forky"], indirect=True)
@pytest.mark.parametrize("is_up", [True, False], ids=["up", "down"])
def test_a_node_that_upstream_s_drop_in_broke_is_healed_by_its_replacement(
    node: Node, tool: Tool, *, is_up: bool
) -> None:
    """containerd 2.1 does not load version 4: it is up with its old config, or does not start."""
    config, drop_in = (
        nodes.path(node, CONFIG),
        nodes.path(node, "/etc/containerd/conf.d/99-nvidia.toml"),
    )
    original = config.read_bytes() if config.exists() else None
    config.parent.mkdir(exist_ok=True)
    drop_in.parent.mkdir(exist_ok=True)
    config.write_bytes(b'version = 3\nimports = ["/etc/containerd/conf.d/*.toml"]\n')
    restart(node)
    try:
        drop_in.write_bytes(UPSTREAM)
        if not is_up:
            nodes.run(node, ["systemctl", "restart", "containerd"], check=False)
            nodes.wait_for(node, lambda: not nodes.is_active(node, "containerd"))
        options = [] if is_up else ["--ignore-unhealthy"]
        assert "99-nvidia.toml of another installer keeps containerd from starting" in tool(
            "plan", *options
        )
        tool("run", "--no-daemon", *options)
        assert nodes.is_active(node, "containerd")
        assert set(HANDLERS) <= set(cri(dump(node))["containerd"]["runtimes"])
        assert tool("status") == "in sync\nready\n"
        restart(node)
        tool("revert")
        assert not drop_in.exists()
        restart(node)
        assert nodes.is_active(node, "containerd")
        # What nobody can replace is named: it is not only of NVIDIA.
        before = UPSTREAM + b"[debug]\nlevel = 'info'\n"
        drop_in.write_bytes(before)
        refused = tool("run", "--no-daemon", code=3)
        assert "conf.d/99-nvidia.toml: /usr/bin/containerd does not load it: " in refused
        assert "remove /etc/containerd/conf.d/99-nvidia.toml or repair it first" in refused
        assert drop_in.read_bytes() == before
    finally:
        shutil.rmtree(drop_in.parent)
        if original is None:
            config.unlink()
        else:
            config.write_bytes(original)
        restart(node)


def test_an_override_that_no_pod_survives_is_refused(node: Node, tool: Tool) -> None:
    before, pid = picture(node), nodes.main_pid(node, "containerd")
    for keys, reason in (
        (
            '{"options": {"SystemdCgroup": "yes"}}',
            "options.SystemdCgroup must be true or false, but is 'yes'",
        ),
        ('{"options": {"SystemdCgruop": true}}', "did you mean SystemdCgroup?"),
        (
            '{"runtime_path": "/opt/none"}',
            "runtime_path names /opt/none, which is not an executable file",
        ),
        (
            '{"runtime_type": "io.containerd.kata.v2"}',
            "the shim containerd-shim-kata-v2 of runtime_type",
        ),
        ('{"snapshotter": "nydus"}', "has no snapshotter 'nydus'"),
    ):
        refused = tool("run", "--no-daemon", f"--runtime-config-override={keys}", code=4)
        assert reason in refused
        assert "nothing was changed" in refused
    if node.suite != "bookworm":  # containerd 1.6 has no snapshotter of a handler.
        # The binary knows it, and the running daemon did not load it: it is not configured.
        keys = '--runtime-config-override={"snapshotter": "devmapper"}'
        refused = tool("run", "--no-daemon", keys, code=4)
        assert "the running containerd did not load the snapshotter 'devmapper'" in refused
    assert picture(node) == before
    assert nodes.main_pid(node, "containerd") == pid


UPGRADED = b"""\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "registry.example.com/pause:3.10"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = true
"""


@pytest.fixture
def other_version(node: Node) -> Iterator[Callable[[], None]]:
    """A function that replaces containerd 2.1 by Debian's 1.7, as a rolled-back upgrade does."""
    program, config = nodes.path(node, "/usr/bin/containerd"), nodes.path(node, CONFIG)
    kept, before = program.read_bytes(), config.read_bytes() if config.exists() else None
    config.parent.mkdir(exist_ok=True)
    config.write_bytes(UPGRADED)
    restart(node)

    def replaced(content: bytes) -> None:
        new = program.with_name("containerd.new")
        new.write_bytes(content)
        new.chmod(0o755)
        new.rename(program)
        restart(node)
        nodes.wait_for(node, lambda: nodes.answers(node))

    yield lambda: replaced((nodes.image("trixie") / "usr/bin/containerd").read_bytes())
    config.unlink() if before is None else config.write_bytes(before)
    replaced(kept)


@pytest.mark.parametrize("node", ["forky"], indirect=True)
def test_an_upgrade_of_containerd_that_is_rolled_back(
    node: Node, other_version: Callable[[], None], tool: Tool
) -> None:
    """containerd 1.x takes the whole CRI section from the drop-in that 2.x merged."""
    tool("run", "--no-daemon")
    assert nodes.path(node, "/etc/containerd/conf.d/99-nvidia.toml").exists()
    other_version()
    broken = cri(dump(node))
    assert "runc" not in broken["containerd"]["runtimes"]
    assert broken["sandbox_image"] != "registry.example.com/pause:3.10"
    tool("plan", "--exit-code", code=8)
    tool("run", "--no-daemon")
    repaired = cri(dump(node))
    assert {"runc", *HANDLERS} <= repaired["containerd"]["runtimes"].keys()
    assert repaired["sandbox_image"] == "registry.example.com/pause:3.10"
    for name in ("runc", *HANDLERS):
        assert repaired["containerd"]["runtimes"][name]["options"]["SystemdCgroup"] is True
    assert not nodes.path(node, "/etc/containerd/conf.d/99-nvidia.toml").exists()
    pid = nodes.main_pid(node, "containerd")
    tool("run", "--no-daemon")
    assert nodes.main_pid(node, "containerd") == pid
    tool("revert")
    assert nodes.path(node, CONFIG).read_bytes() == UPGRADED


@pytest.mark.parametrize("node", ["forky"], indirect=True)
def test_a_revert_after_an_upgrade_that_was_rolled_back(
    node: Node, other_version: Callable[[], None], tool: Tool
) -> None:
    tool("run", "--no-daemon")
    other_version()
    tool("revert")
    assert nodes.path(node, CONFIG).read_bytes() == UPGRADED
    reverted = cri(dump(node))
    assert set(reverted["containerd"]["runtimes"]) == {"runc"}
    assert reverted["sandbox_image"] == "registry.example.com/pause:3.10"
