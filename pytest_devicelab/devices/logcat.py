"""A run's window of logcat: what was logged between two markers of ours."""

from __future__ import annotations

from pytest_devicelab.devices.adb import AdbDevice

TAG = "devicelab"
_BUFFERS = "main,system,crash"
_BUFFER_SIZE = "16M"


def enlarge(device: AdbDevice) -> None:
    """Make the log buffers large enough for a verbose run.

    The default of 256 KiB is overwritten within one run of a small model (measured: 230 kB of messages for 540
    samples). The size is the running daemon's and goes with the next reboot; where it cannot be set, an
    overflow is noticed all the same, as lost evidence.
    """
    device.shell(["logcat", "-b", _BUFFERS, "-G", _BUFFER_SIZE])


def mark(device: AdbDevice, text: str) -> None:
    """Write a marker into the device's log."""
    device.exec_out(["log", "-t", TAG, text])


def read_window(device: AdbDevice, begin: str, end: str, *, timeout_s: float = 60.0) -> bytes | None:
    """Return the log between two markers, or None when the first has already been overwritten.

    None is lost evidence: the buffer was too small for the run, and what it held is unknown.
    """
    text = device.exec_out(["logcat", "-d", "-b", _BUFFERS, "-v", "threadtime"], timeout_s=timeout_s)
    return cut_window(text, begin.encode(), end.encode())


def cut_window(log: bytes, begin: bytes, end: bytes) -> bytes | None:
    """Return the whole lines between the last line that holds `begin` and the next that holds `end`."""
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
