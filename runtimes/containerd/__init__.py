"""The adapter for containerd: schema versions, CRI section, imports, and the output of its binary.

May import: runtimes.adapter and the layers below it (edits, formats, globs, model, errors).
Start reading at desired.py (the keys to set, what is refused, notes for the user), then validate.py
(the check of a candidate) and binary.py (what the node's binary is asked).

Two facts determine the design. containerd 1.x takes a whole plugin section from the last file that
has it, while 2.0 and later merge the files deeply. A drop-in with only our keys therefore works
with the latter but removes all other settings of the section with the former, so the node's binary
is queried for its behaviour. And `config dump` prints the configuration with which a binary would
run, so every candidate is validated by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from runtimes.adapter import BANNER, Adapter, SighupEffect
from runtimes.containerd.binary import binary_facts
from runtimes.containerd.desired import desired_config
from runtimes.containerd.effective import effective, effective_without_us, programs, running
from runtimes.containerd.imports import load
from runtimes.containerd.schema import CRI, ESSENTIAL, import_glob
from runtimes.containerd.validate import (
    candidate_problems,
    candidate_query,
    in_sync_problems,
    queries,
    removal_problems,
)
from runtimes.edits import value
from runtimes.formats import toml_editor
from runtimes.model import ABSENT, EMPTY, Desired, FileRequest, Observation, RuntimeName

__all__ = ["ADAPTER"]


def required_files(desired: Desired, observation: Observation) -> FileRequest:
    """Return the files and globs to read next, following the imports of the root config."""
    _, missing = load(desired, observation)
    delivery = desired.delivery
    drop_ins = [path for path in (desired.drop_in, *delivery.drop_ins) if path]
    others = [path for path in (delivery.rendered, delivery.merges_into) if path]
    globs = [import_glob(path) for path in drop_ins]
    return FileRequest(
        files=tuple(
            p
            for p in dict.fromkeys((*missing.files, *drop_ins, *others))
            if p not in observation.files
        ),
        globs=tuple(
            g for g in dict.fromkeys((*missing.globs, *globs)) if g not in observation.globs
        ),
    )


def defined(desired: Desired, files: Mapping[str, bytes | None]) -> frozenset[str]:
    """Return which of our handlers the given files define; generated files are ignored."""
    trees = [
        toml_editor.tree(data, path)
        for path, data in files.items()
        if data is not None and path not in desired.generated
    ]
    return frozenset(
        handler
        for handler in desired.names
        for tree in trees
        for cri in CRI.values()
        if value(tree, ("plugins", cri, "containerd", "runtimes", handler)) is not ABSENT
    )


def task_files(desired: Desired, observation: Observation) -> tuple[str, ...]:
    """Return a glob of the files in which the runc shims store the path of their runtime binary."""
    state = (binary_facts(observation).effective or EMPTY).get("state", "/run/containerd")
    return (f"{state}/io.containerd.runtime.v2.task/*/*/runtime",)


def handler_in(info: Mapping[str, Any]) -> str:
    """Return the handler in a pod's verbose status; empty if it contains none."""
    return str(info.get("runtimeHandler") or "")


ADAPTER: Final = Adapter(
    name=RuntimeName.CONTAINERD,
    form=toml_editor,
    executables=frozenset({"containerd"}),
    banner=BANNER,
    required_keys=ESSENTIAL,
    config_flags=("--config", "-c"),
    server_speaks_first=True,
    supports_cri=True,
    on_hangup=SighupEffect.TERMINATES,
    required_files=required_files,
    queries=queries,
    desired_config=desired_config,
    candidate_query=candidate_query,
    candidate_problems=candidate_problems,
    removal_problems=removal_problems,
    in_sync_problems=in_sync_problems,
    effective=effective,
    effective_without_us=effective_without_us,
    programs=programs,
    running=running,
    defined=defined,
    task_files=task_files,
    handler_in=handler_in,
)
