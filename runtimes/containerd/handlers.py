"""The handlers that are there, what ours inherit from them, and where the default comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from runtimes.containerd.binary import cri_id
from runtimes.containerd.facts import Facts
from runtimes.containerd.imports import File
from runtimes.containerd.schema import BINARY, CRI, RUNC_TYPES, ZERO, section_of, solid, table_at
from runtimes.edits import overlaid, value
from runtimes.errors import NotUnderstood
from runtimes.model import ABSENT, EMPTY, Desired, Handler, Observation, Tree


class View:
    """The handlers as the files say, the default one, and what ours inherit."""

    def __init__(
        self,
        files: Sequence[File],
        facts: Facts,
        seen: Observation,
        desired: Desired,
        values: Mapping[str, str] = EMPTY,
    ) -> None:
        """Read the handlers; `values` are what the variables of a template stand for."""
        self.notes: list[str] = []
        self.facts = facts
        self._desired = desired
        self._values = values
        self.handlers: dict[str, Any] = {}
        self.paths = frozenset(file.path for file in files)
        default: Any = ABSENT
        for file in files:
            section = value(file.tree, ("plugins", cri_id(file, facts)))
            if not isinstance(section, Mapping):
                continue
            containerd = table_at(section, "containerd", file.path)
            if facts.merges:
                self.handlers = overlaid(self.handlers, table_at(containerd, "runtimes", file.path))
                default = containerd.get("default_runtime_name", default)
            else:
                self.handlers = dict(table_at(containerd, "runtimes", file.path))
                default = containerd.get("default_runtime_name", ABSENT)
        for handler, table in self.handlers.items():
            if not isinstance(table, Mapping):
                raise NotUnderstood(desired.config, f"its handler {handler} is not a table")
            table_at(table, "options", desired.config)
            if not isinstance(table.get("container_annotations", []), list):
                raise NotUnderstood(
                    desired.config, f"its handler {handler} has `container_annotations` that are not an array"
                )
        self.default = self._default(default, seen)

    def _default(self, default: Any, seen: Observation) -> str:
        remembered = [
            edit.old for owned in seen.owned for edit in owned.edits if edit.key[-1] == "default_runtime_name"
        ]
        for candidate in (default, *remembered):
            name = self._filled(candidate) if isinstance(candidate, str) else ""
            if name and not self._is_ours(name):
                return name
        return "runc"

    def _filled(self, text: str) -> str:
        """Return a text of a template as the daemon reads it."""
        for name, item in self._values.items():
            text = text.replace(f"${{{name}}}", item)
        return text

    def _is_ours(self, handler: str) -> bool:
        """Tell whether a handler does not count as a source: ours, and any that another installer made."""
        return handler in self._desired.names or handler.startswith("nvidia")

    def source(self) -> str | None:
        """Return the name of the handler that ours are a copy of; None: only the built-in one is left."""
        for candidate in dict.fromkeys((self.default, "runc", "crun")):
            table = self.handlers.get(candidate)
            if table is None or self._is_ours(candidate):
                continue
            kind = table.get("runtime_type") or self._desired.runtime_type
            if self._filled(str(kind)).startswith(RUNC_TYPES):
                return candidate
        return None

    def copy(self, handler: Handler, base: Tree, *, cri: str) -> dict[str, Any]:
        """Return a handler of ours: the base's options with only the binary changed."""
        table = {k: v for k, v in base.items() if k.lower() not in ("runtime_type", "options")}
        kind = base.get("runtime_type") or self._desired.runtime_type
        options = dict(base.get("options") or {})
        # The shim of runtime type v1 reads `Runtime`.
        binaries = [BINARY, "Runtime"] if cri == CRI[1] else [BINARY]
        lowered = {b.lower() for b in binaries}
        options = {k: v for k, v in options.items() if k.lower() not in lowered}
        options = {**dict.fromkeys(binaries, handler.binary), **options}
        if self._desired.annotations:
            known = list(table.get("container_annotations", ()))
            table["container_annotations"] = known + [a for a in self._desired.annotations if a not in known]
        return overridden({"runtime_type": kind, **table, "options": options}, self._desired.override)

    def base_for(self, handler: Handler, base: Tree, *, path: str, made: bool) -> Tree:
        """Return what a handler inherits: no zero value where somebody gave the same handler a real one.

        `path` is the file that it is written to, `made` tells that it is all ours there.
        """
        theirs = EMPTY if made and path in self.paths else self.handlers.get(handler.name, EMPTY)
        return {k: v for k, v in base.items() if v not in ZERO or theirs.get(k, v) in ZERO}

    def low_level(self) -> tuple[str, ...]:
        """Return the binaries that the handlers of others run, the default's first."""
        names = dict.fromkeys((self.source() or "runc", *self.handlers))
        found = []
        for handler in names:
            table = self.handlers.get(handler, EMPTY)
            if self._is_ours(handler):
                continue
            if not self._filled(str(table.get("runtime_type") or RUNC_TYPES[0])).startswith(RUNC_TYPES):
                continue
            options = table.get("options")
            named = [v for k, v in (options or EMPTY).items() if k.lower() in ("binaryname", "runtime")]
            binary = self._filled(next((str(v) for v in named if v), "runc"))
            # A wrapper cannot run what no path can be.
            if "\0" not in binary and not PurePosixPath(binary).name.startswith("nvidia-container-runtime"):
                found.append(binary)
        return tuple(dict.fromkeys(found))


def overridden(table: Tree, override: Tree) -> dict[str, Any]:
    """Return a handler with other keys over its own; containerd reads them whatever their case."""
    result = dict(table)
    for key, item in override.items():
        former = next((k for k in result if k.lower() == key.lower()), key)
        below = result.pop(former, None)
        both = isinstance(item, Mapping) and isinstance(below, Mapping)
        result[former if both else key] = overridden(below, item) if both else item
    return result


def built_in_runc(facts: Facts, desired: Desired) -> Tree:
    """Return the runc that containerd has when no file defines one, without what is zero anyway."""
    section = section_of(facts.effective) if facts.effective is not None else None
    table = value(section or EMPTY, ("containerd", "runtimes", "runc"))
    if not isinstance(table, Mapping):
        return {"runtime_type": desired.runtime_type}
    return solid(table) or {"runtime_type": desired.runtime_type}
