"""What every device can do, whatever it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from pytest_devicelab.evidence.record import DeviceIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellResult:
    """What a command on a device printed, byte for byte, and its exit status."""

    stdout: bytes
    stderr: bytes
    exit_code: int

    @property
    def text(self) -> str:
        """Standard output as text; undecodable bytes become U+FFFD."""
        return self.stdout.decode("utf-8", "replace")


@runtime_checkable
class Device(Protocol):
    """One device in reach.

    Every call has a deadline of ours, because adb has none. All of them raise `DeviceLost` when the
    device is gone, `DeadlineExceeded` when it is silent too long, and `TransferError` when bytes did not arrive whole.
    """

    @property
    def id(self) -> str:
        """The device's id in the matrix."""

    @property
    def pushed_bytes(self) -> int:
        """Bytes pushed since this object was made."""

    @property
    def pulled_bytes(self) -> int:
        """Bytes pulled since this object was made."""

    def identity(self) -> DeviceIdentity:
        """Say what the device is, read from the device itself."""

    def shell(self, argv: Sequence[str], *, timeout_s: float = 30.0, cwd: str | None = None) -> ShellResult:
        """Run one program. `argv` is quoted word by word, so no value in it is ever read by a shell."""

    def script(self, text: str, *, timeout_s: float = 30.0) -> ShellResult:
        """Run shell text written by us; quote what is put into it with `shlex.quote`."""

    def exec_out(self, argv: Sequence[str], *, timeout_s: float = 60.0) -> bytes:
        """Run one program and return its raw standard output; raises when its exit status is not 0."""

    def push(self, local: Path, remote: str, *, timeout_s: float = 120.0) -> None:
        """Copy a file to the device."""

    def pull(self, remote: str, local: Path, *, timeout_s: float = 120.0) -> None:
        """Copy a file from the device; `local` appears only once it is whole."""

    def getprop(self, name: str) -> str:
        """Return an Android property, empty when unset."""

    def setprop(self, name: str, value: str) -> None:
        """Set an Android property."""
