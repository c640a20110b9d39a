"""The protocol buffer wire format: messages read and written by field number, without generated code.

What was read is untrusted: whatever the bytes are, they are understood or are
Malformed, in time and memory proportional to their length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

Value: TypeAlias = int | str | bytes

_VARINT: Final = 0
_BYTES: Final = 2
_LONGEST_VARINT: Final = 10
_HIGHEST_FIELD: Final = (1 << 29) - 1
_64_BITS: Final = (1 << 64) - 1


class Malformed(ValueError):
    """The bytes are no protocol buffer message, or a field is not of the kind that it has to be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message: every value of every field, in the order sent. What is absent reads as empty."""

    fields: Mapping[int, tuple[int | bytes, ...]]

    def number(self, field: int) -> int:
        """Return an unsigned number; of several the last counts. Refuses what is no number."""
        value = self.fields.get(field, (0,))[-1]
        if not isinstance(value, int):
            raise Malformed(f"field {field} is {len(value)} bytes where a number was due")
        return value

    def flag(self, field: int) -> bool:
        """Return a boolean. Refuses what is no number."""
        return self.number(field) != 0

    def pieces(self, field: int) -> tuple[bytes, ...]:
        """Return all values of a field of bytes. Refuses a number among them."""
        values = self.fields.get(field, ())
        found = tuple(value for value in values if isinstance(value, bytes))
        if len(found) != len(values):
            raise Malformed(f"field {field} is a number where bytes were due")
        return found

    def text(self, field: int) -> str:
        """Return a text; of several the last counts, and what is no UTF-8 is replaced in it."""
        return (self.pieces(field) or (b"",))[-1].decode(errors="replace")

    def message(self, field: int) -> Message:
        """Return a message within this one; several are merged, as the format demands."""
        return decode(b"".join(self.pieces(field)))

    def messages(self, field: int) -> tuple[Message, ...]:
        """Return the messages of a repeated field."""
        return tuple(decode(piece) for piece in self.pieces(field))

    def texts_by_name(self, field: int) -> dict[str, str]:
        """Return a map<string, string>."""
        return {entry.text(1): entry.text(2) for entry in self.messages(field)}


def encode(fields: Iterable[tuple[int, Value]]) -> bytes:
    """Return a message of these fields. Refuses a number that is negative or has more than 64 bits."""
    out = bytearray()
    for field, value in fields:
        if not 0 < field <= _HIGHEST_FIELD:
            raise ValueError(f"{field} is no field number")
        if isinstance(value, int):
            out += _varint(field << 3 | _VARINT) + _varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += _varint(field << 3 | _BYTES) + _varint(len(data)) + data
    return bytes(out)


def decode(data: bytes) -> Message:
    """Return the fields of a message. Refuses what is cut off, groups, and unknown wire types."""
    found: dict[int, list[int | bytes]] = {}
    for field, value in _read(data):
        found.setdefault(field, []).append(value)
    return Message(fields={field: tuple(values) for field, values in found.items()})


def _read(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        field, kind = key >> 3, key & 7
        if not 0 < field <= _HIGHEST_FIELD:
            raise Malformed(f"{field} is no field number (at byte {at})")
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
        raise Malformed(f"{size} bytes were announced at byte {at}, but {len(data) - at} are left")
    return data[at : at + size]


def _varint(value: int) -> bytes:
    if not 0 <= value <= _64_BITS:
        raise ValueError(f"{value} is no unsigned number of 64 bits")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that starts at a byte, and where it ends."""
    value = 0
    for place, byte in enumerate(data[at : at + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            # As all readers do: bits beyond the 64th are dropped.
            return value & _64_BITS, at + place + 1
    raise Malformed(f"the number at byte {at} is cut off or too long")
