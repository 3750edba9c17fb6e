"""Whose lines are in a log window: those of the run itself, and what their silence would be worth."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from pytest_devicelab.devices.logcat import TAG
from pytest_devicelab.evidence.events import Event

ANNOUNCE_PID = 'echo "devicelab pid $$" >&2'
"""Shell text to run before a program is `exec`uted; `split_pid` takes its line out again."""

_ANNOUNCED = re.compile(rb"devicelab pid (\d{1,10})\r?\n")
# `11-21 00:01:15.195  9060  9060 V onnxruntime: ...`
_THREADTIME = re.compile(rb"^\d\d-\d\d \S+ +(\d+) +\d+ ([VDIWEF]) ([^:\n]*)", re.MULTILINE)
# `    12.3ms [VERBOSE] ...`, as qnn-net-run prints.
_PRINTED = re.compile(rb"^ *\d+(?:\.\d+)?ms \[ *([A-Z]+) *\]", re.MULTILINE)
_PRIORITIES = {b"VERBOSE": "V", b"DEBUG": "D", b"INFO": "I", b"WARNING": "W", b"ERROR": "E"}
# What concerns the whole device, whoever writes it: the kernel and the system, never the runner.
_DEVICE_WIDE = ("npu_crash", "throttling", "lost_records", "load_error")


def split_pid(stderr: bytes) -> tuple[int | None, bytes]:
    """Return the process id a program announced, and what else it printed to its standard error."""
    found = _ANNOUNCED.match(stderr)
    return (int(found[1]), stderr[found.end() :]) if found else (None, stderr)


def runner_pids(events: Iterable[Event], window: bytes, pid: int | None) -> frozenset[int]:
    """Say which processes in a log window are the run.

    One that wrote no line may be a wrapper around what did: then it is whoever logged as a runtime does.

    Args:
        events: of the window.
        window: logcat while it ran, in threadtime.
        pid: of the runner, where it is known.
    """
    if pid is not None and any(int(line[1]) == pid for line in _THREADTIME.finditer(window)):
        return frozenset((pid,))
    return frozenset(
        event.pid for event in events if event.pid is not None and event.kind not in _DEVICE_WIDE
    )


def about_the_run(events: Iterable[Event], pids: Collection[int]) -> list[Event]:
    """Leave out what other processes logged about models of their own; a line without a process stays."""
    return [event for event in events if event.pid is None or event.pid in pids or event.kind in _DEVICE_WIDE]


def heard_lines(window: bytes, stdout: bytes, pids: Collection[int]) -> Mapping[str, int]:
    """Count the lines of a run by priority: of its processes in logcat, and of what it printed.

    Args:
        window: logcat while it ran, in threadtime.
        stdout: what the runner printed.
        pids: the processes that are the run.
    """
    heard = Counter(
        line[2].decode()
        for line in _THREADTIME.finditer(window)
        if int(line[1]) in pids and line[3].strip() != TAG.encode()
    )
    heard.update(_PRIORITIES[word] for word in _PRINTED.findall(stdout) if word in _PRIORITIES)
    return dict(sorted(heard.items()))
