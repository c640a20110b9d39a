"""The table of settings: options, aliases, environment variables, defaults and help texts.

The command line, docs/options.md and the manual page are generated from it. Options of the upstream
installer (NVIDIA/nvidia-container-toolkit, cmd/nvidia-ctk-installer) keep their names and defaults.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

from runtimes.dataclass import dataclass


class Kind(StrEnum):
    """The type of a setting's value, which decides how its text is parsed."""

    FLAG = "flag"
    VALUE = "value"
    LIST = "list"
    SECONDS = "seconds"
    COUNT = "count"


class VerifyMode(StrEnum):
    """The checks that must pass before a change is kept."""

    STATUS = "status"
    RUN = "run"


class OnDrift(StrEnum):
    """The agent's reaction when the node is no longer in sync."""

    REPAIR = "repair"
    REPORT = "report"
    IGNORE = "ignore"


class OnExit(StrEnum):
    """The action of the agent on the node when the agent is stopped."""

    KEEP = "keep"
    REVERT = "revert"
    AUTO = "auto"


class LogFormat(StrEnum):
    """The format of log lines."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


class RestartMode(StrEnum):
    """The method that makes the runtime load a changed configuration."""

    AUTO = "auto"
    SIGNAL = "signal"
    SYSTEMD = "systemd"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A row of the table.

    `flags` are the spellings of the option with their dashes, `variables` the environment variables
    in order of precedence. `only` is the one runtime that the setting applies to; empty for all. A
    default of None means that it depends on the runtime, or that there is none. `pending` is set
    for a flag that is not supported: it says why and what to do instead; a true value is refused
    with that message. `is_common` is set for the ten options that a person often needs: `--help`
    shows no others. `empty` is the value that an empty option (`--name=`) stands for; with None
    an empty option is refused. An empty environment variable of a flag means false; any other
    counts as not set.
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
    is_common: bool = False


def _flag(
    name: str, flags: str, variables: str = "", *, default: bool = False, **more: Any
) -> Setting:
    return Setting(
        name=name,
        flags=tuple(flags.split()),
        variables=tuple(variables.split()),
        kind=Kind.FLAG,
        default=default,
        **more,
    )


def _value(name: str, flags: str, variables: str = "", **more: Any) -> Setting:
    return Setting(
        name=name, flags=tuple(flags.split()), variables=tuple(variables.split()), **more
    )


SETTINGS: Final[tuple[Setting, ...]] = (
    _value(
        "runtime",
        "--runtime -r",
        "RUNTIME",
        default="auto",
        choices=("auto", "docker", "containerd", "crio"),
        help="The container runtime to configure. auto: the runtime that the kubelet uses; without"
        " a kubelet, the only runtime on the node.",
        is_common=True,
    ),
    _flag(
        "allow_non_kubelet_runtime",
        "--allow-non-kubelet-runtime",
        "TOOLKIT_ALLOW_NON_KUBELET_RUNTIME",
        help="Allow --runtime to name a runtime other than the one that the kubelet uses.",
    ),
    _value(
        "config",
        "--config",
        "RUNTIME_CONFIG CONTAINERD_CONFIG DOCKER_CONFIG CRIO_CONFIG",
        help="Path of the runtime's main configuration file on the node. With plan, `-` reads its"
        " content from standard input.",
        empty=None,
        is_common=True,
    ),
    _value(
        "drop_in_config",
        "--drop-in-config",
        "RUNTIME_DROP_IN_CONFIG",
        help="Path of the drop-in file that the handlers are written to, if the runtime merges"
        " drop-ins. Empty: write to the main configuration file.",
    ),
    _value(
        "drop_in_config_host_path",
        "--drop-in-config-host-path",
        "RUNTIME_DROP_IN_CONFIG_HOST_PATH",
        default="",
        help="Path of the drop-in file on the node, if it differs from the path in this container.",
    ),
    _value(
        "executable_path",
        "--executable-path",
        "RUNTIME_EXECUTABLE_PATH",
        default="",
        help="Path of the runtime's executable on the node. It validates every change before the"
        " change is written.",
    ),
    _value(
        "socket",
        "--socket",
        "RUNTIME_SOCKET CONTAINERD_SOCKET DOCKER_SOCKET CRIO_SOCKET",
        help="Path of the runtime's API socket; `unix://` before it is left out.",
        empty=None,
        is_common=True,
    ),
    _value(
        "restart_mode",
        "--restart-mode",
        "RUNTIME_RESTART_MODE CONTAINERD_RESTART_MODE DOCKER_RESTART_MODE CRIO_RESTART_MODE",
        default="auto",
        choices=tuple(RestartMode),
        help="How the runtime is made to load a change. signal: send SIGHUP; systemd: restart its"
        " unit; none: do not reload or restart it.",
        is_common=True,
    ),
    Setting(
        name="reload_timeout",
        flags=("--reload-timeout",),
        variables=("RUNTIME_RELOAD_TIMEOUT",),
        kind=Kind.SECONDS,
        default=60.0,
        help="How long to wait until the runtime has loaded a change and is healthy, in seconds. A"
        " rollback may take as long again.",
    ),
    _value(
        "verify",
        "--verify",
        "TOOLKIT_VERIFY",
        default="run",
        choices=tuple(VerifyMode),
        help="What must succeed before a change is kept and the node is ready. status: the runtime"
        " reports that it is healthy and has the handlers; run: in addition, a container starts"
        " through each handler. A handler that cannot be tried, for example without a sandbox"
        " image, is reported as not verified.",
    ),
    _flag(
        "ignore_unhealthy",
        "--ignore-unhealthy",
        "TOOLKIT_IGNORE_UNHEALTHY",
        help="Make the change even if the runtime is already unhealthy.",
    ),
    Setting(
        name="restart_budget",
        flags=("--restart-budget",),
        variables=("TOOLKIT_RESTART_BUDGET",),
        kind=Kind.COUNT,
        default=3,
        help="How many times the runtime may be restarted within --restart-window. A change that"
        " needs another restart is refused. 0: no limit.",
    ),
    Setting(
        name="restart_window",
        flags=("--restart-window",),
        variables=("TOOLKIT_RESTART_WINDOW",),
        kind=Kind.SECONDS,
        default=600.0,
        help="The period in which --restart-budget counts restarts, in seconds.",
    ),
    _value(
        "readiness_file",
        "--readiness-file",
        "TOOLKIT_READINESS_FILE",
        default="",
        help="Path of the readiness record. Empty: `ready.json` in the directory of the PID file.",
    ),
    _value(
        "on_drift",
        "--on-drift",
        "TOOLKIT_ON_DRIFT ON_DRIFT",
        default="repair",
        choices=tuple(OnDrift),
        help="What the agent does when the node is no longer in sync. repair: apply the"
        " configuration again; report: log the difference; ignore: do not check.",
    ),
    Setting(
        name="check_interval",
        flags=("--check-interval",),
        variables=("TOOLKIT_CHECK_INTERVAL",),
        kind=Kind.SECONDS,
        default=300.0,
        help="How often the agent checks the node when no watched file has changed, in seconds.",
    ),
    _value(
        "on_exit",
        "--on-exit",
        "TOOLKIT_ON_EXIT ON_EXIT",
        default="auto",
        choices=tuple(OnExit),
        help="What the agent does on SIGTERM. keep: leave the node as it is; revert: uninstall;"
        " auto: uninstall only if the API server reports that the pod's DaemonSet is deleted or"
        " being deleted.",
    ),
    Setting(
        name="grace_period",
        flags=("--grace-period",),
        variables=("TOOLKIT_GRACE_PERIOD",),
        kind=Kind.SECONDS,
        default=30.0,
        help="How long the agent may take to stop, in seconds. Set it to the pod's"
        " terminationGracePeriodSeconds.",
    ),
    _value(
        "daemonset",
        "--daemonset",
        "TOOLKIT_DAEMONSET",
        default="",
        help="Name of the DaemonSet that --on-exit=auto looks up. Empty: the owner of the pod that"
        " POD_NAME or HOSTNAME names.",
    ),
    _value(
        "node_label",
        "--node-label",
        "TOOLKIT_NODE_LABEL",
        default="",
        help="Label that the agent sets to `true` on its Node object while the node is ready, and"
        " removes before an uninstall: PREFIX/NAME, for example nvidia-toolkit.io/ready. NODE_NAME"
        " must name the node. Empty: none.",
    ),
    _value(
        "node_condition",
        "--node-condition",
        "TOOLKIT_NODE_CONDITION",
        default="",
        help="Type of the condition by which the agent reports in its Node object whether the node"
        " is ready, and why not: PREFIX/NAME, for example nvidia-toolkit.io/Ready. Empty: none.",
    ),
    _flag(
        "events",
        "--events",
        "TOOLKIT_EVENTS",
        help="Send Kubernetes Events about the node and the pod: set up, drift, rolled back,"
        " restart budget used up, driver gone.",
    ),
    _value(
        "metrics_address",
        "--metrics-address",
        "TOOLKIT_METRICS_ADDRESS",
        default="",
        help="The address that serves /healthz, /readyz and /metrics, as HOST:PORT. `:PORT` listens"
        " on 127.0.0.1. Empty: disabled.",
    ),
    _value(
        "log_format",
        "--log-format",
        "TOOLKIT_LOG_FORMAT",
        default="auto",
        choices=tuple(LogFormat),
        help="Format of the log on stderr. auto: JSON for the agent when stderr is not a terminal,"
        " otherwise text.",
    ),
    _value(
        "env_file",
        "--env-file",
        "TOOLKIT_ENV_FILE",
        default="",
        help="Path of a file of NAME=value lines. They take precedence over environment variables."
        " The agent reads the file again for every sync.",
    ),
    _value(
        "runtime_class",
        "--runtime-class --runtime-name --nvidia-runtime-name",
        "NVIDIA_RUNTIME_NAME CONTAINERD_RUNTIME_CLASS DOCKER_RUNTIME_NAME",
        default="nvidia",
        empty=None,
        help="Name of the main handler. The handlers nvidia-cdi and nvidia-legacy are added as"
        " well. If it is one of those two, the main handler is nvidia, and --set-as-default makes"
        " the named one the default. The name of another handler of the node is refused.",
        is_common=True,
    ),
    _flag(
        "set_as_default",
        "--set-as-default",
        "NVIDIA_RUNTIME_SET_AS_DEFAULT CONTAINERD_SET_AS_DEFAULT DOCKER_SET_AS_DEFAULT",
        default=True,
        help="Make the handler that --runtime-class names the runtime's default.",
        is_common=True,
    ),
    _flag(
        "enable_cdi_in_runtime",
        "--enable-cdi-in-runtime",
        "RUNTIME_ENABLE_CDI",
        help="Enable CDI in the runtime. If it is not set, the value of --cdi-enabled is used.",
    ),
    _flag(
        "enable_cri",
        "--enable-cri",
        "CONTAINERD_ENABLE_CRI",
        help="Remove the CRI plugin from containerd's `disabled_plugins`. Docker's containerd"
        " package puts it there.",
    ),
    _value(
        "runtime_type",
        "--runtime-type",
        "CONTAINERD_RUNTIME_TYPE",
        default="io.containerd.runc.v2",
        help="The `runtime_type` of handlers that inherit none.",
        empty=None,
        only="containerd",
    ),
    _flag(
        "use_legacy_config",
        "--use-legacy-config",
        "CONTAINERD_USE_LEGACY_CONFIG",
        help="Write a missing or empty containerd config in version 1, and set the default handler"
        " in its `default_runtime` table.",
        only="containerd",
    ),
    Setting(
        name="config_source",
        flags=("--config-source", "--config-sources"),
        variables=("RUNTIME_CONFIG_SOURCES", "RUNTIME_CONFIG_SOURCE"),
        kind=Kind.LIST,
        default=("command", "file"),
        help="What validates a change. `command`: the runtime's executable on the node; `file`: the"
        " configuration files only; both: the executable, or the files if it is not found. The new"
        " content is always derived from the files. `file=PATH` is accepted if PATH is the main"
        " configuration file.",
        empty=None,
    ),
    _value(
        "host_root",
        "--host-root",
        "HOST_ROOT_MOUNT",
        default="/host",
        help="Path where the node's root file system is mounted. If the directory is missing or"
        " empty, `/` is used.",
        empty="/",
    ),
    _value(
        "toolkit_install_dir",
        "--toolkit-install-dir --root",
        "TOOLKIT_INSTALL_DIR ROOT",
        default="/usr/local/nvidia",
        help="Directory on the node that the toolkit is installed into, in its subdirectory"
        " `toolkit/`.",
        empty=None,
        is_common=True,
    ),
    _value(
        "toolkit_source_root",
        "--toolkit-source-root",
        "TOOLKIT_SOURCE_ROOT",
        default="",
        help="Directory that the toolkit's files are copied from. Empty: `/artifacts/deb` or"
        " `/artifacts/rpm`, depending on the package type.",
        is_common=True,
    ),
    _value(
        "toolkit_package_type",
        "--toolkit-package-type",
        "TOOLKIT_PACKAGE_TYPE",
        default="auto",
        choices=("auto", "deb", "rpm"),
        help="Which packages to install the files of. auto: rpm if the node has rpm, otherwise"
        " deb.",
        empty="auto",
    ),
    _value(
        "pid_file",
        "--pid-file",
        "TOOLKIT_PID_FILE PID_FILE",
        default="/run/nvidia/toolkit/toolkit.pid",
        help="Path of the PID and lock file. Its name must be toolkit.pid.",
    ),
    _flag(
        "no_daemon",
        "--no-daemon -n",
        "NO_DAEMON",
        help="Exit after the installation instead of running as an agent.",
        is_common=True,
    ),
    _flag(
        "no_runtime_config",
        "--no-runtime-config",
        "NO_RUNTIME_CONFIG",
        help="Install the toolkit's files only; do not configure or restart the runtime.",
    ),
    _flag(
        "no_install",
        "--no-install",
        "NO_INSTALL",
        help="Configure the runtime only; do not copy the toolkit's files. The programs that the"
        " handlers name must already be on the node.",
    ),
    _value(
        "toolkit_bin_dir",
        "--toolkit-bin-dir",
        "TOOLKIT_BIN_DIR",
        default="",
        help="With --no-install: the directory on the node that contains nvidia-container-runtime"
        " and, for --cdi-enabled, nvidia-ctk and nvidia-cdi-hook; for example /usr/bin. Empty:"
        " `toolkit/` below the install directory.",
    ),
    _flag("debug", "--debug", "TOOLKIT_DEBUG", help="Write debug messages to stderr."),
    _value(
        "driver_root",
        "--driver-root --nvidia-driver-root",
        "NVIDIA_DRIVER_ROOT DRIVER_ROOT",
        default="/run/nvidia/driver",
        help="Root directory of the driver on the node.",
    ),
    _value(
        "driver_root_ctr_path",
        "--driver-root-ctr-path",
        "DRIVER_ROOT_CTR_PATH",
        default="/run/nvidia/driver",
        help="Path of the driver root in this container.",
    ),
    _value(
        "dev_root",
        "--dev-root",
        "NVIDIA_DEV_ROOT DEV_ROOT",
        default="",
        help="Root directory of the device nodes on the node. Empty: the driver root.",
    ),
    _value(
        "dev_root_ctr_path",
        "--dev-root-ctr-path",
        "DEV_ROOT_CTR_PATH",
        default="",
        help="Path of the device root in this container. Empty: the value of"
        " --driver-root-ctr-path.",
    ),
    _value(
        "nvidia_container_runtime_debug",
        "--nvidia-container-runtime.debug --nvidia-container-runtime-debug",
        "NVIDIA_CONTAINER_RUNTIME_DEBUG",
        help="Path of the log file of the NVIDIA container runtime.",
    ),
    _value(
        "nvidia_container_runtime_log_level",
        "--nvidia-container-runtime.log-level --nvidia-container-runtime-debug-log-level",
        "NVIDIA_CONTAINER_RUNTIME_LOG_LEVEL",
        help="Log level of the NVIDIA container runtime.",
    ),
    _value(
        "nvidia_container_runtime_mode",
        "--nvidia-container-runtime.mode --nvidia-container-runtime-mode",
        "NVIDIA_CONTAINER_RUNTIME_MODE",
        help="Mode of the NVIDIA container runtime.",
    ),
    _value(
        "cdi_default_kind",
        "--nvidia-container-runtime.modes.cdi.default-kind",
        "NVIDIA_CONTAINER_RUNTIME_MODES_CDI_DEFAULT_KIND",
        help="The CDI kind of devices that are requested without one.",
    ),
    Setting(
        name="cdi_annotation_prefixes",
        flags=(
            "--nvidia-container-runtime.modes.cdi.annotation-prefixes",
            "--nvidia-container-runtime-modes.cdi.annotation-prefixes",
        ),
        variables=("NVIDIA_CONTAINER_RUNTIME_MODES_CDI_ANNOTATION_PREFIXES",),
        kind=Kind.LIST,
        help="Prefixes of annotations that request CDI devices.",
    ),
    Setting(
        name="nvidia_container_runtime_runtimes",
        flags=("--nvidia-container-runtime.runtimes",),
        variables=("NVIDIA_CONTAINER_RUNTIME_RUNTIMES",),
        kind=Kind.LIST,
        help="The low-level runtimes to use. Empty: those of the node's runtime, then runc and"
        " crun.",
    ),
    _flag(
        "hook_skip_mode_detection",
        "--nvidia-container-runtime-hook.skip-mode-detection",
        "NVIDIA_CONTAINER_RUNTIME_HOOK_SKIP_MODE_DETECTION",
        default=True,
        help="Make the NVIDIA container runtime hook skip the detection of its mode.",
    ),
    _value(
        "nvidia_container_cli_debug",
        "--nvidia-container-cli.debug --nvidia-container-cli-debug",
        "NVIDIA_CONTAINER_CLI_DEBUG",
        help="Path of the log file of nvidia-container-cli.",
    ),
    _flag(
        "accept_envvar_when_unprivileged",
        "--accept-nvidia-visible-devices-envvar-when-unprivileged",
        "ACCEPT_NVIDIA_VISIBLE_DEVICES_ENVVAR_WHEN_UNPRIVILEGED",
        default=True,
        help="Allow unprivileged containers to request devices with the variable"
        " NVIDIA_VISIBLE_DEVICES.",
    ),
    _flag(
        "accept_volume_mounts",
        "--accept-nvidia-visible-devices-as-volume-mounts",
        "ACCEPT_NVIDIA_VISIBLE_DEVICES_AS_VOLUME_MOUNTS",
        help="Allow containers to request devices with volume mounts.",
    ),
    _flag(
        "require_driver",
        "--require-driver",
        "REQUIRE_DRIVER",
        help="Refuse containers that request GPUs while the driver is not loaded. Without this"
        " option they start without GPUs.",
    ),
    _flag(
        "readiness_requires_driver",
        "--readiness-requires-driver",
        "READINESS_REQUIRES_DRIVER",
        help="Report the node as ready only while the driver is loaded: in `status`, the readiness"
        " record and /readyz. Without this option readiness is that of the runtime and the"
        " toolkit.",
    ),
    _flag(
        "cdi_enabled",
        "--cdi-enabled --enable-cdi",
        "CDI_ENABLED ENABLE_CDI",
        help="Generate the management CDI specification, and regenerate it when the driver"
        " changes.",
        is_common=True,
    ),
    _value(
        "cdi_output_dir",
        "--cdi-output-dir",
        "CDI_OUTPUT_DIR",
        default="/var/run/cdi",
        help="Directory that the CDI specification is written to. Empty: do not write it.",
    ),
    _value(
        "cdi_kind",
        "--cdi-kind",
        "CDI_KIND",
        default="management.nvidia.com/gpu",
        help="CDI kind of the devices in the management CDI specification.",
    ),
    Setting(
        name="create_device_nodes",
        flags=("--create-device-nodes",),
        variables=("CREATE_DEVICE_NODES",),
        kind=Kind.LIST,
        default=("control",),
        help="The device nodes to create together with the CDI specification: control or none.",
    ),
    _flag(
        "enable_nri_plugin",
        "--enable-nri-plugin -p",
        "ENABLE_NRI_PLUGIN",
        help="Run the NRI plugin, which adds the CDI devices that pods request by annotation. The"
        " runtime is not configured then: there are no handlers and no restart. Has no effect with"
        " `--no-daemon`.",
    ),
    _value(
        "nri_plugin_index",
        "--nri-plugin-index",
        "NRI_PLUGIN_INDEX",
        default="10",
        help="Index of the NRI plugin, 0 to 99. Has no effect without the plugin.",
        empty=None,
    ),
    _value(
        "nri_socket",
        "--nri-socket",
        "NRI_SOCKET",
        default="/var/run/nri/nri.sock",
        help="Path of the NRI socket. Has no effect without the plugin.",
        empty=None,
    ),
    _value(
        "nri_namespace",
        "--nri-namespace",
        "NRI_NAMESPACE",
        default="",
        help="Namespace of the NRI plugin, whose pods may request management CDI devices. Required"
        " with the plugin, without effect else.",
    ),
    Setting(
        name="nri_namespaces",
        flags=("--nri-management-cdi-device-namespaces",),
        variables=("NRI_MANAGEMENT_CDI_DEVICE_NAMESPACES",),
        kind=Kind.LIST,
        help="More namespaces whose pods may request management CDI devices. Has no effect without"
        " the plugin.",
    ),
    _value(
        "runtime_config_override",
        "--runtime-config-override",
        "RUNTIME_CONFIG_OVERRIDE CONTAINERD_RUNTIME_CONFIG_OVERRIDE",
        default="{}",
        help="Keys of containerd's handlers as a JSON object, merged over the inherited keys, for"
        " example"
        ' `{"options": {"SystemdCgroup": true}}`.',
        empty="{}",
        only="containerd",
    ),
    _value(
        "hooks_dir",
        "--hooks-dir",
        "CRIO_HOOKS_DIR",
        default="/usr/share/containers/oci/hooks.d",
        help="Directory that the OCI hook file is written to.",
        empty=None,
        only="crio",
    ),
    _value(
        "hook_filename",
        "--hook-filename",
        "CRIO_HOOK_FILENAME",
        default="oci-nvidia-hook.json",
        help="Name of the OCI hook file.",
        empty=None,
        only="crio",
    ),
    _value(
        "config_mode",
        "--config-mode",
        "CRIO_CONFIG_MODE",
        default="config",
        choices=("config", "hook"),
        help="What to configure in CRI-O. config: handlers; hook: an OCI hook.",
        only="crio",
    ),
    _flag(
        "ignore_errors",
        "--ignore-errors",
        help="Continue the installation after errors.",
        pending="a partial installation is not supported; remove the option",
    ),
    Setting(
        name="opt_in_features",
        flags=("--opt-in-features",),
        variables=("NVIDIA_CONTAINER_TOOLKIT_OPT_IN_FEATURES",),
        kind=Kind.LIST,
        help="Opt-in features of the toolkit to enable.",
    ),
    Setting(
        name="toolkit_config",
        flags=("--toolkit-config",),
        variables=("TOOLKIT_CONFIG",),
        kind=Kind.LIST,
        help="Any other key of the toolkit's config.toml, as KEY=VALUE, for example"
        " `nvidia-container-cli.no-cgroups=true,disable-require=true`. The keys are those that the"
        " toolkit to install knows; a key that is left out later gets its default again.",
    ),
    _flag(
        "force",
        "--force",
        help="With revert: remove handlers even if containers still use them. With run and"
        " --restart-mode signal: send SIGHUP even if it ends running containers.",
    ),
)

GROUPS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    (
        "Selecting the runtime",
        (
            "runtime", "allow_non_kubelet_runtime", "socket", "config", "drop_in_config",
            "drop_in_config_host_path", "executable_path", "config_source", "host_root",
        ),
    ),
    (
        "Configuration of the runtime",
        (
            "set_as_default", "runtime_class", "enable_cdi_in_runtime", "enable_cri",
            "runtime_type", "runtime_config_override", "use_legacy_config", "config_mode",
            "hooks_dir", "hook_filename",
        ),
    ),
    (
        "Reload, restart and verification",
        (
            "restart_mode", "reload_timeout", "verify", "ignore_unhealthy", "restart_budget",
            "restart_window", "force",
        ),
    ),
    (
        "The agent",
        (
            "no_daemon", "on_drift", "check_interval", "on_exit", "grace_period", "daemonset",
            "node_label", "node_condition", "events", "metrics_address", "readiness_file",
            "pid_file",
        ),
    ),
    (
        "The toolkit's files",
        (
            "toolkit_source_root", "toolkit_package_type", "toolkit_install_dir",
            "no_runtime_config", "no_install", "toolkit_bin_dir", "ignore_errors",
        ),
    ),
    (
        "The driver and CDI",
        (
            "require_driver", "readiness_requires_driver", "driver_root", "driver_root_ctr_path",
            "dev_root", "dev_root_ctr_path", "cdi_enabled", "cdi_kind", "cdi_output_dir",
            "create_device_nodes",
        ),
    ),
    (
        "The toolkit's own configuration",
        (
            "nvidia_container_runtime_mode", "nvidia_container_runtime_runtimes",
            "nvidia_container_runtime_log_level", "nvidia_container_runtime_debug",
            "nvidia_container_cli_debug", "cdi_default_kind", "cdi_annotation_prefixes",
            "accept_envvar_when_unprivileged", "accept_volume_mounts", "hook_skip_mode_detection",
            "opt_in_features", "toolkit_config",
        ),
    ),
    (
        "The NRI plugin",
        ("enable_nri_plugin", "nri_plugin_index", "nri_socket", "nri_namespace", "nri_namespaces"),
    ),
    ("Logging and environment file", ("log_format", "debug", "env_file")),
)  # fmt: skip
"""Every setting once, grouped by topic, with the heading of each group."""


def grouped() -> tuple[tuple[str, tuple[Setting, ...]], ...]:
    """Return the rows under their headings, in the order of the documentation."""
    rows = {row.name: row for row in SETTINGS}
    return tuple((title, tuple(rows[name] for name in names)) for title, names in GROUPS)
