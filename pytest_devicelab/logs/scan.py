"""scan_log: every event in a log, and how much of the log could not be read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_devicelab.evidence.events import Event
from pytest_devicelab.logs.dialect import Dialect, make_event
from pytest_devicelab.logs.framing import Framing, LogLineRecord, sniff_framing, split_lines
from pytest_devicelab.logs.ort import OrtDialect
from pytest_devicelab.logs.phrases import PhrasesDialect
from pytest_devicelab.logs.qnn import QnnDialect

DIALECTS: tuple[Dialect, ...] = (QnnDialect(), OrtDialect(), PhrasesDialect())

_CHATTY = re.compile(r"\b(identical|expire) ([0-9]{1,9}) lines?\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogScan:
    """What a log says, and how far it can be trusted.

    Attributes:
        events: in the order of their lines.
        lines: all lines of the log, blank ones included; 0 is no evidence of anything.
        unparsed: lines the framing could not read; dialects saw them whole.
        lost: lines known to be missing, the sum of `count` over the `lost_records` events.
    """

    events: tuple[Event, ...]
    lines: int
    unparsed: int
    lost: int


def scan_log(
    data: bytes, *, source: str, framing: Framing | None = None, dialects: Sequence[Dialect] = DIALECTS
) -> LogScan:
    """Find every event in a log.

    Args:
        data: the log as it was read; need not be UTF-8, may begin or end inside a line.
        source: `logcat`, `stdout` or `stderr`; goes into each event.
        framing: how the log marks its lines; None to tell from its first lines.
        dialects: the grammars to look for.

    Returns:
        The events with counts. Never raises over what a log holds; takes time linear in its length.
    """
    chosen = framing if framing is not None else sniff_framing(data)
    raw = tuple(split_lines(data))
    records = tuple(chosen.frame(raw))
    events = list(_losses(records, source))
    for dialect in dialects:
        if any(candidate in data for candidate in dialect.candidates):
            events.extend(dialect.parse(records, source=source))
    events.sort(key=lambda event: event.line)
    return LogScan(
        events=tuple(events),
        lines=len(raw),
        unparsed=sum(1 for record in records if not record.framed),
        lost=sum(_count(event) for event in events if event.kind == "lost_records"),
    )


def _count(event: Event) -> int:
    count = event.fields.get("count", "")  # a user's dialect may know only that something is missing
    return int(count) if count.isdecimal() else 1


def _losses(records: Sequence[LogLineRecord], source: str) -> Iterator[Event]:
    """Return what the log itself says is missing from it."""
    for record in records:
        chatty = _CHATTY.search(record.message) if record.tag == "chatty" else None
        if chatty is not None:
            fields = {"count": chatty[2], "reason": chatty[1]}
        elif record.dropped_bytes:
            fields = {"count": "1", "reason": f"line cut, {record.dropped_bytes} bytes not read"}
        else:
            continue
        yield make_event("lost_records", record, dialect="logcat", source=source, fields=fields)
