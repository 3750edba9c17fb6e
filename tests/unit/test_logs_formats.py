"""Every form a log comes in: what its headers say, what belongs together, and what is missing."""

from __future__ import annotations

import struct

import pytest

from pytest_devicelab.logs.formats import (
    BUGREPORT,
    EPOCH,
    KERNEL,
    LONG,
    PLAIN,
    PROCESS,
    STUDIO,
    TAG,
    THREADTIME,
    TIME,
    sniff_framing,
)
from pytest_devicelab.logs.framing import Framing, LogLineRecord, join_messages, split_lines
from pytest_devicelab.logs.scan import scan_log

STAMP = "11-20 09:20:00.100"


def frame(framing: Framing, text: str) -> list[LogLineRecord]:
    return list(framing.frame(split_lines(text.encode())))


@pytest.mark.parametrize(
    ("framing", "text", "time", "pid", "tid"),
    [
        (PROCESS, "E( 4021) text: more  (Qnn Dsp/[a.b])", "", 4021, None),
        (TAG, "E/Qnn Dsp/[a.b]: text: more", "", None, None),
        (STUDIO, f"{STAMP}  4021-4030/com.app E/Qnn Dsp/[a.b]: text: more", STAMP, 4021, 4030),
        (STUDIO, f"2026-{STAMP} 14021-4030/? E/Qnn Dsp/[a.b]: text: more", f"2026-{STAMP}", 14021, 4030),
        (
            STUDIO,
            f"2026-{STAMP}  4021-4030  Qnn Dsp/[a.b]           com.app                  E  text: more",
            f"2026-{STAMP}",
            4021,
            4030,
        ),
        (EPOCH, "        86400.100  4021  4030 E Qnn Dsp/[a.b]: text: more", "86400.100", 4021, 4030),
        (TIME, f"{STAMP}123 E/Qnn Dsp/[a.b]( 4021): text: more", f"{STAMP}123", 4021, None),
        (
            THREADTIME,
            f"2026-{STAMP}123456 +0200  1000  4021  4030 E Qnn Dsp/[a.b]: text: more",
            f"2026-{STAMP}123456 +0200",
            4021,
            4030,
        ),
        (
            LONG,
            f"[ {STAMP} u0_a7: 4021: 4030 E/Qnn Dsp/[a.b] ]\ntext: more\n",
            STAMP,
            4021,
            4030,
        ),
        (THREADTIME, f"\x1b[31m{STAMP}  4021  4030 E Qnn Dsp/[a.b]: text: more\x1b[0m", STAMP, 4021, 4030),
    ],
)
def test_header(framing: Framing, text: str, time: str, pid: int | None, tid: int | None) -> None:
    (record,) = frame(framing, text)
    assert (record.message, record.priority, record.tag) == ("text: more", "E", "Qnn Dsp/[a.b]")
    assert (record.time, record.pid, record.tid, record.framed) == (time, pid, tid, True)
    assert sniff_framing(text.encode()) is framing


@pytest.mark.parametrize("start", ["[   15.935591] ", "<3>[   15.935591] ", "[   15.935591][  T148] "])
def test_kernel_ring_buffer(start: str) -> None:
    (record,) = frame(KERNEL, start + "remoteproc: up")
    assert (record.message, record.time, record.framed) == ("remoteproc: up", "15.935591", True)


def test_raw_output_is_plain() -> None:
    assert sniff_framing(b"Initialized runtime.\nReplacing nodes\n") is PLAIN


def test_bugreport_reads_each_section_its_own_way() -> None:
    text = (
        "------ SYSTEM LOG (logcat -d) ------\n"
        f"{STAMP}  1  2 I A: one\n"
        "------ KERNEL LOG (dmesg) ------\n"
        "<6>[    1.000000] two\n"
        "prose\n"
    )
    assert sniff_framing(text.encode()) is BUGREPORT
    assert [(r.message, r.time) for r in frame(BUGREPORT, text) if r.time] == [
        ("one", STAMP),
        ("two", "1.000000"),
    ]
    assert scan_log(text.encode(), source="logcat").unparsed == 0


def test_studio_continues_under_a_header_and_only_indented() -> None:
    text = f"2026-{STAMP} 1-2 Tag                     com.app                  E  one\n{' ' * 80}two\nthree\n"
    records = frame(STUDIO, text)
    assert [(r.message, r.tag, r.framed) for r in records] == [
        ("one", "Tag", True),
        ("two", "Tag", True),
        ("three", "", False),
    ]


def test_messages_of_several_lines_are_joined() -> None:
    lines = [f"{STAMP}  1  2 E litert: Failed to validate op x", f"{STAMP}  1  2 E litert: , error: 3110"]
    other = f"{STAMP}  1  3 E litert: another thread"
    joined = list(join_messages(frame(THREADTIME, "\n".join([*lines, other]))))
    assert [(r.message, r.line) for r in joined] == [
        ("Failed to validate op x\n, error: 3110", 1),
        ("another thread", 3),
    ]
    assert joined[0].raw == "\n".join(lines)


def test_lines_without_a_header_are_never_joined() -> None:
    assert len(list(join_messages(frame(PLAIN, "one\ntwo\n")))) == 2


def test_a_message_cut_by_the_logger_is_lost_evidence() -> None:
    head = f"{STAMP}  1  2 W QNN     : Fallback to CPU for op "
    whole = "x" * (4068 - 3 - len("QNN") - len("Fallback to CPU for op ") - 1)
    (short,) = frame(THREADTIME, head + whole)
    (cut,) = frame(THREADTIME, head + whole + "x")
    assert (short.cut, cut.cut) == (False, True)
    scan = scan_log((head + whole + "x").encode(), source="logcat")
    assert [event.kind for event in scan.events] == ["lost_records", "cpu_fallback"]
    assert scan.lost == 1


def entry(message: str, *, priority: int = 5, tag: str = "QNN", log: int = 0, header: int = 28) -> bytes:
    payload = bytes([priority]) + tag.encode() + b"\0" + message.encode() + b"\0"
    head = struct.pack("<HHiIIIII", len(payload), header, 4021, 4030, 1795166400, 5, log, 10077)
    return head[:header] + payload


@pytest.mark.parametrize("header", [20, 24, 28])
def test_binary(header: int) -> None:
    data = entry("ready", header=header) + entry("one\nFallback to CPU for op Gelu", header=header)
    scan = scan_log(data, source="logcat")
    (event,) = scan.events
    assert (event.kind, event.fields["op"]) == ("cpu_fallback", "Gelu")
    assert (event.line, event.offset, event.pid) == (2, len(entry("ready", header=header)), 4021)
    assert event.time == "1795166400.000000005"
    assert (scan.lines, scan.unparsed, scan.lost) == (2, 0, 0)


def test_binary_entries_of_typed_values_are_counted_not_read() -> None:
    scan = scan_log(entry("ready") + entry("Fallback to CPU", log=2), source="logcat")
    assert (scan.events, scan.lines, scan.unparsed) == ((), 2, 1)


def test_binary_log_that_breaks_off_is_lost_evidence() -> None:
    data = entry("Fallback to CPU") * 3
    scan = scan_log(data[:-4], source="logcat")
    assert [event.kind for event in scan.events] == ["cpu_fallback", "cpu_fallback", "lost_records"]
    assert (scan.lost, scan.unparsed) == (1, 1)
