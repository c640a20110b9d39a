"""The wire format: what is written is read back, and no bytes do worse than be Malformed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import containers
from toolkit.runtime.client import protobuf
from toolkit.runtime.client.protobuf import Malformed, Message, Value

NUMBERS = st.integers(0, (1 << 64) - 1)
FIELDS = st.lists(st.tuples(st.integers(1, (1 << 29) - 1), NUMBERS | st.text() | st.binary()))


@given(FIELDS)
def test_what_is_written_is_read(fields: list[tuple[int, Value]]) -> None:
    wanted: dict[int, tuple[int | bytes, ...]] = {}
    for field, value in fields:
        piece = value.encode() if isinstance(value, str) else value
        wanted[field] = (*wanted.get(field, ()), piece)
    assert protobuf.decode(protobuf.encode(fields)) == Message(fields=wanted)


@given(
    st.lists(
        st.tuples(st.integers(1, 99), NUMBERS | st.text(min_size=1)),
        unique_by=lambda pair: pair[0],
    )
)
def test_another_writer_agrees(fields: list[tuple[int, int | str]]) -> None:
    assert protobuf.encode(fields) == containers.encode(dict(fields))


@given(st.binary(max_size=200))
def test_junk_is_understood_or_malformed(junk: bytes) -> None:
    try:
        message = protobuf.decode(junk)
    except Malformed:
        return
    assert sum(len(values) for values in message.fields.values()) <= len(junk)
    for field in message.fields:
        for read in (
            message.number,
            message.text,
            message.message,
            lambda field: list(message.messages(field)),
            message.texts_by_name,
        ):
            try:
                read(field)
            except Malformed:
                continue


@given(FIELDS, st.data())
def test_a_message_cut_off_is_shorter_or_malformed(
    fields: list[tuple[int, Value]], data: st.DataObject
) -> None:
    whole = protobuf.encode(fields)
    cut = data.draw(st.integers(0, len(whole)))
    try:
        left = protobuf.decode(whole[:cut])
    except Malformed:
        return
    # Whatever is read was there.
    known = protobuf.decode(whole).fields
    assert all(known[field][: len(values)] == values for field, values in left.fields.items())


@pytest.mark.parametrize(
    ("junk", "why"),
    [
        ("08", "the number at byte 1 is truncated or too long"),
        ("08 ffffffffffffffffffff01", "the number at byte 1 is truncated or too long"),
        ("0a 05 6162", "truncated: 5 bytes expected at byte 2, 2 found"),
        (
            "0a ffffffffffffffffff01 61",
            "truncated: 18446744073709551615 bytes expected at byte 11, 1 found",
        ),
        ("0d 000000", "truncated: 4 bytes expected at byte 1, 3 found"),
        ("09 00", "truncated: 8 bytes expected at byte 1, 1 found"),
        ("0b 0c", "field 1 has the unknown wire type 3 (at byte 1)"),
        ("0f", "field 1 has the unknown wire type 7 (at byte 1)"),
        ("00 00", "0 is not a valid field number (at byte 1)"),
    ],
)
def test_what_is_malformed(junk: str, why: str) -> None:
    with pytest.raises(Malformed) as caught:
        protobuf.decode(bytes.fromhex(junk))
    assert str(caught.value) == why


def test_values_of_the_wrong_kind_are_refused() -> None:
    message = protobuf.decode(protobuf.encode([(1, 7), (2, "text")]))
    with pytest.raises(Malformed, match=r"^field 1 must be bytes, but is a number$"):
        message.text(1)
    with pytest.raises(Malformed, match=r"^field 2 must be a number, but is 4 bytes$"):
        message.number(2)


@pytest.mark.parametrize(("field", "value"), [(0, 1), (1 << 29, 1), (1, -1), (1, 1 << 64)])
def test_what_cannot_be_written_is_refused(field: int, value: int) -> None:
    with pytest.raises(ValueError, match=r"is not an? "):
        protobuf.encode([(field, value)])


def test_absent_fields_are_empty() -> None:
    message = protobuf.decode(b"")
    assert (message.number(1), message.flag(1), message.text(1)) == (0, False, "")
    assert list(message.messages(1)) == []
    assert message.message(1) == message
    assert message.texts_by_name(1) == {}


def test_the_last_of_several_counts_and_messages_merge() -> None:
    parts = [protobuf.encode([(1, "first")]), protobuf.encode([(2, "second")])]
    message = protobuf.decode(
        protobuf.encode([(1, 1), (1, 2), (2, "a"), (2, "b"), (3, parts[0]), (3, parts[1])])
    )
    assert (message.number(1), message.text(2)) == (2, "b")
    assert (message.message(3).text(1), message.message(3).text(2)) == ("first", "second")


def test_fixed_numbers_and_broken_texts_are_read() -> None:
    message = protobuf.decode(bytes.fromhex("0d01000000 11ff00000000000000 1a02c328"))
    assert (message.number(1), message.number(2), message.text(3)) == (
        1,
        255,
        "\N{REPLACEMENT CHARACTER}(",
    )
