"""Framing: which bytes of a log are header, which are message, and where each line begins."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# A logcat payload ends at 4,068 bytes; only a host tool's own output gets near this.
MAX_LINE_BYTES = 65_536
# Source: Android's logger.h, LOGGER_ENTRY_MAX_PAYLOAD: priority, tag, NUL, message, NUL.
MAX_PAYLOAD_BYTES = 4_068

_ANSI = re.compile(r"\x1b\[[0-9;]{0,32}[A-Za-z]")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
_DIVIDER = re.compile(r"-{5,16} (?:beginning of|switch to) \S")
_CONTINUATION = re.compile(r"\s{4}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RawLine:
    """One line of a log, before anybody read a header in it.

    Attributes:
        line: 1-based.
        offset: of its first byte in the log.
        text: decoded, without line end; bad UTF-8 becomes U+FFFD; at most `MAX_LINE_BYTES` bytes of it.
        dropped_bytes: how many bytes of an overlong line are not in `text`.
    """

    line: int
    offset: int
    text: str
    dropped_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLineRecord:
    """One message line of a log.

    Attributes:
        line: 1-based line in the log; in a binary log, 1-based entry.
        offset: byte offset of that line.
        raw: the line as it stood, decoded.
        message: what follows the header; terminal colours removed, control characters (but tab) as U+FFFD.
        framed: False for a line the framing could not read; its `message` is then the whole line, so
            that dialects still see it.
        time: the timestamp as written, or empty.
        priority: one of V D I W E F A, or empty.
        dropped_bytes: how many bytes of an overlong line were left out.
        cut: the logger cut the message at the largest payload it carries; how much is lost is unknown.
    """

    line: int
    offset: int
    raw: str
    message: str
    framed: bool
    time: str = ""
    pid: int | None = None
    tid: int | None = None
    priority: str = ""
    tag: str = ""
    dropped_bytes: int = 0
    cut: bool = False


def read_line(data: bytes | bytearray, start: int, end: int, *, line: int, offset: int) -> RawLine:
    r"""Decode the line `data[start:end]`; `\r` at its end (adb makes `\r\n` and `\r\r\n`) is line end."""
    content = data[start : min(end, start + MAX_LINE_BYTES + 2)]
    dropped = end - start - len(content)
    if not dropped:
        content = content.rstrip(b"\r")
        dropped = max(0, len(content) - MAX_LINE_BYTES)
        content = content[:MAX_LINE_BYTES]
    else:
        dropped, content = end - start - MAX_LINE_BYTES, content[:MAX_LINE_BYTES]
    return RawLine(line=line, offset=offset, text=content.decode("utf-8", "replace"), dropped_bytes=dropped)


def split_lines(data: bytes) -> Iterator[RawLine]:
    r"""Cut a log at `\n`."""
    offset, number = 0, 0
    while offset < len(data):
        end = data.find(b"\n", offset)
        end = len(data) if end < 0 else end
        number += 1
        yield read_line(data, offset, end, line=number, offset=offset)
        offset = end + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """One way a log marks its lines.

    Args:
        name: as in `logcat -v <name>`, or where else it is met.
        headers: each matches a whole line; the first that does is taken. Groups `priority`, `tag`,
            `message`, and `time` or `seconds`, `pid`, `tid` where the format has them. A header without
            the group `message` stands on a line of its own, above its message.
        carries: a line without a header belongs to the header above it.
        open: a line without a header is a message too: output of a tool, prose of a bug report.
    """

    name: str
    headers: tuple[re.Pattern[str], ...]
    carries: bool = False
    open: bool = False

    def frame(self, lines: Iterable[RawLine]) -> Iterator[LogLineRecord]:
        """Return a record for each line that says something: unreadable ones too, blank ones not."""
        above: re.Match[str] | None = None
        for line in lines:
            text = clean_text(line.text)
            if not text.strip():
                continue
            found = self.header(text)
            if found is not None:
                above = found
                if "message" in found.re.groupindex:
                    yield _record(line, found["message"] or "", framed=True, header=found)
            elif _DIVIDER.match(text):
                yield _record(line, text, framed=True)
            elif self.carries and above is not None and self._continues(above, text):
                message = text.lstrip() if "message" in above.re.groupindex else text
                yield _record(line, message, framed=True, header=above)
            else:
                yield _record(line, text, framed=self.open)

    def frame_one(self, line: RawLine) -> LogLineRecord | None:
        """Return the record of one line of a framing that does not carry; None for a blank one."""
        return next(self.frame((line,)), None)

    def header(self, text: str) -> re.Match[str] | None:
        """Return the header a line has, if any."""
        for pattern in self.headers:
            found = pattern.match(text)
            if found is not None:
                return found
        return None

    @staticmethod
    def _continues(above: re.Match[str], text: str) -> bool:
        # Below a header of its own line comes the message as it is; Android Studio indents what continues.
        return "message" not in above.re.groupindex or _CONTINUATION.match(text) is not None


def join_messages(records: Iterable[LogLineRecord]) -> Iterator[LogLineRecord]:
    r"""Put messages of several lines together again, with `\n` between their lines.

    Logcat repeats the header for each line of a message: neighbours with the same time, process, thread,
    priority and tag are taken for one. Two short messages within one tick of the clock cannot be told
    from one of two lines; nothing is lost by it but the boundary.
    """
    group: list[LogLineRecord] = []
    for record in records:
        if group and not _same_message(group[-1], record):
            yield _joined(group)
            group = []
        group.append(record)
    if group:
        yield _joined(group)


def _same_message(one: LogLineRecord, other: LogLineRecord) -> bool:
    def header(record: LogLineRecord) -> tuple[object, ...]:
        return record.time, record.pid, record.tid, record.priority, record.tag

    return bool(one.time and one.priority) and header(one) == header(other)


def _joined(group: list[LogLineRecord]) -> LogLineRecord:
    if len(group) == 1:
        return group[0]
    first = group[0]
    message = "\n".join(record.message for record in group)
    return LogLineRecord(
        line=first.line,
        offset=first.offset,
        raw="\n".join(record.raw for record in group),
        message=message,
        framed=first.framed,
        time=first.time,
        pid=first.pid,
        tid=first.tid,
        priority=first.priority,
        tag=first.tag,
        dropped_bytes=sum(record.dropped_bytes for record in group),
        cut=_is_cut(first.tag, message),
    )


def clean_text(text: str) -> str:
    """Return a line without terminal colours, its control characters (but tab) as U+FFFD."""
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    return text if text.isprintable() else _CONTROL.sub("\ufffd", text)


def _is_cut(tag: str, message: str) -> bool:
    payload = tag + message
    return len(payload) * 4 >= MAX_PAYLOAD_BYTES - 3 and len(payload.encode()) >= MAX_PAYLOAD_BYTES - 3


def _record(
    line: RawLine, message: str, *, framed: bool, header: re.Match[str] | None = None
) -> LogLineRecord:
    if header is None:
        return LogLineRecord(
            line=line.line,
            offset=line.offset,
            raw=line.text,
            message=message,
            framed=framed,
            dropped_bytes=line.dropped_bytes,
        )
    fields = header.groupdict()
    tag = (fields.get("tag") or "").strip()
    return LogLineRecord(
        line=line.line,
        offset=line.offset,
        raw=line.text,
        message=message,
        framed=framed,
        time=(fields.get("time") or fields.get("seconds") or "").strip(),
        pid=int(fields["pid"]) if fields.get("pid") else None,
        tid=int(fields["tid"]) if fields.get("tid") else None,
        priority=fields.get("priority") or "",
        tag=tag,
        dropped_bytes=line.dropped_bytes,
        cut=bool(fields.get("priority")) and _is_cut(tag, message),
    )
