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
    COUNT = "count"


class VerifyMode(StrEnum):
    """What has to work before a change counts as done."""

    STATUS = "status"
    RUN = "run"


class OnDrift(StrEnum):
    """What is done where the node is not as wanted any more."""

    REPAIR = "repair"
    REPORT = "report"
    IGNORE = "ignore"


class OnExit(StrEnum):
    """What becomes of the node when the process that stays is told to stop."""

    KEEP = "keep"
    REVERT = "revert"
    AUTO = "auto"


class LogFormat(StrEnum):
    """How the story is told."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


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
    `pending` says why a value that asks for something cannot be honoured, and
    the way out: it is refused, never ignored. `empty` is what an empty text
    given as an option stands for (None: it is refused, since nothing can be
    meant by it); an empty variable is one that is not set.
    """

    name: str
    flags: tuple[str, ...]
    variables: tuple[str, ...] = ()
    kind: Kind = Kind.VALUE
    default: Any = None
    choices: tuple[str, ...] = ()
    help: str
    pending: str = ""
    empty: str | None = ""
    only: str = ""


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
        default="auto",
        choices=("auto", "docker", "containerd", "crio"),
        help="The container runtime of this node; auto: the one that its kubelet uses, else the only one.",
    ),
    _flag(
        "beside_kubelet",
        "--beside-kubelet",
        "TOOLKIT_BESIDE_KUBELET",
        help="Set up the runtime that was named although the node's kubelet uses another one.",
    ),
    _value(
        "config",
        "--config",
        "RUNTIME_CONFIG CONTAINERD_CONFIG DOCKER_CONFIG CRIO_CONFIG",
        help="The runtime's root config.",
        empty=None,
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
        empty=None,
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
        help="How long the runtime may take to be as wanted, in seconds; the way back has as long again.",
    ),
    _value(
        "verify",
        "--verify",
        "TOOLKIT_VERIFY",
        default="status",
        choices=tuple(VerifyMode),
        help="What has to work before a change is kept: the runtime's own word that it is as wanted,"
        " or in addition a container started through each of our handlers.",
    ),
    _flag(
        "repair",
        "--repair",
        "TOOLKIT_REPAIR",
        help="Go on although the runtime is not well already before the change.",
    ),
    Setting(
        name="restart_budget",
        flags=("--restart-budget",),
        variables=("TOOLKIT_RESTART_BUDGET",),
        kind=Kind.COUNT,
        default=3,
        help="How many times the runtime may be restarted within the window before a run only reports;"
        " 0 for no limit.",
    ),
    Setting(
        name="restart_window",
        flags=("--restart-window",),
        variables=("TOOLKIT_RESTART_WINDOW",),
        kind=Kind.SECONDS,
        default=600.0,
        help="The window of the restart budget, in seconds.",
    ),
    _value(
        "readiness_file",
        "--readiness-file",
        "TOOLKIT_READINESS_FILE",
        default="",
        help="The readiness record; empty for `ready.json` beside the PID file.",
    ),
    _value(
        "on_drift",
        "--on-drift",
        "TOOLKIT_ON_DRIFT ON_DRIFT",
        default="repair",
        choices=tuple(OnDrift),
        help="What a process that stays does where something changed the node: bring it back, only tell it,"
        " or not even look.",
    ),
    Setting(
        name="check_interval",
        flags=("--check-interval",),
        variables=("TOOLKIT_CHECK_INTERVAL",),
        kind=Kind.SECONDS,
        default=300.0,
        help="How often a process that stays looks at the node although it noticed no change, in seconds.",
    ),
    _value(
        "on_exit",
        "--on-exit",
        "TOOLKIT_ON_EXIT ON_EXIT",
        default="auto",
        choices=tuple(OnExit),
        help="What becomes of the node on SIGTERM: it stays as it is, everything is taken back, or, with"
        " auto, that only where the API server says that the pod's DaemonSet is gone or being deleted.",
    ),
    Setting(
        name="grace_period",
        flags=("--grace-period",),
        variables=("TOOLKIT_GRACE_PERIOD",),
        kind=Kind.SECONDS,
        default=30.0,
        help="How long a stop may take, in seconds: the pod's terminationGracePeriodSeconds.",
    ),
    _value(
        "daemonset",
        "--daemonset",
        "TOOLKIT_DAEMONSET",
        default="",
        help="The DaemonSet that --on-exit=auto asks for; empty: the one that owns the pod POD_NAME or"
        " HOSTNAME.",
    ),
    _value(
        "metrics_address",
        "--metrics-address",
        "TOOLKIT_METRICS_ADDRESS",
        default="",
        help="Where /healthz, /readyz and /metrics are served, as HOST:PORT; `:PORT` is that of 127.0.0.1."
        " Off where empty.",
    ),
    _value(
        "log_format",
        "--log-format",
        "TOOLKIT_LOG_FORMAT",
        default="auto",
        choices=tuple(LogFormat),
        help="How events are told on stderr; auto: JSON where a process stays and no terminal listens, else"
        " text.",
    ),
    _value(
        "env_file",
        "--env-file",
        "TOOLKIT_ENV_FILE",
        default="",
        help="A file of NAME=value lines that count as variables, before those of the environment. A process"
        " that stays reads it again for every round.",
    ),
    _value(
        "runtime_class",
        "--runtime-class --runtime-name --nvidia-runtime-name",
        "NVIDIA_RUNTIME_NAME CONTAINERD_RUNTIME_CLASS DOCKER_RUNTIME_NAME",
        default="nvidia",
        empty=None,
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
        help="Enable CDI in the runtime; unless it is given, as --cdi-enabled says.",
    ),
    _flag(
        "enable_cri",
        "--enable-cri",
        "CONTAINERD_ENABLE_CRI",
        help="Take CRI off containerd's `disabled_plugins`, where its package (Docker's) put it.",
    ),
    _value(
        "runtime_type",
        "--runtime-type",
        "CONTAINERD_RUNTIME_TYPE",
        default="io.containerd.runc.v2",
        help="The containerd runtime type of handlers that inherit none.",
        empty=None,
        only="containerd",
    ),
    _flag(
        "use_legacy_config",
        "--use-legacy-config",
        "CONTAINERD_USE_LEGACY_CONFIG",
        help="Make a missing or empty containerd config one of version 1, and set the default there"
        " in its `default_runtime` table.",
        only="containerd",
    ),
    Setting(
        name="config_source",
        flags=("--config-source", "--config-sources"),
        variables=("RUNTIME_CONFIG_SOURCES", "RUNTIME_CONFIG_SOURCE"),
        kind=Kind.LIST,
        default=("command", "file"),
        help="What judges a change: `command`, the node's own binary, or `file`, the files alone; with both,"
        " the files where there is no such binary. What is written comes from the files in any case."
        " `file=PATH` is taken where PATH is the root config.",
        empty=None,
    ),
    _value(
        "host_root",
        "--host-root",
        "HOST_ROOT_MOUNT",
        default="/host",
        help="Where the node's root is seen; `/` where there is no such directory, or where it is empty.",
        empty="/",
    ),
    _value(
        "toolkit_install_dir",
        "--toolkit-install-dir --root",
        "TOOLKIT_INSTALL_DIR ROOT",
        default="/usr/local/nvidia",
        help="Where the toolkit goes on the node, below it `toolkit/`.",
        empty=None,
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
        help="Which packages' files to install; auto, or empty: as the node has rpm.",
        empty="auto",
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
    _flag(
        "no_install",
        "--no-install",
        "NO_INSTALL",
        help="Configure the runtime only; no file of the toolkit is copied. What the handlers name has to"
        " be on the node already.",
    ),
    _value(
        "toolkit_bin_dir",
        "--toolkit-bin-dir",
        "TOOLKIT_BIN_DIR",
        default="",
        help="With --no-install, the directory on the node that holds nvidia-container-runtime (and what"
        " --cdi-enabled needs: nvidia-ctk, nvidia-cdi-hook), /usr/bin say; empty for `toolkit/` below the"
        " install directory.",
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
        help="The root on the node that has the device nodes; by default the driver's.",
    ),
    _value(
        "dev_root_ctr_path",
        "--dev-root-ctr-path",
        "DEV_ROOT_CTR_PATH",
        default="",
        help="Where that root is seen here.",
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
        "require_driver",
        "--require-driver",
        "REQUIRE_DRIVER",
        help="While the driver is not loaded, refuse containers that ask for GPUs; else they run without.",
    ),
    _flag(
        "cdi_enabled",
        "--cdi-enabled --enable-cdi",
        "CDI_ENABLED ENABLE_CDI",
        help="Make the management CDI specification, and make it again when the driver changes.",
    ),
    _value(
        "cdi_output_dir",
        "--cdi-output-dir",
        "CDI_OUTPUT_DIR",
        default="/var/run/cdi",
        help="Where the CDI specification goes; empty for nowhere.",
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
        help="The device nodes that are made with the CDI specification: control, or none.",
    ),
    _flag(
        "enable_nri_plugin",
        "--enable-nri-plugin -p",
        "ENABLE_NRI_PLUGIN",
        help="Run the NRI plugin, which gives management CDI devices to pods.",
        pending="there is no NRI plugin here; leave it out, so that the handlers are set up and give those"
        " devices (with the GPU Operator: cdi.nriPluginEnabled=false)",
    ),
    _value(
        "nri_plugin_index",
        "--nri-plugin-index",
        "NRI_PLUGIN_INDEX",
        default="10",
        help="The NRI plugin's index, 0 to 99; of no effect without the plugin.",
        empty=None,
    ),
    _value(
        "nri_socket",
        "--nri-socket",
        "NRI_SOCKET",
        default="/var/run/nri/nri.sock",
        help="The NRI socket; of no effect without the plugin.",
    ),
    _value(
        "nri_namespace",
        "--nri-namespace",
        "NRI_NAMESPACE",
        default="",
        help="The NRI plugin's namespace; of no effect without the plugin.",
    ),
    Setting(
        name="nri_namespaces",
        flags=("--nri-management-cdi-device-namespaces",),
        variables=("NRI_MANAGEMENT_CDI_DEVICE_NAMESPACES",),
        kind=Kind.LIST,
        help="The namespaces that may ask for management CDI devices; of no effect without the plugin.",
    ),
    _value(
        "runtime_config_override",
        "--runtime-config-override",
        "RUNTIME_CONFIG_OVERRIDE CONTAINERD_RUNTIME_CONFIG_OVERRIDE",
        default="{}",
        help="Keys of containerd's handlers as a JSON object, merged over what they inherit:"
        ' `{"options": {"SystemdCgroup": true}}`.',
        empty="{}",
        only="containerd",
    ),
    _value(
        "hooks_dir",
        "--hooks-dir",
        "CRIO_HOOKS_DIR",
        default="/usr/share/containers/oci/hooks.d",
        help="Where OCI hook files go.",
        empty=None,
        only="crio",
    ),
    _value(
        "hook_filename",
        "--hook-filename",
        "CRIO_HOOK_FILENAME",
        default="oci-nvidia-hook.json",
        help="The name of the OCI hook file.",
        empty=None,
        only="crio",
    ),
    _value(
        "config_mode",
        "--config-mode",
        "CRIO_CONFIG_MODE",
        default="config",
        choices=("config", "hook"),
        help="Whether CRI-O gets handlers or an OCI hook.",
        only="crio",
    ),
    _flag(
        "ignore_errors",
        "--ignore-errors",
        help="Go on with what of the toolkit can be installed.",
        pending="an installation is all or nothing here; leave it out",
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

GROUPS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    (
        "Which runtime, and where it is",
        (
            "runtime", "beside_kubelet", "socket", "config", "drop_in_config", "drop_in_config_host_path",
            "executable_path", "config_source", "host_root",
        ),
    ),
    (
        "What the runtime gets",
        (
            "set_as_default", "runtime_class", "enable_cdi_in_runtime", "enable_cri", "runtime_type",
            "runtime_config_override", "use_legacy_config", "config_mode", "hooks_dir", "hook_filename",
        ),
    ),
    (
        "How it takes a change up",
        (
            "restart_mode", "reload_timeout", "verify", "repair", "restart_budget", "restart_window",
            "even_if_in_use",
        ),
    ),
    (
        "The process that stays",
        (
            "no_daemon", "on_drift", "check_interval", "on_exit", "grace_period", "daemonset",
            "metrics_address", "readiness_file", "pid_file",
        ),
    ),
    (
        "The toolkit's files",
        (
            "toolkit_source_root", "toolkit_package_type", "toolkit_install_dir", "no_runtime_config",
            "no_install", "toolkit_bin_dir", "ignore_errors",
        ),
    ),
    (
        "The driver and CDI",
        (
            "require_driver", "driver_root", "driver_root_ctr_path", "dev_root", "dev_root_ctr_path",
            "cdi_enabled", "cdi_kind", "cdi_output_dir", "create_device_nodes",
        ),
    ),
    (
        "The toolkit's own configuration",
        (
            "nvidia_container_runtime_mode", "nvidia_container_runtime_runtimes",
            "nvidia_container_runtime_log_level", "nvidia_container_runtime_debug",
            "nvidia_container_cli_debug", "cdi_default_kind", "cdi_annotation_prefixes",
            "accept_envvar_when_unprivileged", "accept_volume_mounts", "hook_skip_mode_detection",
            "opt_in_features",
        ),
    ),
    (
        "The NRI plugin",
        ("enable_nri_plugin", "nri_plugin_index", "nri_socket", "nri_namespace", "nri_namespaces"),
    ),
    ("Telling and reading", ("log_format", "debug", "env_file")),
)  # fmt: skip
"""Every setting once, by what it is about, for people who look for one."""


def grouped() -> tuple[tuple[str, tuple[Setting, ...]], ...]:
    """Return the rows under their headings, in the order in which people are told of them."""
    rows = {row.name: row for row in SETTINGS}
    return tuple((title, tuple(rows[name] for name in names)) for title, names in GROUPS)
