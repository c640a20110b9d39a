"""A file that is read after our drop-in changes our handlers: it is named, before anything is written."""

from __future__ import annotations

from typing import Final

import pytest

from tests.conformance.test_corpus import check_way, root, runc
from tests.support import binaries, pure_plan

LATER: Final = "/etc/containerd/conf.d/gpu.toml"
HANDLER: Final = 'plugins."io.containerd.cri.v1.runtime".containerd.runtimes.nvidia'
CHANGES: Final = {
    "another type": (
        f'[{HANDLER}]\nruntime_type = "io.containerd.kata.v2"\n',
        "runtime_type of the handler nvidia would be 'io.containerd.kata.v2' by",
    ),
    "the cgroup driver": (
        f"[{HANDLER}.options]\nSystemdCgroup = false\n",
        "options.SystemdCgroup of the handler nvidia would be False by",
    ),
}


@pytest.mark.binary
@pytest.mark.parametrize("line", [line for line in binaries.LINES if line.startswith("2")])
@pytest.mark.parametrize("change", CHANGES)
def test_a_later_file_that_changes_our_handler_is_named(line: str, change: str) -> None:
    text, problem = CHANGES[change]
    files: pure_plan.Files = {
        pure_plan.CONFIG: root(3, 'imports = ["/etc/containerd/conf.d/*.toml"]', runc(3)),
        LATER: f"version = 3\n{text}".encode(),
    }
    refusal = check_way(pure_plan.desired(), files, binaries.find(line))
    assert refusal is not None
    assert f"{problem} {LATER}, not " in str(refusal)
