"""The older part of the corpus, with every field of every event; the rest is in test_logs_labels.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_devicelab.logs.formats import BRIEF, EPOCH, LONG, THREADTIME, TIME
from pytest_devicelab.logs.framing import Framing
from pytest_devicelab.logs.scan import LogScan, scan_log

CORPUS = Path(__file__).parent / "logs"
LOGS = sorted(path.stem for path in CORPUS.glob("*.txt"))


def labelled(name: str) -> tuple[bytes, dict[str, Any]]:
    expected: dict[str, Any] = json.loads((CORPUS / f"{name}.expected.json").read_text())
    return (CORPUS / f"{name}.txt").read_bytes(), expected


def findings(scan: LogScan) -> list[tuple[str, str, dict[str, str]]]:
    return [(event.dialect, event.kind, dict(event.fields)) for event in scan.events]


def test_corpus_is_there() -> None:
    assert len(LOGS) >= 4


@pytest.mark.parametrize("name", LOGS)
def test_every_labelled_line_and_no_other(name: str) -> None:
    data, expected = labelled(name)
    scan = scan_log(data, source="logcat")
    found = [
        {"line": e.line, "dialect": e.dialect, "kind": e.kind, "fields": dict(e.fields)} for e in scan.events
    ]
    assert found == expected["events"]
    assert (scan.lines, scan.unparsed, scan.lost) == (
        expected["lines"],
        expected["unparsed"],
        expected["lost"],
    )


@pytest.mark.parametrize("name", LOGS)
def test_events_point_at_the_line_they_quote(name: str) -> None:
    data, _ = labelled(name)
    lines = data.split(b"\n")
    for event in scan_log(data, source="logcat").events:
        assert event.raw.encode() == lines[event.line - 1]
        assert data[event.offset :].startswith(event.raw.encode())


def as_logcat(stderr: str, framing: Framing, *, header: bool) -> bytes:
    """Log a host log's lines the way a phone would: the prefix on each, under ONNX Runtime's tag."""
    out = []
    for line in stderr.splitlines():
        text = line.replace("\x1b[0;93m", "").replace("\x1b[m", "")
        stamped = text.startswith("2026-")
        text = text.split(" ", 2)[2] if stamped else text
        if stamped and not header:
            text = text.split("] ", 1)[1]
        when = "11-20 09:15:02.000"
        prefixes = {
            "threadtime": f"{when}  700  701 V onnxruntime: ",
            "time": f"{when} V/onnxruntime(  700): ",
            "brief": "V/onnxruntime(  700): ",
            "epoch": "         1795166102.000   700   701 V onnxruntime: ",
            "long": f"[ {when}   700:  701 V/onnxruntime ]\n",
        }
        out.append(prefixes[framing.name] + text + ("\n" if framing.name == "long" else ""))
    return "\n".join(out).encode() + b"\n"


@pytest.mark.parametrize("header", [True, False], ids=["ort_header", "bare"])
@pytest.mark.parametrize("framing", [THREADTIME, TIME, BRIEF, EPOCH, LONG], ids=lambda framing: framing.name)
@pytest.mark.parametrize("name", ["ort_fallback", "ort_refused"])
def test_logcat_and_stderr_say_the_same(name: str, framing: Framing, header: bool) -> None:
    data, _ = labelled(name)
    scan = scan_log(as_logcat(data.decode(), framing, header=header), source="logcat")
    assert scan.unparsed == 0
    host = findings(scan_log(data, source="stderr"))
    if not header:  # which of the two ONNX Runtimes it is, only its header says
        host = [
            (dialect, kind, fields | ({"counts": ""} if kind == "partition" else {}))
            for dialect, kind, fields in host
        ]
    assert findings(scan) == host
    assert {event.pid for event in scan.events} == {700}


@pytest.mark.parametrize("end", [b"\r\n", b"\r\r\n"])
@pytest.mark.parametrize("name", LOGS)
def test_line_ends_do_not_matter(name: str, end: bytes) -> None:
    data, _ = labelled(name)
    assert findings(scan_log(data.replace(b"\n", end), source="logcat")) == findings(
        scan_log(data, source="logcat")
    )
