"""Every option of the upstream installer, row by row: its effect here, or why it is refused.

The rows are those of `tests/unit/test_settings.py::PEER`, compared with the measured facts.
"""

from __future__ import annotations

import json
import logging
import shutil
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes import registry
from runtimes.model import RuntimeName
from tests.support import fake_node
from tests.support.fake_node import Node
from tests.unit.test_settings import PEER, parsed, row_of
from toolkit.cli import command_line
from toolkit.deadline import Cancellation
from toolkit.errors import UsageProblem
from toolkit.reconcile import cdi
from toolkit.reconcile.context import Context
from toolkit.reconcile.planning import Plan, make_plan
from toolkit.runtime import locate
from toolkit.settings import resolve
from toolkit.settings.options import SETTINGS, Kind, RestartMode
from toolkit.settings.resolve import Settings

CRIO_CONF: Final = b"""\
[crio.runtime]
default_runtime = "runc"
[crio.runtime.runtimes.runc]
runtime_path = "/usr/bin/runc"
"""
NVIDIA_CTK: Final = """\
#!/bin/sh
echo "$*" >> {asked}
for word; do
  case $word in
    --dev-root=*) dev=${{word#*=}} ;;
    --vendor=*) vendor=${{word#*=}} ;;
    --class=*) class=${{word#*=}} ;;
  esac
done
edits='{{"deviceNodes": [{{"path": "'$dev'/dev/nvidia0"}}]}}'
device='{{"name": "all", "containerEdits": '$edits'}}'
echo '{{"cdiVersion": "0.5.0", "kind": "'$vendor/$class'", "devices": ['$device']}}'
"""
"""Says what it was asked for, and describes a driver of one device node as the real one would."""


# --- what an option makes of a node ---------------------------------------------------------------


def given(node: Node, **changed: str) -> Settings:
    return node.settings(**changed)


def seen(node: Node, **changed: str) -> Plan:
    found = given(node, **changed)
    adapter = registry.ADAPTERS[RuntimeName(found.runtime)]
    assert adapter is not None
    return make_plan(Context(settings=found, adapter=adapter, stop=Cancellation()))


def written(node: Node, **changed: str) -> dict[str, Any]:
    """Return what containerd's files would hold."""
    (change,) = seen(node, **changed).config_plan.changes
    return tomllib.loads((change.after or b"").decode())


def cri(node: Node, **changed: str) -> dict[str, Any]:
    plugins = written(node, **changed)["plugins"]
    found: dict[str, Any] = plugins["io.containerd.grpc.v1.cri"]
    return found


def handler(node: Node, **changed: str) -> dict[str, Any]:
    found: dict[str, Any] = cri(node, **changed)["containerd"]["runtimes"]["nvidia"]
    return found


def entry(node: Node, name: str, **changed: str) -> bytes:
    """Return a file of the toolkit as it would be installed."""
    version = seen(node, **changed).version
    assert version is not None
    content = next(each.content for each in version.entries if each.name == name)
    assert isinstance(content, bytes)
    return content


def toolkit(node: Node, *key: str, **changed: str) -> Any:
    """Return a value of the toolkit's own configuration as it would be installed."""
    found: Any = tomllib.loads(
        entry(node, ".config/nvidia-container-runtime/config.toml", **changed).decode()
    )
    for part in key:
        found = found[part]
    return found


def crio(node: Node, **changed: str) -> Plan:
    directory = node.root / "etc/crio"
    directory.mkdir(exist_ok=True)
    (directory / "crio.conf").write_bytes(CRIO_CONF)
    more = {
        "config": f"{directory}/crio.conf",
        "drop_in_config": f"{directory}/crio.conf.d/99-nvidia.toml",
    }
    return seen(node, runtime="crio", **{**more, "hooks_dir": f"{node.root}/hooks", **changed})


def paths(found: Plan) -> set[str]:
    return {change.path for change in found.config_plan.changes}


def refused(**options: str) -> str:
    with pytest.raises(UsageProblem) as caught:
        resolve.resolve(options, {})
    assert caught.value.exit_code == 2
    return str(caught.value)


