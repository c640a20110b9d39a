"""`runtimes` touches nothing: an audit hook is armed around each of its calls.

It catches what the import contract cannot: the builtin `open`, and effects by way of a library.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from runtimes import planner
from runtimes.formats import toml_editor
from runtimes.model import BinaryQuery, BinaryResult
from tests.support import pure_plan

_FORBIDDEN: Final = (
    "open",
    "os.",
    "shutil.",
    "socket.",
    "subprocess.",
    "tempfile.",
    "glob.",
    "pathlib.",
    "ctypes.",
)
_ROOT: Final = (
    b'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]\nruntime_type ='
    b' ""\n'
)
_MODERN: Final = (
    "version = 3\nimports ="
    ' []\n[plugins."io.containerd.cri.v1.runtime".containerd]\ndefault_runtime_name ='
    ' "runc"\n[plugins."io.containerd.cri.v1.runtime".cni]\nconf_dir = "/probe/root"\n'
)


class _Guard:
    """What the one hook of this process looks at; a hook cannot be taken away again."""

    def __init__(self) -> None:
        self.armed = False
        self.caught: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.armed and event.startswith(_FORBIDDEN):
            self.caught.append(f"{event} {arguments!r}")

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.caught = []
        self.armed = True
        try:
            yield
        finally:
            self.armed = False
        assert not self.caught, f"an effect: {self.caught[0]}"


@pytest.fixture(scope="session")
def purely() -> _Guard:
    return _Guard()


def answered(question: BinaryQuery) -> BinaryResult:
    """Answer as a containerd does that merges imports deeply, without one."""
    return BinaryResult(code=0, out=_MODERN, err=question.name)


def planned(files: pure_plan.Files, ask: pure_plan.Ask | None) -> Callable[[], object]:
    def call() -> object:
        return pure_plan.plan(pure_plan.desired(), files, ask)

    return call


def removed() -> object:
    files = {pure_plan.CONFIG: _ROOT}
    found = pure_plan.plan(pure_plan.desired(), files)
    foreign = {path: data + b"# foreign\n" for path, data in pure_plan.after(files, found).items()}
    return pure_plan.removal(pure_plan.desired(), foreign, pure_plan.ownership(found))


def judged() -> object:
    seen = pure_plan.observe(pure_plan.desired(), {pure_plan.CONFIG: _MODERN.encode()}, answered)
    plan = planner.plan(pure_plan.ADAPTER, pure_plan.desired(), seen)
    question = planner.candidate_query(pure_plan.ADAPTER, pure_plan.desired(), seen, plan)
    assert question is not None
    return (
        pure_plan.ADAPTER.candidate_problems(pure_plan.desired(), seen, answered(question)),
        pure_plan.ADAPTER.removal_problems(pure_plan.desired(), seen, answered(question)),
        pure_plan.ADAPTER.task_files(pure_plan.desired(), seen),
        pure_plan.ADAPTER.programs(pure_plan.desired(), seen),
    )


def edited() -> object:
    document = toml_editor.parse(_ROOT, "x")
    return toml_editor.drop(toml_editor.put(document, ("a", "b"), {"c": 1}), ("a",)).encode()


CALLS: Final[dict[str, Callable[[], object]]] = {
    "plan in place": planned({pure_plan.CONFIG: _ROOT}, None),
    "plan from nothing": planned({}, None),
    "removal": removed,
    "verdicts": judged,
    "edit": edited,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_study_touches_nothing(purely: _Guard, call: Callable[[], object]) -> None:
    call()  # Whatever is imported or compiled once is no effect of the call.
    with purely():
        assert call()


EFFECTS: Final[dict[str, Callable[[pathlib.Path], object]]] = {
    "open": lambda path: path.read_bytes(),
    "listdir": lambda path: list(path.parent.iterdir()),
    "write": lambda path: path.write_bytes(b""),
    "remove": lambda path: path.unlink(),
    "process": lambda _: subprocess.run(["true"], check=False),
}


@pytest.mark.parametrize("effect", EFFECTS.values(), ids=EFFECTS)
def test_the_guard_sees_an_effect(
    purely: _Guard, effect: Callable[[pathlib.Path], object], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with pytest.raises(AssertionError, match="an effect: "), purely():
        effect(path)
