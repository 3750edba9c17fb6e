"""The corpus labelled line by line: every line that is an event is found, and no other, and read right.

`logs/*.labelled` holds a log with its labels. A line `#= kind field=value ...` labels the log line below
it; a field that is named must have that value, others are free. `# ...` is a comment. Both are taken out
before the log is read. The labels were written with the lines, from the grammars, before any scanner ran.
"""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_devicelab.evidence.events import Event
from pytest_devicelab.logs.candidates import PlainFinder, make_selector
from pytest_devicelab.logs.formats import sniff_framing
from pytest_devicelab.logs.registry import DIALECTS
from pytest_devicelab.logs.scan import scan_log
from pytest_devicelab.logs.scanner import LogScanner

CORPUS = Path(__file__).parent / "logs"
LOGS = sorted(path.stem for path in CORPUS.glob("*.labelled"))
UNPARSED = {"process": 1}
FORMATS = {
    "bugreport": "bugreport",
    "dmesg": "kernel",
    "executorch": "plain",
    "long": "long",
    "ort_classic": "plain",
    "process": "process",
    "studio_new": "studio",
    "studio_old": "studio",
    "tag": "tag",
    "thermalservice": "plain",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    line: int
    kind: str
    fields: frozenset[tuple[str, str]]

    def fits(self, event: Event) -> bool:
        return (event.line, event.kind) == (self.line, self.kind) and self.fields <= set(event.fields.items())


def read_corpus(name: str) -> tuple[bytes, list[Label]]:
    """Return a log and its labels."""
    lines: list[str] = []
    labels: list[Label] = []
    for text in (CORPUS / f"{name}.labelled").read_text().splitlines():
        if text.startswith("#= "):
            kind, *words = shlex.split(text[3:].replace("\\n", "\n"))
            fields = frozenset((word.partition("=")[0], word.partition("=")[2]) for word in words)
            labels.append(Label(line=len(lines) + 1, kind=kind, fields=fields))
        elif not text.startswith("# "):
            lines.append(text)
    return "".join(f"{line}\n" for line in lines).encode(), labels


def full(data: bytes) -> list[Event]:
    return list(scan_log(data, source="logcat").events)


def fast(data: bytes) -> list[Event]:
    return list(LogScanner(source="logcat", dialects=DIALECTS).scan(io.BytesIO(data).readinto))


def pure(data: bytes) -> list[Event]:
    literals = [trigger.literal for dialect in DIALECTS for trigger in dialect.triggers]
    selector = make_selector(DIALECTS, PlainFinder(literals))
    scanner = LogScanner(source="logcat", dialects=DIALECTS, selector=selector, block_bytes=512)
    return list(scanner.scan(io.BytesIO(data).readinto))


def matched(labels: list[Label], events: list[Event]) -> int:
    """Return how many labels have an event of their own."""
    left = list(events)
    for label in sorted(labels, key=lambda label: -len(label.fields)):
        found = next((event for event in left if label.fits(event)), None)
        if found is not None:
            left.remove(found)
    return len(events) - len(left)


@pytest.mark.parametrize("scan", [full, fast, pure])
@pytest.mark.parametrize("name", LOGS)
def test_labels(name: str, scan: Callable[[bytes], list[Event]]) -> None:
    data, labels = read_corpus(name)
    events = scan(data)
    unexpected = [event for event in events if not any(label.fits(event) for label in labels)]
    missing = [label for label in labels if not any(label.fits(event) for event in events)]
    assert (unexpected, missing) == ([], [])
    assert len(events) == len(labels) == matched(labels, events)


@pytest.mark.parametrize("name", LOGS)
def test_every_line_is_read(name: str) -> None:
    data, _ = read_corpus(name)
    assert sniff_framing(data).name == FORMATS.get(name, "threadtime")
    assert scan_log(data, source="logcat").unparsed == UNPARSED.get(name, 0)


@pytest.mark.parametrize("name", LOGS)
def test_events_quote_their_line(name: str) -> None:
    data, _ = read_corpus(name)
    for event in full(data):
        assert data[event.offset :].split(b"\n", 1)[0].decode() == event.raw
        assert data.count(b"\n", 0, event.offset) == event.line - 1


def test_precision_and_recall(capsys: pytest.CaptureFixture[str]) -> None:
    lines = labelled = found = right = 0
    for name in LOGS:
        data, labels = read_corpus(name)
        events = full(data)
        lines += data.count(b"\n")
        labelled, found, right = (
            labelled + len(labels),
            found + len(events),
            right + matched(labels, events),
        )
    assert lines > 200
    assert labelled > 60
    precision, recall = right / found, right / labelled
    with capsys.disabled():
        print(  # noqa: T201 - the figures are what this test is for
            f"\nlog corpus: {lines} lines, {labelled} labelled events, precision {precision:.1%}, recall {recall:.1%}"
        )
    assert (precision, recall) == (1.0, 1.0)
