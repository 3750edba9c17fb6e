"""Framing: headers of every format, and what is in no format."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.logs.formats import (
    BRIEF,
    EPOCH,
    LOGCAT_FRAMINGS,
    LONG,
    PLAIN,
    THREADTIME,
    TIME,
    sniff_framing,
)
from pytest_devicelab.logs.framing import MAX_LINE_BYTES, Framing, LogLineRecord, split_lines

HEADERS = [
    (THREADTIME, "11-20 09:20:00.100  4021  4030 E Qnn Dsp/[a.b]: text: more"),
    (THREADTIME, "2026-11-20 09:20:00.100123 +0200 u0_a7  4021  4030 E Qnn Dsp/[a.b]: text: more"),
    (TIME, "11-20 09:20:00.100 E/Qnn Dsp/[a.b]( 4021): text: more"),
    (BRIEF, "E/Qnn Dsp/[a.b]( 4021): text: more"),
    (EPOCH, "         1795166400.100  4021  4030 E Qnn Dsp/[a.b]: text: more"),
    (LONG, "[ 11-20 09:20:00.100  4021: 4030 E/Qnn Dsp/[a.b] ]\ntext: more\n\n"),
]


def frame(framing: Framing, data: bytes) -> list[LogLineRecord]:
    return list(framing.frame(split_lines(data)))


@pytest.mark.parametrize(("framing", "text"), HEADERS, ids=[header[1][:32] for header in HEADERS])
def test_header_is_read_and_sniffed(framing: Framing, text: str) -> None:
    (record,) = frame(framing, text.encode())
    assert (record.priority, record.tag, record.message) == ("E", "Qnn Dsp/[a.b]", "text: more")
    assert (record.framed, record.pid) == (True, 4021)
    assert record.tid == (None if framing in (TIME, BRIEF) else 4030)
    assert record.time in text
    assert bool(record.time) is (framing is not BRIEF)
    assert sniff_framing(text.encode()) is framing


@pytest.mark.parametrize("framing", [THREADTIME, TIME, BRIEF, EPOCH, LONG], ids=lambda framing: framing.name)
def test_dividers_are_framed_and_say_nothing(framing: Framing) -> None:
    records = frame(framing, b"--------- beginning of main\n--------- switch to crash\n")
    assert [record.framed for record in records] == [True, True]
    assert {record.priority for record in records} == {""}


def test_message_without_text() -> None:
    (record,) = frame(THREADTIME, b"11-20 09:20:00.100  4021  4030 E QNN     :")
    assert (record.tag, record.message, record.framed) == ("QNN", "", True)


def test_unreadable_line_is_kept_whole_and_marked() -> None:
    data = b"lf of a line\n11-20 09:20:00.100  1  1 I QNN: whole\n"
    first, second = frame(THREADTIME, data)
    assert (first.framed, first.message, first.offset) == (False, "lf of a line", 0)
    assert (second.framed, second.message, second.line, second.offset) == (True, "whole", 2, 13)


def test_long_message_of_several_lines_repeats_its_fields() -> None:
    data = (
        b"tail\n[ 11-20 09:20:00.100  7: 8 V/QNN ]\none\ntwo\n\n[ 11-20 09:20:00.200  7: 9 V/QNN ]\nthree\n\n"
    )
    records = frame(LONG, data)
    assert [(r.message, r.tid, r.framed) for r in records] == [
        ("tail", None, False),
        ("one", 8, True),
        ("two", 8, True),
        ("three", 9, True),
    ]


def test_host_output_is_plain() -> None:
    data = b"\x1b[0;93m2026-11-20 09:15:02.000000305 [W:onnxruntime:, a.cc:1 f] careful\x1b[m\nready\n"
    assert sniff_framing(data) is PLAIN
    stamped, bare = frame(PLAIN, data)
    assert stamped.time == "2026-11-20 09:15:02.000000305"
    assert stamped.message.endswith("careful")
    assert stamped.raw.startswith("\x1b[0;93m")
    assert (bare.time, bare.message, bare.framed) == ("", "ready", True)


def test_one_logcat_line_does_not_make_a_host_log_logcat() -> None:
    assert sniff_framing(b"loading\nE/QNN(  1): x\nrunning\n") is PLAIN


def test_bad_utf8_and_control_characters() -> None:
    (record,) = frame(BRIEF, b"E/QNN(  1): caf\xe9\x07\tok\n")
    assert record.message == "caf\ufffd\ufffd\tok"


def test_overlong_line_is_bounded_and_says_so() -> None:
    data = b"x" * (MAX_LINE_BYTES + 5) + b"\nnext\n"
    first, second = frame(PLAIN, data)
    assert len(first.message) == MAX_LINE_BYTES
    assert first.dropped_bytes == 5
    assert second.offset == MAX_LINE_BYTES + 6


@given(st.binary(max_size=400), st.sampled_from([*LOGCAT_FRAMINGS, PLAIN]))
def test_records_are_lines_of_the_log(data: bytes, framing: Framing) -> None:
    lines = data.split(b"\n")
    for record in frame(framing, data):
        line = lines[record.line - 1].rstrip(b"\r")
        assert data[record.offset : record.offset + len(line)] == line
        assert record.raw == line.decode("utf-8", "replace")


@given(st.lists(st.sampled_from([b"", b"  ", b"text", b"E/QNN( 1): x", b"[ x", b"\xff"]), max_size=8))
def test_no_line_with_content_is_dropped(lines: list[bytes]) -> None:
    records = frame(BRIEF, b"\n".join(lines))
    assert len(records) == sum(1 for line in lines if line.strip())
