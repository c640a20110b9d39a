"""The keys of `daemon.json` that this program sets, and the check of their types."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from runtimes.errors import ConfigError
from runtimes.formats import json_editor
from runtimes.model import (
    EMPTY,
    Desired,
    Observation,
    Tree,
)

RUNTIMES: Final = "runtimes"
DEFAULT: Final = "default-runtime"
BUILT_IN: Final = "runc"
# The prefix of containerd shims, which dockerd lists among its runtimes regardless of its file.
# dockerd 20.10 drops one of them on SIGHUP.
_ALIAS: Final = "io.containerd."


def named(handlers: Iterable[str]) -> frozenset[str]:
    """Return the handlers without containerd's shims."""
    return frozenset(handler for handler in handlers if not handler.startswith(_ALIAS))


def runtimes(tree: Tree) -> Tree:
    """Return the runtimes in a file; empty if there are none or if they are null."""
    entries = tree.get(RUNTIMES)
    return EMPTY if entries is None else entries


def refuse_wrong_types(desired: Desired, tree: Tree) -> None:
    """Raise ConfigError if a key that we set, or its parent, has a type that dockerd refuses.

    It accepts null as if the key were absent (seen with 20.10, 26.1 and 28.5).
    """
    for key in (RUNTIMES, "features"):
        if tree.get(key) is not None and not isinstance(tree[key], Mapping):
            raise ConfigError(
                desired.config,
                f"its `{key}` is not an object but {json.dumps(tree[key])}",
                hint="dockerd would refuse it too; repair or remove that key",
            )
    if not isinstance(tree.get(DEFAULT), str | None):
        raise ConfigError(
            desired.config,
            f"its `{DEFAULT}` is not a string but {json.dumps(tree[DEFAULT])}",
            hint="dockerd would refuse it too; repair or remove that key",
        )
    for handler, entry in runtimes(tree).items():
        if entry is not None and not isinstance(entry, Mapping):
            raise ConfigError(
                desired.config,
                f"its runtime {handler} is not an object but {json.dumps(entry)}",
                hint="dockerd would refuse it too; repair or remove that entry",
            )


def refuse_null_runtimes(desired: Desired, observation: Observation) -> None:
    """Raise ConfigError if a runtime in the file is null: `dockerd --validate` accepts it.

    But such a dockerd (26.1, 28.5) neither starts with it nor reloads it; 20.10 does.
    """
    tree = json_editor.tree(observation.data(desired.config) or b"", desired.config)
    if empty := [handler for handler, entry in runtimes(tree).items() if entry is None]:
        raise ConfigError(
            desired.config,
            f"as it is, it keeps dockerd from starting: its runtime {empty[0]} is null",
            hint="nothing was written; remove that entry",
        )


# Flags whose option has another name in the file. Most flags that may be given several times have
# it in the singular.
_OPTIONS: Final = {
    "-H": "hosts", "-D": "debug", "-l": "log-level", "-p": "pidfile", "-s": "storage-driver",
    "-G": "group", "-b": "bridge", "-g": "graph",
    "--host": "hosts", "--insecure-registry": "insecure-registries",
    **{
        f"--{name}": f"{name}s"
        for name in (
            "authorization-plugin", "cdi-spec-dir", "cluster-store-opt", "default-address-pool",
            "default-network-opt", "default-ulimit", "dns-opt", "exec-opt", "feature", "label",
            "log-opt", "node-generic-resource", "registry-mirror", "storage-opt",
        )
    },
}  # fmt: skip


def clashes(argv: Sequence[str], tree: Tree) -> list[tuple[str, str]]:
    """Return the options that are both in a file and on a command line, each with its flag.

    dockerd does not start with them, not even if both have the same value (seen with 20.10, 26.1
    and 28.5). Only `runtimes` may be in both. The file's `proxies` are compared one by one.
    """
    proxies = tree.get("proxies")
    keys = {*tree, *(proxies if isinstance(proxies, Mapping) else ())} - {RUNTIMES}
    result = []
    for argument in argv[1:]:
        flag = argument.split("=", 1)[0]
        if flag.startswith("-") and (key := _OPTIONS.get(flag, flag.lstrip("-"))) in keys:
            result.append((key, flag))
    return list(dict.fromkeys(result))


def refuse_clashes(desired: Desired, observation: Observation) -> None:
    """Raise ConfigError if dockerd would not start with this file, because of its command line."""
    tree = json_editor.tree(observation.data(desired.config) or b"", desired.config)
    found = clashes(observation.argv, tree)
    if not found:
        return
    options = ", ".join(f"`{key}` (also {flag})" for key, flag in found)
    raise ConfigError(
        desired.config,
        "as it is, it keeps dockerd from starting: the running dockerd has options of it as flags"
        f" as well: {options}",
        hint=(
            "nothing was written; remove each of them from the file or from the unit's command line"
        ),
    )


def last_line(text: str) -> str:
    """Return the last line of dockerd's error output that is not blank."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no error message"
