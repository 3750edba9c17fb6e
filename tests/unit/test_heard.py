from __future__ import annotations

import subprocess

import pytest

from pytest_devicelab.evidence.events import Event, EventKind
from pytest_devicelab.lab.heard import ANNOUNCE_PID, about_the_run, heard_lines, runner_pids, split_pid

WINDOW = b"""\
11-21 00:01:15.195  9060  9060 I onnxruntime: [I:onnxruntime:Default, utils.cc:732 f] Loading
11-21 00:01:15.196  9060  9061 V onnxruntime: node
11-21 00:01:15.196  9060  9061 V onnxruntime: node
11-21 00:01:15.197   411   411 W thermal : hot
11-21 00:01:15.198  9060  9060 I devicelab: begin 5f2c
"""


def of(pid: int | None, kind: EventKind = "cpu_fallback") -> Event:
    return Event(kind=kind, dialect="ort", source="logcat", line=1, offset=0, raw="...", pid=pid)


def test_a_program_announces_its_process_id() -> None:
    done = subprocess.run(
        ["sh", "-c", f"{ANNOUNCE_PID} && exec sh -c 'echo $$; echo why >&2'"], capture_output=True
    )
    assert split_pid(done.stderr) == (int(done.stdout), b"why\n")
    assert split_pid(b"no such line\n") == (None, b"no such line\n")
    assert split_pid(b"why\ndevicelab pid 5\n") == (None, b"why\ndevicelab pid 5\n")


def test_lines_of_the_runner_are_counted_by_priority() -> None:
    assert heard_lines(WINDOW, b"", [9060]) == {"I": 1, "V": 2}
    assert heard_lines(WINDOW, b"", []) == {}
    printed = b"pid:7\n     0.0ms [ INFO  ] one\n    12.3ms [VERBOSE] two\n 1.0ms [WHAT] three\n"
    assert heard_lines(b"", printed, [7]) == {"I": 1, "V": 1}


def kept(events: list[Event], pid: int | None) -> list[Event]:
    return about_the_run(events, runner_pids(events, WINDOW, pid))


def test_what_another_app_logged_is_not_about_the_run() -> None:
    mine, other, printed = of(9060), of(411), of(None)
    assert kept([mine, other, printed], 9060) == [mine, printed]


def test_what_concerns_the_whole_device_is() -> None:
    events = [of(411, kind) for kind in ("npu_crash", "throttling", "lost_records", "load_error")]
    assert kept(events, 9060) == events


@pytest.mark.parametrize("wrapper", [5, None])
def test_a_runner_that_wrote_nothing_may_be_a_wrapper_around_what_did(wrapper: int | None) -> None:
    events = [of(9060), of(411, "throttling")]
    assert kept(events, wrapper) == events
    assert runner_pids(events, WINDOW, wrapper) == {9060}
