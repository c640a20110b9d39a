"""A file that is read after our drop-in changes our handlers: it is named, before anything is written."""

from __future__ import annotations

from functools import partial
from typing import Final

import pytest

from runtimes.errors import ConfigError
from tests.conformance.test_corpus import check_way, dump, root, runc
from tests.support import binaries, distros, pure_plan

LATER: Final = "/etc/containerd/conf.d/gpu.toml"
HANDLER: Final = 'plugins."io.containerd.cri.v1.runtime".containerd.runtimes.nvidia'
CHANGES: Final = {
    "another type": (
        f'[{HANDLER}]\nruntime_type = "io.containerd.kata.v2"\n',
        "runtime_type of the handler nvidia would be 'io.containerd.kata.v2' by",
    ),
    "the cgroup driver": (
        f"[{HANDLER}.options]\nSystemdCgroup = false\n",
        "options.SystemdCgroup of the handler nvidia would be false by",
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


@pytest.mark.binary
@pytest.mark.parametrize("line", [line for line in binaries.LINES if line.startswith("2")])
@pytest.mark.parametrize("change", CHANGES)
def test_a_later_file_that_changes_a_handler_of_a_template_is_named(line: str, change: str) -> None:
    """The values of its variables, which our handlers inherit, are compared, not their names."""
    text, problem = CHANGES[change]
    template = b'imports = ["/etc/containerd/conf.d/*.toml"]\n' + distros.MICROK8S.replace(
        b"runtimes.kata]", b"runtimes.runc.options]\n      SystemdCgroup = true\n"
        b'    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]'
    )  # fmt: skip
    wish = distros.wish("microk8s", drop_in="")
    later = text.replace("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri")
    files = {
        distros.TEMPLATE: template,
        wish.delivery.rendered: distros.microk8s(template),
        LATER: f"version = 2\n{later}".encode(),
    }
    with pytest.raises(ConfigError) as caught:
        pure_plan.plan(wish, files, partial(binaries.ask, binaries.find(line)))
    assert f"{problem} {LATER}, not " in str(caught.value)
    files[LATER] = b"version = 2\n"
    assert not pure_plan.plan(wish, files, partial(binaries.ask, binaries.find(line))).is_noop


@pytest.mark.binary
@pytest.mark.parametrize("line", [line for line in binaries.LINES if line.startswith("2")])
def test_a_handler_of_upstream_that_was_made_from_kata_runs_runc_again(line: str) -> None:
    other = f"""\
version = 3
[{HANDLER}]
runtime_type = "io.containerd.kata.v2"
[{HANDLER}.options]
BinaryName = "/usr/bin/nvidia-container-runtime"
"""
    files: pure_plan.Files = {
        pure_plan.CONFIG: root(3, 'imports = ["/etc/containerd/conf.d/*.toml"]', runc(3)),
        pure_plan.DROP_IN: other.encode(),
    }
    binary = binaries.find(line)
    assert check_way(pure_plan.desired(), files, binary) is None
    found = pure_plan.plan(pure_plan.desired(), files, partial(binaries.ask, binary))
    loaded = dump(binary, pure_plan.after(files, found))
    section = loaded["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]
    assert section["nvidia"]["runtime_type"] == "io.containerd.runc.v2"
    assert section["nvidia"]["options"]["SystemdCgroup"] is True