def remarks(**options: str) -> list[str]:
    return [text for _, text in resolve.resolve(options, {}).remarks]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The CDI specifications that a run made, by name, and what nvidia-ctk was asked for."""

    found: Mapping[str, Any]
    asked: str

    @property
    def device(self) -> str:
        """The device node of the one specification, as the runtime is to find it."""
        [tree] = self.found.values()
        [device] = tree["devices"]
        [each] = device["containerEdits"]["deviceNodes"]
        return str(each["hostPath"])


def specified(node: Node, **changed: str) -> Made:
    """Make the specification of a driver that another root shows as loaded."""
    shutil.rmtree(node.root / "cdi", ignore_errors=True)
    shutil.rmtree(node.install_dir, ignore_errors=True)
    asked, host = node.root / "asked", node.root / "host"
    for directory in (host / "sys/module/nvidia", node.root / "driver/dev", node.toolkit):
        directory.mkdir(parents=True, exist_ok=True)
    asked.write_text("", encoding="utf-8")
    fake_node.write_program(node.toolkit / "nvidia-ctk.real", NVIDIA_CTK.format(asked=asked))
    given = {
        "host_root": str(host),
        "driver_root": "/drivers",
        "driver_root_ctr_path": str(node.root / "driver"),
        "cdi_enabled": "true",
        "cdi_output_dir": str(node.root / "cdi"),
    }
    found = node.settings(**{**given, **changed})
    adapter = registry.ADAPTERS[RuntimeName.CONTAINERD]
    assert adapter is not None
    context = Context(settings=found, adapter=adapter, stop=Cancellation())
    cdi.update(context, make_plan(context))
    trees = {each.name: json.loads(each.read_bytes()) for each in node.root.glob("cdi/*")}
    return Made(found=trees, asked=asked.read_text(encoding="utf-8"))


# --- the rows -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A text that the option may have, and what proves its effect, or its refusal."""

    text: str
    proof: Callable[[Node, str], None]
    runtime: str = "containerd"


def _ends(node: Node, text: str) -> None:
    done = fake_node.done("run", f"--no-daemon={text}", *node.options(no_runtime_config="true"))
    assert done.returncode == 0


def _no_runtime_config(node: Node, text: str) -> None:
    assert paths(seen(node)) == {str(node.config)}
    assert paths(seen(node, no_runtime_config=text)) == set()


def _nri_plugin(node: Node, text: str) -> None:
    assert paths(seen(node)) == {str(node.config)}
    assert paths(seen(node, enable_nri_plugin=text, nri_namespace="gpu-operator")) == set()
    assert "requires --nri-namespace (NRI_NAMESPACE)" in refused(enable_nri_plugin=text)


def _nri(name: str) -> Callable[[Node, str], None]:
    def proof(node: Node, text: str) -> None:
        assert remarks(**{name: text}) == [f"{row_name(name)} has no effect without the NRI plugin"]

    return proof


def _nri_index(node: Node, text: str) -> None:
    _nri("nri_plugin_index")(node, text)
    for wrong in ("100", "-1", "x", "1.5"):
        assert f"--nri-plugin-index={wrong}: must be a whole number between 0 and 99" in refused(
            nri_plugin_index=wrong
        )


def _runtime(node: Node, text: str) -> None:
    assert (
        str(seen(node, runtime=text, config=f"{node.root}/daemon.json").target.desired.runtime)
        == text
    )
    assert "podman: must be one of" in refused(runtime="podman")


def _install_dir(node: Node, text: str) -> None:
    assert (
        handler(node, toolkit_install_dir=text)["options"]["BinaryName"]
        == f"{text}/toolkit/nvidia-container-runtime"
    )


def _source_root(node: Node, text: str) -> None:
    problem = seen(node, toolkit_source_root=text).source_problem
    assert str(problem) == f"the toolkit's source {text} is no directory"


