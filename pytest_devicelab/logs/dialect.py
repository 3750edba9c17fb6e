"""Dialect: what a runtime's own words mean. One module each; a user may add one more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from pytest_devicelab.evidence.events import Event, EventKind
from pytest_devicelab.logs.framing import LogLineRecord

_MAX_FIELD_CHARS = 16_384


class Dialect(Protocol):
    """The grammar of one runtime's log.

    `name` becomes `Event.dialect`. `candidates` are substrings; a log with none of them holds nothing
    for this dialect, and is not parsed for it. They are compared byte for byte, case included.
    """

    @property
    def name(self) -> str:
        """A short name, such as `qnn`."""

    @property
    def candidates(self) -> tuple[bytes, ...]:
        """Substrings at least one of which is in every log this dialect finds something in."""

    def parse(self, lines: Sequence[LogLineRecord], *, source: str) -> Iterator[Event]:
        """Return the events in a log, in any order.

        Args:
            lines: every line of the log that is not blank, in order. Lines of several processes and
                threads may alternate; `pid`, `tid` and `tag` tell them apart where the log has them.
            source: goes into each event.
        """


def make_event(
    kind: EventKind, record: LogLineRecord, *, dialect: str, source: str, fields: dict[str, str]
) -> Event:
    """Return the event that a line gives evidence of, located at that line."""
    return Event(
        kind=kind,
        dialect=dialect,
        source=source,
        line=record.line,
        offset=record.offset,
        raw=record.raw,
        fields={name: value[:_MAX_FIELD_CHARS] for name, value in fields.items()},
        time=record.time,
        pid=record.pid,
    )
