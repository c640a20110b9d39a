"""The handlers in the files, the default handler, and the settings that our handlers inherit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from runtimes.adapter import is_sandbox
from runtimes.containerd.binary import Facts, cri_id
from runtimes.containerd.imports import File
from runtimes.containerd.schema import (
    BINARY,
    CRI,
    RUNC_TYPES,
    ZERO,
    section_of,
    table_at,
    without_zero_values,
)
from runtimes.containerd.templates import filled_value
from runtimes.edits import overlaid, value
from runtimes.errors import ConfigError, NoCgroupDriver
from runtimes.model import ABSENT, EMPTY, Desired, Handler, Observation, Origin, Tree


class HandlersView:
    """The handlers that the files define and the default handler; builds our handlers from them."""

    def __init__(
        self,
        files: Sequence[File],
        facts: Facts,
        observation: Observation,
        desired: Desired,
        values: Mapping[str, str] = EMPTY,
    ) -> None:
        """Read the handlers of `files`, in load order; `values` are those of template variables.

        Raise ConfigError if a handler or a table around it has the wrong type.
        """
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
                raise ConfigError(desired.config, f"its handler {handler} is not a table")
            table_at(table, "options", desired.config)
            if not isinstance(table.get("container_annotations", []), list):
                raise ConfigError(
                    desired.config,
                    f"`container_annotations` of its handler {handler} is not an array",
                )
        self.default = self._default(default, observation)

    def _default(self, default: Any, observation: Observation) -> str:
        """Return the default handler without our change: current, recorded or built-in."""
        remembered = [
            edit.old
            for owned in observation.owned
            for edit in owned.edits
            if edit.key[-1] == "default_runtime_name"
        ]
        for candidate in (default, *remembered):
            name = self._filled(candidate) if isinstance(candidate, str) else ""
            if name and not self._is_ours(name):
                return name
        return "runc"

    def _filled(self, text: str) -> str:
        """Return a string of a template with its variables replaced."""
        return str(filled_value(text, self._values))

    def _is_ours(self, handler: str) -> bool:
        """Return whether a handler belongs to this or another NVIDIA installer and is no source."""
        return handler in self._desired.names or handler.startswith("nvidia")

    def source(self) -> str | None:
        """Return the name of the handler that our handlers copy; None for the built-in runc."""
        for candidate in dict.fromkeys((self.default, "runc", "crun")):
            table = self.handlers.get(candidate)
            if table is None or self._is_ours(candidate):
                continue
            kind = table.get("runtime_type") or self._desired.runtime_type
            if self._filled(str(kind)).startswith(RUNC_TYPES):
                return candidate
        return None

    def origin(self) -> Origin:
        """Return what our handlers are made from: the built-in runc if no file defines a source."""
        source = self.source()
        table = self.handlers[source] if source is not None else EMPTY
        return Origin(
            source=source or "runc",
            settings=filled_value(table, self._values),
            default=self.default if self._desired.default else "",
        )

    def is_sandbox(self, handler: str) -> bool:
        """Return whether a handler isolates pods; one that no file defines does not."""
        table = self.handlers.get(handler, EMPTY)
        options = table.get("options") or EMPTY
        program = next((str(v) for k, v in options.items() if k.lower() == BINARY.lower()), "")
        return is_sandbox(self._filled(str(table.get("runtime_type", ""))), self._filled(program))

    def copy(self, handler: Handler, base: Tree, *, cri: str) -> dict[str, Any]:
        """Return our handler's table: a copy of `base` with our binary; `cri` is the section id."""
        table = {k: v for k, v in base.items() if k.lower() not in ("runtime_type", "options")}
        kind = base.get("runtime_type") or self._desired.runtime_type
        options = dict(base.get("options") or {})
        # The shim of runtime type v1 reads `Runtime` instead of `BinaryName`.
        binaries = [BINARY, "Runtime"] if cri == CRI[1] else [BINARY]
        lowered = {b.lower() for b in binaries}
        options = {k: v for k, v in options.items() if k.lower() not in lowered}
        options = {**dict.fromkeys(binaries, handler.binary), **options}
        if self.needs_cgroup_driver():
            options["SystemdCgroup"] = self._cgroup_driver()
        if self._desired.annotations:
            known = list(table.get("container_annotations", ()))
            table["container_annotations"] = known + [
                a for a in self._desired.annotations if a not in known
            ]
        return overridden(
            {"runtime_type": kind, **table, "options": options}, self._desired.override
        )

    def needs_cgroup_driver(self) -> bool:
        """Return whether no handler shows a cgroup driver: a sandbox is default, none runs runc."""
        return self.source() is None and self.is_sandbox(self.default)

    def _cgroup_driver(self) -> bool:
        """Return whether handlers use the systemd cgroup driver, as the kubelet or `override` does.

        Raise NoCgroupDriver if that is not known.
        """
        options = self._desired.override.get("options")
        for key, item in options.items() if isinstance(options, Mapping) else ():
            if key.lower() == "systemdcgroup":
                return bool(item)
        if self._desired.systemd_cgroup is None:
            raise NoCgroupDriver(
                f"no handler of runc shows the cgroup driver (the default is {self.default}), and"
                " no kubelet was found",
                hint='set RUNTIME_CONFIG_OVERRIDE={"options":{"SystemdCgroup":true}}, or false',
            )
        return self._desired.systemd_cgroup

    def base_for(self, handler: Handler, base: Tree, *, path: str, made: bool) -> Tree:
        """Return the keys that a handler inherits from `base`.

        A zero value is left out if others set that key of the same handler to another value.
        `path` is the file that the handler is written to; with `made`, we created its table there.
        """
        current = EMPTY if made and path in self.paths else self.handlers.get(handler.name, EMPTY)
        return {k: v for k, v in base.items() if v not in ZERO or current.get(k, v) in ZERO}

    def low_level(self) -> tuple[str, ...]:
        """Return the binaries of the handlers of others, the source handler's first."""
        names = dict.fromkeys((self.source() or "runc", *self.handlers))
        result = []
        for handler in names:
            table = self.handlers.get(handler, EMPTY)
            if self._is_ours(handler):
                continue
            if not self._filled(str(table.get("runtime_type") or RUNC_TYPES[0])).startswith(
                RUNC_TYPES
            ):
                continue
            options = table.get("options")
            named = [
                v for k, v in (options or EMPTY).items() if k.lower() in ("binaryname", "runtime")
            ]
            binary = self._filled(next((str(v) for v in named if v), "runc"))
            # A NUL byte is not valid in a path, so a wrapper could not run such a binary.
            if "\0" not in binary and not PurePosixPath(binary).name.startswith(
                "nvidia-container-runtime"
            ):
                result.append(binary)
        return tuple(dict.fromkeys(result))


def overridden(table: Tree, override: Tree) -> dict[str, Any]:
    """Return a handler's table with `override` merged over it; keys match regardless of case."""
    result = dict(table)
    for key, item in override.items():
        former = next((k for k in result if k.lower() == key.lower()), key)
        below = result.pop(former, None)
        both = isinstance(item, Mapping) and isinstance(below, Mapping)
        result[former if both else key] = overridden(below, item) if both else item
    return result


def built_in_runc(facts: Facts, desired: Desired) -> Tree:
    """Return the handler runc that containerd has if no file defines one, without zero values."""
    section = section_of(facts.without_us) if facts.without_us is not None else None
    table = value(section or EMPTY, ("containerd", "runtimes", "runc"))
    if not isinstance(table, Mapping):
        return {"runtime_type": desired.runtime_type}
    return without_zero_values(table) or {"runtime_type": desired.runtime_type}