def _package_type(node: Node, text: str) -> None:
    problem = seen(node, toolkit_source_root="", toolkit_package_type=text).source_problem
    assert str(problem) == f"the toolkit's source /artifacts/{text} is no directory"
    assert given(node, toolkit_package_type="").toolkit_package_type == "auto"


def _pid_file(node: Node, text: str) -> None:
    found = seen(node, pid_file=text)
    assert given(node, pid_file=text).readiness == Path(text).with_name("ready.json")
    assert found.target.install_dir == node.install_dir
    assert "the file name must be toolkit.pid" in refused(pid_file="/run/other.pid")


def _debug(node: Node, text: str) -> None:
    assert command_line._log_options("run", given(node, debug=text))["debug"]
    assert not command_line._log_options("run", given(node))["debug"]


def _driver_root(node: Node, text: str) -> None:
    assert toolkit(node, "nvidia-container-cli", "root", driver_root=text) == text
    assert (
        toolkit(node, "nvidia-container-cli", "ldconfig", driver_root=text)
        == f"@{text}/sbin/ldconfig"
    )


def _driver_root_here(node: Node, text: str) -> None:
    here = node.root / "driver"
    (here / "sbin").mkdir(parents=True)
    (here / "sbin/ldconfig.real").write_bytes(b"")
    found = toolkit(node, "nvidia-container-cli", "ldconfig", driver_root_ctr_path=str(here))
    assert found == "@/run/nvidia/driver/sbin/ldconfig.real"


def _of_toolkit(*key: str) -> Callable[[Node, str], None]:
    """Return the proof that a text lands at a key of the toolkit's own configuration."""

    def proof(node: Node, text: str) -> None:
        (row,) = {row.name for row in SETTINGS if KEYS.get(row.flags[0]) == key}
        before = toolkit(node, *key)
        now = toolkit(node, *key, **{row: text})
        wanted: Any = text
        if isinstance(before, bool):
            wanted = text == "true"
        if isinstance(before, list):
            wanted = text.split(",")
        assert now == wanted != before
        if not isinstance(before, bool):
            assert toolkit(node, *key, **{row: ""}) == before, "an empty one is as good as none"

    return proof


def _prefixes(node: Node, text: str) -> None:
    _of_toolkit("nvidia-container-runtime", "modes", "cdi", "annotation-prefixes")(node, text)
    assert handler(node, cdi_annotation_prefixes=text)["container_annotations"] == [
        f"{prefix}*" for prefix in text.split(",")
    ]


def _low_level(node: Node, text: str) -> None:
    _of_toolkit("nvidia-container-runtime", "runtimes")(node, text)
    wrapper = entry(node, "nvidia-container-runtime", nvidia_container_runtime_runtimes=text)
    first = text.partition(",")[0]
    # Where a script has it, and where a static program does.
    assert f"exec {first} ".encode() in wrapper or f"\0L{first}\0".encode() in wrapper


def _config(node: Node, text: str) -> None:
    other = node.root / "etc/other.toml"
    other.write_bytes(fake_node.KUBEADM)
    assert paths(seen(node, config=str(other))) == {str(other)}
    assert (
        refused(runtime="containerd", config="")
        == "--config=: must not be empty; leave it out to use the default"
    )


def _drop_in(node: Node, text: str) -> None:
    directory = node.root / "etc/crio/crio.conf.d"
    assert paths(crio(node, drop_in_config=f"{directory}/50-x.conf")) == {f"{directory}/50-x.conf"}
    assert paths(crio(node, drop_in_config="")) == {f"{node.root}/etc/crio/crio.conf"}
    ((level, text),) = resolve.resolve({"runtime": "docker", "drop_in_config": text}, {}).remarks
    assert (level, text) == (
        logging.WARNING,
        "--drop-in-config has no effect: docker does not read drop-in files",
    )


def _drop_in_on_host(node: Node, text: str) -> None:
    here = f"{node.root}/mounted/99-nvidia.toml"
    found = crio(node, drop_in_config=here, drop_in_config_host_path=text)
    (path,) = paths(found)
    assert path == f"{Path(text).parent}/99-nvidia.toml", "it names the directory"
    assert str(found.target.host.local(path)) == here


