"""The names and types of the settings. Generated from options.py: run `make generate`."""

from __future__ import annotations


class Values:
    """The value of every setting as an attribute. A setting without a value is empty."""

    runtime: str
    allow_non_kubelet_runtime: bool
    config: str
    drop_in_config: str
    drop_in_config_host_path: str
    executable_path: str
    socket: str
    restart_mode: str
    reload_timeout: float
    verify: str
    ignore_unhealthy: bool
    restart_budget: int
    restart_window: float
    readiness_file: str
    on_drift: str
    check_interval: float
    on_exit: str
    grace_period: float
    daemonset: str
    node_label: str
    node_condition: str
    events: bool
    metrics_address: str
    log_format: str
    env_file: str
    runtime_class: str
    set_as_default: bool
    enable_cdi_in_runtime: bool
    enable_cri: bool
    runtime_type: str
    use_legacy_config: bool
    config_source: tuple[str, ...]
    host_root: str
    toolkit_install_dir: str
    toolkit_source_root: str
    toolkit_package_type: str
    pid_file: str
    no_daemon: bool
    no_runtime_config: bool
    no_install: bool
    toolkit_bin_dir: str
    debug: bool
    driver_root: str
    driver_root_ctr_path: str
    dev_root: str
    dev_root_ctr_path: str
    nvidia_container_runtime_debug: str
    nvidia_container_runtime_log_level: str
    nvidia_container_runtime_mode: str
    cdi_default_kind: str
    cdi_annotation_prefixes: tuple[str, ...]
    nvidia_container_runtime_runtimes: tuple[str, ...]
    hook_skip_mode_detection: bool
    nvidia_container_cli_debug: str
    accept_envvar_when_unprivileged: bool
    accept_volume_mounts: bool
    require_driver: bool
    readiness_requires_driver: bool
    cdi_enabled: bool
    cdi_output_dir: str
    cdi_kind: str
    create_device_nodes: tuple[str, ...]
    enable_nri_plugin: bool
    nri_plugin_index: str
    nri_socket: str
    nri_namespace: str
    nri_namespaces: tuple[str, ...]
    runtime_config_override: str
    hooks_dir: str
    hook_filename: str
    config_mode: str
    ignore_errors: bool
    opt_in_features: tuple[str, ...]
    toolkit_config: tuple[str, ...]
    force: bool
