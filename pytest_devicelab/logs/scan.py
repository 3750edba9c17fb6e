"""scan_log: every event in a log, and how much of the log could not be read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_devicelab.evidence.events import Event
from pytest_devicelab.logs.dialect import Dialect
from pytest_devicelab.logs.framing import Framing
from pytest_devicelab.logs.registry import find_dialects
from pytest_devicelab.logs.scanner import LogScanner
from pytest_devicelab.logs.survey import Survey


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
    data: bytes,
    *,
    source: str,
    framing: Framing | None = None,
    dialects: Sequence[Dialect] | None = None,
) -> LogScan:
    """Find every event in a log that fits in memory; reads the header of every line.

    Args:
        data: the log as it was read; need not be UTF-8, may begin or end inside a line.
        source: `logcat`, `stdout` or `stderr`; goes into each event.
        framing: how the log marks its lines; None to tell from its first lines.
        dialects: the grammars to look for; None for those of this project and of installed packages.

    Returns:
        The events with counts. Never raises over what a log holds; takes time linear in its length.
    """
    survey = Survey()
    scanner = LogScanner(
        source=source,
        framing=framing,
        dialects=find_dialects() if dialects is None else dialects,
        survey=survey,
    )
    events: list[Event] = sorted(scanner.scan(io.BytesIO(data).readinto), key=lambda event: event.line)
    return LogScan(events=tuple(events), lines=scanner.lines, unparsed=survey.unparsed, lost=scanner.lost)
