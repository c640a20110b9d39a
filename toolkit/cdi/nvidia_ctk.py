"""Run nvidia-ctk: generate the CDI specification of the driver, and create its device nodes.

It runs in the node's root, so that it finds the driver at the node's paths. Only if the driver is
not visible there, it runs in this container, and the paths in its output are mapped to the node's.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Final

from runtimes.errors import ConfigError
from runtimes.lazy_pattern import lazy_pattern
from toolkit.cdi import spec_document
from toolkit.cdi.driver import Roots
from toolkit.cdi.spec import Tools
from toolkit.deadline import Timeout
from toolkit.errors import StepError
from toolkit.node import command
from toolkit.node.host import Host

_MESSAGE: Final = lazy_pattern(r'level=error msg="((?:[^"\\]|\\.)*)"')
_HINT: Final = (
    "check that the driver is installed completely and that --driver-root and --dev-root are right;"
    " see `nvidia-toolkit diagnose`"
)

_FORBIDDEN: Final = "operation not permitted"
_PRIVILEGED: Final = (
    "the driver's devices are created and opened by a privileged container only: `privileged: true`"
    " (toolkit.privileged=true in the chart), or CDI_ENABLED=false"
)
_NOT_THERE: Final = (
    "--no-install uses the node's toolkit: install it there, or leave out --no-install"
)


def require(host: Host, tools: Tools) -> None:
    """Raise StepError if nvidia-ctk does not exist, as on a node with an incomplete toolkit."""
    if not _is_there(host, tools, tools.ctk):
        raise StepError(f"{tools.ctk} not found on the node", hint=_NOT_THERE)


def specification(
    host: Host, tools: Tools, roots: Roots, kind: str, *, mode: str, timeout: Timeout
) -> bytes:
    """Return the CDI specification of the driver in a mode of nvidia-ctk, with node paths.

    Raises StepError.
    """
    vendor, _, device_class = kind.partition("/")
    output = _run(
        tools,
        roots,
        [
            "cdi",
            "generate",
            f"--mode={mode}",
            "--format=json",
            f"--driver-root={roots.driver}",
            f"--dev-root={roots.dev}",
            f"--nvidia-cdi-hook-path={tools.hook}",
            f"--vendor={vendor}",
            f"--class={device_class}",
        ],
        timeout,
    )
    try:
        tree = spec_document.parse(output, kind)
    except ConfigError as error:
        raise StepError(f"{error}; the CDI specification was not changed") from error
    seen = (roots.dev, roots.named[1]), (roots.driver, roots.named[0])
    tree = spec_document.moved(
        tree, tuple((f"{dev}/dev", f"{to}/dev") for dev, to in seen[:1]) + seen[1:]
    )
    for program in spec_document.programs(tree):
        _require_program(host, tools, program)
    return json.dumps(tree, indent=2).encode() + b"\n"


def make_control_nodes(tools: Tools, roots: Roots, *, timeout: Timeout) -> None:
    """Create the missing control device nodes. Raises StepError."""
    words = ["system", "create-device-nodes", "--control-devices", f"--dev-root={roots.dev}"]
    _run(tools, roots, words, timeout)


def _require_program(host: Host, tools: Tools, program: str) -> None:
    """Raise StepError if a hook's program does not exist: no container with it would start."""
    if not _is_there(host, tools, program):
        raise StepError(
            f"{program}, a hook in nvidia-ctk's output, not found on the node", hint=_NOT_THERE
        )


def _is_there(host: Host, tools: Tools, program: str) -> bool:
    toolkit = str(PurePosixPath(tools.hook).parent) + "/"
    path = (
        tools.local / program.removeprefix(toolkit)
        if program.startswith(toolkit)
        else host.seen(program)
    )
    # A symbolic link on the node must be resolved in the node's root, so `is_file` alone is not
    # enough.
    return path.is_file() or host.executable(program) is not None


def _run(tools: Tools, roots: Roots, words: list[str], timeout: Timeout) -> str:
    is_local = str(roots.within) == "/"
    program = str(tools.local / PurePosixPath(tools.ctk).name) if is_local else tools.ctk
    result = command.run([program, *words], root=roots.within, timeout=timeout)
    if not result.ok:
        messages = _MESSAGE.findall(result.err)
        why = messages[-1].replace('\\"', '"') if messages else result.err[-200:]
        raise StepError(
            f"`nvidia-ctk {' '.join(words[:2])}` failed: {why or f'exit {result.code}'}",
            hint=_PRIVILEGED if why.endswith(_FORBIDDEN) else _HINT,
        )
    return result.out
