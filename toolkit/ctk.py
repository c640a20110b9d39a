"""What nvidia-ctk is asked to do: to describe the driver as a CDI specification, to make its device nodes.

It is run where the node runs it, so that it finds the driver at the node's own
paths. Only where the driver is not seen there it is run here, and the paths in
its answer are moved.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import Final

from runtimes import cdispec
from runtimes.errors import NotUnderstood
from toolkit import process
from toolkit.driver import Roots
from toolkit.errors import StepFailed
from toolkit.host import Host
from toolkit.specification import Tools
from toolkit.stop import Timeout

_MESSAGE: Final = re.compile(r'level=error msg="((?:[^"\\]|\\.)*)"')
_HINT: Final = (
    "is the driver whole, and are --driver-root and --dev-root right? See `nvidia-toolkit diagnose`"
)

_NOT_THERE: Final = "with --no-install it is the node's own: install it there, or leave out --no-install"


def see(host: Host, tools: Tools) -> None:
    """See that nvidia-ctk is there: a node that ships the toolkit may lack it. Raises StepFailed."""
    if not _is_there(host, tools, tools.ctk):
        raise StepFailed(f"{tools.ctk} is not on the node", hint=_NOT_THERE)


def specification(host: Host, tools: Tools, found: Roots, kind: str, *, timeout: Timeout) -> bytes:
    """Return the management CDI specification of the driver, as the node is to read it. Raises StepFailed."""
    vendor, _, device_class = kind.partition("/")
    said = _run(
        tools,
        found,
        [
            "cdi",
            "generate",
            "--mode=management",
            "--format=json",
            f"--driver-root={found.driver}",
            f"--dev-root={found.dev}",
            f"--nvidia-cdi-hook-path={tools.hook}",
            f"--vendor={vendor}",
            f"--class={device_class}",
        ],
        timeout,
    )
    try:
        tree = cdispec.parse(said, kind)
    except NotUnderstood as error:
        raise StepFailed(f"{error}: the CDI specification stays as it is") from error
    seen = (found.dev, found.named[1]), (found.driver, found.named[0])
    tree = cdispec.moved(tree, tuple((f"{dev}/dev", f"{to}/dev") for dev, to in seen[:1]) + seen[1:])
    for program in cdispec.programs(tree):
        _see(host, tools, program)
    return json.dumps(tree, indent=2).encode() + b"\n"


def make_control_nodes(tools: Tools, found: Roots, *, timeout: Timeout) -> None:
    """Make the device nodes that are not there yet. Raises StepFailed."""
    words = ["system", "create-device-nodes", "--control-devices", f"--dev-root={found.dev}"]
    _run(tools, found, words, timeout)


def _see(host: Host, tools: Tools, program: str) -> None:
    """See that the node has a hook's program: a container whose hook is gone does not start."""
    if not _is_there(host, tools, program):
        raise StepFailed(f"nvidia-ctk names the hook {program}, which is not on the node", hint=_NOT_THERE)


def _is_there(host: Host, tools: Tools, program: str) -> bool:
    ours = str(PurePosixPath(tools.hook).parent) + "/"
    seen = tools.seen / program.removeprefix(ours) if program.startswith(ours) else host.seen(program)
    # A link of the node's leads elsewhere on the node, not here.
    return seen.is_file() or host.executable(program) is not None


def _run(tools: Tools, found: Roots, words: list[str], timeout: Timeout) -> str:
    is_here = str(found.within) == "/"
    program = str(tools.seen / PurePosixPath(tools.ctk).name) if is_here else tools.ctk
    result = process.run([program, *words], root=found.within, timeout=timeout)
    if not result.ok:
        said = _MESSAGE.findall(result.err)
        why = said[-1].replace('\\"', '"') if said else result.err[-200:]
        raise StepFailed(
            f"`nvidia-ctk {' '.join(words[:2])}` failed: {why or f'exit {result.code}'}", hint=_HINT
        )
    return result.out
