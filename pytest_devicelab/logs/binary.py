"""`logcat -B`: the logger's own binary entries."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from pytest_devicelab.logs.blocks import Block
from pytest_devicelab.logs.framing import MAX_PAYLOAD_BYTES, LogLineRecord, clean_text

# Source: Android's log_read.h, struct logger_entry: payload length, header size, pid, tid, seconds,
# nanoseconds; then, where the header is long enough, the log's id and the writer's uid.
_HEADER = struct.Struct("<HHiIII")
_HEADER_SIZES = (20, 24, 28)
_TEXT_LOGS = (0, 1, 3, 4, 7)  # main, radio, system, crash, kernel; the others hold typed values
_PRIORITIES = {2: "V", 3: "D", 4: "I", 5: "W", 6: "E", 7: "F"}


def is_binary(head: bytes) -> bool:
    """Whether a log begins with a binary entry."""
    entry = _entry(head, 0)
    return entry is not None and entry[1] <= len(head)


def binary_records(blocks: Iterable[Block]) -> Iterator[LogLineRecord]:
    """Return a record for each line of each entry; `line` counts entries, `offset` is the entry's.

    An entry of typed values, and one that is no entry at all, is a record that is not `framed`. Behind
    the latter nothing can be found again: it is the last, and says how many bytes it stands for.
    """
    data, offset, number = b"", 0, 0
    for block in blocks:
        data += bytes(memoryview(block.data)[: block.end])
        at = 0
        while (entry := _entry(data, at)) is not None and entry[1] <= len(data):
            number += 1
            yield from _records(data[at : entry[1]], entry[0], number, offset + at)
            at = entry[1]
        data, offset = data[at:], offset + at
        if len(data) >= _HEADER.size + MAX_PAYLOAD_BYTES + 8 or block.skipped:
            break
    rest = len(data) + sum(block.end + block.skipped for block in blocks)
    if rest:
        note = f"{rest} bytes that are no log entry"
        yield LogLineRecord(
            line=number + 1, offset=offset, raw=note, message=note, framed=False, dropped_bytes=rest
        )


def _entry(data: bytes, at: int) -> tuple[int, int] | None:
    """Return the header size and the end of the entry that begins at a place, if one does."""
    if len(data) - at < _HEADER.size:
        return None
    length, header, pid, _, _, nanoseconds = _HEADER.unpack_from(data, at)
    size = header if header in _HEADER_SIZES else 20 if header == 0 else 0
    if not size or not 0 < length <= MAX_PAYLOAD_BYTES + 8 or pid < 0 or nanoseconds >= 10**9:
        return None
    return size, at + size + length


def _records(entry: bytes, header_size: int, number: int, offset: int) -> Iterator[LogLineRecord]:
    _, _, pid, tid, seconds, nanoseconds = _HEADER.unpack_from(entry)
    log = int.from_bytes(entry[20:24], "little") if header_size >= 24 else 0
    payload = entry[header_size:]
    tag, ended, message = payload[1:].partition(b"\0")
    framed = log in _TEXT_LOGS and payload[0] in _PRIORITIES and bool(ended)
    texts = message.rstrip(b"\0\n").split(b"\n") if framed else [payload]
    for raw in texts:
        text = raw.decode("utf-8", "replace")
        yield LogLineRecord(
            line=number,
            offset=offset,
            raw=text,
            message=clean_text(text),
            framed=framed,
            time=f"{seconds}.{nanoseconds:09d}",
            pid=pid,
            tid=tid,
            priority=_PRIORITIES.get(payload[0], "") if framed else "",
            tag=tag.decode("utf-8", "replace") if framed else "",
            cut=framed and len(payload) >= MAX_PAYLOAD_BYTES,
        )
