"""Key edits: repeating one changes nothing; undoing one keeps what others wrote."""

from __future__ import annotations

import datetime
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimes import edits
from runtimes.edits import DesiredKey
from runtimes.errors import ConfigError
from runtimes.formats import toml_editor
from runtimes.model import ABSENT, Edit, FileChange, Key

PATH: Final = "/etc/x.toml"
HANDLER: Final = {
    "runtime_type": "runc.v2",
    "options": {"BinaryName": "/nvidia", "SystemdCgroup": True},
}
FILE: Final = """\
version = 2
imports = ["/a/*.toml"]

[r.runc] # the default
runtime_type = "runc.v2"

[r.nvidia]
runtime_type = "old"
other = 1
"""


def want(key: str, new: Any, **more: Any) -> DesiredKey:
    return DesiredKey(path=PATH, key=tuple(key.split(".")), new=new, **more)


def applied(text: str, *wants: DesiredKey) -> FileChange:
    change = edits.apply(toml_editor, PATH, text.encode(), wants)
    assert change is not None
    return change


def tree(data: bytes | None) -> dict[str, Any]:
    """Return what a file says; a header without keys says nothing."""
    return solid(toml_editor.tree(data or b"", PATH))


def solid(content: dict[str, Any]) -> dict[str, Any]:
    cut = {name: solid(item) if isinstance(item, dict) else item for name, item in content.items()}
    return {name: item for name, item in cut.items() if item != {}}


WANTS: Final = {
    "value": [want("version", 3)],
    "new value": [want("debug.level", "info")],
    "no value": [want("version", ABSENT)],
    "new table": [want("r.kata", HANDLER, required_keys=("runtime_type",))],
    "merged table": [want("r.nvidia", HANDLER, required_keys=("runtime_type",))],
    "exact table": [want("r.nvidia", HANDLER, exact=True)],
    "table for a value": [want("version", {"a": 1})],
    "value for a table": [want("r.runc", "x", exact=True)],
    "list": [want("imports", ["/a/*.toml", "/b/*.toml"])],
    "several": [
        want("r.kata", HANDLER),
        want("version", 3),
        want("imports", ABSENT),
        want("z", "on"),
    ],
}


@pytest.mark.parametrize("wants", WANTS.values(), ids=WANTS)
def test_an_edit_is_done_once_and_taken_back(wants: list[DesiredKey]) -> None:
    change = applied(FILE, *wants)
    assert change.after is not None
    assert edits.apply(toml_editor, PATH, change.after, wants) is None
    back, stayed = edits.reverse(toml_editor, PATH, change.after, change.edits)
    assert tree(back) == tree(FILE.encode())
    assert stayed == ()


def test_a_wish_that_is_true_already_is_no_change() -> None:
    assert (
        edits.apply(toml_editor, PATH, FILE.encode(), [want("version", 2), want("r.runc", {})])
        is None
    )
    assert edits.apply(toml_editor, PATH, None, [want("version", ABSENT)]) is None


def test_a_file_that_was_not_there_is_made() -> None:
    change = edits.apply(toml_editor, PATH, None, [want("version", 2)])
    assert change == FileChange(
        path=PATH,
        before=None,
        after=b"version = 2\n",
        edits=(Edit(key=("version",), old=ABSENT, new=2),),
    )
    assert change.action == "create"


def test_merging_keeps_what_a_table_had_and_exact_does_not() -> None:
    merged = tree(applied(FILE, want("r.nvidia", HANDLER)).after)
    assert merged["r"]["nvidia"] == {**HANDLER, "other": 1}
    exact = tree(applied(FILE, want("r.nvidia", HANDLER, exact=True)).after)
    assert exact["r"]["nvidia"] == HANDLER


