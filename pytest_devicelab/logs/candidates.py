"""Candidates: which lines of a log are worth reading, at the speed of the disk."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pytest_devicelab.logs.dialect import Dialect, Trigger

_MAX_FOLLOWING = 1 << 20

Hit = tuple[int, int]  # (end of the literal in the data, index of the literal)


class Finder(Protocol):
    """Finds literals in bytes."""

    def find(self, data: bytearray, end: int) -> Sequence[Hit]:
        """Return every place in `data[:end]` that a literal ends at, in order."""


class PlainFinder:
    """Finds literals with the standard library alone: one search for each."""

    def __init__(self, literals: Sequence[bytes]) -> None:
        self._literals = tuple(literals)

    def find(self, data: bytearray, end: int) -> Sequence[Hit]:
        """Return all hits in order."""
        hits: list[Hit] = []
        for index, literal in enumerate(self._literals):
            at = data.find(literal, 0, end)
            while at >= 0:
                hits.append((at + len(literal), index))
                at = data.find(literal, at + 1, end)
        hits.sort()
        return hits


class HyperscanFinder:
    """Finds all literals in one pass, with the hyperscan package (the extra `fast-logs`)."""

    def __init__(self, literals: Sequence[bytes], hyperscan: Any) -> None:
        self._database = hyperscan.Database()
        self._database.compile(
            # As expressions, not with `literal=True`: that ends at a NUL byte.
            expressions=[b"".join(b"\\x%02x" % byte for byte in literal) for literal in literals],
            ids=list(range(len(literals))),
            elements=len(literals),
            flags=[0] * len(literals),
        )

    def find(self, data: bytearray, end: int) -> Sequence[Hit]:
        """Return all hits in order."""
        hits: list[Hit] = []

        def take(index: int, _start: int, stop: int, _flags: int, _context: object) -> None:
            hits.append((stop, index))

        with memoryview(data) as view, view[:end] as part:
            self._database.scan(part, match_event_handler=take)
        return hits


def make_finder(literals: Sequence[bytes]) -> Finder:
    """Return the fastest finder that is installed."""
    try:
        import hyperscan  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return PlainFinder(literals)
    return HyperscanFinder(literals, hyperscan)


@dataclass(slots=True, kw_only=True)
class LineSelector:
    """Chooses the lines of a log that some dialect wants, and says which.

    Dialects are bits of a mask, the first of them bit 0. What one asked to see after a line carries over
    from block to block.
    """

    triggers: tuple[Trigger, ...]
    masks: tuple[int, ...]
    finder: Finder
    _owed: dict[int, int] = field(default_factory=dict)

    def select(self, data: bytearray, end: int) -> Iterator[tuple[int, int, int]]:
        r"""Return `(start, end, mask)` of each wanted line in whole lines `data[:end]`, in order.

        The end is that of the line's text, before its `\n`.
        """
        hits = iter(self.finder.find(data, end))
        hit = next(hits, None)
        position = 0  # of the next line that may be wanted
        while True:
            if self._owed:
                start = position
            elif hit is not None:
                start = data.rfind(b"\n", 0, hit[0]) + 1
            else:
                return
            if start >= end:
                return
            stop = data.find(b"\n", start, end)
            stop = end if stop < 0 else stop
            mask = self._take_owed()
            while hit is not None and hit[0] <= stop:
                mask |= self.masks[hit[1]]
                self._owe(hit[1], data, start, stop)
                hit = next(hits, None)
            yield start, stop, mask
            position = stop + 1

    def _take_owed(self) -> int:
        mask = 0
        for bits in tuple(self._owed):
            mask |= bits
            self._owed[bits] -= 1
            if not self._owed[bits]:
                del self._owed[bits]
        return mask

    def _owe(self, index: int, data: bytearray, start: int, stop: int) -> None:
        trigger = self.triggers[index]
        wanted = trigger.following
        if trigger.counted:
            found = re.compile(re.escape(trigger.counted) + rb"([0-9]{1,7})").search(data, start, stop)
            wanted += 4 * int(found[1]) if found is not None else 0
        if wanted:
            bits = self.masks[index]
            self._owed[bits] = min(max(wanted, self._owed.get(bits, 0)), _MAX_FOLLOWING)


def make_selector(dialects: Sequence[Dialect], finder: Finder | None = None) -> LineSelector:
    """Return a selector for these dialects.

    Args:
        dialects: the first of them becomes bit 0 of the masks.
        finder: for the literals of all their triggers, in order; None for the fastest there is.
    """
    triggers: list[Trigger] = []
    masks: list[int] = []
    for bit, dialect in enumerate(dialects):
        for trigger in dialect.triggers:
            triggers.append(trigger)
            masks.append(1 << bit)
    literals = [trigger.literal for trigger in triggers]
    return LineSelector(
        triggers=tuple(triggers),
        masks=tuple(masks),
        finder=make_finder(literals) if finder is None else finder,
    )
