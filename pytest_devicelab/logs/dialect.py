"""Dialect: what a runtime's own words mean. One module each; a user may add one more."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pytest_devicelab.evidence.events import Event, EventKind
from pytest_devicelab.logs.framing import LogLineRecord

_MAX_FIELD_CHARS = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """A substring that makes a line worth reading.

    Args:
        literal: compared byte for byte, case included. Four bytes or more, and rare in other programs'
            lines: everything that is not a candidate of any dialect is skipped unread.
        following: how many lines after such a line the dialect wants to see, whatever they say.
        counted: text before a number in such a line; that many more lines are wanted, times four, for
            other processes may write in between.
    """

    literal: bytes
    following: int = 0
    counted: bytes = b""


class LineReader(Protocol):
    """Reads the candidate lines of one log, in order."""

    def read(self, record: LogLineRecord) -> Iterable[Event]:
        """Take in a line; return what is certain now."""

    def finish(self) -> Iterable[Event]:
        """Return what was only certain at the end of the log."""


class Dialect(Protocol):
    """The grammar of one runtime's log.

    `name` becomes `Event.dialect`. A reader is given the lines that hold one of the `triggers`, and those
    they ask for; lines of several processes and threads may alternate, and `pid`, `tid` and `tag` tell
    them apart where the log has them.
    """

    @property
    def name(self) -> str:
        """A short name, such as `qnn`."""

    @property
    def triggers(self) -> tuple[Trigger, ...]:
        """What the lines it reads have in them."""

    def reader(self, *, source: str) -> LineReader:
        """Start on a log; `source` goes into each event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One line that means one event.

    Args:
        kind: of the event.
        literals: one of them is in every line the pattern finds something in.
        pattern: searched in the message; its named groups become fields, empty where they took no part.
        fields: fields with a fixed value.
        tag: must match the logcat tag from its start, for words other programs use too; a line without a
            tag, from a host, is taken anyway.
        unless: a line it is found in is no such event.
    """

    kind: EventKind
    literals: tuple[bytes, ...]
    pattern: re.Pattern[str]
    fields: Mapping[str, str] = field(default_factory=dict, hash=False)
    tag: re.Pattern[str] | None = None
    unless: re.Pattern[str] | None = None

    def fields_of(self, record: LogLineRecord) -> dict[str, str] | None:
        """Return the event's fields if a line is one, else None."""
        if self.tag is not None and record.tag and self.tag.match(record.tag) is None:
            return None
        found = self.pattern.search(record.message)
        if found is None or (self.unless is not None and self.unless.search(record.message)):
            return None
        return dict(self.fields) | {name: (text or "").strip() for name, text in found.groupdict().items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleDialect:
    """A dialect in which each line speaks for itself: nothing but a name and a table of rules."""

    name: str
    rules: tuple[Rule, ...]

    @property
    def triggers(self) -> tuple[Trigger, ...]:
        """The literals of all rules."""
        return tuple(Trigger(literal=literal) for rule in self.rules for literal in rule.literals)

    def reader(self, *, source: str) -> LineReader:
        """Start on a log."""
        return _RuleReader(dialect=self, source=source)


@dataclass(frozen=True, slots=True, kw_only=True)
class _RuleReader:
    dialect: RuleDialect
    source: str

    def read(self, record: LogLineRecord) -> Iterable[Event]:
        for rule in self.dialect.rules:
            fields = rule.fields_of(record)
            if fields is not None:
                yield make_event(
                    rule.kind, record, dialect=self.dialect.name, source=self.source, fields=fields
                )
                return

    def finish(self) -> Iterable[Event]:
        return ()


def make_event(
    kind: EventKind, record: LogLineRecord, *, dialect: str, source: str, fields: Mapping[str, str]
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