def test_a_key_of_a_table_can_be_wished_away() -> None:
    change = applied(FILE, want("r.nvidia", {"other": ABSENT}))
    assert tree(change.after)["r"]["nvidia"] == {"runtime_type": "old"}
    assert (
        edits.apply(toml_editor, PATH, change.after, [want("r.nvidia", {"other": ABSENT})]) is None
    )


# --- what others did since ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Since:
    """Our edits, what others wrote in their place since, and what our removal leaves and names."""

    wants: tuple[DesiredKey, ...]
    find: str
    put: str
    left: dict[str, Any]
    stayed: tuple[str, ...] = ()


RUNC: Final = {"runc": {"runtime_type": "runc.v2"}}
BEFORE: Final = 'imports = ["/a/*.toml"]\n\n[r.runc]\nruntime_type = "runc.v2"\n'
BASE: Final = {"imports": ["/a/*.toml"], "r": RUNC}
NVIDIA: Final = want("r.nvidia", HANDLER, required_keys=("runtime_type",))
SINCE: Final = {
    "nothing that is ours": Since(
        wants=(NVIDIA,), find="[r.runc]", put="# foreign\n[r.runc]\nother = 2",
        left={**BASE, "r": {"runc": {"other": 2, "runtime_type": "runc.v2"}}},
    ),
    "a value of ours is another": Since(
        wants=(want("r.default", "nvidia"),), find='"nvidia"', put='"kata"',
        left={**BASE, "r": {**RUNC, "default": "kata"}}, stayed=("r.default = 'kata'",),
    ),
    "a value of ours is gone": Since(
        wants=(want("r.default", "nvidia"),), find='default = "nvidia"\n', put="", left=BASE,
    ),
    "a value of ours is as it was": Since(
        wants=(want("imports", ["/b/*.toml"]),), find="/b/", put="/a/", left=BASE,
    ),
    "a key beside ours in our table": Since(
        wants=(NVIDIA,), find='BinaryName = "/nvidia"\n',
        put='BinaryName = "/nvidia"\nRoot = "/r"\n',
        left={**BASE,
              "r": {**RUNC, "nvidia": {"runtime_type": "runc.v2", "options": {"Root": "/r"}}}},
        stayed=("r.nvidia.options.Root = '/r'",),
    ),
    "a key of ours in our table": Since(
        wants=(NVIDIA,), find='"/nvidia"', put='"/mine"',
        left={
            **BASE,
            "r": {**RUNC,
                  "nvidia": {**HANDLER, "options": {"BinaryName": "/mine", "SystemdCgroup": True}}},
        },
        stayed=("r.nvidia (edited since)",),
    ),
    "our table is gone": Since(
        wants=(NVIDIA,),
        find='\n[r.nvidia]\nruntime_type = "runc.v2"\n\n'
        '[r.nvidia.options]\nBinaryName = "/nvidia"\n'
        "SystemdCgroup = true\n",
        put="", left=BASE,
    ),
    "an item beside ours": Since(
        wants=(want("imports", ["/a/*.toml", "/b/*.toml"]),), find='"/b/*.toml"]',
        put='"/b/*.toml", "/c"]', left={**BASE, "imports": ["/a/*.toml", "/c"]},
    ),
    "our item alone is left": Since(
        wants=(want("imports", ["/a/*.toml", "/b/*.toml"]),), find='"/a/*.toml", ', put="",
        left=BASE,
    ),
    "something else needs what we wrote": Since(
        wants=(want("version", 2, required_keys=("version",)), want("r.default", "nvidia")),
        find='"nvidia"', put='"kata"',
        left={**BASE, "version": 2, "r": {**RUNC, "default": "kata"}},
        stayed=("r.default = 'kata'", "version = 2 (required by other keys)"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SINCE.values(), ids=SINCE)
def test_what_others_wrote_since_stays_and_is_named(case: Since) -> None:
    change = applied(BEFORE, *case.wants)
    text = (change.after or b"").decode()
    assert case.find in text
    since = text.replace(case.find, case.put, 1)
    back, stayed = edits.reverse(toml_editor, PATH, since.encode(), change.edits)
    assert tree(back) == case.left
    assert stayed == case.stayed


def test_a_version_that_nothing_needs_goes() -> None:
    change = edits.apply(
        toml_editor, PATH, None, [want("version", 2, required_keys=("version",)), NVIDIA]
    )
    assert change is not None
    back, stayed = edits.reverse(
        toml_editor, PATH, (change.after or b"") + b"# mine\n", change.edits
    )
    assert tree(back) == {}
    assert stayed == ()
    assert b"# mine\n" in back


# --- several plans --------------------------------------------------------------------------------


def test_merge_keeps_the_oldest_old_value_and_the_newest_new_one() -> None:
    first = (Edit(key=("a",), old=1, new=2), Edit(key=("b",), old=ABSENT, new=1))
    later = (Edit(key=("a",), old=2, new=3, required_keys=("a",)), Edit(key=("c",), old=5, new=6))
    assert edits.merge(first, later) == (
        Edit(key=("a",), old=1, new=3, required_keys=("a",)),
        Edit(key=("b",), old=ABSENT, new=1),
        Edit(key=("c",), old=5, new=6),
    )
    assert edits.merge((), later) == later
    assert edits.merge(first, ()) == first


def test_two_plans_are_taken_back_as_one() -> None:
    first = applied(FILE, want("r.nvidia", HANDLER))
    second = applied(
        (first.after or b"").decode(),
        want("r.nvidia", {"runtime_type": "other"}),
        want("version", 4),
    )
    both = edits.merge(first.edits, second.edits)
    back, stayed = edits.reverse(toml_editor, PATH, second.after or b"", both)
    assert tree(back) == tree(FILE.encode())
    assert stayed == ()


# --- words ----------------------------------------------------------------------------------------

SAME: Final = {
    "true is not 1": (True, 1, False),
    "1 is not 1.0": (1, 1.0, False),
    "0 is not false": (0, False, False),
    "text": ("a", "a", True),
    "lists": ([1, "a"], (1, "a"), True),
    "lists of another order": ([1, 2], [2, 1], False),
    "lists of another length": ([1], [1, 1], False),
    "true in a list": ([True], [1], False),
    "tables": ({"a": 1, "b": {"c": 2}}, {"b": {"c": 2}, "a": 1}, True),
    "true in a table": ({"a": {"b": True}}, {"a": {"b": 1}}, False),
    "another key": ({"a": 1}, {"b": 1}, False),
    "a table and a value": ({}, ABSENT, False),
    "absent": (ABSENT, ABSENT, True),
}


@pytest.mark.parametrize(("one", "other", "expected"), SAME.values(), ids=SAME)
def test_same(one: Any, other: Any, expected: bool) -> None:  # noqa: FBT001 - a column of the table
    assert edits.same(one, other) is expected
    assert edits.same(other, one) is expected


def test_differences_are_by_leaf_and_in_order() -> None:
    before = {"a": {"x": 1, "y": {}}, "b": True}
    after = {"a": {"x": 2}, "b": 1, "c": []}
    assert edits.differences(before, after) == [
        (("a", "x"), 1, 2),
        (("a", "y"), {}, ABSENT),
        (("b",), True, 1),
        (("c",), ABSENT, []),
    ]
    assert edits.differences(before, deepcopy(before)) == []


_DIFFERING: Final = st.dictionaries(
    st.sampled_from("abc"),
    st.recursive(
        st.sampled_from([1, 1.0, True, "1", "", {}, [], [1], [{"a": 1}]]),
        lambda below: st.dictionaries(st.sampled_from("abc"), below, max_size=3),
        max_leaves=6,
    ),
    max_size=3,
)


@given(_DIFFERING, _DIFFERING)
def test_differences_are_those_of_all_leaves(before: Any, after: Any) -> None:
    old, new = dict(edits.leaves(before)), dict(edits.leaves(after))
    expected = [
        (key, old.get(key, ABSENT), new.get(key, ABSENT))
        for key in sorted({*old, *new})
        if not edits.same(old.get(key, ABSENT), new.get(key, ABSENT))
    ]
    found = edits.differences(before, after)
    assert repr(found) == repr(expected)  # true is not 1


SPELLED: Final = {
    "plain": (("a", "b-c", "d_1"), "a.b-c.d_1"),
    "dots": (("plugins", "io.containerd.grpc.v1.cri"), 'plugins."io.containerd.grpc.v1.cri"'),
}


@pytest.mark.parametrize(("key", "text"), SPELLED.values(), ids=SPELLED)
def test_a_key_is_spelled_as_people_write_it(key: Key, text: str) -> None:
    assert edits.dotted(key) == text


class Careless:
    """A format whose editor also touches what it was not asked for."""

    parse = staticmethod(toml_editor.parse)
    read = staticmethod(toml_editor.read)
    tree = staticmethod(toml_editor.tree)
    drop = staticmethod(toml_editor.drop)

    @staticmethod
    def put(document: Any, key: Key, new: Any) -> Any:
        return toml_editor.put(toml_editor.put(document, key, new), ("r", "runc", "lost"), "x")


def test_an_edit_that_would_change_more_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        edits.apply(Careless(), PATH, FILE.encode(), [want("version", 3)])
    assert str(caught.value) == f"{PATH}: it cannot be edited without changing r.runc.lost too"
    assert (
        caught.value.hint
        == "please report this file: it is written in a way that the editor does not handle"
    )


# --- laws -----------------------------------------------------------------------------------------

_NAMES: Final = st.sampled_from(["a", "b", "c.d"])
_LEAVES: Final = st.sampled_from([1, True, "x", ["a"], []])
_TREES: Final = st.recursive(
    st.dictionaries(_NAMES, _LEAVES, min_size=1, max_size=3),
    lambda below: st.dictionaries(_NAMES, _LEAVES | below, min_size=1, max_size=3),
    max_leaves=8,
)
_WANTS: Final = st.lists(
    st.builds(
        DesiredKey,
        path=st.just(PATH),
        key=st.lists(_NAMES, min_size=1, max_size=2).map(tuple),
        new=_LEAVES | _TREES | st.just(ABSENT),
        exact=st.booleans(),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda w: w.key[0],
)


def dumped(content: dict[str, Any]) -> bytes:
    """Write a tree as TOML, with the editor itself: only its content counts here."""
    return toml_editor.put(toml_editor.parse(b"", PATH), ("root",), content).encode()


@settings(deadline=None, max_examples=100)
@given(_TREES, _WANTS)
def test_any_edit_is_idempotent_and_reversible(
    content: dict[str, Any], wanted: list[DesiredKey]
) -> None:
    data = dumped(content)
    wants = [replace(w, key=("root", *w.key)) for w in wanted]
    wants = [w for w in wants if len(w.key) == 2 or isinstance(content.get(w.key[1], {}), dict)]
    change = edits.apply(toml_editor, PATH, data, wants)
    if change is None:
        return
    assert change.after is not None
    assert edits.apply(toml_editor, PATH, change.after, wants) is None
    back, stayed = edits.reverse(toml_editor, PATH, change.after, change.edits)
    assert tree(back) == tree(data)
    assert stayed == ()


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (ABSENT, "nothing"),
        (False, "false"),
        (True, "true"),
        (None, "null"),
        (0, "0"),
        (1.5, "1.5"),
        ("false", "'false'"),
        ([True, "a"], "[true, 'a']"),
        ({}, "{}"),
        ({"a.b": {"c": None}}, '{"a.b": {c: null}}'),
        (datetime.date(2026, 1, 2), "2026-01-02"),
    ],
)
def test_a_value_is_written_as_in_the_file(item: object, text: str) -> None:
    assert edits.value_text(item) == text
