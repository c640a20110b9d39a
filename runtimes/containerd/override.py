"""Check `--runtime-config-override` and the options of our handlers against containerd's types.

`config dump` only knows that `options` is a table: what is in it is read by the CRI plugin and by
the shim when a pod starts. A value of another type ends every start of a pod, and a key with a
typing error has no effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from runtimes.edits import dotted, value_text
from runtimes.errors import UnsupportedSetup
from runtimes.model import EMPTY, Tree

OPTION: Final = "--runtime-config-override"
_HINT: Final = f"correct {OPTION} (RUNTIME_CONFIG_OVERRIDE)"
_INHERITED: Final = (
    "correct it in the configuration of containerd: with it no pod of that handler can start"
)
_RUNC: Final = "io.containerd.runc.v"
_SNAPSHOTTERS: Final = "io.containerd.snapshotter.v1."

# The options of the shims io.containerd.runc.v1 and v2 (api/types/runc/options/oci.proto, 1.6 to
# 2.3), in the spelling of containerd's documentation. Their names are compared without case.
_RUNC_OPTIONS: Final[Mapping[str, type]] = {
    "NoPivotRoot": bool,
    "NoNewKeyring": bool,
    "ShimCgroup": str,
    "IoUid": int,
    "IoGid": int,
    "BinaryName": str,
    "Root": str,
    "CriuPath": str,
    "SystemdCgroup": bool,
    "CriuImagePath": str,
    "CriuWorkPath": str,
    "TaskApiAddress": str,
    "TaskApiVersion": int,
}
# The keys of a handler (internal/cri/config, 1.6 to 2.3). A binary that does not know one forgets
# it, which its dump shows.
_HANDLER_KEYS: Final[Mapping[str, type]] = {
    "runtime_type": str,
    "runtime_path": str,
    "runtime_engine": str,
    "runtime_root": str,
    "pod_annotations": list,
    "container_annotations": list,
    "privileged_without_host_devices": bool,
    "privileged_without_host_devices_all_devices_allowed": bool,
    "cgroup_writable": bool,
    "base_runtime_spec": str,
    "cni_conf_dir": str,
    "cni_max_conf_num": int,
    "snapshotter": str,
    "sandboxer": str,
    "sandbox_mode": str,
    "io_type": str,
}
_TYPES: Final[Mapping[type, str]] = {
    bool: "true or false",
    int: "a whole number from 0 to 4294967295",
    str: "a string",
    list: "a list of strings",
}
_LARGEST: Final = (1 << 32) - 1


def refuse_unusable(override: Tree, handler: Tree, *, source: str, dump: Tree | None) -> None:
    """Raise UnsupportedSetup if no pod can start with a handler, or an override key has no effect.

    `handler` is the table of the handler with the override, `source` the handler that it inherits
    from, and `dump` the effective configuration, which names the snapshotters; None if it is
    unknown.
    """
    problems = [
        *_of_handler(override),
        *_of_options(override, handler, source),
        *_of_snapshotter(override, dump),
    ]
    if problems:
        raise UnsupportedSetup(
            ", and ".join(problems), hint=_HINT if _names_override(problems) else _INHERITED
        )


def _names_override(problems: list[str]) -> bool:
    return any(problem.startswith(OPTION) for problem in problems)


def _of_handler(override: Tree) -> Iterator[str]:
    """Yield the keys of the override, other than options, that have the wrong type."""
    for key, item in override.items():
        expected = _HANDLER_KEYS.get(key.lower())
        if expected is not None and not _is_of(item, expected):
            yield (
                f"{OPTION}: {dotted((key,))} must be {_TYPES[expected]}, but is {value_text(item)}"
            )


def _of_options(override: Tree, handler: Tree, source: str) -> Iterator[str]:
    """Yield the options of a wrong type, and those of the override that the shim does not know."""
    options = handler.get("options")
    if not isinstance(options, Mapping) or not str(handler.get("runtime_type", "")).startswith(
        _RUNC
    ):
        return  # The options of other shims are not known.
    known = {name.lower(): name for name in _RUNC_OPTIONS}
    given = {key.lower() for key in _table(override, "options")}
    for key, item in options.items():
        spelling, is_given = known.get(key.lower()), key.lower() in given
        where = (
            OPTION
            if is_given
            else f"the handler {source}, whose options the toolkit's handlers inherit"
        )
        is_template = isinstance(item, str) and "${" in item
        if spelling is not None and not is_template:
            expected = _RUNC_OPTIONS[spelling]
            if not _is_of(item, expected):
                name = dotted(("options", key))
                yield f"{where}: {name} must be {_TYPES[expected]}, but is {value_text(item)}"
        elif is_given:
            from difflib import get_close_matches  # noqa: PLC0415  # Only needed for this message.

            close = get_close_matches(key.lower(), known, n=1)
            meant = f", did you mean {known[close[0]]}?" if close else ""
            yield f"{where}: {dotted(('options', key))} is not an option of runc's shim{meant}"


def _is_of(item: Any, expected: type) -> bool:
    if expected is int:
        return type(item) is int and 0 <= item <= _LARGEST
    if expected is list:
        return isinstance(item, list) and all(isinstance(each, str) for each in item)
    return type(item) is expected


def _of_snapshotter(override: Tree, dump: Tree | None) -> Iterator[str]:
    """Yield a message if the override names a snapshotter that containerd does not have."""
    name = next((item for key, item in override.items() if key.lower() == "snapshotter"), "")
    if not isinstance(name, str) or not name or dump is None:
        return
    known = {
        plugin.removeprefix(_SNAPSHOTTERS)
        for plugin in _table(dump, "plugins")
        if plugin.startswith(_SNAPSHOTTERS)
    }
    known |= {
        proxy
        for proxy, table in _table(dump, "proxy_plugins").items()
        if isinstance(table, Mapping) and table.get("type") == "snapshot"
    }
    if known and name not in known:
        yield (
            f"{OPTION}: containerd has no snapshotter {value_text(name)}, only"
            f" {', '.join(sorted(known))} (others are added in `proxy_plugins`)"
        )


def _table(holder: Tree, name: str) -> Tree:
    result = next((item for key, item in holder.items() if key.lower() == name), EMPTY)
    return result if isinstance(result, Mapping) else EMPTY