def _executable(node: Node, text: str) -> None:
    program = node.root / "containerd"
    fake_node.write_program(program, "#!/bin/sh\n")
    found = given(node, executable_path=str(program), config_source="command,file")
    adapter = registry.ADAPTERS[RuntimeName.CONTAINERD]
    assert adapter is not None
    assert locate.target(found, adapter).binary == str(program)
    wrong = given(node, executable_path=text, config_source="command")
    with pytest.raises(UsageProblem, match="no such program on the node"):
        locate.target(wrong, adapter)


def _socket(node: Node, text: str) -> None:
    assert str(seen(node, socket=text).target.socket) == text


def _restart_mode(node: Node, text: str) -> None:
    assert seen(node, restart_mode=text).restart_method.mode is RestartMode(text)


def _cdi_in_runtime(node: Node, text: str) -> None:
    assert cri(node, enable_cdi_in_runtime=text)["enable_cdi"] is True
    assert "enable_cdi" not in cri(node)


def _host_root(node: Node, text: str) -> None:
    assert seen(node, host_root=text).target.host.root == Path(text)
    assert given(node, host_root="").host_root == "/", "upstream then works on its own root"


def _name(node: Node, text: str) -> None:
    found = cri(node, runtime_class=text)["containerd"]
    assert {text, "nvidia-cdi", "nvidia-legacy"} <= set(found["runtimes"])
    assert found["default_runtime_name"] == text


def _legacy(node: Node, text: str) -> None:
    node.config.unlink()
    found = written(node, use_legacy_config=text)
    assert found.get("version", 1) == 1
    options = found["plugins"]["cri"]["containerd"]["default_runtime"]["options"]
    assert options["BinaryName"].endswith("/nvidia-container-runtime")


def _runtime_type(node: Node, text: str) -> None:
    node.config.write_bytes(b"version = 2\n")
    assert handler(node, runtime_type=text)["runtime_type"] == text


def _override(node: Node, text: str) -> None:
    assert handler(node)["options"]["SystemdCgroup"] is True
    found = handler(node, runtime_config_override=text)
    assert found["options"]["SystemdCgroup"] is False
    assert found["options"]["BinaryName"].endswith("/nvidia-container-runtime")
    assert "applies to containerd only" in refused(runtime="docker", runtime_config_override=text)


def _hooks_dir(node: Node, text: str) -> None:
    assert f"{node.root}/other/oci-nvidia-hook.json" in paths(
        crio(node, config_mode="hook", hooks_dir=f"{node.root}/other")
    )


def _hook_filename(node: Node, text: str) -> None:
    assert f"{node.root}/hooks/{text}" in paths(crio(node, config_mode="hook", hook_filename=text))


def _config_mode(node: Node, text: str) -> None:
    (change,) = crio(node, config_mode=text).config_plan.changes
    assert change.path == f"{node.root}/hooks/oci-nvidia-hook.json"
    assert json.loads(change.after or b"")["hook"]["path"].endswith(
        "/nvidia-container-runtime-hook"
    )


def _default(node: Node, text: str) -> None:
    assert cri(node)["containerd"]["default_runtime_name"] == "nvidia"
    assert "default_runtime_name" not in cri(node, set_as_default=text)["containerd"]


def _errors(node: Node, text: str) -> None:
    assert (
        refused(ignore_errors=text)
        == "--ignore-errors: a partial installation is not supported; remove the option"
    )


def _source(node: Node, text: str) -> None:
    """`file` forces the files; `command` lets a binary validate; `=PATH` works where it can."""
    assert seen(node, config_source=text).target.binary is None
    assert seen(node, config_source=f"file={node.config}").target.binary is None
    assert seen(node, config_source=f"command=/x,file={node.config}").target.binary is None
    assert "`command` takes no argument" in remarks(config_source="command=/x,file")[0]
    for wrong, says in {
        f"file={node.root}/x.toml": (
            f"handlers come from the file that the runtime reads, {node.config}"
        ),
        "command": "no runtime binary found that can validate the change",
    }.items():
        with pytest.raises(UsageProblem, match=says):
            seen(node, config_source=wrong, socket=f"{node.root}/nobody", host_root=str(node.root))


