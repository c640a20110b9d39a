"""The configuration of the NVIDIA Container Toolkit's programs, `config.toml`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from runtimes import edits
from runtimes.edits import DesiredKey
from runtimes.errors import ConfigError
from runtimes.formats import toml_editor
from runtimes.model import ABSENT, Key
from toolkit.errors import NodeConfigError
from toolkit.node import trust
from toolkit.settings.resolve import Settings

_PREFIXES: Final[Key] = ("nvidia-container-runtime", "modes", "cdi", "annotation-prefixes")


CONFIG: Final = ".config/nvidia-container-runtime/config.toml"
CHOSEN: Final = ".config/nvidia-container-runtime/toolkit-config.json"
"""The keys that an installed version has by `--toolkit-config`, to reset those left out."""
_LARGEST: Final = 1 << 20
# The defaults of the toolkit's programs, as the upstream installer writes them.
DEFAULTS: Final[Mapping[Key, Any]] = {
    ("accept-nvidia-visible-devices-as-volume-mounts",): False,
    ("accept-nvidia-visible-devices-envvar-when-unprivileged",): True,
    ("disable-require",): False,
    ("supported-driver-capabilities",): "compat32,compute,display,graphics,ngx,utility,video",
    ("swarm-resource",): "",
    ("nvidia-container-cli", "debug"): "",
    ("nvidia-container-cli", "environment"): [],
    ("nvidia-container-cli", "ldcache"): "",
    ("nvidia-container-cli", "load-kmods"): True,
    ("nvidia-container-cli", "no-cgroups"): False,
    ("nvidia-container-cli", "user"): "",
    ("nvidia-container-runtime", "debug"): "/dev/null",
    ("nvidia-container-runtime", "log-level"): "info",
    ("nvidia-container-runtime", "mode"): "auto",
    ("nvidia-container-runtime", "modes", "cdi", "annotation-prefixes"): ["cdi.k8s.io/"],
    ("nvidia-container-runtime", "modes", "cdi", "default-kind"): "nvidia.com/gpu",
    ("nvidia-container-runtime", "modes", "cdi", "spec-dirs"): ["/etc/cdi", "/var/run/cdi"],
    (
        "nvidia-container-runtime",
        "modes",
        "csv",
        "mount-spec-path",
    ): "/etc/nvidia-container-runtime/host-files-for-container.d",
    ("nvidia-container-runtime", "modes", "legacy", "cuda-compat-mode"): "ldconfig",
}


def low_level_runtimes(present: bytes | None, path: str) -> tuple[str, ...]:
    """Return the low-level runtimes that a config.toml names. Raises NodeConfigError if invalid."""
    try:
        section = toml_editor.tree(present or b"", path).get("nvidia-container-runtime")
    except ConfigError as error:
        raise NodeConfigError(str(error), hint=error.hint) from error
    names = section.get("runtimes") if isinstance(section, dict) else None
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def enabled_features(present: bytes | None, path: str) -> tuple[str, ...]:
    """Return the features that a config.toml enables. Raises NodeConfigError if it is invalid."""
    try:
        features = toml_editor.tree(present or b"", path).get("features")
    except ConfigError as error:
        raise NodeConfigError(str(error), hint=error.hint) from error
    return (
        tuple(name for name, on in features.items() if on is True)
        if isinstance(features, dict)
        else ()
    )


def record(keys: Iterable[Key]) -> bytes:
    """Return the content of the file CHOSEN."""
    return json.dumps(sorted(map(list, keys))).encode() + b"\n"


def reset(toolkit: Path, *, without: Iterable[Key]) -> dict[Key, Any]:
    """Return the default of every key that `--toolkit-config` has set, `without` some.

    `toolkit` is the local path of the installed version. A key that has no default is removed. A
    list of keys that others control is ignored.
    """
    try:
        data = trust.read_own(toolkit / CHOSEN, _LARGEST)
        keys = {tuple(map(str, key)) for key in json.loads(data or b"[]")}
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
    return {key: DEFAULTS.get(key, ABSENT) for key in sorted(keys.difference(without))}


def resets(present: bytes | None, config: bytes, path: str) -> tuple[str, ...]:
    """Return a message for every key of the present configuration that gets another value.

    Secrets in the values are masked, since the messages are part of every plan.
    """
    before, after = toml_editor.tree(present or b"", path), toml_editor.tree(config, path)
    return tuple(
        f"{edits.dotted(key)} is {_shown(old, key)}, and would be "
        f"{'removed' if new is ABSENT else _shown(new, key)}"
        for key, old, new in edits.differences(before, after)
        if old is not ABSENT
    )


def _shown(value: Any, key: Key) -> str:
    from toolkit import redact  # noqa: PLC0415  # Only needed where a key changes.

    return redact.text(json.dumps(redact.value(value, key), default=str))


def configuration(present: bytes | None, path: str, asked: Mapping[Key, Any]) -> bytes:
    """Return the toolkit's config.toml: the keys `asked`, the `present` content, then the defaults.

    `path` is for error messages. Raises NodeConfigError if the present content is not valid.
    """
    try:
        tree = toml_editor.tree(present or b"", path)
        wants = [
            DesiredKey(path=path, key=key, new=item)
            for key, item in DEFAULTS.items()
            if edits.value(tree, key) is ABSENT and key not in asked
        ]
        wants += [DesiredKey(path=path, key=key, new=item) for key, item in asked.items()]
        # Top-level keys come first: behind a table header they would belong to that table.
        wants.sort(key=lambda want: len(want.key) > 1)
        change = edits.apply(toml_editor, path, present, wants)
    except ConfigError as error:
        raise NodeConfigError(str(error), hint=error.hint) from error
    result = (present or b"") if change is None else (change.after or b"")
    if toml_editor.needs_1_1(result):
        raise NodeConfigError(
            f"{path}: the toolkit's programs do not read TOML 1.1", hint=toml_editor.IN_1_0
        )
    return result


def desired_keys(settings: Settings, toolkit: str, low_level: tuple[str, ...]) -> dict[Key, Any]:
    """Return the keys of the toolkit's configuration that follow from the settings.

    `toolkit` is the node path of the toolkit's directory, `low_level` the node's low-level
    runtimes.
    """
    runtimes = settings.nvidia_container_runtime_runtimes or tuple(
        dict.fromkeys((*low_level, "runc", "crun"))
    )
    driver = settings.driver_root
    ldconfig = "sbin/ldconfig.real" if _has_real_ldconfig(settings) else "sbin/ldconfig"
    runtime: Key = ("nvidia-container-runtime",)
    asked: dict[Key, Any] = {
        ("accept-nvidia-visible-devices-as-volume-mounts",): settings.accept_volume_mounts,
        (
            "accept-nvidia-visible-devices-envvar-when-unprivileged",
        ): settings.accept_envvar_when_unprivileged,
        ("nvidia-container-cli", "ldconfig"): f"@{driver.rstrip('/')}/{ldconfig}",
        ("nvidia-container-cli", "path"): f"{toolkit}/nvidia-container-cli",
        ("nvidia-container-cli", "root"): driver,
        (*runtime, "runtimes"): list(runtimes),
        ("nvidia-container-runtime-hook", "path"): f"{toolkit}/nvidia-container-runtime-hook",
        ("nvidia-container-runtime-hook", "skip-mode-detection"): settings.hook_skip_mode_detection,
        ("nvidia-ctk", "path"): f"{toolkit}/nvidia-ctk",
    }
    optional: dict[str, Key] = {
        "nvidia_container_runtime_debug": (*runtime, "debug"),
        "nvidia_container_runtime_log_level": (*runtime, "log-level"),
        "nvidia_container_runtime_mode": (*runtime, "mode"),
        "cdi_default_kind": (*runtime, "modes", "cdi", "default-kind"),
        "nvidia_container_cli_debug": ("nvidia-container-cli", "debug"),
    }
    for name, key in optional.items():
        # A key is reset to its default when its option is no longer given.
        asked[key] = settings.values[name] or DEFAULTS[key]
    asked[_PREFIXES] = list(annotation_prefixes(settings))
    return asked


def annotation_prefixes(settings: Settings) -> tuple[str, ...]:
    """Return the prefixes of annotations that request CDI devices."""
    return settings.cdi_annotation_prefixes or tuple(DEFAULTS[_PREFIXES])


def _has_real_ldconfig(settings: Settings) -> bool:
    root = settings.driver_root_ctr_path
    return bool(root) and (Path(root) / "sbin/ldconfig.real").exists()
