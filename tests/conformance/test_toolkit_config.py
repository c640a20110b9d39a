"""The toolkit's own config.toml, read by the real programs: options arrive where they count."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import binaries, fake_node
from tests.support.fake_node import Node

pytestmark = pytest.mark.binary

CONFIG: Final = ".config/nvidia-container-runtime/config.toml"
# Option, text, and how the real nvidia-container-runtime tells of it once it has read the file.
OPTIONS: Final = [
    ("driver_root", "/the/driver", "Root:/the/driver "),
    ("driver_root", "/the/driver", "Ldconfig:@/the/driver/sbin/ldconfig}"),
    ("nvidia_container_runtime.mode", "cdi", " Mode:cdi "),
    (
        "nvidia_container_runtime.modes.cdi.default_kind",
        "example.com/gpu",
        " DefaultKind:example.com/gpu ",
    ),
    (
        "nvidia_container_runtime.modes.cdi.annotation_prefixes",
        "a.example/,b.example/",
        "AnnotationPrefixes:[a.example/ b.example/]}",
    ),
    ("nvidia_container_runtime.runtimes", "/usr/bin/youki,runc", "Runtimes:[/usr/bin/youki runc]"),
    ("nvidia_container_runtime_hook.skip_mode_detection", "false", "SkipModeDetection:false}"),
    ("nvidia_container_cli.debug", "/var/log/cli.log", "Debug:/var/log/cli.log "),
    (
        "accept_nvidia_visible_devices_envvar_when_unprivileged",
        "false",
        "AcceptEnvvarUnprivileged:false ",
    ),
    (
        "accept_nvidia_visible_devices_as_volume_mounts",
        "true",
        "AcceptDeviceListAsVolumeMounts:true ",
    ),
]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return fake_node.make_node(tmp_path)


def install(node: Node, **changed: str | None) -> None:
    fake_node.done("run", "-n", "--no-runtime-config", *node.options(**changed))


def config(node: Node) -> dict[str, Any]:
    return tomllib.loads((node.toolkit / CONFIG).read_text(encoding="utf-8"))


def asked(
    program: str, node: Node, *words: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (str(binaries.toolkit(program)), *words),
        env={"NVIDIA_CTK_CONFIG_FILE_PATH": str(node.toolkit / CONFIG), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=check, timeout=20,
    )  # fmt: skip


def as_read(node: Node) -> str:
    """Return the configuration as the real nvidia-container-runtime has it in its structures."""
    log = node.root / "log"
    text = (node.toolkit / CONFIG).read_text(encoding="utf-8")
    # A low-level runtime that exists: only then it gets as far as telling.
    (node.toolkit / CONFIG).write_text(text.replace('"runc"', '"/bin/true"'), encoding="utf-8")
    asked("nvidia-container-runtime", node, "state", "x")
    [line] = [
        each
        for each in log.read_text(encoding="utf-8").splitlines()
        if "Running with config" in each
    ]
    return line.replace("/bin/true", "runc")


def test_the_real_runtime_reads_what_every_option_says(node: Node) -> None:
    given = {option: text for option, text, _ in OPTIONS}
    logs = {
        "nvidia_container_runtime.debug": str(node.root / "log"),
        "nvidia_container_runtime.log_level": "trace",
    }
    install(node, **given, **logs)
    read = as_read(node)
    assert [(option, told) for option, _, told in OPTIONS if told not in read] == []
    assert f" Path:{node.toolkit}/nvidia-container-cli " in read


def test_the_defaults_are_those_of_the_real_runtime(node: Node) -> None:
    """What we write although nobody asked for it is what the toolkit would assume."""
    install(
        node,
        **{
            "nvidia_container_runtime.debug": str(node.root / "log"),
            "nvidia_container_runtime.log_level": "trace",
            "driver_root": "/",
        },
    )
    ours = as_read(node)
    (node.toolkit / CONFIG).write_text(
        f'[nvidia-container-runtime]\ndebug = "{node.root}/log"\nlog-level = "trace"\n'
        'runtimes = ["/bin/true"]\n',
        encoding="utf-8",
    )
    (node.root / "log").unlink()
    theirs = as_read(node)
    start = "NVIDIAContainerRuntimeConfig:"
    ours, theirs = (
        text[text.index(start) :].split(" NVIDIAContainerRuntimeHook")[0] for text in (ours, theirs)
    )
    assert ours.replace("[runc crun]", "[runc]") == theirs


def test_features_are_switched_on_and_off_again(node: Node) -> None:
    features = ("disable-imex-channel-creation", "allow-unknown-oci-spec-fields")
    install(node, opt_in_features=",".join(features))
    assert config(node)["features"] == dict.fromkeys(features, True)
    told = tomllib.loads(asked("nvidia-ctk", node, "config").stdout)
    assert told["features"] == dict.fromkeys(features, True)
    install(node, opt_in_features=features[1])
    assert config(node)["features"] == {features[0]: False, features[1]: True}


@pytest.mark.parametrize("features", ["allow-unknown-oci-spec-fields", ""], ids=["with", "without"])
def test_the_real_runtime_goes_by_a_feature(node: Node, features: str) -> None:
    bundle = node.root / "bundle"
    bundle.mkdir()
    given = {
        "nvidia_container_runtime.runtimes": "/bin/true",
        "nvidia_container_runtime.debug": str(node.root / "log"),
    }
    install(node, **given, opt_in_features=features)
    spec = (
        '{"ociVersion": "1.0.0", "process": {"args": ["x"], "env": ["A=1"]}, "strange": {"a": 1}}'
    )
    (bundle / "config.json").write_text(spec, encoding="utf-8")
    words = ("create", "--bundle", str(bundle), "x")
    done = asked("nvidia-container-runtime", node, *words, check=False)
    is_refused = 'unknown field \\"strange\\"' in (node.root / "log").read_text(encoding="utf-8")
    assert (done.returncode, is_refused) == ((0, False) if features else (1, True))


def test_what_a_user_set_and_we_have_no_option_for_stays(node: Node) -> None:
    install(node)
    path = node.toolkit / CONFIG
    mine = path.read_text(encoding="utf-8").replace(
        'swarm-resource = ""', 'swarm-resource = "MINE"  # mine'
    )
    path.write_text(f"{mine}\n[my]\nown = 1\n", encoding="utf-8")
    install(node, **{"nvidia_container_runtime.mode": "cdi"})
    assert 'swarm-resource = "MINE"  # mine' in path.read_text(encoding="utf-8")
    assert (config(node)["my"], config(node)["nvidia-container-runtime"]["mode"]) == (
        {"own": 1},
        "cdi",
    )


@pytest.mark.parametrize("newer", ["features = {\n  x = true,\n}\n", 'my-own = "\\xfc"\n'])
def test_toml_1_1_is_refused_because_the_toolkit_s_programs_do_not_read_it(
    node: Node, newer: str
) -> None:
    install(node)
    path = node.toolkit / CONFIG
    path.write_text(newer + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert asked("nvidia-ctk", node, "config", check=False).returncode != 0
    refused = fake_node.cli("run", "-n", "--no-runtime-config", *node.options())
    assert "the toolkit's programs do not read TOML 1.1" in refused.stderr
    assert refused.returncode == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only a program that root owns is run")
def test_keys_that_are_chosen_are_those_that_the_real_nvidia_ctk_knows(node: Node) -> None:
    real = binaries.toolkit("nvidia-ctk")
    program = node.source / "usr/bin/nvidia-ctk"
    program.unlink()
    shutil.copyfile(real, program)
    program.chmod(0o755)
    chosen = {
        "nvidia-container-cli.no-cgroups": True,
        "nvidia-container-cli.no-pivot": True,
        "disable-require": True,
        "swarm-resource": "DOCKER_RESOURCE_GPU",
        "supported-driver-capabilities": "compute,utility",
        "nvidia-container-cli.ldconfig": "@/sbin/ldconfig",
        "nvidia-container-cli.user": "root:video",
        "nvidia-container-cli.environment": ["A=1", "B=2"],
        "nvidia-container-runtime.modes.jit-cdi.nvcdi-feature-flags": ["a", "b"],
        "nvidia-container-runtime.modes.legacy.cuda-compat-mode": "mount",
    }
    text = {True: "true", ("A=1", "B=2"): "A=1,B=2", ("a", "b"): "a,b"}
    given = {
        name: text.get(tuple(v) if isinstance(v, list) else v, v) for name, v in chosen.items()
    }
    install(node, toolkit_config=",".join(f"{name}={value}" for name, value in given.items()))
    found = config(node)
    for name, value in chosen.items():
        item: Any = found
        for part in name.split("."):
            item = item[part]
        assert item == value, name
    wrong = node.options(toolkit_config="no-cgroups=true,nvidia-container-cli.ldconfg=/x")
    refused = fake_node.cli("run", "-n", "--no-runtime-config", *wrong).stderr
    assert (
        "no-cgroups: this toolkit has no such key; did you mean nvidia-container-cli.no-cgroups?"
        in refused
    )
    assert "did you mean nvidia-container-cli.ldconfig?" in refused