def _cdi_enabled(node: Node, text: str) -> None:
    """The runtime reads specifications as well, unless `--enable-cdi-in-runtime` says no."""
    assert specified(node, cdi_enabled="false") == Made(found={}, asked="")
    assert specified(node, cdi_enabled=text).found.keys() == {"management.nvidia.com-gpu.yaml"}
    assert cri(node, cdi_enabled=text)["enable_cdi"] is True
    assert "enable_cdi" not in cri(node, cdi_enabled=text, enable_cdi_in_runtime="false")


def _cdi_output_dir(node: Node, text: str) -> None:
    assert (
        str(seen(node, cdi_enabled="true", cdi_output_dir=text).specification.local.parent) == text
    )
    assert specified(node, cdi_output_dir="") == Made(found={}, asked="")


def _cdi_kind(node: Node, text: str) -> None:
    made = specified(node, cdi_kind=text)
    assert "--vendor=example.com --class=gpu\n" in made.asked
    assert {name: tree["kind"] for name, tree in made.found.items()} == {
        "example.com-gpu.yaml": text
    }
    assert refused(cdi_kind="gpu") == "--cdi-kind=gpu: must be a CDI kind (VENDOR/CLASS)"


def _device_nodes(node: Node, text: str) -> None:
    """One `none` among them is enough, and so is an empty list."""
    makes = f"system create-device-nodes --control-devices --dev-root={node.root}/driver\n"
    assert specified(node).asked.startswith(makes)
    for none in (text, "none", ""):
        made = specified(node, create_device_nodes=none)
        assert made.found
        assert made.asked.startswith("cdi generate ")
        assert makes not in made.asked
    assert (
        refused(create_device_nodes="control,all")
        == "--create-device-nodes=all: must be control or none"
    )


def _dev_root(node: Node, text: str) -> None:
    assert specified(node).device == "/drivers/dev/nvidia0", "it is the driver's root by itself"
    assert specified(node, dev_root=text).device == f"{text}/dev/nvidia0"


def _dev_root_here(node: Node, text: str) -> None:
    here = node.root / "devices"
    (here / "dev").mkdir(parents=True)
    made = specified(node, dev_root="/devices", dev_root_ctr_path=str(here))
    assert f"--driver-root={node.root}/driver --dev-root={here} " in made.asked
    assert made.device == "/devices/dev/nvidia0"


def _features(node: Node, text: str) -> None:
    assert toolkit(node, "features", opt_in_features=f"{text},b") == {text: True, "b": True}
    assert "features" not in toolkit(node)


KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "--nvidia-container-runtime.debug": ("nvidia-container-runtime", "debug"),
    "--nvidia-container-runtime.log-level": ("nvidia-container-runtime", "log-level"),
    "--nvidia-container-runtime.mode": ("nvidia-container-runtime", "mode"),
    "--nvidia-container-runtime.modes.cdi.default-kind": (
        "nvidia-container-runtime",
        "modes",
        "cdi",
        "default-kind",
    ),
    "--nvidia-container-runtime.modes.cdi.annotation-prefixes": (
        "nvidia-container-runtime",
        "modes",
        "cdi",
        "annotation-prefixes",
    ),
    "--nvidia-container-runtime.runtimes": ("nvidia-container-runtime", "runtimes"),
    "--nvidia-container-runtime-hook.skip-mode-detection": (
        "nvidia-container-runtime-hook",
        "skip-mode-detection",
    ),
    "--nvidia-container-cli.debug": ("nvidia-container-cli", "debug"),
    "--accept-nvidia-visible-devices-envvar-when-unprivileged": (
        "accept-nvidia-visible-devices-envvar-when-unprivileged",
    ),
    "--accept-nvidia-visible-devices-as-volume-mounts": (
        "accept-nvidia-visible-devices-as-volume-mounts",
    ),
}
CASES: Final[Mapping[str, Case]] = {
    "--no-daemon": Case(text="true", proof=_ends),
    "--no-runtime-config": Case(text="true", proof=_no_runtime_config),
    "--enable-nri-plugin": Case(text="true", proof=_nri_plugin),
    "--nri-plugin-index": Case(text="7", proof=_nri_index),
    "--nri-socket": Case(text="/run/nri.sock", proof=_nri("nri_socket")),
    "--nri-namespace": Case(text="gpu-operator", proof=_nri("nri_namespace")),
    "--nri-management-cdi-device-namespaces": Case(text="a,b", proof=_nri("nri_namespaces")),
    "--runtime": Case(text="docker", proof=_runtime),
    "--toolkit-install-dir": Case(text="/opt/nvidia", proof=_install_dir),
    "--toolkit-source-root": Case(text="/no/such/source", proof=_source_root),
    "--toolkit-package-type": Case(text="rpm", proof=_package_type),
    "--pid-file": Case(text="/run/other/toolkit.pid", proof=_pid_file),
    "--debug": Case(text="true", proof=_debug),
    "--driver-root": Case(text="/drivers", proof=_driver_root),
    "--driver-root-ctr-path": Case(text="/driver-root", proof=_driver_root_here),
    "--dev-root": Case(text="/devices", proof=_dev_root),
    "--dev-root-ctr-path": Case(text="/devices", proof=_dev_root_here),
    "--nvidia-container-runtime.debug": Case(
        text="/var/log/x.log", proof=_of_toolkit(*KEYS["--nvidia-container-runtime.debug"])
    ),
    "--nvidia-container-runtime.log-level": Case(
        text="debug", proof=_of_toolkit(*KEYS["--nvidia-container-runtime.log-level"])
    ),
    "--nvidia-container-runtime.mode": Case(
        text="cdi", proof=_of_toolkit(*KEYS["--nvidia-container-runtime.mode"])
    ),
    "--nvidia-container-runtime.modes.cdi.default-kind": Case(
        text="example.com/gpu",
        proof=_of_toolkit(*KEYS["--nvidia-container-runtime.modes.cdi.default-kind"]),
    ),
    "--nvidia-container-runtime.modes.cdi.annotation-prefixes": Case(
        text="a.io/,b.io/", proof=_prefixes
    ),
    "--nvidia-container-runtime-modes.cdi.annotation-prefixes": Case(
        text="a.io/,b.io/", proof=_prefixes
    ),
    "--nvidia-container-runtime.runtimes": Case(text="crun,runc", proof=_low_level),
    "--nvidia-container-runtime-hook.skip-mode-detection": Case(
        text="false",
        proof=_of_toolkit(*KEYS["--nvidia-container-runtime-hook.skip-mode-detection"]),
    ),
    "--nvidia-container-cli.debug": Case(
        text="/var/log/y.log", proof=_of_toolkit(*KEYS["--nvidia-container-cli.debug"])
    ),
    "--accept-nvidia-visible-devices-envvar-when-unprivileged": Case(
        text="false",
        proof=_of_toolkit(*KEYS["--accept-nvidia-visible-devices-envvar-when-unprivileged"]),
    ),
    "--accept-nvidia-visible-devices-as-volume-mounts": Case(
        text="true", proof=_of_toolkit(*KEYS["--accept-nvidia-visible-devices-as-volume-mounts"])
    ),
    "--cdi-enabled": Case(text="true", proof=_cdi_enabled),
    "--cdi-output-dir": Case(text="/cdi", proof=_cdi_output_dir),
    "--cdi-kind": Case(text="example.com/gpu", proof=_cdi_kind),
    "--create-device-nodes": Case(text="control,none", proof=_device_nodes),
    "--config": Case(text="/etc/other.toml", proof=_config),
    "--drop-in-config": Case(text="/etc/other.d/1.toml", proof=_drop_in),
    "--drop-in-config-host-path": Case(text="/etc/crio/crio.conf.d/1.toml", proof=_drop_in_on_host),
    "--executable-path": Case(text="/no/such/program", proof=_executable),
    "--socket": Case(text="/run/other.sock", proof=_socket),
    "--restart-mode": Case(text="none", proof=_restart_mode),
    "--enable-cdi-in-runtime": Case(text="true", proof=_cdi_in_runtime),
    "--host-root": Case(text="/tmp", proof=_host_root),  # noqa: S108 - any directory
    "--runtime-name": Case(text="gpu", proof=_name),
    "--config-source": Case(text="file", proof=_source),
    "--use-legacy-config": Case(text="true", proof=_legacy),
    "--runtime-type": Case(text="io.containerd.runc.v1", proof=_runtime_type),
    "--runtime-config-override": Case(
        text='{"options": {"SystemdCgroup": false}}', proof=_override
    ),
    "--hooks-dir": Case(text="/hooks", proof=_hooks_dir, runtime="crio"),
    "--hook-filename": Case(text="x.json", proof=_hook_filename, runtime="crio"),
    "--config-mode": Case(text="hook", proof=_config_mode, runtime="crio"),
    "--set-as-default": Case(text="false", proof=_default),
    "--ignore-errors": Case(text="true", proof=_errors),
    "--opt-in-features": Case(text="disable-x", proof=_features),
}
ROWS: Final = [flags.partition(" ")[0] for flags, _, _ in PEER]


