"""LogScanner: the events of a log of any length, in one pass and in constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from pytest_devicelab.evidence.events import Event
from pytest_devicelab.logs.binary import binary_records, is_binary
from pytest_devicelab.logs.blocks import BLOCK_BYTES, Block, ReadInto, count_lines, read_blocks
from pytest_devicelab.logs.candidates import LineSelector, make_selector
from pytest_devicelab.logs.dialect import Dialect, make_event
from pytest_devicelab.logs.formats import sniff_framing
from pytest_devicelab.logs.framing import Framing, LogLineRecord, RawLine, read_line
from pytest_devicelab.logs.survey import Survey

_Wanted = Iterator[tuple[LogLineRecord, int]]


class LogScanner:
    """Finds the events of one log.

    Args:
        source: `logcat`, `stdout` or `stderr`; goes into each event.
        framing: how the log marks its lines; None to tell from its first block.
        dialects: the grammars to look for.
        survey: counts over every line, not only over those a dialect has words in; None to let the rest
            go by at the speed of the disk.
        selector: finds those lines; None for the fastest one there is.
        block_bytes: how much of the log is in memory at a time.

    Attributes:
        format: what the log turned out to be, such as `threadtime`.
        lines: lines seen so far; entries of a binary log.
        read: how many records were read.
        unparsed: how many of those the framing could not read.
        lost: lines known to be missing.
    """

    def __init__(
        self,
        *,
        source: str,
        dialects: Sequence[Dialect],
        framing: Framing | None = None,
        survey: Survey | None = None,
        selector: LineSelector | None = None,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self.format = "" if framing is None else framing.name
        self.lines = self.read = self.unparsed = self.lost = 0
        self._source = source
        self._framing = framing
        self._survey = survey
        self._block_bytes = block_bytes
        self._selector = make_selector(dialects) if selector is None else selector
        self._readers = tuple(dialect.reader(source=source) for dialect in dialects)
        self._own = 1 << len(
            self._readers
        )  # the bit of lines that are read because they did not arrive whole

    def scan(self, read_into: ReadInto) -> Iterator[Event]:
        """Return the events of a log, each as soon as it is certain; call once.

        Args:
            read_into: see `read_blocks`.
        """
        for record, mask in self._wanted(read_blocks(read_into, size=self._block_bytes)):
            self.read += 1
            self.unparsed += not record.framed
            if mask:
                yield from self._counted(chain(self._losses(record), self._events(record, mask)))
        yield from self._counted(event for reader in self._readers for event in reader.finish())

    def _wanted(self, blocks: Iterator[Block]) -> _Wanted:
        """Return the records to read, with the mask of the dialects that want each."""
        first = next(blocks, None)
        if first is None:
            return
        head = bytes(memoryview(first.data)[: min(first.end, 1 << 18)])
        blocks = chain((first,), blocks)
        if self._framing is None and is_binary(head):
            self.format = "binary"
            yield from self._binary(blocks)
            return
        framing = sniff_framing(head) if self._framing is None else self._framing
        self.format = framing.name
        if framing.carries:  # where a line's header is another line, no line can be read by itself
            yield from self._every(blocks, framing)
        else:
            yield from self._candidates(blocks, framing)

    def _candidates(self, blocks: Iterable[Block], framing: Framing) -> _Wanted:
        for block in blocks:
            if self._survey is not None:
                self._survey.add_block(block, framing)
            counted = 0
            for start, stop, mask in self._whole(block):
                self.lines += count_lines(block.data, counted, start)
                counted = start
                record = framing.frame_one(self._raw_line(block, start, stop))
                if record is not None:
                    yield record, mask
            self.lines += count_lines(block.data, counted, block.end) + _unended(block)

    def _whole(self, block: Block) -> Iterator[tuple[int, int, int]]:
        """Return the lines somebody wants, and the one that is too long for a block."""
        read_to = -1
        for start, stop, mask in self._selector.select(block.data, block.end):
            read_to = stop
            yield start, stop, mask
        if block.skipped and read_to < block.end:
            yield block.data.rfind(b"\n", 0, block.end) + 1, block.end, self._own

    def _every(self, blocks: Iterable[Block], framing: Framing) -> _Wanted:
        masks: dict[int, int] = {}
        for record in framing.frame(self._all_lines(blocks, framing, masks)):
            if self._survey is not None:
                self._survey.add(record)
            yield record, masks[record.line]
            masks.clear()

    def _all_lines(
        self, blocks: Iterable[Block], framing: Framing, masks: dict[int, int]
    ) -> Iterator[RawLine]:
        above = 0
        for block in blocks:
            wanted = {start: mask for start, _, mask in self._whole(block)}
            start = 0
            while start < block.end:
                stop = block.data.find(b"\n", start, block.end)
                stop = block.end if stop < 0 else stop
                line = self._raw_line(block, start, stop)
                mask = wanted.get(start, 0)
                if framing.carries and framing.header(line.text) is not None:
                    above = mask  # what a header names, the lines below it are about
                masks[line.line] = mask | above
                yield line
                self.lines += 1
                start = stop + 1

    def _binary(self, blocks: Iterable[Block]) -> _Wanted:
        for record in binary_records(blocks):
            self.lines = record.line
            if self._survey is not None:
                self._survey.add(record)
            text = bytearray(f"{record.tag}: {record.message}\n".encode())
            mask = self._own if record.dropped_bytes else 0
            if record.framed:
                for _, _, found in self._selector.select(text, len(text)):
                    mask |= found
            yield record, mask

    def _raw_line(self, block: Block, start: int, stop: int) -> RawLine:
        line = read_line(block.data, start, stop, line=self.lines + 1, offset=block.offset + start)
        return line if stop < block.end or not block.skipped else _longer(line, block.skipped)

    def _events(self, record: LogLineRecord, mask: int) -> Iterator[Event]:
        for bit, reader in enumerate(self._readers):
            if mask >> bit & 1:
                yield from reader.read(record)

    def _losses(self, record: LogLineRecord) -> Iterator[Event]:
        """Return that a line somebody wanted did not arrive whole."""
        if record.dropped_bytes:
            reason = f"line cut, {record.dropped_bytes} bytes not read"
        elif record.cut:
            reason = "message cut by the logger"
        else:
            return
        fields = {"count": "1", "reason": reason}
        yield make_event("lost_records", record, dialect="logcat", source=self._source, fields=fields)

    def _counted(self, events: Iterable[Event]) -> Iterator[Event]:
        for event in events:
            if event.kind == "lost_records":
                count = event.fields.get("count", "")  # a dialect may know only that something is missing
                self.lost += int(count) if count.isdecimal() else 1
            yield event


def _unended(block: Block) -> int:
    """Return 1 if the last line of a block has no line end: the log's last, or one that was too long."""
    return int(block.data[block.end - 1] != ord("\n"))


def _longer(line: RawLine, skipped: int) -> RawLine:
    return RawLine(
        line=line.line, offset=line.offset, text=line.text, dropped_bytes=line.dropped_bytes + skipped
    )
