"""The one table of settings: option, aliases, variables, default, help. Options, docs and tests come from it.

Every name and default is one that users of the upstream installer already set
(NVIDIA/nvidia-container-toolkit, cmd/nvidia-ctk-installer).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final


class Kind(StrEnum):
    """How a setting's text is read."""

    FLAG = "flag"
    VALUE = "value"
    LIST = "list"
    SECONDS = "seconds"


class RestartMode(StrEnum):
    """How the runtime is made to take a change up."""

    AUTO = "auto"
    SIGNAL = "signal"
    SYSTEMD = "systemd"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row: the flags with their dashes, the variables in order, and what `only` runtime it is for.

    A default of None means that it depends on the runtime, or that there is none.
    `pending` says why a value that asks for something cannot be honoured yet:
    it is refused, never ignored.
    """

    name: str
    flags: tuple[str, ...]
    variables: tuple[str, ...] = ()
    kind: Kind = Kind.VALUE
    default: Any = None
    choices: tuple[str, ...] = ()
    help: str
    pending: str = ""


def _flag(name: str, flags: str, variables: str = "", *, default: bool = False, **more: Any) -> Setting:
    return Setting(
        name=name,
        flags=tuple(flags.split()),
        variables=tuple(variables.split()),
        kind=Kind.FLAG,
        default=default,
        **more,
    )


def _value(name: str, flags: str, variables: str = "", **more: Any) -> Setting:
    return Setting(name=name, flags=tuple(flags.split()), variables=tuple(variables.split()), **more)


SETTINGS: Final[tuple[Setting, ...]] = (
    _value(
        "runtime",
        "--runtime -r",
        "RUNTIME",
        default="docker",
        choices=("docker", "containerd", "crio"),
        help="The container runtime of this node.",
    ),
    _value(
        "config",
        "--config",
        "RUNTIME_CONFIG CONTAINERD_CONFIG DOCKER_CONFIG CRIO_CONFIG",
        help="The runtime's root config.",
    ),
    _value(
        "drop_in_config",
        "--drop-in-config",
        "RUNTIME_DROP_IN_CONFIG",
        help="The drop-in that gets our keys where the runtime merges drop-ins; empty for none.",
    ),
    _value(
        "drop_in_config_host_path",
        "--drop-in-config-host-path",
        "RUNTIME_DROP_IN_CONFIG_HOST_PATH",
        default="",
        help="The drop-in's path on the node, where it is seen here under another one.",
    ),
    _value(
        "executable_path",
        "--executable-path",
        "RUNTIME_EXECUTABLE_PATH",
        default="",
        help="The runtime's executable on the node, which judges every change.",
    ),
    _value(
        "socket",
        "--socket",
        "RUNTIME_SOCKET CONTAINERD_SOCKET DOCKER_SOCKET CRIO_SOCKET",
        help="The socket on which the runtime answers.",
    ),
    _value(
        "restart_mode",
        "--restart-mode",
        "RUNTIME_RESTART_MODE CONTAINERD_RESTART_MODE DOCKER_RESTART_MODE CRIO_RESTART_MODE",
        default="auto",
        choices=tuple(RestartMode),
        help="How the runtime takes a change up: by SIGHUP, by a restart of its systemd unit, or not at all.",
    ),
    Setting(
        name="reload_timeout",
        flags=("--reload-timeout",),
        variables=("RUNTIME_RELOAD_TIMEOUT",),
        kind=Kind.SECONDS,
        default=60.0,
        help="How long the runtime may take to answer again, in seconds.",
    ),
    _value(
        "runtime_class",
        "--runtime-class --runtime-name --nvidia-runtime-name",
        "NVIDIA_RUNTIME_NAME CONTAINERD_RUNTIME_CLASS DOCKER_RUNTIME_NAME",
        default="nvidia",
        help="The name of the handler, next to nvidia-cdi and nvidia-legacy.",
    ),
    _flag(
        "set_as_default",
        "--set-as-default",
        "NVIDIA_RUNTIME_SET_AS_DEFAULT CONTAINERD_SET_AS_DEFAULT DOCKER_SET_AS_DEFAULT",
        default=True,
        help="Make the handler the runtime's default.",
    ),
    _flag(
        "enable_cdi_in_runtime",
        "--enable-cdi-in-runtime",
        "RUNTIME_ENABLE_CDI",
        help="Enable CDI in the runtime.",
    ),
    _value(
        "runtime_type",
        "--runtime-type",
        "CONTAINERD_RUNTIME_TYPE",
        default="io.containerd.runc.v2",
        help="The containerd runtime type of handlers that inherit none.",
    ),
    _flag(
        "use_legacy_config",
        "--use-legacy-config",
        "CONTAINERD_USE_LEGACY_CONFIG",
        help="Make a missing or empty containerd config one of version 1, and set the default there"
        " in its `default_runtime` table.",
    ),
    Setting(
        name="config_source",
        flags=("--config-source", "--config-sources"),
        variables=("RUNTIME_CONFIG_SOURCES", "RUNTIME_CONFIG_SOURCE"),
        kind=Kind.LIST,
        default=("command", "file"),
        help="What judges a change: `command`, the node's own binary, or `file`, the files alone.",
    ),
    _value(
        "host_root",
        "--host-root",
        "HOST_ROOT_MOUNT",
        default="/host",
        help="Where the node's root is seen; `/` where there is no such directory.",
    ),
    _value(
        "toolkit_install_dir",
        "--toolkit-install-dir --root",
        "TOOLKIT_INSTALL_DIR ROOT",
        default="/usr/local/nvidia",
        help="Where the toolkit goes on the node, below it `toolkit/`.",
    ),
    _value(
        "toolkit_source_root",
        "--toolkit-source-root",
        "TOOLKIT_SOURCE_ROOT",
        default="",
        help="Where the toolkit comes from; `/artifacts/deb` or `/artifacts/rpm` by the package type.",
    ),
    _value(
        "toolkit_package_type",
        "--toolkit-package-type",
        "TOOLKIT_PACKAGE_TYPE",
        default="auto",
        choices=("auto", "deb", "rpm"),
        help="Which packages' files to install; auto: as the node has rpm.",
    ),
    _value(
        "pid_file",
        "--pid-file",
        "TOOLKIT_PID_FILE PID_FILE",
        default="/run/nvidia/toolkit/toolkit.pid",
        help="The file that holds the node's lock; it must be called toolkit.pid.",
    ),
    _flag("no_daemon", "--no-daemon -n", "NO_DAEMON", help="End after the set-up instead of staying."),
    _flag(
        "no_runtime_config",
        "--no-runtime-config",
        "NO_RUNTIME_CONFIG",
        help="Install the files only; neither configure nor reload the runtime.",
    ),
    _flag("debug", "--debug", "TOOLKIT_DEBUG", help="Tell more on stderr."),
    _value(
        "driver_root",
        "--driver-root --nvidia-driver-root",
        "NVIDIA_DRIVER_ROOT DRIVER_ROOT",
        default="/run/nvidia/driver",
        help="Where the driver lies on the node.",
    ),
    _value(
        "driver_root_ctr_path",
        "--driver-root-ctr-path",
        "DRIVER_ROOT_CTR_PATH",
        default="/run/nvidia/driver",
        help="Where the driver is seen here.",
    ),
    _value(
        "dev_root",
        "--dev-root",
        "NVIDIA_DEV_ROOT DEV_ROOT",
        default="",
        help="Where the device nodes lie on the node.",
    ),
    _value(
        "dev_root_ctr_path",
        "--dev-root-ctr-path",
        "DEV_ROOT_CTR_PATH",
        default="",
        help="Where the device nodes are seen here.",
    ),
    _value(
        "nvidia_container_runtime_debug",
        "--nvidia-container-runtime.debug --nvidia-container-runtime-debug",
        "NVIDIA_CONTAINER_RUNTIME_DEBUG",
        help="The log file of the NVIDIA container runtime.",
    ),
    _value(
        "nvidia_container_runtime_log_level",
        "--nvidia-container-runtime.log-level --nvidia-container-runtime-debug-log-level",
        "NVIDIA_CONTAINER_RUNTIME_LOG_LEVEL",
        help="The log level of the NVIDIA container runtime.",
    ),
    _value(
        "nvidia_container_runtime_mode",
        "--nvidia-container-runtime.mode --nvidia-container-runtime-mode",
        "NVIDIA_CONTAINER_RUNTIME_MODE",
        help="The mode of the NVIDIA container runtime.",
    ),
    _value(
        "cdi_default_kind",
        "--nvidia-container-runtime.modes.cdi.default-kind",
        "NVIDIA_CONTAINER_RUNTIME_MODES_CDI_DEFAULT_KIND",
        help="The kind of CDI devices without one.",
    ),
    Setting(
        name="cdi_annotation_prefixes",
        flags=(
            "--nvidia-container-runtime.modes.cdi.annotation-prefixes",
            "--nvidia-container-runtime-modes.cdi.annotation-prefixes",
        ),
        variables=("NVIDIA_CONTAINER_RUNTIME_MODES_CDI_ANNOTATION_PREFIXES",),
        kind=Kind.LIST,
        help="The prefixes of annotations that request CDI devices.",
    ),
    Setting(
        name="nvidia_container_runtime_runtimes",
        flags=("--nvidia-container-runtime.runtimes",),
        variables=("NVIDIA_CONTAINER_RUNTIME_RUNTIMES",),
        kind=Kind.LIST,
        help="The low-level runtimes; by default those of the node's runtime, then runc and crun.",
    ),
    _flag(
        "hook_skip_mode_detection",
        "--nvidia-container-runtime-hook.skip-mode-detection",
        "NVIDIA_CONTAINER_RUNTIME_HOOK_SKIP_MODE_DETECTION",
        default=True,
        help="Whether the hook skips the detection of its mode.",
    ),
    _value(
        "nvidia_container_cli_debug",
        "--nvidia-container-cli.debug --nvidia-container-cli-debug",
        "NVIDIA_CONTAINER_CLI_DEBUG",
        help="The log file of nvidia-container-cli.",
    ),
    _flag(
        "accept_envvar_when_unprivileged",
        "--accept-nvidia-visible-devices-envvar-when-unprivileged",
        "ACCEPT_NVIDIA_VISIBLE_DEVICES_ENVVAR_WHEN_UNPRIVILEGED",
        default=True,
        help="Whether unprivileged containers may ask for devices by variable.",
    ),
    _flag(
        "accept_volume_mounts",
        "--accept-nvidia-visible-devices-as-volume-mounts",
        "ACCEPT_NVIDIA_VISIBLE_DEVICES_AS_VOLUME_MOUNTS",
        help="Whether containers may ask for devices by volume mounts.",
    ),
    _flag(
        "cdi_enabled",
        "--cdi-enabled --enable-cdi",
        "CDI_ENABLED ENABLE_CDI",
        help="Make the management CDI specification.",
        pending="CDI specifications are not made yet",
    ),
    _value(
        "cdi_output_dir",
        "--cdi-output-dir",
        "CDI_OUTPUT_DIR",
        default="/var/run/cdi",
        help="Where CDI specifications go.",
    ),
    _value(
        "cdi_kind",
        "--cdi-kind",
        "CDI_KIND",
        default="management.nvidia.com/gpu",
        help="The kind of the management CDI specification.",
    ),
    Setting(
        name="create_device_nodes",
        flags=("--create-device-nodes",),
        variables=("CREATE_DEVICE_NODES",),
        kind=Kind.LIST,
        default=("control",),
        help="Which device nodes go with CDI specifications.",
    ),
    _flag(
        "enable_nri_plugin",
        "--enable-nri-plugin -p",
        "ENABLE_NRI_PLUGIN",
        help="Run the NRI plugin.",
        pending="there is no NRI plugin",
    ),
    _value(
        "nri_plugin_index",
        "--nri-plugin-index",
        "NRI_PLUGIN_INDEX",
        default="10",
        help="The NRI plugin's index.",
    ),
    _value(
        "nri_socket",
        "--nri-socket",
        "NRI_SOCKET",
        default="/var/run/nri/nri.sock",
        help="The NRI socket.",
    ),
    _value(
        "nri_namespace",
        "--nri-namespace",
        "NRI_NAMESPACE",
        default="",
        help="The NRI plugin's namespace.",
    ),
    Setting(
        name="nri_namespaces",
        flags=("--nri-management-cdi-device-namespaces",),
        variables=("NRI_MANAGEMENT_CDI_DEVICE_NAMESPACES",),
        kind=Kind.LIST,
        help="The namespaces that may ask for management CDI devices.",
    ),
    _value(
        "runtime_config_override",
        "--runtime-config-override",
        "RUNTIME_CONFIG_OVERRIDE CONTAINERD_RUNTIME_CONFIG_OVERRIDE",
        default="{}",
        help="Further options of containerd's handlers, as JSON; upstream reads and ignores it.",
    ),
    _value(
        "hooks_dir",
        "--hooks-dir",
        "CRIO_HOOKS_DIR",
        default="/usr/share/containers/oci/hooks.d",
        help="Where OCI hook files go.",
    ),
    _value(
        "hook_filename",
        "--hook-filename",
        "CRIO_HOOK_FILENAME",
        default="oci-nvidia-hook.json",
        help="The name of the OCI hook file.",
    ),
    _value(
        "config_mode",
        "--config-mode",
        "CRIO_CONFIG_MODE",
        default="config",
        choices=("config", "hook"),
        help="Whether CRI-O gets handlers or an OCI hook.",
    ),
    _flag(
        "ignore_errors",
        "--ignore-errors",
        help="Accepted for compatibility.",
        pending="errors are never ignored here",
    ),
    Setting(
        name="opt_in_features",
        flags=("--opt-in-features",),
        variables=("NVIDIA_CONTAINER_TOOLKIT_OPT_IN_FEATURES",),
        kind=Kind.LIST,
        help="Features of the toolkit to opt in to.",
    ),
    _flag(
        "even_if_in_use",
        "--even-if-in-use",
        help="On revert, take handlers away although containers still use them.",
    ),
)