def row_name(name: str) -> str:
    return next(row.flags[0] for row in SETTINGS if row.name == name)


# --- the tests ----------------------------------------------------------------------------------


def test_every_row_has_a_case() -> None:
    assert set(CASES) == set(ROWS)


@pytest.mark.parametrize("flag", CASES)
def test_the_effect_or_the_refusal(node: Node, flag: str) -> None:
    case = CASES[flag]
    case.proof(node, case.text)


@pytest.mark.parametrize(("flags", "variables"), [(f, v) for f, v, _ in PEER], ids=ROWS)
def test_every_name_means_the_same(flags: str, variables: str) -> None:
    case = CASES[flags.partition(" ")[0]]
    row = row_of(flags.partition(" ")[0])

    def told(options: Mapping[str, str], environment: Mapping[str, str]) -> Any:
        of = {} if row.name == "runtime" else {"runtime": case.runtime}
        try:
            return resolve.resolve({**of, **options}, environment).values[row.name]
        except UsageProblem as error:
            return str(error).partition(": ")[2]

    said = [
        told(parsed(f"{flag}={case.text}"), {}) for flag in flags.split() if flag.startswith("--")
    ]
    for variable in variables.split():
        of = variable.partition("_")[0].lower()
        if of in {"docker", "containerd", "crio"} - {case.runtime} and row.name != "runtime":
            # It counts for its own runtime only.
            found = resolve.resolve({"runtime": of}, {variable: case.text}).values[row.name]
            said.append(found)
        else:
            said.append(told({}, {variable: case.text}))
    assert all(each == said[0] for each in said)
    assert said[0] is not None


# --- how words are written as with upstream -------------------------------------------------------


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_what_go_takes_for_true(text: str) -> None:
    assert resolve.resolve({}, {"NO_DAEMON": text}).no_daemon is True
    assert resolve.resolve(parsed(f"-n={text}"), {}).no_daemon is True


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False"])
def test_what_go_takes_for_false(text: str) -> None:
    assert resolve.resolve({}, {"NVIDIA_RUNTIME_SET_AS_DEFAULT": text}).set_as_default is False
    assert resolve.resolve(parsed(f"--set-as-default={text}"), {}).set_as_default is False
    assert resolve.resolve(parsed(f"-n={text}"), {"NO_DAEMON": "true"}).no_daemon is False


def test_one_dash_does_for_a_long_option() -> None:
    assert parsed("-runtime=crio", "-no-daemon", "-root", "/x") == parsed(
        "--runtime=crio", "--no-daemon", "--root", "/x"
    )


def test_an_equals_sign_does_for_a_short_option() -> None:
    assert (
        parsed("-r=crio") == parsed("-r", "crio") == parsed("--runtime=crio") == {"runtime": "crio"}
    )


