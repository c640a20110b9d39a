"""The document editors: any file is edited in the requested keys alone or clearly refused."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given

from runtimes import edits
from runtimes.edits import DesiredKey
from runtimes.errors import ConfigError
from runtimes.formats import json_editor, toml_editor
from runtimes.model import Absent
from tests.fuzz import laws
from tests.fuzz.strategies import (
    JSON,
    PATH,
    TOML,
    Work,
    budget,
    edited_inline,
    edited_json,
    edited_toml,
)


@budget(200)
@given(TOML)
def test_toml_is_read_or_refused(data: bytes) -> None:
    with laws.bounded():
        try:
            document = toml_editor.parse(data, PATH)
        except ConfigError:
            return
    assert document.encode() == data
    assert laws.alike(toml_editor.tree(data, PATH), laws.read_toml(data))


@budget(200)
@given(JSON)
def test_json_is_read_or_refused(data: bytes) -> None:
    with laws.bounded():
        try:
            document = json_editor.parse(data, PATH)
        except ConfigError:
            return
    assert document.encode() == data
    assert laws.alike(json_editor.tree(data, PATH).keys(), laws.read_json(data).keys())


@budget(300)
@given(edited_toml())
def test_toml_is_edited_in_the_wanted_keys_alone(work: Work) -> None:
    data, wants = work
    if _is_settable(laws.read_toml, data, wants):
        laws.edit(toml_editor, laws.read_toml, data, wants)


@budget(300)
@given(edited_inline())
def test_inline_tables_are_edited_in_the_wanted_keys_alone_or_refused(work: Work) -> None:
    data, wants = work
    if _is_settable(laws.read_toml, data, wants):
        laws.edit(toml_editor, laws.read_toml, data, wants)


@budget(300)
@given(edited_json())
def test_json_is_edited_in_the_wanted_keys_alone(work: Work) -> None:
    data, wants = work
    if _is_settable(laws.read_json, data, wants):
        laws.edit(json_editor, laws.read_json, data, wants)


@budget(150)
@given(edited_toml())
def test_a_wish_through_a_value_is_refused_in_toml(work: Work) -> None:
    _anything_goes(toml_editor, *work)


@budget(150)
@given(edited_json())
def test_a_wish_through_a_value_is_refused_in_json(work: Work) -> None:
    _anything_goes(json_editor, *work)


def _anything_goes(form: edits.Format, data: bytes, wants: Sequence[DesiredKey]) -> None:
    try:
        edits.apply(form, PATH, data, wants)
    except ConfigError:
        return


def _is_settable(read: laws.Read, data: bytes, wants: Sequence[DesiredKey]) -> bool:
    """Return whether no wish needs a table where a value is; True for an unreadable file."""
    try:
        tree = read(data)
    except (ValueError, RecursionError):
        return True
    parents = [want.key[:depth] for want in wants for depth in range(1, len(want.key))]
    return all(isinstance(laws.held(tree, parent), dict | Absent) for parent in parents)
