"""Transport: the few things a device needs from an adb client."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pytest_devicelab.devices.device import ShellResult

# The largest file that is pulled unless the caller knows better. An endless one must not fill the host's disk.
LONGEST_PULL_BYTES = 1 << 30


class Transport(Protocol):
    """One device as an adb client reaches it.

    Each call ends by its deadline, however slowly bytes trickle. Raises `DeviceLost`, `DeadlineExceeded`
    or `TransferError`, never the client's own exceptions.
    """

    @property
    def serial(self) -> str:
        """The serial adb knows the device by."""

    def shell(self, command: str, *, timeout_s: float) -> ShellResult:
        """Run a command line in the device's shell; output and errors apart, with the exit status."""

    def stream(self, command: str, sink: Callable[[bytes], bool], *, timeout_s: float) -> None:
        """Hand what a command prints to `sink` as it comes, until that says True or the command ends.

        The connection is hung up then, which ends a command that would run for ever.
        """

    def push(self, local: Path, remote: str, *, timeout_s: float) -> int:
        """Copy a file to the device; returns the bytes sent."""

    def pull(
        self, remote: str, local: Path, *, timeout_s: float, limit_bytes: int = LONGEST_PULL_BYTES
    ) -> int:
        """Copy a file from the device; returns the bytes received. `local` appears only once it is whole.

        A file that is longer than `limit_bytes` is a `TransferError`: a device must not fill the host's disk.
        """

    def reconnect(self, *, timeout_s: float) -> None:
        """Wait until the device answers again, connecting anew where it is reached over TCP."""

    def restart(self, *, timeout_s: float) -> None:
        """Drop the server's connection to the device and have it made anew, also where it only went silent."""

    def adb_version(self, *, timeout_s: float) -> str | None:
        """Return the version of the adb server; None where it does not say."""

    def reboot(self, *, timeout_s: float) -> None:
        """Reboot the device; returns when it has gone down."""
