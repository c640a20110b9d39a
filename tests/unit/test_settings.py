"""The settings that users of the upstream installer already set; every problem is named."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, Final

import click
import pytest
from hypothesis import given
from hypothesis import strategies as some

from tests.support import fake_node
from toolkit.cli import command_line, parser
from toolkit.errors import UsageProblem
from toolkit.settings import checks
from toolkit.settings import resolve as settings
from toolkit.settings.options import SETTINGS, Kind, Setting

HINT: Final = "`nvidia-toolkit run --help-all` lists the options and their variables"
PEER_OPTIONS: Final = fake_node.CHECKOUT.parent / "shared/PEER-OPTIONS.md"
"""The measured facts about upstream; beside the checkout where the project is worked on."""

# Option with its aliases, variables in order, default, as upstream has them (August 2026).
PEER: Final = (
    ("--no-daemon -n", "NO_DAEMON", ""),
    ("--no-runtime-config", "NO_RUNTIME_CONFIG", ""),
    ("--enable-nri-plugin -p", "ENABLE_NRI_PLUGIN", ""),
    ("--nri-plugin-index", "NRI_PLUGIN_INDEX", "10"),
    ("--nri-socket", "NRI_SOCKET", "/var/run/nri/nri.sock"),
    ("--nri-namespace", "NRI_NAMESPACE", ""),
    ("--nri-management-cdi-device-namespaces", "NRI_MANAGEMENT_CDI_DEVICE_NAMESPACES", ""),
    ("--runtime -r", "RUNTIME", "docker"),
    ("--toolkit-install-dir --root", "TOOLKIT_INSTALL_DIR ROOT", "/usr/local/nvidia"),
    ("--toolkit-source-root", "TOOLKIT_SOURCE_ROOT", ""),
    ("--toolkit-package-type", "TOOLKIT_PACKAGE_TYPE", "auto"),
    ("--pid-file", "TOOLKIT_PID_FILE PID_FILE", "/run/nvidia/toolkit/toolkit.pid"),
    ("--debug", "TOOLKIT_DEBUG", ""),
    ("--driver-root --nvidia-driver-root", "NVIDIA_DRIVER_ROOT DRIVER_ROOT", "/run/nvidia/driver"),
    ("--driver-root-ctr-path", "DRIVER_ROOT_CTR_PATH", "/run/nvidia/driver"),
    ("--dev-root", "NVIDIA_DEV_ROOT DEV_ROOT", ""),
    ("--dev-root-ctr-path", "DEV_ROOT_CTR_PATH", ""),
    (
        "--nvidia-container-runtime.debug --nvidia-container-runtime-debug",
        "NVIDIA_CONTAINER_RUNTIME_DEBUG",
        "",
    ),
    (
        "--nvidia-container-runtime.log-level --nvidia-container-runtime-debug-log-level",
        "NVIDIA_CONTAINER_RUNTIME_LOG_LEVEL",
        "",
    ),
    (
        "--nvidia-container-runtime.mode --nvidia-container-runtime-mode",
        "NVIDIA_CONTAINER_RUNTIME_MODE",
        "",
    ),
    (
        "--nvidia-container-runtime.modes.cdi.default-kind",
        "NVIDIA_CONTAINER_RUNTIME_MODES_CDI_DEFAULT_KIND",
        "",
    ),
    (
        "--nvidia-container-runtime.modes.cdi.annotation-prefixes",
        "NVIDIA_CONTAINER_RUNTIME_MODES_CDI_ANNOTATION_PREFIXES",
        "",
    ),
    ("--nvidia-container-runtime.runtimes", "NVIDIA_CONTAINER_RUNTIME_RUNTIMES", ""),
    (
        "--nvidia-container-runtime-hook.skip-mode-detection",
        "NVIDIA_CONTAINER_RUNTIME_HOOK_SKIP_MODE_DETECTION",
        "true",
    ),
    (
        "--nvidia-container-cli.debug --nvidia-container-cli-debug",
        "NVIDIA_CONTAINER_CLI_DEBUG",
        "",
    ),
    (
        "--accept-nvidia-visible-devices-envvar-when-unprivileged",
        "ACCEPT_NVIDIA_VISIBLE_DEVICES_ENVVAR_WHEN_UNPRIVILEGED",
        "true",
    ),
    (
        "--accept-nvidia-visible-devices-as-volume-mounts",
        "ACCEPT_NVIDIA_VISIBLE_DEVICES_AS_VOLUME_MOUNTS",
        "",
    ),
    ("--cdi-enabled --enable-cdi", "CDI_ENABLED ENABLE_CDI", ""),
    ("--cdi-output-dir", "CDI_OUTPUT_DIR", "/var/run/cdi"),
    ("--cdi-kind", "CDI_KIND", "management.nvidia.com/gpu"),
    ("--create-device-nodes", "CREATE_DEVICE_NODES", "control"),
    ("--config", "RUNTIME_CONFIG CONTAINERD_CONFIG DOCKER_CONFIG", "RUNTIME_SPECIFIC_DEFAULT"),
    ("--drop-in-config", "RUNTIME_DROP_IN_CONFIG", "RUNTIME_SPECIFIC_DEFAULT"),
    ("--drop-in-config-host-path", "RUNTIME_DROP_IN_CONFIG_HOST_PATH", ""),
    ("--executable-path", "RUNTIME_EXECUTABLE_PATH", ""),
    ("--socket", "RUNTIME_SOCKET CONTAINERD_SOCKET DOCKER_SOCKET", "RUNTIME_SPECIFIC_DEFAULT"),
    ("--restart-mode", "RUNTIME_RESTART_MODE", "RUNTIME_SPECIFIC_DEFAULT"),
    ("--enable-cdi-in-runtime", "RUNTIME_ENABLE_CDI", ""),
    ("--host-root", "HOST_ROOT_MOUNT", "/host"),
    (
        "--runtime-name --nvidia-runtime-name --runtime-class",
        "NVIDIA_RUNTIME_NAME CONTAINERD_RUNTIME_CLASS DOCKER_RUNTIME_NAME",
        "nvidia",
    ),
    (
        "--config-source --config-sources",
        "RUNTIME_CONFIG_SOURCES RUNTIME_CONFIG_SOURCE",
        "command,file",
    ),
    ("--use-legacy-config", "CONTAINERD_USE_LEGACY_CONFIG", ""),
    ("--runtime-type", "CONTAINERD_RUNTIME_TYPE", "io.containerd.runc.v2"),
    (
        "--nvidia-container-runtime-modes.cdi.annotation-prefixes",
        "NVIDIA_CONTAINER_RUNTIME_MODES_CDI_ANNOTATION_PREFIXES",
        "",
    ),
    (
        "--runtime-config-override",
        "RUNTIME_CONFIG_OVERRIDE CONTAINERD_RUNTIME_CONFIG_OVERRIDE",
        "{}",
    ),
    ("--hooks-dir", "CRIO_HOOKS_DIR", "/usr/share/containers/oci/hooks.d"),
    ("--hook-filename", "CRIO_HOOK_FILENAME", "oci-nvidia-hook.json"),
    ("--config-mode", "CRIO_CONFIG_MODE", "config"),
    (
        "--set-as-default",
        "NVIDIA_RUNTIME_SET_AS_DEFAULT CONTAINERD_SET_AS_DEFAULT DOCKER_SET_AS_DEFAULT",
        "true",
    ),
    ("--ignore-errors", "", "false"),
    ("--opt-in-features", "NVIDIA_CONTAINER_TOOLKIT_OPT_IN_FEATURES", ""),
)
RUNTIME_DEFAULTS: Final = {
    "containerd": {
        "config": "/etc/containerd/config.toml",
        "drop_in_config": "/etc/containerd/conf.d/99-nvidia.toml",
        "socket": "/run/containerd/containerd.sock",
    },
    "docker": {
        "config": "/etc/docker/daemon.json",
        "drop_in_config": "",
        "socket": "/var/run/docker.sock",
    },
    "crio": {
        "config": "/etc/crio/crio.conf",
        "drop_in_config": "/etc/crio/crio.conf.d/99-nvidia.toml",
        "socket": "/var/run/crio/crio.sock",
    },
}
OURS: Final = {
    # One default for a whole cluster is wrong on every node that has another runtime.
    "--runtime": "auto",
    # SIGHUP leaves containerd's socket dead for 5.3 s under the usual unit file, a restart by
    # systemd for 0.1 s; docker and CRI-O reload in place. So the way depends on the node, not on
    # the runtime's name.
    "--restart-mode": "auto",
}
"""Where our default differs on purpose."""


def row_of(flag: str) -> Setting:
    found = [row for row in SETTINGS if flag in row.flags]
    assert len(found) == 1, f"{flag} is in {len(found)} rows"
    return found[0]


def resolve(options: Mapping[str, str] | None = None, **environment: str) -> settings.Settings:
    return settings.resolve(options or {}, environment)


def problems(options: Mapping[str, str] | None = None, **environment: str) -> tuple[str, ...]:
    with pytest.raises(UsageProblem) as caught:
        resolve(options, **environment)
    assert caught.value.hint == HINT
    assert caught.value.exit_code == 2
    return caught.value.problems


def parsed(*words: str) -> dict[str, Any]:
    """Return what the command line makes of words, of settings; the output format is none."""
    command = parser.app().commands["run"]
    context = command.make_context("run", command_line.explicit(["run", *words])[1:])
    rows = {row.name for row in SETTINGS}
    return {
        name: text for name, text in context.params.items() if text is not None and name in rows
    }


# --- the same as upstream -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "variables", "default"), PEER, ids=[flags.split()[0] for flags, _, _ in PEER]
)
def test_an_option_of_upstream_is_ours(flags: str, variables: str, default: str) -> None:
    rows = {row_of(flag) for flag in flags.split()}
    assert len(rows) == 1, "the aliases are different options"
    row = rows.pop()
    assert [v for v in row.variables if v in variables.split()] == variables.split(), (
        "in this order"
    )
    if default == "RUNTIME_SPECIFIC_DEFAULT" and row.flags[0] not in OURS:
        assert row.default is None
        for runtime, defaults in RUNTIME_DEFAULTS.items():
            assert resolve({"runtime": runtime}).values[row.name] == defaults[row.name]
    else:
        value = resolve().values[row.name]
        shown = ",".join(value) if isinstance(value, tuple) else str(value or "")
        wanted = OURS.get(row.flags[0], default)
        assert shown.lower() == wanted or (wanted == "false" and shown == "")


@pytest.mark.parametrize("flag", [flag for flags, _, _ in PEER for flag in flags.split()])
def test_an_option_of_upstream_is_read_from_the_command_line(flag: str) -> None:
    row = row_of(flag)
    if row.kind is Kind.FLAG:
        assert parsed(flag) == {row.name: "true"}
    elif flag.startswith("--"):
        assert parsed(flag, "some word") == parsed(f"{flag}=some word") == {row.name: "some word"}
    else:
        assert parsed(flag, "some word") == {row.name: "some word"}


def test_the_facts_about_upstream_are_those_of_this_test() -> None:
    if not PEER_OPTIONS.exists():
        pytest.skip("the measured facts are not beside this checkout")
    lines = PEER_OPTIONS.read_text(encoding="utf-8").splitlines()
    cells = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in lines
        if line.startswith("| `--")
    ]
    found = {
        (
            " ".join(re.findall(r"`([^`]+)`", flags)),
            " ".join(re.findall(r"[A-Z][A-Z_]+", variables)),
            default.replace('"', "").replace(", ", ","),
        )
        for flags, _, variables, default in cells
    }
    assert len(cells) > 40
    assert found == set(PEER)


def test_no_two_rows_share_a_name() -> None:
    names = [flag for row in SETTINGS for flag in row.flags] + [row.name for row in SETTINGS]
    names += [variable for row in SETTINGS for variable in row.variables]
    assert len(names) == len(set(names))


def test_what_the_gpu_operator_sets_is_understood() -> None:
    found = resolve(
        ROOT="/usr/local/nvidia",
        RUNTIME="containerd",
        NVIDIA_CONTAINER_RUNTIME_MODES_CDI_DEFAULT_KIND="management.nvidia.com/gpu",
        NVIDIA_VISIBLE_DEVICES="void",
        TOOLKIT_PID_FILE="/run/nvidia/toolkit/toolkit.pid",
        CONTAINERD_RUNTIME_CLASS="nvidia",
        RUNTIME_CONFIG="/runtime/config-dir/config.toml",
        CONTAINERD_CONFIG="/runtime/config-dir/config.toml",
        RUNTIME_DROP_IN_CONFIG="/runtime/config-dir.d/99-nvidia.toml",
        RUNTIME_DROP_IN_CONFIG_HOST_PATH="/etc/containerd/conf.d/99-nvidia.toml",
        RUNTIME_SOCKET="/runtime/sock-dir/containerd.sock",
        CONTAINERD_SOCKET="/runtime/sock-dir/containerd.sock",
        NVIDIA_RUNTIME_SET_AS_DEFAULT="false",
        NVIDIA_CONTAINER_RUNTIME_MODE="cdi",
        CRIO_CONFIG_MODE="config",
    )
    assert found.runtime == "containerd"
    assert found.config == "/runtime/config-dir/config.toml"
    assert found.drop_in_config == "/runtime/config-dir.d/99-nvidia.toml"
    assert found.socket == "/runtime/sock-dir/containerd.sock"
    assert not found.set_as_default
    assert found.nvidia_container_runtime_mode == "cdi"


# --- which source wins --------------------------------------------------------------------------


def test_an_option_wins_over_its_variables() -> None:
    found = resolve(
        {"socket": "/option.sock"}, RUNTIME="containerd", RUNTIME_SOCKET="/variable.sock"
    )
    assert (found.socket, found.origins["socket"]) == ("/option.sock", "--socket")


@pytest.mark.parametrize(
    ("environment", "value", "origin"),
    [
        ({"RUNTIME_CONFIG": "/a", "CONTAINERD_CONFIG": "/b"}, "/a", "RUNTIME_CONFIG"),
        ({"CONTAINERD_CONFIG": "/b"}, "/b", "CONTAINERD_CONFIG"),
        ({"RUNTIME_CONFIG": "", "CONTAINERD_CONFIG": "/b"}, "/b", "CONTAINERD_CONFIG"),
        ({"DOCKER_CONFIG": "/c"}, "/etc/containerd/config.toml", "default"),
        ({"CRIO_CONFIG": "/d"}, "/etc/containerd/config.toml", "default"),
        ({}, "/etc/containerd/config.toml", "default"),
    ],
    ids=["the first", "the second", "an empty one is none", "docker's", "CRI-O's", "none"],
)
def test_the_first_variable_that_is_set_and_counts_wins(
    environment: dict[str, str], value: str, origin: str
) -> None:
    found = resolve(None, RUNTIME="containerd", **environment)
    assert (found.config, found.origins["config"]) == (value, origin)
    assert found.is_given("config") == (origin != "default")


@pytest.mark.parametrize("runtime", ["docker", "containerd", "crio"])
@pytest.mark.parametrize("prefix", ["DOCKER_", "CONTAINERD_", "CRIO_"])
def test_the_variables_of_another_runtime_do_not_count(runtime: str, prefix: str) -> None:
    counts = prefix.lower().strip("_") == runtime
    found = resolve({"runtime": runtime}, **{f"{prefix}SOCKET": "/mine.sock"})
    assert (found.socket == "/mine.sock") == counts


@pytest.mark.parametrize("runtime", ["docker", "containerd", "crio"])
@pytest.mark.parametrize("prefix", ["DOCKER_", "CONTAINERD_"])
def test_the_default_handler_may_be_set_by_the_variable_of_another_runtime(
    runtime: str, prefix: str
) -> None:
    found = resolve({"runtime": runtime}, **{f"{prefix}SET_AS_DEFAULT": "false"})
    assert (found.set_as_default, found.origins["set_as_default"]) == (
        False,
        f"{prefix}SET_AS_DEFAULT",
    )


@pytest.mark.parametrize("runtime", ["docker", "containerd", "crio"])
@pytest.mark.parametrize("variable", ["CONTAINERD_RUNTIME_CLASS", "DOCKER_RUNTIME_NAME"])
def test_the_handler_may_be_named_by_the_variable_of_another_runtime(
    runtime: str, variable: str
) -> None:
    found = resolve({"runtime": runtime}, **{variable: "gpu"})
    assert (found.runtime_class, found.remarks) == ("gpu", ())


def test_a_variable_of_the_runtime_itself_wins_over_those_of_others() -> None:
    of_each = {"CONTAINERD_SET_AS_DEFAULT": "false", "DOCKER_SET_AS_DEFAULT": "true"}
    assert resolve({"runtime": "docker"}, **of_each).set_as_default
    assert not resolve({"runtime": "containerd"}, **of_each).set_as_default
    assert not resolve({"runtime": "crio"}, **of_each).set_as_default


@pytest.mark.parametrize(
    ("runtime", "variable", "value", "instead"),
    [
        ("crio", "CONTAINERD_CONFIG", "/etc/x.toml", "; CRIO_CONFIG applies to crio"),
        ("crio", "DOCKER_SOCKET", "/run/x.sock", "; CRIO_SOCKET applies to crio"),
        ("docker", "CONTAINERD_RESTART_MODE", "none", "; DOCKER_RESTART_MODE applies to docker"),
        ("containerd", "DOCKER_CONFIG", "/etc/x.json", "; CONTAINERD_CONFIG applies to containerd"),
        ("crio", "CONTAINERD_RUNTIME_TYPE", "io.containerd.runsc.v1", ""),
        ("docker", "CONTAINERD_ENABLE_CRI", "true", ""),
    ],
)
def test_a_variable_of_another_runtime_without_effect_is_named(
    runtime: str, variable: str, value: str, instead: str
) -> None:
    said = f"{variable} has no effect: the runtime is {runtime}{instead}"
    assert resolve({"runtime": runtime}, **{variable: value}).remarks == ((logging.WARNING, said),)


def test_one_set_of_variables_for_nodes_of_every_runtime_needs_no_remark() -> None:
    of_all = {
        "CONTAINERD_CONFIG": "/etc/c.toml",
        "DOCKER_CONFIG": "/etc/d.json",
        "CRIO_CONFIG": "/etc/e.conf",
    }
    usual = {"CRIO_CONFIG_MODE": "config", "CONTAINERD_RUNTIME_TYPE": "io.containerd.runc.v2"}
    for runtime in ("containerd", "docker", "crio"):
        assert resolve({"runtime": runtime}, **of_all, **usual).remarks == ()
    assert resolve(None, CONTAINERD_CONFIG="/etc/c.toml").remarks == ()


def test_a_variable_for_other_nodes_is_no_warning_where_the_runtime_is_detected() -> None:
    found = settings.resolve({}, {"CONTAINERD_CONFIG": "/etc/c.toml"}, {"runtime": "crio"})
    said = "CONTAINERD_CONFIG has no effect: the runtime is crio; CRIO_CONFIG applies to crio"
    assert found.remarks == ((logging.INFO, said),)


@pytest.mark.parametrize("runtime", ["docker", "containerd", "crio"])
def test_an_empty_variable_of_a_flag_is_false(runtime: str) -> None:
    found = resolve(
        {"runtime": runtime},
        NVIDIA_RUNTIME_SET_AS_DEFAULT="",
        CONTAINERD_SET_AS_DEFAULT="true",
        ACCEPT_NVIDIA_VISIBLE_DEVICES_ENVVAR_WHEN_UNPRIVILEGED="",
        CDI_ENABLED="",
    )
    assert not found.set_as_default
    assert not found.accept_envvar_when_unprivileged
    assert not found.cdi_enabled


def test_an_empty_drop_in_means_none() -> None:
    assert resolve(RUNTIME="containerd", RUNTIME_DROP_IN_CONFIG="").drop_in_config == ""
    assert resolve({"drop_in_config": ""}, RUNTIME="containerd").drop_in_config == ""


# --- how a text is read -------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["true", "1", "yes", "on", "TRUE", "Yes", "oN"])
def test_true(text: str) -> None:
    assert resolve(NO_DAEMON=text).no_daemon is True


@pytest.mark.parametrize("text", ["false", "0", "no", "off", "FALSE", "No", "oFF"])
def test_false(text: str) -> None:
    assert resolve(NVIDIA_RUNTIME_SET_AS_DEFAULT=text).set_as_default is False


@given(text=some.text(min_size=1).filter(lambda t: t.lower() not in settings.TRUE | settings.FALSE))
def test_what_is_neither_names_the_variable(text: str) -> None:
    assert problems(NO_DAEMON=text) == (
        f"NO_DAEMON={text}: must be true or false (true/false, 1/0, yes/no, on/off)",
    )


def test_what_is_neither_names_the_option() -> None:
    assert problems({"no_daemon": "maybe"}) == (
        "--no-daemon=maybe: must be true or false (true/false, 1/0, yes/no, on/off)",
    )


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("runc", ("runc",)),
        ("runc,crun", ("runc", "crun")),
        (" runc , crun ,", ("runc", "crun")),
        (",", ()),
    ],
)
def test_a_list_is_split_at_commas(text: str, items: tuple[str, ...]) -> None:
    assert (
        resolve({"nvidia_container_runtime_runtimes": text}).nvidia_container_runtime_runtimes
        == items
    )


def test_a_list_can_be_given_word_by_word() -> None:
    flag = "--nvidia-container-runtime.runtimes"
    given_words = parsed(f"{flag}=runc", f"{flag}=crun")
    assert resolve(given_words).nvidia_container_runtime_runtimes == ("runc", "crun")


@pytest.mark.parametrize(("text", "seconds"), [("5", 5.0), ("0.5", 0.5), ("90s", 90.0)])
def test_seconds(text: str, seconds: float) -> None:
    assert resolve(RUNTIME_RELOAD_TIMEOUT=text).reload_timeout == seconds


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "inf", "1e9", "5m"])
def test_what_is_no_time_is_named(text: str) -> None:
    assert problems(RUNTIME_RELOAD_TIMEOUT=text) == (
        f"RUNTIME_RELOAD_TIMEOUT={text}: must be a number of seconds between 0 and 86400",
    )


@pytest.mark.parametrize("row", [r for r in SETTINGS if r.choices], ids=lambda r: r.flags[0])
def test_a_choice_must_be_one_of_those(row: Setting) -> None:
    of = {"runtime": row.only} if row.only else {}
    for choice in row.choices:
        assert resolve({**of, row.name: choice}).values[row.name] == choice
    assert problems({**of, row.name: "other"}) == (
        f"{row.flags[0]}=other: must be one of {', '.join(row.choices)}",
    )


@pytest.mark.parametrize("row", [r for r in SETTINGS if r.pending], ids=lambda r: r.flags[0])
def test_what_cannot_be_honoured_yet_is_refused_not_ignored(row: Setting) -> None:
    assert problems({row.name: "true"}) == (f"{row.flags[0]}: {row.pending}",)
    assert resolve({row.name: "false"}).values[row.name] is False


# --- what does not fit together -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"pid_file": "/run/other.pid"},
            "--pid-file=/run/other.pid: the file name must be toolkit.pid",
        ),
        (
            {"pid_file": "/run/mytoolkit.pid"},
            "--pid-file=/run/mytoolkit.pid: the file name must be toolkit.pid",
        ),
        ({"socket": "c.sock"}, "--socket=c.sock: must be an absolute path"),
        (
            {"toolkit_install_dir": "nvidia"},
            "--toolkit-install-dir=nvidia: must be an absolute path",
        ),
        ({"host_root": "host"}, "--host-root=host: must be an absolute path"),
        ({"drop_in_config": "a.toml"}, "--drop-in-config=a.toml: must be an absolute path"),
        (
            {"drop_in_config": "/etc/containerd/conf.d"},
            (
                "--drop-in-config=/etc/containerd/conf.d: must be the path of a file, such as"
                " /etc/containerd/conf.d/99-nvidia.toml"
            ),
        ),
        (
            {"drop_in_config": "/srv/drop-ins/"},
            (
                "--drop-in-config=/srv/drop-ins/: must be the path of a file, such as"
                " /srv/drop-ins/99-nvidia.toml"
            ),
        ),
        (
            {"runtime": "containerd", "drop_in_config": "/srv/drop-ins"},
            (
                "--drop-in-config=/srv/drop-ins: must be the path of a file, such as"
                " /srv/drop-ins/99-nvidia.toml"
            ),
        ),
        (
            {"runtime": "crio", "drop_in_config_host_path": "/etc/crio/crio.conf.d"},
            (
                "--drop-in-config-host-path=/etc/crio/crio.conf.d: must be the path of a file, such"
                " as /etc/crio/crio.conf.d/99-nvidia.toml"
            ),
        ),
        (
            {"runtime_class": "a b"},
            "--runtime-class=a b: must be a name without spaces, quotes and slashes",
        ),
        (
            {"runtime_class": 'a"b'},
            '--runtime-class=a"b: must be a name without spaces, quotes and slashes',
        ),
        (
            {"runtime_class": ""},
            "--runtime-class=: must not be empty; leave it out to use the default",
        ),
        ({"config_source": "binary"}, "--config-source=binary: must be command or file"),
        (
            {"runtime": "docker", "runtime_type": "x"},
            "--runtime-type: applies to containerd only, but the runtime is docker",
        ),
        (
            {"runtime": "crio", "use_legacy_config": "true"},
            "--use-legacy-config: applies to containerd only, but the runtime is crio",
        ),
    ],
    ids=lambda value: value.split(": ")[0] if isinstance(value, str) else "",
)
def test_a_contradiction_is_named(options: Mapping[str, str], problem: str) -> None:
    assert problems(options) == (problem,)


@pytest.mark.parametrize("text", ["unix:///run/c.sock", "unix:/run/c.sock", "/run/c.sock"])
def test_a_socket_may_be_named_as_the_kubelet_names_it(text: str) -> None:
    assert resolve({"runtime": "containerd"}, CONTAINERD_SOCKET=text).socket == "/run/c.sock"


def test_a_relative_root_config_of_a_pod_is_refused() -> None:
    said = problems({"runtime": "containerd"}, CONTAINERD_CONFIG="etc/containerd/config.toml")
    assert said == ("CONTAINERD_CONFIG=etc/containerd/config.toml: must be an absolute path",)


def test_a_drop_in_of_cri_o_needs_no_suffix() -> None:
    path = "/etc/crio/crio.conf.d/99-nvidia"
    assert resolve({"runtime": "crio", "drop_in_config": path}).drop_in_config == path


def test_a_runtime_class_that_another_handler_has_is_remarked_unless_it_is_the_default() -> None:
    environment = {"CONTAINERD_RUNTIME_CLASS": "nvidia-cdi"}
    options = {"runtime": "containerd", "set_as_default": "false"}
    said = (
        "CONTAINERD_RUNTIME_CLASS=nvidia-cdi: this handler always exists, so nvidia is the main"
        " handler"
    )
    assert resolve(options, **environment).remarks == ((logging.WARNING, said),)
    assert resolve({"runtime": "containerd"}, **environment).remarks == ()


def test_a_value_of_the_toolkit_s_config_may_contain_commas() -> None:
    text = (
        "disable-require=true,supported-driver-capabilities=compute,utility"
        ",nvidia-container-cli.user=a:b"
    )
    assert checks.toolkit_config(resolve(TOOLKIT_CONFIG=text).toolkit_config) == {
        "disable-require": "true",
        "supported-driver-capabilities": "compute,utility",
        "nvidia-container-cli.user": "a:b",
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "no-cgroups",
            "no-cgroups: must be KEY=VALUE, such as nvidia-container-cli.no-cgroups=true",
        ),
        ("nvidia-container-cli.root=/x", "nvidia-container-cli.root: use --driver-root instead"),
        ("features.x=true", "features.x: use --opt-in-features instead"),
        (
            "nvidia-container-runtime.mode=cdi",
            "nvidia-container-runtime.mode: use --nvidia-container-runtime.mode instead",
        ),
        ("nvidia-ctk.path=/x", "nvidia-ctk.path: is set by the installer and cannot be replaced"),
    ],
)
def test_a_key_of_the_toolkit_s_config_that_cannot_be_set(text: str, problem: str) -> None:
    assert problems(TOOLKIT_CONFIG=text) == (f"TOOLKIT_CONFIG={problem}",)


def test_a_pid_file_in_the_working_directory_has_the_right_name() -> None:
    assert resolve({"pid_file": "toolkit.pid"}).pid_file == "toolkit.pid"


def test_the_pid_file_cannot_be_nothing() -> None:
    assert problems({"pid_file": ""}) == ("--pid-file=: the file name must be toolkit.pid",)


@pytest.mark.parametrize("name", ["config", "executable_path", "toolkit_source_root"])
def test_upstream_takes_relative_paths_here(name: str) -> None:
    assert resolve({name: "some/path"}).values[name] == "some/path"


def test_all_problems_are_told_at_once() -> None:
    found = problems(
        {"restart_mode": "gently", "socket": "c.sock"},
        RUNTIME="podman",
        NO_DAEMON="maybe",
        PID_FILE="/run/other.pid",
        CDI_KIND="gpu",
        CREATE_DEVICE_NODES="all",
    )
    assert {problem.split(":")[0] for problem in found} == {
        "RUNTIME=podman",
        "--restart-mode=gently",
        "--socket=c.sock",
        "NO_DAEMON=maybe",
        "PID_FILE=/run/other.pid",
        "CDI_KIND=gpu",
        "CREATE_DEVICE_NODES=all",
    }


@given(
    environment=some.dictionaries(
        some.sampled_from([v for row in SETTINGS for v in row.variables]),
        some.text(max_size=8),
        max_size=6,
    )
)
def test_whatever_is_set_is_either_understood_or_named(environment: dict[str, str]) -> None:
    told: tuple[str, ...] = ()
    try:
        found = settings.resolve({}, environment)
    except UsageProblem as error:
        told = error.problems
    else:
        assert found.values.keys() == {row.name for row in SETTINGS}
    assert all(any(variable in problem for variable in environment) for problem in told)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(click.NoSuchOption):
        parsed("--no-such-option")
