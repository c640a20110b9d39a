"""The laws of a node whenever the program was stopped: nothing is torn, nothing is lost."""

from __future__ import annotations

import fnmatch
import json
import subprocess
import tempfile
import threading
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tests.faults import trees
from tests.faults.site import Run
from tests.faults.stories import Story, judge
from tests.faults.trees import CONFIG, DROP_IN, READY, TOOLKIT, Tree
from tests.support.fake_node import Node

ENDS: Final = frozenset({0, 2, 3, 4, 6, 7})
"""The documented exit codes that a fault may lead to; 1 is a bug, 5 needs another process."""
_LIVE: Final = "etc/containerd/conf.d/*.toml"
_LONGEST_LOAD: Final = 20


class Loader:
    """A real containerd, asked once about every pair of files whether it loads them."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.program = judge()
        self.known: dict[tuple[bytes | None, bytes | None], str] = {}
        self.lock = threading.Lock()

    def problem(self, tree: Tree) -> str:
        """Return containerd's complaint about a tree's configuration; empty if it loads it."""
        if self.program is None:
            return ""
        pair = (_data(tree, CONFIG), _data(tree, DROP_IN))
        with self.lock:
            if pair not in self.known:
                self.known[pair] = self._asked(*pair)
            return self.known[pair]

    def _asked(self, root: bytes | None, drop_in: bytes | None) -> str:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            for data, path in ((root, CONFIG), (drop_in, DROP_IN)):
                (directory / path).parent.mkdir(parents=True, exist_ok=True)
                if data is not None:
                    here = data.replace(str(self.node.root).encode(), name.encode())
                    (directory / path).write_bytes(here)
            argv = (self.program or "", "--config", str(directory / CONFIG), "config", "dump")
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=_LONGEST_LOAD, check=False
            )
        return (
            ""
            if done.returncode == 0
            else f"containerd does not load it: {done.stderr.strip()[-300:]}"
        )


def torn(story: Story, node: Node, tree: Tree, has: Mapping[str, str | None]) -> Iterator[str]:
    """Yield what is half done: of the files, of the toolkit, and of what the runtime could execute.

    `has` are the files that the runtime read when it started.
    """
    known = (story.old, story.new)
    for path in (CONFIG, DROP_IN):
        if tree.get(path) not in [each.get(path) for each in known]:
            yield f"{path} is neither the old nor the new one"
    allowed = {name for each in known for name in each}
    for path in fnmatch.filter(tree, _LIVE):
        if path not in allowed:
            yield f"{path} would be read by the runtime"
    there = trees.below(tree, TOOLKIT)
    if there not in [trees.below(each, TOOLKIT) for each in known]:
        yield f"{TOOLKIT} is neither the old nor the new one"
    texts = [_data(tree, path) for path in (CONFIG, DROP_IN)]
    texts += [text.encode() if text is not None else None for text in has.values()]
    for binary in sorted(_binaries(texts, f"{node.toolkit}/")):
        if there is None or binary not in there:
            yield f"{TOOLKIT}/{binary} is missing, and the runtime could execute it"


def untold(tree: Tree, has: Mapping[str, str | None], node: Node) -> list[str]:
    """Return the files whose content is not what the runtime has read."""
    now = {str(node.config): _data(tree, CONFIG), str(node.drop_in): _data(tree, DROP_IN)}
    return [
        path
        for path, text in has.items()
        if (text.encode() if text is not None else None) != now[path]
    ]


def too_ready(story: Story, tree: Tree, pid: int) -> str:
    """Return why the readiness record says too much; empty where it does not."""
    if READY not in tree:
        return ""
    try:
        said = json.loads(tree[READY].data)
    except ValueError:
        return "the readiness record is no JSON"
    if said["pid"] != pid:
        return ""  # it is of another process, and counts as none
    is_whole = _of_concern(tree) in [_of_concern(each) for each in (story.old, story.new)]
    return "" if is_whole else "the readiness record says that a half-done node is ready"


def improper(run: Run) -> str:
    """Return what is wrong with any end; empty if it is one of the documented ones."""
    if run.timed_out or run.code not in ENDS or "Traceback" in run.said:
        return f"it ended as no run may: {run}"
    return ""


def _of_concern(tree: Tree) -> object:
    return tree.get(CONFIG), tree.get(DROP_IN), trees.below(tree, TOOLKIT)


def _data(tree: Tree, path: str) -> bytes | None:
    return tree[path].data if path in tree else None


def _binaries(texts: list[bytes | None], toolkit: str) -> set[str]:
    found = set()
    for text in texts:
        content = tomllib.loads(text.decode()) if text else {}
        found |= {
            path.removeprefix(toolkit) for path in _leaves(content) if path.startswith(toolkit)
        }
    return found


def _leaves(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        for key, item in content.items():
            if key == "BinaryName" and isinstance(item, str):
                yield item
            yield from _leaves(item)
