"""Encode and decode protocol buffer messages by field number, without generated code.

The input is untrusted: any bytes are either decoded or rejected with Malformed. A field of two
bytes costs far more memory and time than they do, so the fields are counted, and a deadline is
checked between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, TypeAlias

from runtimes.dataclass import dataclass, field

Value: TypeAlias = int | str | bytes

_VARINT: Final = 0
_BYTES: Final = 2
_LONGEST_VARINT: Final = 10
_HIGHEST_FIELD: Final = (1 << 29) - 1
_64_BITS: Final = (1 << 64) - 1
# 10,000 containers (1,000 pods with ten each) of 52 fields, those of nested messages included.
_MOST_FIELDS: Final = 1 << 19
_BETWEEN_CHECKS: Final = 1 << 12


class Malformed(ValueError):
    """The bytes are not a valid protocol buffer message, or a field has an unexpected type."""


class Limit:
    """The most fields and time that decoding one response may take, nested messages included.

    `time_left` returns the seconds left, and `fields` is the number of fields.
    """

    def __init__(
        self, time_left: Callable[[], float] = lambda: math.inf, *, fields: int = _MOST_FIELDS
    ) -> None:
        self._most = self._fields = fields
        self._time_left = time_left

    def count(self) -> None:
        """Count a field. Raises Malformed if there are too many, TimeoutError at the deadline."""
        self._fields -= 1
        if self._fields < 0:
            raise Malformed(f"more than {self._most} fields")
        if self._fields % _BETWEEN_CHECKS == 0 and self._time_left() <= 0:
            raise TimeoutError


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A decoded message: every value of every field, in wire order. A missing field reads as empty.

    `limit` also applies to the messages in it, which are decoded when they are read.
    """

    fields: Mapping[int, tuple[int | bytes, ...]]
    limit: Limit = field(default_factory=Limit, compare=False, repr=False)

    def number(self, field: int) -> int:
        """Return an unsigned number, the last of several. Raises Malformed if it is no number."""
        value = self.fields.get(field, (0,))[-1]
        if not isinstance(value, int):
            raise Malformed(f"field {field} must be a number, but is {len(value)} bytes")
        return value

    def flag(self, field: int) -> bool:
        """Return a boolean. Raises Malformed if the field is not a number."""
        return self.number(field) != 0

    def pieces(self, field: int) -> tuple[bytes, ...]:
        """Return all values of a field of bytes. Raises Malformed if one is a number."""
        values = self.fields.get(field, ())
        result = tuple(value for value in values if isinstance(value, bytes))
        if len(result) != len(values):
            raise Malformed(f"field {field} must be bytes, but is a number")
        return result

    def text(self, field: int) -> str:
        """Return a string, the last of several, with invalid UTF-8 replaced."""
        return (self.pieces(field) or (b"",))[-1].decode(errors="replace")

    def message(self, field: int) -> Message:
        """Return an embedded message; several are merged, as the format requires."""
        return decode(b"".join(self.pieces(field)), self.limit)

    def messages(self, field: int) -> Iterator[Message]:
        """Yield the messages of a repeated field. Each is decoded lazily, to save memory."""
        return (decode(piece, self.limit) for piece in self.pieces(field))

    def texts_by_name(self, field: int) -> dict[str, str]:
        """Return a map<string, string>."""
        return {entry.text(1): entry.text(2) for entry in self.messages(field)}


def encode(fields: Iterable[tuple[int, Value]]) -> bytes:
    """Return a message of these fields.

    Raises ValueError for an invalid field number, and for a value that is negative or exceeds 64
    bits.
    """
    out = bytearray()
    for number, value in fields:
        if not 0 < number <= _HIGHEST_FIELD:
            raise ValueError(f"{number} is not a valid field number")
        if isinstance(value, int):
            out += _varint(number << 3 | _VARINT) + _varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += _varint(number << 3 | _BYTES) + _varint(len(data)) + data
    return bytes(out)


def decode(data: bytes, limit: Limit | None = None) -> Message:
    """Return the fields of a message.

    Raises Malformed if it is truncated, contains groups or unknown wire types, or exceeds the
    number of fields of the limit, and TimeoutError at the limit's deadline.
    """
    limit = limit or Limit()
    result: dict[int, list[int | bytes]] = {}
    for number, value in _read(data):
        limit.count()
        result.setdefault(number, []).append(value)
    return Message(fields={number: tuple(values) for number, values in result.items()}, limit=limit)


def _read(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        field, kind = key >> 3, key & 7
        if not 0 < field <= _HIGHEST_FIELD:
            raise Malformed(f"{field} is not a valid field number (at byte {at})")
        value: int | bytes
        match kind:
            case 0:
                value, at = _read_varint(data, at)
            case 2:
                size, at = _read_varint(data, at)
                value, at = _take(data, at, size), at + size
            case 1 | 5:
                size = 8 if kind == 1 else 4
                value, at = int.from_bytes(_take(data, at, size), "little"), at + size
            case _:
                raise Malformed(f"field {field} has the unknown wire type {kind} (at byte {at})")
        yield field, value


def _take(data: bytes, at: int, size: int) -> bytes:
    if size > len(data) - at:
        raise Malformed(f"truncated: {size} bytes expected at byte {at}, {len(data) - at} found")
    return data[at : at + size]


def _varint(value: int) -> bytes:
    if not 0 <= value <= _64_BITS:
        raise ValueError(f"{value} is not an unsigned 64-bit number")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that starts at a byte, and the offset after it."""
    if at < len(data) and data[at] < 0x80:
        return data[at], at + 1  # nearly every tag and length
    value = 0
    for location, byte in enumerate(data[at : at + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * location
        if byte < 0x80:
            # Bits beyond the 64th are dropped, as in other decoders.
            return value & _64_BITS, at + location + 1
    raise Malformed(f"the number at byte {at} is truncated or too long")
