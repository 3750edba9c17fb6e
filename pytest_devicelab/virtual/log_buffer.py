"""What a log buffer holds, and how it makes room: the part of the log daemon that does no I/O.

Source: AOSP logd and liblog for limits and what is cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pytest_devicelab.virtual.tools.logclient import (
    BUFFERS,
    MAX_PAYLOAD_BYTES,
    PRIORITIES,
    LogRecord,
    encode_line,
    encode_text,
)

DEFAULT_LIMIT_BYTES = 256 * 1024
MIN_LIMIT_BYTES = 64 * 1024
MAX_LIMIT_BYTES = 256 * 1024 * 1024
HEADER_BYTES = 28


def trim(record: LogRecord) -> LogRecord:
    """Return the record as it fits a log entry: cut at the first NUL and at 4068 bytes of payload.

    The payload is one byte of priority, then tag and message, each with a closing NUL; a message that
    is cut loses its NUL too.
    """
    tag = encode_text(record.tag.partition("\0")[0])[: MAX_PAYLOAD_BYTES - 3]
    message = encode_text(record.message.partition("\0")[0])
    room = MAX_PAYLOAD_BYTES - 1 - len(tag) - 1
    message = message[:room]
    return record._replace(
        tag=tag.decode("utf-8", "surrogateescape"), message=message.decode("utf-8", "surrogateescape")
    )


def decode_record(value: Any) -> LogRecord:
    """Return the record a client sent.

    Raises:
        ValueError: it is not a record.
    """
    if not isinstance(value, dict) or set(value) != set(LogRecord._fields):
        raise ValueError("a record has exactly the fields " + ", ".join(LogRecord._fields))
    record = LogRecord(**value)
    texts = (record.buffer, record.priority, record.tag, record.message)
    numbers = (record.pid, record.tid, record.uid, record.time_ns)
    if not all(type(text) is str for text in texts) or not all(type(number) is int for number in numbers):
        raise ValueError("a field of the record has the wrong type")
    if record.buffer not in BUFFERS or len(record.priority) != 1 or record.priority not in PRIORITIES:
        raise ValueError(f"no such buffer or priority: {record.buffer!r} {record.priority!r}")
    if min(numbers) < 0 or max(numbers) >= 1 << 63:
        raise ValueError("a number of the record is out of range")
    return record


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A stored record: its place in the order of arrival, its size, and its line of the protocol."""

    sequence: int
    pid: int
    time_ns: int
    size_bytes: int
    wire: bytes


def make_entry(sequence: int, record: LogRecord) -> Entry:
    """Return a record as it is stored: cut to size, and charged with a header."""
    record = trim(record)
    payload = 1 + len(encode_text(record.tag)) + 1 + len(encode_text(record.message)) + 1
    return Entry(
        sequence=sequence,
        pid=record.pid,
        time_ns=record.time_ns,
        size_bytes=HEADER_BYTES + min(payload, MAX_PAYLOAD_BYTES),
        wire=encode_line(record._asdict()),
    )


@dataclass(slots=True, kw_only=True)
class RingBuffer:
    """One log buffer: the newest entries whose sizes fit the limit.

    Attributes:
        dropped: sequence number of the newest entry that had to make room; 0 when none had to.
    """

    limit_bytes: int = DEFAULT_LIMIT_BYTES
    used_bytes: int = 0
    dropped: int = 0
    entries: deque[Entry] = field(default_factory=deque)

    def append(self, entry: Entry) -> None:
        """Add an entry, and drop the oldest ones until the limit holds."""
        self.entries.append(entry)
        self.used_bytes += entry.size_bytes
        self._prune()

    def resize(self, limit_bytes: int) -> None:
        """Change the limit, within what Android allows, and drop what no longer fits."""
        self.limit_bytes = min(max(limit_bytes, MIN_LIMIT_BYTES), MAX_LIMIT_BYTES)
        self._prune()

    def clear(self) -> int:
        """Empty the buffer and return how many entries it held; nothing counts as dropped."""
        count = len(self.entries)
        self.entries.clear()
        self.used_bytes = 0
        return count

    def after(self, sequence: int) -> Iterator[Entry]:
        """Yield the entries that arrived after that sequence number, newest first."""
        for entry in reversed(self.entries):
            if entry.sequence <= sequence:
                return
            yield entry

    def _prune(self) -> None:
        while self.used_bytes > self.limit_bytes:
            oldest = self.entries.popleft()
            self.used_bytes -= oldest.size_bytes
            self.dropped = oldest.sequence
