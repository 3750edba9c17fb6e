"""Blocks: a log of any length, a few megabytes at a time, in whole lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

BLOCK_BYTES = 2 << 20

ReadInto = Callable[[memoryview], int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Some whole lines of a log.

    Attributes:
        data: the lines are `data[:end]`. The buffer is used again for the next block.
        offset: of the first byte in the log.
        skipped: bytes left out after `end`, of a line too long for a block.
    """

    data: bytearray
    end: int
    offset: int
    skipped: int = 0


def read_blocks(read_into: ReadInto, *, size: int = BLOCK_BYTES) -> Iterator[Block]:
    """Read a log to its end.

    A block is given out as soon as a read brought a whole line, so a log that is still being written can
    be followed. Memory stays at `size`, whatever the log holds.

    Args:
        read_into: fills a buffer from its start and returns how many bytes it put there; 0 or None at the
            end of the log.
        size: of the buffer, in bytes. What a line has beyond it is skipped and reported.
    """
    buffer = bytearray(size)
    view = memoryview(buffer)
    filled, offset = 0, 0
    while count := read_into(view[filled:]):
        end = buffer.rfind(b"\n", filled, filled + count) + 1
        filled += count
        if end:
            yield Block(data=buffer, end=end, offset=offset)
            view[: filled - end] = bytes(view[end:filled])
            offset, filled = offset + end, filled - end
        elif filled == size:
            skipped, rest = _skip_line(read_into, bytearray(size))
            yield Block(data=buffer, end=filled, offset=offset, skipped=skipped)
            view[: len(rest)] = rest
            offset, filled = offset + filled + skipped, len(rest)
    if filled:
        yield Block(data=buffer, end=filled, offset=offset)


def count_lines(data: bytearray, start: int, end: int) -> int:
    """Return how many line ends `data[start:end]` has, several times faster than `bytearray.count`."""
    part = np.frombuffer(data, dtype=np.uint8, count=end - start, offset=start)
    return int(np.count_nonzero(part == ord("\n")))


def _skip_line(read_into: ReadInto, scratch: bytearray) -> tuple[int, bytes]:
    """Return how many bytes a line goes on for, its line end included, and what was read beyond it."""
    view = memoryview(scratch)
    skipped = 0
    while count := read_into(view):
        end = scratch.find(b"\n", 0, count) + 1
        if end:
            return skipped + end, bytes(view[end:count])
        skipped += count
    return skipped, b""
