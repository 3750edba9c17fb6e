"""Run a program with its logs switched on, watched, and switched off again."""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.logcat import LogWatch, LogWindow
from pytest_devicelab.devices.toggles import farf_file, toggled
from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.lab.heard import ANNOUNCE_PID, split_pid
from pytest_devicelab.matrix.specs import LogProfile

# What opening and closing the log may take beyond the run itself.
_LOG_MARGIN_S = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedRun:
    """What a program printed, and what was logged meanwhile.

    Attributes:
        pid: of the program; None when the device did not say.
        window: logcat while it ran.
    """

    stdout: bytes
    stderr: bytes
    exit_code: int
    pid: int | None
    window: LogWindow


def _program(command: Sequence[str]) -> str:
    """Return the program of a command: of `sh -c text name`, whose text starts or becomes it, that is `name`."""
    return command[3] if tuple(command[:2]) == ("sh", "-c") and len(command) > 3 else command[0]


def run_watched(
    device: AdbDevice,
    command: Sequence[str],
    profile: LogProfile,
    *,
    cwd: str,
    token: str,
    spool: Path,
    timeout_s: float,
    started: Callable[[], None],
    broken_off: Callable[[bytes], None],
    environment: Mapping[str, str] = MappingProxyType({}),
) -> WatchedRun:
    """Run a program under a log profile.

    Args:
        device: the device, which is held.
        command: the program and its arguments; or `sh -c`, text that starts or becomes a program, and that program.
        profile: what is switched on meanwhile.
        cwd: where it runs, on the device.
        token: letters and digits that nobody else writes into the log.
        spool: the file that logcat goes to meanwhile.
        timeout_s: its deadline.
        started: called when all is switched on and the program is about to run.
        broken_off: gets what was logged when the device or the deadline puts an end to it.

        environment: what the program's environment gets.

    Raises:
        InfrastructureError: a switch, the log or the device failed; all switches are put back.
    """
    farf = (
        farf_file(device, cwd, posixpath.basename(_program(command)), profile.farf)
        if profile.farf
        else nullcontext()
    )
    with toggled(device, profile.properties), farf:
        watch = LogWatch(
            device,
            token,
            spool,
            buffer_bytes=profile.buffer_bytes,
            timeout_s=timeout_s + _LOG_MARGIN_S,
        )
        started()
        try:
            # `exec` gives the program the shell's own process id, so that its lines are known from others'.
            exports = "".join(
                f"export {name}={shlex.quote(value)} && " for name, value in environment.items()
            )
            text = f"cd {shlex.quote(cwd)} && {exports}{ANNOUNCE_PID} && exec {shlex.join(command)}"
            done = device.script(text, timeout_s=timeout_s)
            window = watch.close()
        except InfrastructureError:
            broken_off(watch.abandon())
            raise
    pid, stderr = split_pid(done.stderr)
    return WatchedRun(stdout=done.stdout, stderr=stderr, exit_code=done.exit_code, pid=pid, window=window)
