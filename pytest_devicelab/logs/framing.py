"""Framing: which bytes of a log are header, which are message, and where each line begins."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

# A logcat payload ends at 4,068 bytes; only a host tool's own output gets near this.
MAX_LINE_BYTES = 65_536
_SNIFF_LINES = 200
_SNIFF_BYTES = 1 << 18

_ANSI = re.compile(r"\x1b\[[0-9;]{0,32}[A-Za-z]")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
_DIVIDER = re.compile(r"-{5,16} (?:beginning of|switch to) \S")


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
        line: 1-based line in the log.
        offset: byte offset of that line.
        raw: the line as it stood, decoded.
        message: what follows the header; terminal colours removed, control characters (but tab) as U+FFFD.
        framed: False for a line the framing could not read; its `message` is then the whole line, so
            that dialects still see it.
        time: the timestamp as written, or empty.
        priority: one of V D I W E F A, or empty.
        dropped_bytes: how many bytes of an overlong line were left out.
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


class Framing(Protocol):
    """One way a log marks its lines."""

    @property
    def name(self) -> str:
        """The framing's name, as in `logcat -v <name>`."""

    def frame(self, lines: Iterable[RawLine]) -> Iterator[LogLineRecord]:
        """Return a record for each line that says something: unreadable ones too, blank ones not."""


def split_lines(data: bytes) -> Iterator[RawLine]:
    r"""Cut a log at `\n`; `\r` before it (adb makes `\r\n` and `\r\r\n`) belongs to the line end."""
    offset, number = 0, 0
    while offset < len(data):
        end = data.find(b"\n", offset)
        end = len(data) if end < 0 else end
        number += 1
        content = data[offset:end].rstrip(b"\r")
        yield RawLine(
            line=number,
            offset=offset,
            text=content[:MAX_LINE_BYTES].decode("utf-8", "replace"),
            dropped_bytes=max(0, len(content) - MAX_LINE_BYTES),
        )
        offset = end + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderFraming:
    """A framing that repeats its header on every line.

    Args:
        header: matches a whole line, with the groups `priority`, `tag`, `message`, and `time`, `pid`,
            `tid` where the format has them.
    """

    name: str
    header: re.Pattern[str]

    def frame(self, lines: Iterable[RawLine]) -> Iterator[LogLineRecord]:
        """Read each line by itself."""
        for line in lines:
            text = _clean(line.text)
            if not text.strip():
                continue
            match = self.header.match(text)
            if match is None:
                yield _record(line, text, framed=_DIVIDER.match(text) is not None)
            else:
                yield _record(line, match["message"] or "", framed=True, header=match)


@dataclass(frozen=True, slots=True, kw_only=True)
class LongFraming:
    """`logcat -v long`: a header line, the message as it is, an empty line.

    The header has no record of its own; its fields stand on each line of the message.
    """

    name: str = "long"

    def frame(self, lines: Iterable[RawLine]) -> Iterator[LogLineRecord]:
        """Give each message line the fields of the header above it."""
        header: re.Match[str] | None = None
        for line in lines:
            text = _clean(line.text)
            found = _LONG_HEADER.match(text)
            if found is not None:
                header = found
            elif not text.strip():
                continue
            elif _DIVIDER.match(text):
                yield _record(line, text, framed=True)
            else:
                yield _record(line, text, framed=header is not None, header=header)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainFraming:
    """Standard output or error of a host tool: no header; a leading timestamp is the line's time."""

    name: str = "plain"

    def frame(self, lines: Iterable[RawLine]) -> Iterator[LogLineRecord]:
        """Take each line whole."""
        for line in lines:
            text = _clean(line.text)
            if text.strip():
                yield _record(line, text, framed=True, header=_HOST_TIME.match(text))


def _clean(text: str) -> str:
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    return text if text.isprintable() else _CONTROL.sub("\ufffd", text)


def _record(
    line: RawLine, message: str, *, framed: bool, header: re.Match[str] | None = None
) -> LogLineRecord:
    fields = header.groupdict() if header is not None else {}
    return LogLineRecord(
        line=line.line,
        offset=line.offset,
        raw=line.text,
        message=message,
        framed=framed,
        time=(fields.get("time") or "").strip(),
        pid=int(fields["pid"]) if fields.get("pid") else None,
        tid=int(fields["tid"]) if fields.get("tid") else None,
        priority=fields.get("priority") or "",
        tag=(fields.get("tag") or "").strip(),
        dropped_bytes=line.dropped_bytes,
    )


# Source: the formats are those of Android's liblog (logprint), with the modifiers year, usec, nsec, zone
# and uid. Every repetition is bounded, so that a hostile line costs time in proportion to its length.
_DATE = (
    r"(?P<time>(?:\d{4}-)?\d\d-\d\d \d\d:\d\d:\d\d\.(?:\d{9}|\d{6}|\d{3})(?![0-9])(?: [+-]\d{4}(?![0-9]))?)"
)
_SECONDS = r"(?P<time> {0,20}[0-9]{1,12}\.(?:\d{9}|\d{6}|\d{3})(?![0-9]))"
_IDS = r" {1,12}(?:\w{1,16} {1,12})??(?P<pid>[0-9]{1,10}) {1,12}(?P<tid>[0-9]{1,10}) "
_TAG_COLON = r"(?P<tag>.{0,128}?):(?: (?P<message>.*))?$"
_TAG_PID = r"(?P<priority>[VDIWEFA])/(?P<tag>.{0,128}?)\( {0,8}(?P<pid>[0-9]{1,10})\):(?: (?P<message>.*))?$"
_LONG_HEADER = re.compile(
    rf"\[ (?:{_DATE}|{_SECONDS.replace('time', 'seconds')}) {{0,12}}(?:\w{{1,16}}:)??(?P<pid>[0-9]{{1,10}}):"
    r" {0,12}(?P<tid>[0-9]{1,10}) (?P<priority>[VDIWEFA])/(?P<tag>.{0,128}?)\]$"
)
_HOST_TIME = re.compile(r"(?P<time>\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d\.[0-9]{3,9}) ")

THREADTIME = HeaderFraming(
    name="threadtime", header=re.compile(rf"{_DATE}{_IDS}(?P<priority>[VDIWEFA]) {_TAG_COLON}")
)
EPOCH = HeaderFraming(
    name="epoch", header=re.compile(rf"{_SECONDS}{_IDS}(?P<priority>[VDIWEFA]) {_TAG_COLON}")
)
TIME = HeaderFraming(name="time", header=re.compile(rf"{_DATE} {_TAG_PID}"))
BRIEF = HeaderFraming(name="brief", header=re.compile(_TAG_PID))
LONG = LongFraming()
PLAIN = PlainFraming()
LOGCAT_FRAMINGS: tuple[Framing, ...] = (THREADTIME, TIME, BRIEF, EPOCH, LONG)


def sniff_framing(data: bytes) -> Framing:
    """Say how a log is framed, from its first lines.

    Returns:
        The logcat framing that reads most of them, if that is more than half; else `PLAIN`, under which
        dialects see every line whole and miss nothing but its tag.
    """
    sample = tuple(islice(split_lines(data[:_SNIFF_BYTES]), _SNIFF_LINES))
    chosen: Framing = PLAIN
    most = 0
    for framing in LOGCAT_FRAMINGS:
        records = [record for record in framing.frame(sample) if not _DIVIDER.match(record.message)]
        read = sum(1 for record in records if record.priority)
        if read > most and read * 2 > len(records):
            chosen, most = framing, read
    return chosen
