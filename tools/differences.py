"""The deliberate differences from the upstream installer, with what is better about them.

The table in docs/gpu-operator.md is generated from this list.
tests/conformance/test_side_by_side.py holds it against both programs: what differs is in it, and
nothing else is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Difference:
    """A subject, what upstream does, and what this program does and why.

    `cases` are patterns of the cases in which it shows side by side: the runtime, then what is
    given. Without any it shows only on a node, and other tests prove it.
    """

    subject: str
    upstream: str
    here: str
    cases: tuple[str, ...] = ()


DIFFERENCES: Final = (
    Difference(
        "end of the pod",
        "reverts the configuration and restarts the runtime, each time; the files stay",
        "changes nothing, so that no pod loses its handler; see"
        " [operations.md](operations.md#stopping). `TOOLKIT_ON_EXIT=revert` reverts the"
        " configuration, and removes the files as well",
    ),
    Difference(
        "removing the operator",
        "as above",
        "the operator's role does not allow the question whether the DaemonSet is deleted: set"
        " `TOOLKIT_ON_EXIT=revert` first, or run `nvidia-toolkit revert` on the node",
    ),
    Difference(
        "start of the pod", "writes and restarts", "writes and restarts only what is not in sync"
    ),
    Difference(
        "`RUNTIME_CONFIG_SOURCE`",
        "where the written text comes from",
        "what validates the change; the text always comes from the files, so that nothing else is"
        " copied. `file=PATH` must be the root config. A source that the runtime does not have is"
        " refused",
        ("docker --config-source=command", "docker --config-source=other"),
    ),
    Difference(
        "`RUNTIME_CONFIG_OVERRIDE`",
        "read and ignored since September 2024",
        "merged over what containerd's handlers inherit; refused if containerd or runc's shim does"
        " not know a key, a value has the wrong type, or the node does not have the program, file"
        " or snapshotter that it names",
        ("containerd *RUNTIME_CONFIG_OVERRIDE=*", "containerd --runtime-config-override=*"),
    ),
    Difference(
        "an option for another runtime, such as `--hooks-dir` with containerd",
        "ignored",
        "refused, because it has no effect. A variable for another runtime is no error",
        (
            "containerd --hooks-dir=*",
            "containerd --hook-filename=*",
            "containerd --config-mode=*",
            "docker --hooks-dir=*",
            "docker --hook-filename=*",
            "docker --config-mode=*",
            "docker --use-legacy-config=*",
            "docker --runtime-type=*",
            "docker --runtime-config-override=*",
            "docker RUNTIME_CONFIG_OVERRIDE=*",
            "crio --use-legacy-config=*",
            "crio --runtime-type=*",
            "crio --runtime-config-override=*",
            "crio RUNTIME_CONFIG_OVERRIDE=*",
        ),
    ),
    Difference(
        "`CONTAINERD_CONFIG`, `DOCKER_CONFIG`, `CONTAINERD_SOCKET`, `DOCKER_SOCKET` with another"
        " runtime",
        "used, also for the other runtime",
        "named in the log and not used: a file or socket of one runtime is none of another",
        (
            "containerd DOCKER_CONFIG=*",
            "docker CONTAINERD_CONFIG=*",
            "crio CONTAINERD_CONFIG=*",
            "crio DOCKER_CONFIG=*",
        ),
    ),
    Difference(
        "`CONTAINERD_*` and `DOCKER_*` variables of the same setting, both set",
        "`CONTAINERD_*` counts with every runtime",
        "the variable of the node's runtime counts, so that one manifest fits nodes of several"
        " runtimes",
        ("docker CONTAINERD_SET_AS_DEFAULT=true DOCKER_SET_AS_DEFAULT=false",),
    ),
    Difference(
        "an empty variable",
        "a value: an empty `NVIDIA_RUNTIME_NAME` hides the other variables, and means `nvidia`",
        "for a flag it means false, as upstream; otherwise it counts as not set, and the next one"
        " counts",
        ("* NVIDIA_RUNTIME_NAME= CONTAINERD_RUNTIME_CLASS=gpu",),
    ),
    Difference(
        "an empty option where a value is needed, such as `--runtime-class=`",
        "means the default",
        "refused: it is a variable of a script that is not set",
        ("* --runtime-class=",),
    ),
    Difference(
        "`--drop-in-config=`",
        "containerd: an `imports` entry and no handlers; CRI-O: the low-level runtime of"
        " `crio.conf` is lost",
        "the handlers are added to the root config, and nothing is lost",
        ("containerd --drop-in-config=", "crio --drop-in-config="),
    ),
    Difference(
        "the two spellings of the CDI annotation prefixes as options",
        "one sets containerd's `container_annotations`, the other the toolkit's configuration; the"
        " variable sets both",
        "each sets both: one without the other has no effect",
        (
            "containerd --nvidia-container-runtime.modes.cdi.annotation-prefixes=*",
            "* --nvidia-container-runtime-modes.cdi.annotation-prefixes=*",
        ),
    ),
    Difference(
        "CDI while the driver is not loaded",
        "exit 1, with the files installed and the runtime not configured",
        "the runtime is configured, and the specification is generated once the driver is loaded;"
        " without the agent, exit code 4",
        ("* --cdi-enabled=true", "* --enable-cdi=true", "* CDI_ENABLED=true", "* ENABLE_CDI=true"),
    ),
    Difference(
        "CRI-O's hook file",
        "the toolkit's directory is the last one of the hook's `PATH`",
        "it is the first one, so that another copy of the toolkit on the node is not used",
        ("crio --config-mode=hook", "crio CRIO_CONFIG_MODE=hook"),
    ),
    Difference(
        "`--ignore-errors`",
        "continues after errors",
        "refused, because a node that is set up in part is not ready",
        ("* --ignore-errors=*",),
    ),
    Difference(
        "the NRI plugin (`--enable-nri-plugin`)",
        "runs the plugin, and does not configure the runtime",
        "the same, and more ([nri.md](nri.md#differences-from-the-upstream-plugin)). Without"
        " `--nri-namespace` it is refused before anything is changed",
        ("* --enable-nri-plugin=*", "* -p=*", "* ENABLE_NRI_PLUGIN=*"),
    ),
    Difference(
        "an argument that is no option (`nvidia-toolkit /usr/local/nvidia` in old manifests)",
        "ignored",
        "refused, unless it is a command: set `ROOT` instead",
        ("* a-word",),
    ),
    Difference(
        "`yes`, `no`, `on`, `off` for a flag",
        "an error",
        "true and false",
        ("* --no-daemon=yes",),
    ),
    Difference(
        "`RUNTIME`, which the operator sets for all nodes alike",
        "is configured on each node; `docker` is the default",
        "is refused on a node whose kubelet uses another runtime or socket, with both names;"
        " `TOOLKIT_ALLOW_NON_KUBELET_RUNTIME=true` does what upstream does. The default is `auto`",
    ),
    Difference(
        "`--restart-mode`",
        "SIGHUP for containerd and Docker; CRI-O refuses it after the files are written",
        "the way with the shortest interruption, and SIGHUP for CRI-O with a warning if it is"
        " asked for",
    ),
    Difference(
        "an unknown option, an invalid value",
        "an error, some of them after files were written",
        "exit code 2 before anything is changed; all of them at once",
    ),
)
"""Every deliberate difference, the most visible first."""


def table() -> str:
    """Return the table of the differences for the documentation."""
    rows = [f"| {each.subject} | {each.upstream} | {each.here} |" for each in DIFFERENCES]
    return "\n".join(["| | upstream 1.20.2 | here |", "| --- | --- | --- |", *rows]) + "\n"
