"""Columns: the header of every line of a threadtime log at once, as arrays."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_devicelab.logs.formats import THREADTIME
from pytest_devicelab.logs.framing import Framing

Positions = npt.NDArray[np.int64]

# `MM-DD hh:mm:ss.` with what `-v year` puts before it and `-v usec`, `-v nsec` and `-v zone` behind.
_TIME = re.compile(rb"(?:\d{4}-)?\d\d-\d\d \d\d:\d\d:\d\d\.\d{3,9}(?: [+-]\d{4})?(?= )")
_NEWLINE, _SPACE, _COLON, _ZERO, _RETURN = (ord(sign) for sign in "\n :0\r")
_PRIORITIES = np.isin(np.arange(256), np.frombuffer(b"VDIWEFA", dtype=np.uint8))


@dataclass(frozen=True, slots=True, kw_only=True)
class LogColumns:
    r"""The lines of a block, one row each; positions are bytes from the block's start.

    Attributes:
        start: `int64 [N]`, where each line begins.
        end: `int64 [N]`, where its text ends, before `\r` and line end.
        regular: `bool [N]`, whether the line has the header below. The other columns hold nothing of use
            in the other rows: blank lines, dividers, unreadable lines, and headers of another layout.
        clock: `int64 [N]`, grows with the time as written; for comparing rows only.
        pid: `int64 [N]`.
        tid: `int64 [N]`.
        priority: `uint8 [N]`, the letter's ASCII code.
        tag: `int64 [N]`, where the tag begins.
        tag_end: `int64 [N]`, where its colon stands.
        message: `int64 [N]`, where the message begins.
    """

    start: Positions
    end: Positions
    regular: npt.NDArray[np.bool_]
    clock: Positions
    pid: Positions
    tid: Positions
    priority: npt.NDArray[np.uint8]
    tag: Positions
    tag_end: Positions
    message: Positions


def has_columns(framing: Framing) -> bool:
    """Whether lines of a framing can be read as columns."""
    return framing is THREADTIME


def read_columns(data: bytes | bytearray, end: int) -> LogColumns:
    """Read the headers of all lines in `data[:end]`.

    The layout, which modifiers the log was printed with, is that of the first line that has one; lines
    of another layout are not `regular`, and neither are process numbers of more than five digits.
    """
    array = np.frombuffer(data, dtype=np.uint8, count=end)
    breaks = np.flatnonzero(array == _NEWLINE)
    if end and array[-1] != _NEWLINE:
        breaks = np.append(breaks, end)
    start = np.concatenate(([0], breaks[:-1] + 1)) if breaks.size else breaks
    stop = breaks.copy()
    for _ in range(2):  # adb makes `\r\n` and `\r\r\n`
        stop -= (stop > start) & (array[np.maximum(stop - 1, 0)] == _RETURN)
    sample = _TIME.search(data, 0, end)
    width = 0 if sample is None else sample.end() - sample.start()
    return _columns(array, start, stop, width, b"" if sample is None else sample.group())


def _columns(
    array: npt.NDArray[np.uint8], start: Positions, end: Positions, width: int, sample: bytes
) -> LogColumns:
    head = width + 15  # time, ` ppppp`, ` ttttt`, ` P `
    long_enough = (end - start >= head + 1) & (width > 0)
    if width and array.size >= head:
        rows = np.lib.stride_tricks.sliding_window_view(array, head)[np.minimum(start, array.size - head)]
    else:
        rows = np.zeros((start.size, head), dtype=np.uint8)
    digits = np.frombuffer(sample, dtype=np.uint8) - _ZERO < 10
    signs = np.flatnonzero(~digits)
    values = rows[:, :width] - np.uint8(_ZERO)  # wraps around below the digit zero
    regular = long_enough & (values[:, digits] < 10).all(axis=1)
    regular &= (rows[:, signs] == np.frombuffer(sample, dtype=np.uint8)[signs]).all(axis=1)
    pid, pid_read = _number(rows[:, width : width + 6])
    tid, tid_read = _number(rows[:, width + 6 : width + 12])
    priority = rows[:, width + 13]
    regular &= pid_read & tid_read & _PRIORITIES[priority]
    regular &= (rows[:, width + 12] == _SPACE) & (rows[:, width + 14] == _SPACE)
    tag = start + head
    tag_end = _colons(array, tag, end)
    regular &= (tag_end < end) & (tag_end - tag <= 128)
    clock = _clock(values[:, digits])
    message = np.minimum(tag_end + 2, end)
    return LogColumns(
        start=start,
        end=end,
        regular=regular,
        clock=clock,
        pid=pid,
        tid=tid,
        priority=priority,
        tag=tag,
        tag_end=tag_end,
        message=message,
    )


def _number(field: npt.NDArray[np.uint8]) -> tuple[Positions, npt.NDArray[np.bool_]]:
    """Read right-aligned numbers `uint8 [N, 6]`: a space at least, then up to five digits."""
    digit = field - np.uint8(_ZERO) < 10
    padded = digit | (field == _SPACE)
    read = padded.all(axis=1) & ~digit[:, 0] & digit[:, -1] & (digit[:, :-1] <= digit[:, 1:]).all(axis=1)
    values = np.where(digit, field - np.uint8(_ZERO), 0).astype(np.int64)
    return values @ (10 ** np.arange(field.shape[1] - 1, -1, -1)), read


def _colons(array: npt.NDArray[np.uint8], tag: Positions, end: Positions) -> Positions:
    """Return where each tag ends: at the first colon with a space or the line's end behind it."""
    colons = np.flatnonzero(array == _COLON)
    behind = array[np.minimum(colons + 1, array.size - 1)]
    closes = (behind == _SPACE) | (behind == _NEWLINE) | (behind == _RETURN) | (colons + 1 == array.size)
    colons = np.append(colons[closes], array.size)
    found: Positions = colons[np.searchsorted(colons, np.minimum(tag, array.size))]
    return found


def _clock(digits: npt.NDArray[np.uint8]) -> Positions:
    """Read the digits of a time `uint8 [N, K]` as one number; a zone's digits count for nothing."""
    kept = digits[:, :18].astype(np.int64)
    clock: Positions = kept @ (10 ** np.arange(kept.shape[1] - 1, -1, -1, dtype=np.int64))
    return clock
