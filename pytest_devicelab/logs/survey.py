"""Survey: how much of a log can be read at all, line by line, whether or not a runtime wrote it."""

from __future__ import annotations

import numpy as np

from pytest_devicelab.logs.blocks import Block
from pytest_devicelab.logs.columns import has_columns, read_columns
from pytest_devicelab.logs.framing import MAX_PAYLOAD_BYTES, Framing, LogLineRecord, read_line


class Survey:
    """Counts over every line of a log.

    Attributes:
        records: lines that say something.
        unparsed: how many of them have no header that can be read.
        backwards: how often the time as written went back. Nothing depends on its order; but two lines
            with such a step between them cannot be told earlier and later.
        cut: messages at the largest size the logger carries: their ends are lost.
    """

    def __init__(self) -> None:
        self.records = self.unparsed = self.backwards = self.cut = 0
        self._clock = -1
        self._time = ""

    def add_block(self, block: Block, framing: Framing) -> None:
        """Take in some lines, each of which has its own header."""
        if has_columns(framing):
            self._add_columns(block, framing)
            return
        start = 0
        while start < block.end:
            stop = block.data.find(b"\n", start, block.end)
            stop = block.end if stop < 0 else stop
            self._add_line(block, start, stop, framing)
            start = stop + 1

    def add(self, record: LogLineRecord) -> None:
        """Take in one line."""
        self.records += 1
        self.unparsed += not record.framed
        self.cut += record.cut
        if record.time:
            time = record.time.rjust(40)  # numbers of seconds grow in length
            self.backwards += time < self._time
            self._time = time

    def _add_line(self, block: Block, start: int, stop: int, framing: Framing) -> None:
        line = read_line(block.data, start, stop, line=0, offset=0)
        record = framing.frame_one(line)
        if record is not None:
            self.add(record)

    def _add_columns(self, block: Block, framing: Framing) -> None:
        columns = read_columns(block.data, block.end)
        regular = columns.regular
        self.records += int(np.count_nonzero(regular))
        clock = columns.clock[regular]
        if clock.size:
            self.backwards += int(np.count_nonzero(np.diff(clock, prepend=self._clock) < 0))
            self._clock = int(clock[-1])
        payload = columns.end - columns.message + columns.tag_end - columns.tag
        self.cut += int(np.count_nonzero(regular & (payload >= MAX_PAYLOAD_BYTES - 3)))
        for row in np.flatnonzero(~regular):
            self._add_line(block, int(columns.start[row]), int(columns.end[row]), framing)
