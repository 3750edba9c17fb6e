"""Processes on a virtual device: started in their own process group, with plain descriptors as streams.

asyncio's own subprocess pipes are not used: with them `wait()` also waits for whoever inherited a pipe,
and there is no way to hand it a pseudo-terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import struct
import termios
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Streams = Literal["apart", "merged", "pty"]

_HANGUP_GRACE_S = 1.0
_KILL_TIMEOUT_S = 2.0
_PIPE_BYTES = 1024 * 1024
# In the environment of every process on a device, with the device's root folder. Source: `image.environment`.
_MARK = "DEVICELAB_VDEVICE"

_log = logging.getLogger(__name__)


class Pipe:
    """One end of a pipe, or a pseudo-terminal, read and written without blocking the loop."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor

    async def read(self, limit: int) -> bytes:
        """Return the next bytes, empty at the end."""
        loop = asyncio.get_running_loop()
        while self._descriptor >= 0:
            try:
                return os.read(self._descriptor, limit)
            except BlockingIOError:
                await _ready(self._descriptor, loop.add_reader, loop.remove_reader)
            except OSError:  # EIO: the last process on the terminal is gone
                return b""
        return b""

    async def write(self, data: bytes | memoryview) -> None:
        """Write all of the bytes; raises `BrokenPipeError` when nobody will read them."""
        loop = asyncio.get_running_loop()
        while data:
            if self._descriptor < 0:
                raise BrokenPipeError
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                await _ready(self._descriptor, loop.add_writer, loop.remove_writer)
            except OSError as error:
                raise BrokenPipeError from error

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the terminal, in characters; a plain pipe has none."""
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("<4H", rows, columns, 0, 0))

    def close(self) -> None:
        """Close it; whoever waits in `read` or `write` must have been cancelled before."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


async def _ready(
    descriptor: int,
    add: Callable[..., None],
    remove: Callable[[int], bool],
) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    add(descriptor, wake)
    try:
        await future
    finally:
        remove(descriptor)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProcess:
    """A running process. `stderr` is None where it is merged into `stdout`."""

    stdin: Pipe
    stdout: Pipe
    stderr: Pipe | None
    child: asyncio.subprocess.Process

    async def exit_code(self) -> int:
        """Wait for its end; 128 + N when signal N ended it, as a shell says."""
        status = await self.child.wait()
        return status if status >= 0 else 128 - status

    async def hang_up(self) -> None:
        """End its whole process group: SIGHUP, and SIGKILL to who does not listen."""
        _signal_group(self.child.pid, signal.SIGHUP)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.child.wait(), _HANGUP_GRACE_S)
        _signal_group(self.child.pid, signal.SIGKILL)
        await self.child.wait()

    def close(self) -> None:
        """Close our ends of its streams."""
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


async def start(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, streams: Streams) -> DeviceProcess:
    """Start a program as the leader of its own session.

    Args:
        argv: the program and its arguments.
        env: its whole environment.
        cwd: folder it starts in.
        streams: `apart` for three pipes, `merged` for standard error going where standard output goes,
            `pty` for a pseudo-terminal that stands for all three.

    Raises:
        OSError: it cannot be started.
    """
    ours, theirs = _pseudo_terminal() if streams == "pty" else _pipes(merged=streams == "merged")
    # `setsid --ctty` makes the session and takes the terminal; Python's own start_new_session cannot.
    wrapper = ("setsid", "--ctty") if streams == "pty" else ()
    try:
        child = await asyncio.create_subprocess_exec(
            *wrapper,
            *argv,
            stdin=theirs[0],
            stdout=theirs[1],
            stderr=theirs[2],
            env=dict(env),
            cwd=cwd,
            start_new_session=streams != "pty",
        )
    except BaseException:
        for descriptor in ours:
            os.close(descriptor)
        raise
    finally:
        for descriptor in set(theirs):
            os.close(descriptor)
    stdin, stdout, *stderr = (Pipe(descriptor) for descriptor in ours)
    return DeviceProcess(stdin=stdin, stdout=stdout, stderr=stderr[0] if stderr else None, child=child)


def _pseudo_terminal() -> tuple[tuple[int, ...], tuple[int, int, int]]:
    ours, theirs = os.openpty()
    return (os.dup(ours), ours), (theirs, theirs, theirs)


def _pipes(*, merged: bool) -> tuple[tuple[int, ...], tuple[int, int, int]]:
    """Return our ends (stdin, stdout, and stderr unless merged) and the ends of the process."""
    stdin, our_stdin = os.pipe()
    our_stdout, stdout = os.pipe()
    with contextlib.suppress(OSError):  # past the user's share of pipe memory: 64 KiB do as well, slowly
        fcntl.fcntl(our_stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    if merged:
        return (our_stdin, our_stdout), (stdin, stdout, stdout)
    our_stderr, stderr = os.pipe()
    return (our_stdin, our_stdout, our_stderr), (stdin, stdout, stderr)


def end_all(roots: Iterable[Path]) -> None:
    """Kill every process that runs on one of these devices, also those that left their session."""
    marks = {f"{_MARK}={root}".encode() for root in roots}
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while found := [process for process in _processes() if not marks.isdisjoint(_environment(process))]:
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process.name), signal.SIGKILL)
        if time.monotonic() > deadline:
            _log.warning("still running: %s", ", ".join(process.name for process in found))
            return
        time.sleep(0.005)


def signal_all(roots: Iterable[Path], number: signal.Signals) -> None:
    """Send a signal to every process that runs on one of these devices."""
    marks = {f"{_MARK}={root}".encode() for root in roots}
    for process in _processes():
        if not marks.isdisjoint(_environment(process)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process.name), number)


def _processes() -> list[Path]:
    return [entry for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def _environment(process: Path) -> list[bytes]:
    try:
        return (process / "environ").read_bytes().split(b"\0")
    except OSError:  # another user's, or already gone
        return []
