"""Reads tables of a flatbuffer field by field, for files nobody vouches for: every offset is checked before use.

Source: flatbuffers.dev, "FlatBuffer Internals": little-endian; a table begins with the distance back to its vtable, which
holds two sizes and then, for each field in the order of the schema, its distance from the table, 0 where it is absent.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Code = Literal["b", "B", "i", "I", "q", "Q"]
"""A number as `struct` calls it: int8, uint8, int32, uint32, int64, uint64."""

_MOST_ITEMS = 1 << 16
"""No vector of tables of a real program is longer; one that claims more would only cost time."""


class MalformedBuffer(ValueError):
    """The bytes are no flatbuffer of this kind."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table at a place in a buffer. What is absent is None, 0 or empty, as the format has it."""

    data: bytes
    at: int

    def number(self, field: int, code: Code, default: int = 0) -> int:
        """Return a number."""
        place = self._place(field)
        return default if place is None else _unpack(self.data, code, place)

    def table(self, field: int) -> Table | None:
        """Return a table below this one."""
        place = self._place(field)
        return None if place is None else Table(self.data, place + _unpack(self.data, "I", place))

    def tables(self, field: int) -> Iterator[Table]:
        """Return a vector of tables, one by one."""
        first, count = self._vector(field, 4, _MOST_ITEMS)
        for place in range(first, first + 4 * count, 4):
            yield Table(self.data, place + _unpack(self.data, "I", place))

    def numbers(self, field: int, code: Code) -> tuple[int, ...]:
        """Return a vector of numbers."""
        size = struct.calcsize(code)
        first, count = self._vector(field, size, _MOST_ITEMS)
        return struct.unpack_from(f"<{count}{code}", self.data, first)

    def blob(self, field: int) -> bytes:
        """Return a vector of bytes."""
        first, count = self._vector(field, 1, len(self.data))
        return self.data[first : first + count]

    def text(self, field: int) -> str:
        """Return a string; bytes that are no UTF-8 become U+FFFD."""
        return self.blob(field).decode("utf-8", "replace")

    def _place(self, field: int) -> int | None:
        """Return where a field lies."""
        vtable = self.at - _unpack(self.data, "i", self.at)
        slot = 4 + 2 * field
        if slot + 2 > _unpack(self.data, "H", vtable):
            return None
        distance = _unpack(self.data, "H", vtable + slot)
        return self.at + distance if distance else None

    def _vector(self, field: int, size: int, most: int) -> tuple[int, int]:
        """Return where the items of a vector begin, and how many there are; all of them lie in the buffer."""
        place = self._place(field)
        if place is None:
            return 0, 0
        start = place + _unpack(self.data, "I", place)
        count = _unpack(self.data, "I", start)
        if count > most or start + 4 + count * size > len(self.data):
            raise MalformedBuffer(f"a vector at byte {start} claims {count:,} items of {size} bytes")
        return start + 4, count


def root(data: bytes, identifier: bytes) -> Table:
    """Return the table a buffer begins with.

    Args:
        data: the buffer.
        identifier: the four bytes that tell its kind, or none.

    Raises:
        MalformedBuffer: it is of another kind.
    """
    if identifier and data[4:8] != identifier:
        raise MalformedBuffer(f"it begins as {data[4:8]!r}, not {identifier!r}")
    return Table(data, _unpack(data, "I", 0))


def _unpack(data: bytes, code: Code | Literal["H"], place: int) -> int:
    if not 0 <= place <= len(data) - struct.calcsize(code):
        raise MalformedBuffer(f"byte {place} lies outside of its {len(data):,} bytes")
    found: int = struct.unpack_from(f"<{code}", data, place)[0]
    return found
