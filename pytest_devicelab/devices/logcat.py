"""A run's window of logcat: what was logged between two markers of ours."""

from __future__ import annotations

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.errors import InfrastructureError

TAG = "devicelab"
_BUFFERS = "main,system,crash"
_BUFFER_SIZE = "16M"


def open_window(device: AdbDevice, token: str) -> None:
    """Begin a window: make the log buffers large enough for a verbose run, and write the first marker.

    The default of 256 KiB is overwritten within one run of a small model (measured: 230 kB of messages for 540
    samples). The size is the running daemon's and goes with the next reboot; where it cannot be set, an
    overflow is noticed all the same, as lost evidence.

    Args:
        device: the device.
        token: letters and digits that nobody else writes into the log.
    """
    done = device.script(f"logcat -b {_BUFFERS} -G {_BUFFER_SIZE} >&2; log -t {TAG} 'begin {token}'")
    if done.exit_code != 0:
        raise _silent(device, done.stderr)


def close_window(device: AdbDevice, token: str, *, timeout_s: float = 60.0) -> bytes | None:
    """End a window and return what was logged in it, or None when its first marker has been overwritten.

    None is lost evidence: the buffer was too small for the run, and what it held is unknown.
    """
    read = f"log -t {TAG} 'end {token}' && logcat -d -b {_BUFFERS} -v threadtime"
    done = device.script(read, timeout_s=timeout_s)
    if done.exit_code != 0:
        raise _silent(device, done.stderr)
    return cut_window(done.stdout, f"begin {token}".encode(), f"end {token}".encode())


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


def _silent(device: AdbDevice, stderr: bytes) -> InfrastructureError:
    return InfrastructureError(
        f"device {device.id}: its log cannot be used",
        why=stderr.decode("utf-8", "replace").strip(),
        fix=f"try `adb -s ... shell logcat -d -t 5` and `log -t {TAG} hello` by hand",
    )
