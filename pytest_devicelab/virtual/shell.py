"""The shell services: `shell:` in both versions of its protocol, and `exec:`.

Version 2 frames the streams (standard error apart, exit status, end of input); version 1 and `exec:` are the
bare bytes of a process whose two outputs are one.

Source: AOSP packages/modules/adb, shell_protocol.h and daemon/shell_service.cpp.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import struct
from collections.abc import Awaitable, Coroutine, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from pytest_devicelab.virtual import processes
from pytest_devicelab.virtual.adbd import Service, Stream, StreamClosed
from pytest_devicelab.virtual.namespace import View
from pytest_devicelab.virtual.processes import DeviceProcess, Pipe

# With its frame header, what a packet of 1 MiB holds.
_CHUNK_BYTES = 1024 * 1024 - 5
# `adb exec-in` closes its stream with the last byte of input: what reads it needs a moment to finish.
_EXEC_GRACE_S = 5.0
_FRAME = struct.Struct("<BI")


class Frame(IntEnum):
    """Kinds of frames of the shell protocol, version 2."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    EXIT = 3
    CLOSE_STDIN = 4
    WINDOW_SIZE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the name of a shell stream asks for. An empty command is an interactive shell."""

    command: str
    framed: bool
    terminal: bool
    term: str
    grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Console:
    """Where a device runs its commands.

    Attributes:
        environment: of every process, without TERM.
        view: how a process sees the device's absolute paths.
    """

    root: Path
    environment: Mapping[str, str]
    view: View

    def service(self, name: str) -> Service | None:
        """Return what serves `shell...:` and `exec:`; None for every other name."""
        request = parse_request(name)
        if request is None:
            return None

        async def serve(stream: Stream) -> None:
            await self._serve(stream, request)

        return serve

    async def _serve(self, stream: Stream, request: Request) -> None:
        process = await processes.start(
            self.view.argv(request.command),
            env={**self.environment, "TERM": request.term},
            cwd=self.root,
            streams="pty" if request.terminal else "apart" if request.framed else "merged",
        )
        if not request.framed:
            output = _forward(process.stdout, stream, kind=None)
            await _attend(stream, process, [output], _feed_bytes(stream, process), grace_s=request.grace_s)
            return
        outputs = [_forward(process.stdout, stream, kind=Frame.STDOUT)]
        if process.stderr is not None:
            outputs.append(_forward(process.stderr, stream, kind=Frame.STDERR))
        feeding = _feed_frames(stream, process, terminal=request.terminal)
        status = await _attend(stream, process, outputs, feeding, grace_s=0)
        await stream.write(_FRAME.pack(Frame.EXIT, 1) + bytes([status]))


def parse_request(name: str) -> Request | None:
    """Return what a stream's name asks of a shell: `shell,v2,TERM=xterm,raw:CMD`, `shell:CMD`, `exec:CMD`."""
    head, colon, command = name.partition(":")
    service, *options = head.split(",")
    if not colon or service not in ("shell", "exec"):
        return None
    terminal = service == "shell" and ("pty" in options or (not command and "raw" not in options))
    terms = [option.removeprefix("TERM=") for option in options if option.startswith("TERM=")]
    return Request(
        command=command,
        framed="v2" in options,
        terminal=terminal,
        term=terms[0] if terms else "dumb",
        grace_s=_EXEC_GRACE_S if service == "exec" else 0,
    )


async def _attend(
    stream: Stream,
    process: DeviceProcess,
    outputs: list[Coroutine[None, None, None]],
    feeding: Awaitable[None],
    *,
    grace_s: float,
) -> int:
    """Move bytes until the process has ended; returns its exit status.

    Raises:
        StreamClosed: the host hung up first, and the process group was ended for it.
    """
    moving = [asyncio.ensure_future(output) for output in outputs]

    async def finish() -> int:
        await asyncio.gather(*moving)
        return await process.exit_code()

    finishing = asyncio.ensure_future(finish())
    leaving = asyncio.ensure_future(stream.closed.wait())
    tasks = [*moving, finishing, leaving, asyncio.ensure_future(feeding)]
    ended = False
    try:
        await asyncio.wait({finishing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not finishing.done():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.child.wait(), grace_s)
            raise StreamClosed
        status = finishing.result()
        ended = True
        return status
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not ended:
            await process.hang_up()
        process.close()


async def _forward(pipe: Pipe, stream: Stream, *, kind: Frame | None) -> None:
    while data := await pipe.read(_CHUNK_BYTES):
        await stream.write(data if kind is None else _FRAME.pack(kind, len(data)) + data)


async def _feed_bytes(stream: Stream, process: DeviceProcess) -> None:
    try:
        while True:
            await process.stdin.write(await stream.read())
    except (StreamClosed, BrokenPipeError):
        process.stdin.close()


async def _feed_frames(stream: Stream, process: DeviceProcess, *, terminal: bool) -> None:
    while True:
        kind, size_bytes = _FRAME.unpack(await stream.read_exactly(_FRAME.size))
        if kind == Frame.STDIN:
            await _feed_input(stream, process, size_bytes)
            continue
        content = await stream.read_exactly(min(size_bytes, _CHUNK_BYTES))
        if kind == Frame.CLOSE_STDIN and not terminal:  # a terminal has one end only; as adbd, leave it open
            process.stdin.close()
        elif kind == Frame.WINDOW_SIZE and (size := re.match(rb"(\d{1,4})x(\d{1,4}),", content)):
            process.stdout.resize(int(size[1]), int(size[2]))


async def _feed_input(stream: Stream, process: DeviceProcess, size_bytes: int) -> None:
    while size_bytes:
        piece = await stream.read(size_bytes)
        size_bytes -= len(piece)
        try:
            await process.stdin.write(piece)
        except BrokenPipeError:
            process.stdin.close()  # the process reads no more; what the host still sends is dropped