def test_a_list_may_come_in_pieces() -> None:
    found = parsed("--opt-in-features", "a", "--opt-in-features=b,c")
    assert resolve.resolve(found, {}).opt_in_features == ("a", "b", "c")


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("--restart-mod=none", "did you mean --restart-mode?"),
        ("--no-runtime-confg", "--no-runtime-config"),
        ("--nvidia-runtime-set-as-default", "there is no option"),
    ],
)
def test_an_unknown_option_is_told_with_what_comes_close(word: str, says: str) -> None:
    done = fake_node.cli("plan", word)
    assert done.returncode == 2
    assert "there is no option" in done.stderr
    assert says in done.stderr


@pytest.mark.parametrize(
    "row", [r for r in SETTINGS if r.kind is not Kind.FLAG], ids=lambda r: r.flags[0]
)
def test_an_empty_option_has_a_meaning_or_is_refused(row: Any) -> None:
    options = {row.name: "", **({"runtime": row.only} if row.only else {})}
    if row.empty is None:
        assert (
            refused(**options)
            == f"{row.flags[0]}=: must not be empty; leave it out to use the default"
        )
        return
    try:
        value = resolve.resolve(options, {}).values[row.name]
    except UsageProblem as error:
        value = str(error).partition(": ")[0]
    assert value in {"", (), row.empty, f"{row.flags[0]}="}


# --- keys over those that handlers inherit --------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ('{"a": NaN}', "not valid JSON (NaN is not a JSON number)"),
        ('{"a": null}', "a must not be null"),
        ('{"options": {"b": [null]}}', "options.b must not be null"),
        (
            '{"options": {"b": [[1]]}}',
            "options.b must not contain lists or objects inside a list",
        ),
        ('{"a": 9223372036854775808}', "a must fit into 64 bits"),
        ('{"a": "\\ud800"}', "a contains an unpaired surrogate"),
        ('{"\\ud800": 1}', "a key contains an unpaired surrogate"),
        ('{"options": {"BinaryName": "/x"}}', "BinaryName is set by the installer"),
        ('{"options": {"binaryname": "/x"}}', "binaryname is set by the installer"),
        ('{"options": 1}', "options is set by the installer"),
    ],
)
def test_an_override_that_no_handler_can_hold_is_refused(text: str, says: str) -> None:
    found = refused(runtime="containerd", runtime_config_override=text)
    assert found.startswith("--runtime-config-override=")
    assert says in found


def test_an_override_wins_over_what_is_inherited_whatever_its_case(node: Node) -> None:
    text = '{"options": {"systemdcgroup": false, "Root": "/r"}, "pod_annotations": ["a"]}'
    found = handler(node, runtime_config_override=text)
    assert found["options"]["systemdcgroup"] is False
    assert "SystemdCgroup" not in found["options"]
    assert (found["options"]["Root"], found["pod_annotations"]) == ("/r", ["a"])


@pytest.mark.parametrize("name", ["nvidia-cdi", "nvidia-legacy"])
def test_a_fixed_handler_can_be_the_default_of_each_runtime(node: Node, name: str) -> None:
    containerd = cri(node, runtime_class=name)["containerd"]
    assert containerd["default_runtime_name"] == name
    assert {"nvidia", "nvidia-cdi", "nvidia-legacy"} <= set(containerd["runtimes"])
    (drop_in,) = crio(node, runtime_class=name).config_plan.changes
    assert f'default_runtime = "{name}"'.encode() in (drop_in.after or b"")
    (daemon,) = seen(node, **docker(node), runtime_class=name).config_plan.changes
    assert json.loads(daemon.after or b"")["default-runtime"] == name
    kept = cri(node, runtime_class=name, set_as_default="false")["containerd"]
    assert kept.get("default_runtime_name") in {None, "runc"}


def docker(node: Node) -> dict[str, str]:
    """Return the options for Docker, with a configuration without keys."""
    path = node.root / "etc/docker/daemon.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"{}")
    return {"runtime": "docker", "config": str(path), "drop_in_config": ""}
