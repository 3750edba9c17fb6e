"""A run's window of logcat: what was logged between two markers of ours, on disk while the run goes on."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.errors import InfrastructureError

TAG = "devicelab"
_BUFFERS = ("main", "system", "crash")
_ALL = ",".join(_BUFFERS)
# `main: ring buffer is 256 KiB (3 KiB consumed, ...)`; before Android 12 `256Kb (3Kb consumed)`. Source: AOSP logcat.
_SIZE = re.compile(r"^(\w+): ring buffer is (\d+) ?([KMG]?)i?[bB] \((\d+)", re.MULTILINE)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30}
_TIME = re.compile(r"^(\d{9,12}\.\d{1,9})$", re.MULTILINE)
# How long the stream may take to bring the last marker, once it is in the log.
_LAST_LINES_S = 10.0
# A device that logs without end must not fill the host's disk: beyond this the stream is hung up.
_LONGEST_STREAM_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LogWindow:
    """What was logged between the two markers.

    Attributes:
        data: whole lines, as `logcat -v threadtime` prints them.
        streamed: whether they were read while the run went on, so that no overflow could take them away.
        lost: why lines are known to be missing; empty when none are.
        buffers: size of each buffer in bytes, where the device says it.
    """

    data: bytes
    streamed: bool
    lost: str = ""
    buffers: Mapping[str, int] = field(default_factory=dict, hash=False)


class LogWatch:
    """A window that is open: logcat is read by a thread of its own, into a file, until the last marker.

    The default of 256 KiB a buffer is overwritten within one run of a small model (measured: 230 kB of messages
    for 540 samples), so the buffers are made larger first; where they cannot be, the stream is what keeps the lines.
    When the stream breaks, the buffers are read at the end; what they lost meanwhile is noticed.

    Args:
        device: the device.
        token: letters and digits that nobody else writes into the log.
        spool: the file that lines go to as they come; stays behind when this process is killed.
        buffer_bytes: how large the buffers shall be. The size is the log daemon's, and goes with the next reboot.
        timeout_s: after which the stream ends by itself.

    Raises:
        InfrastructureError: the device has no log to write to.
    """

    def __init__(
        self, device: AdbDevice, token: str, spool: Path, *, buffer_bytes: int, timeout_s: float
    ) -> None:
        self._device = device
        self._begin, self._end = f"begin {token}", f"end {token}"
        self._spool = spool
        self._timeout_s = timeout_s
        done = device.script(f"logcat -b {_ALL} -g; date +%s.%N; log -t {TAG} '{self._begin}'")
        if done.exit_code != 0:
            raise _silent(device, done.stderr)
        self._sizes, self._used = _sizes(done.text)
        if any(self._sizes.get(name, 0) < buffer_bytes for name in _BUFFERS):
            grown = device.script(f"logcat -b {_ALL} -G {buffer_bytes}; logcat -b {_ALL} -g")
            self._sizes = {**self._sizes, **_sizes(grown.text)[0]}
        began = _TIME.search(done.text)
        self._began = began[1] if began else ""
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"logcat {device.id}", daemon=True)
        if self._began:  # a device that cannot tell the time is not asked for lines since then
            self._thread.start()

    def _follow(self) -> None:
        end = self._end.encode()
        tail = b""
        room = _LONGEST_STREAM_BYTES

        def keep(data: bytes) -> bool:
            nonlocal tail, room
            room -= len(data)
            if room < 0:
                return True
            file.write(data)
            recent = tail + data
            tail = recent[-len(end) :]
            return end in recent or self._abandoned.is_set()

        command = f"exec logcat -b {_ALL} -v threadtime -T {self._began}"
        try:
            with self._spool.open("wb", buffering=0) as file:
                self._device.stream(command, keep, timeout_s=self._timeout_s)
        except (InfrastructureError, OSError):
            pass  # without its last marker the file is known to be incomplete, whatever the cause

    def close(self) -> LogWindow:
        """Write the last marker and return the window; the file of the stream is gone then.

        Raises:
            InfrastructureError: the device no longer has a log.
        """
        asked = f"log -t {TAG} '{self._end}' && logcat -d -b main -v threadtime -s {TAG}"
        done = self._device.script(asked, timeout_s=60)
        if done.exit_code != 0:
            raise _silent(self._device, done.stderr)
        held = self._begin in done.text
        spooled = self._brought(wait_s=_LAST_LINES_S)
        self._spool.unlink(missing_ok=True)
        lines = cut_window(spooled, self._begin.encode(), self._end.encode())
        if lines is None or self._end.encode() not in spooled:
            return self._dumped(lines or b"")
        # A full buffer may drop its beginning, which the stream has. One that was far from full never does.
        cleared = not held and len(lines) < self._sizes.get("main", 0) // 2
        lost = "the log was cleared, or its buffer made smaller, during this run" if cleared else ""
        return LogWindow(data=lines, streamed=True, lost=lost, buffers=self._sizes)

    def abandon(self) -> bytes:
        """End the stream of a run that broke off, and return what was logged until then."""
        with suppress(
            InfrastructureError
        ):  # the marker is what wakes the reader; a lost device hangs up by itself
            self._device.script(f"log -t {TAG} '{self._end}'", timeout_s=2)
        brought = self._brought(wait_s=1)
        self._spool.unlink(missing_ok=True)
        return cut_window(brought, self._begin.encode(), self._end.encode()) or b""

    def _brought(self, *, wait_s: float) -> bytes:
        """Wait for the stream to end, tell it to end if it did not, and return what it brought."""
        if self._thread.ident is not None:
            self._thread.join(wait_s)
            self._abandoned.set()
        return self._spool.read_bytes() if self._spool.exists() else b""

    def _dumped(self, before: bytes) -> LogWindow:
        """Read what the buffers still hold; `before` is what a stream that broke had brought."""
        dump = self._device.script(f"logcat -d -b {_ALL} -v threadtime", timeout_s=60).stdout
        lines = cut_window(dump, self._begin.encode(), self._end.encode())
        if lines is None:
            lost = "the log buffer no longer held the beginning of this run"
            return LogWindow(data=before, streamed=False, lost=lost, buffers=self._sizes)
        short = self._overflowed()
        lost = f"buffer {' and '.join(short)} no longer held the beginning of this run" if short else ""
        return LogWindow(data=lines, streamed=False, lost=lost, buffers=self._sizes)

    def _overflowed(self) -> list[str]:
        """Name the buffers that our marker is not in, held lines before it, and now hold younger ones only."""
        others = [name for name in _BUFFERS if name != "main" and self._used.get(name)]
        oldest = "; ".join(
            f"set -f; echo {name} $(logcat -d -b {name} -v epoch -m 1 | tail -n 1)" for name in others
        )
        rows = [line.split() for line in self._device.script(oldest).text.splitlines()] if others else []
        return [
            row[0]
            for row in rows
            if len(row) < 2 or (_TIME.match(row[1]) and self._began and float(row[1]) > float(self._began))
        ]


def cut_window(log: bytes, begin: bytes, end: bytes) -> bytes | None:
    """Return the whole lines between the last line that holds `begin` and the next that holds `end`.

    None when there is no beginning: the buffer was too small for the run, and what it held is unknown.
    """
    start = log.rfind(begin)
    if start < 0:
        return None
    start = log.find(b"\n", start) + 1
    if start == 0:
        return b""
    stop = log.find(end, start)
    if stop < 0:
        return log[start:]
    return log[start : log.rfind(b"\n", 0, stop) + 1]


def _sizes(text: str) -> tuple[dict[str, int], dict[str, int]]:
    """Return limit in bytes and how much is used, in whatever unit, of each buffer `logcat -g` speaks of."""
    rows = [row for row in _SIZE.findall(text) if row[0] in _BUFFERS]
    limits = {name: int(limit) << _UNITS[unit] for name, limit, unit, _ in rows}
    return limits, {name: int(used) for name, _, _, used in rows}


def _silent(device: AdbDevice, stderr: bytes) -> InfrastructureError:
    return InfrastructureError(
        f"device {device.id}: its log cannot be used",
        why=stderr.decode("utf-8", "replace").strip(),
        fix=f"try `adb -s ... shell logcat -d -t 5` and `log -t {TAG} hello` by hand",
    )
