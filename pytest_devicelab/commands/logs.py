"""`devicelab logs`: what a log from any phone says, without a matrix."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pytest_devicelab.errors import UserError

if TYPE_CHECKING:
    from pytest_devicelab.evidence.events import Event
    from pytest_devicelab.logs.blocks import ReadInto
    from pytest_devicelab.logs.compression import PackedReader
    from pytest_devicelab.logs.scanner import LogScanner
    from pytest_devicelab.logs.survey import Survey

_POLL_S = 0.2
_MAX_ROWS = 200
_TELLING = (
    "op",
    "node",
    "unit",
    "tensor",
    "stage",
    "code",
    "delegate",
    "supported",
    "total",
    "sensor",
    "provider",
    "count",
    "transformer",
    "reason",
    "text",
)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser("logs", help="find fallbacks, rejections, crashes and the like in a log")
    parser.add_argument("path", metavar="FILE", help="a log, also gzip or zstd; - for standard input")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a line: events, then a summary")
    form.add_argument("--summary", action="store_true", help="a table (the default)")
    parser.add_argument("--follow", action="store_true", help="go on as the log grows, until interrupted")
    parser.add_argument(
        "--fast",
        action="store_true",
        help="read only lines in which a runtime's words stand, not every header",
    )
    parser.add_argument("--source", default="logcat", help="goes into each event (default: logcat)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the events of a log, or a table of them."""
    from pytest_devicelab.logs.registry import find_dialects
    from pytest_devicelab.logs.scanner import LogScanner
    from pytest_devicelab.logs.survey import Survey

    survey = None if options.fast else Survey()
    scanner = LogScanner(source=options.source, dialects=find_dialects(), survey=survey)
    try:
        with _opened(options.path) as stream:
            _print_log(options, stream, scanner, survey)
    except BrokenPipeError:  # whoever read this, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def _print_log(
    options: argparse.Namespace, stream: io.BufferedReader, scanner: LogScanner, survey: Survey | None
) -> None:
    read_into, packed = _reader(stream, options)
    rows: dict[tuple[str, str, str], list[int]] = {}
    for event in scanner.scan(read_into):
        if options.json:
            print(json.dumps(_plain(event)), flush=options.follow)
        else:
            _count(event, rows)
            if options.follow and not options.summary:
                print(_line(event), flush=True)
    summary = _summary(scanner, survey, "" if packed is None else packed.broken)
    if options.json:
        print(json.dumps({"summary": summary}))
    else:
        _print_table(options.path, summary, rows)


@contextmanager
def _opened(path: str) -> Iterator[io.BufferedReader]:
    if path == "-":
        yield cast(io.BufferedReader, sys.stdin.buffer)
        return
    try:
        stream = Path(path).open("rb")  # noqa: SIM115 - closed below; only opening may raise here
        stream.peek(1)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read",
            why=error.strerror or str(error),
            fix="name a log file, or - for standard input",
        ) from error
    with stream:
        yield stream


def _reader(stream: io.BufferedReader, options: argparse.Namespace) -> tuple[ReadInto, PackedReader | None]:
    from pytest_devicelab.logs.compression import open_compressed

    packed = open_compressed(stream, stream.peek(4)[:4])
    if packed is None:
        follows_file = options.follow and options.path != "-"
        # Whatever is there now: what is piped in is read as it comes.
        return (_following(stream, time.sleep) if follows_file else stream.readinto1), None
    if options.follow:
        raise UserError(
            f"{options.path} cannot be followed", why="it is compressed", fix="leave out --follow"
        )
    return packed.readinto, packed


def _following(stream: io.BufferedReader, sleep: Callable[[float], None]) -> Callable[[memoryview], int]:
    """Return a `readinto` that waits at the end of a file instead of ending; an interrupt ends it."""

    def read_into(view: memoryview) -> int:
        try:
            while not (count := stream.readinto1(view)):
                sleep(_POLL_S)
                if stream.tell() > os.fstat(stream.fileno()).st_size:
                    stream.seek(0)  # the log was begun anew
        except KeyboardInterrupt:
            return 0
        return count

    return read_into


def _plain(event: Event) -> dict[str, object]:
    return {
        "kind": event.kind,
        "dialect": event.dialect,
        "source": event.source,
        "line": event.line,
        "offset": event.offset,
        "time": event.time,
        "pid": event.pid,
        "fields": dict(event.fields),
        "raw": event.raw,
    }


def _summary(scanner: LogScanner, survey: Survey | None, broken: str) -> dict[str, object]:
    counts: dict[str, object] = {
        "format": scanner.format,
        "lines": scanner.lines,
        "read": scanner.read if survey is None else survey.records,
        "unparsed": scanner.unparsed if survey is None else survey.unparsed,
        "lost": scanner.lost,
    }
    if survey is not None:
        counts |= {"cut": survey.cut, "backwards": survey.backwards}
    return counts | {"broken": broken}


def _count(event: Event, rows: dict[tuple[str, str, str], list[int]]) -> None:
    key = (event.kind, event.dialect, _told(event))
    if key not in rows and len(rows) >= _MAX_ROWS:
        key = (event.kind, event.dialect, "(others)")
    rows.setdefault(key, [0, event.line])[0] += 1


def _line(event: Event) -> str:
    """Return what a reader of a growing log sees of an event."""
    when = f"{_printable(event.time):<18} line {event.line:<9}"
    return f"{when} {event.kind:<13} {event.dialect:<10} {_told(event)}".rstrip()


def _told(event: Event) -> str:
    what = " ".join(event.fields[name] for name in _TELLING if event.fields.get(name))
    return _printable(what[:100])


def _printable(text: str) -> str:
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _print_table(path: str, summary: dict[str, object], rows: dict[tuple[str, str, str], list[int]]) -> None:
    said = f"{summary['lines']} lines, {summary['read']} read, {summary['unparsed']} unparsed, {summary['lost']} lost"
    if "cut" in summary:
        said += f", {summary['cut']} cut, time went back {summary['backwards']} times"
    print(f"{path}: {summary['format'] or 'empty'}, {said}")
    if summary["broken"]:
        print(f"  the log breaks off: {summary['broken']}")
    if not summary["lines"]:
        print("  no line: no evidence of anything")
    elif not rows:
        print("  no line of a runtime: no evidence of where a model ran")
    for (kind, dialect, what), (count, line) in sorted(rows.items(), key=lambda row: (row[0][0], row[1][1])):
        print(f"  {kind:<13} {dialect:<10} {count:>7} from line {line:<9} {what}".rstrip())
