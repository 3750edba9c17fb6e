"""The log daemon of a virtual device: ring buffers behind a Unix socket, as Android's logd keeps them.

The socket is `dev/socket/logd` below the device's root. Every message is one line of ASCII JSON; bytes
that are not UTF-8 travel as surrogate escapes. A client sends one request and, for `write`, records:

    {"op": "write"} RECORD... then it closes its sending side   -> {"stored": n}
    {"op": "read", "buffers": [...], "follow": false,
     "tail": n, "since_ns": t, "pid": p}                        -> RECORD... {"end": true}
    {"op": "clear", "buffers": [...]}                           -> {"cleared": n}
    {"op": "size", "buffers": [...]}                            -> {"main": {"limit": b, "used": b}, ...}
    {"op": "resize", "buffers": [...], "limit": bytes}          -> as `size`

A RECORD is `{"buffer", "priority", "tag", "message", "pid", "tid", "uid", "time_ns"}`. `tail`, `since_ns`
and `pid` are optional. With `"follow": true` there is no end: the daemon hangs up when it is shut down,
or when records were dropped before a slow reader got them, so that a gap is never silent.
Whatever does not fit this is dropped with its connection.

Source: AOSP logd and liblog for buffers, limits and what happens to a slow reader.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_devicelab.virtual.log_buffer import Entry, RingBuffer, decode_record, make_entry
from pytest_devicelab.virtual.tools.logclient import (
    BUFFERS,
    LogRecord,
    connect,
    encode_line,
    with_address,
    write_records,
)

if TYPE_CHECKING:
    from pytest_devicelab.virtual.engine import LogLine

SHELL_UID = 2000
# A full payload grows at most sixfold as ASCII JSON; a longer line is not from a well-meaning client.
_MAX_LINE_BYTES = 64 * 1024


def write(
    root: Path, lines: Iterable[LogLine], pid: int, tid: int, uid: int = SHELL_UID, buffer: str = "main"
) -> int:
    """Put lines into a device's log and return how many were stored.

    Synchronous, for the processes that run on the device; the daemon's own event loop must use
    `LogDaemon.append` instead. As on a phone a missing daemon is no error to the writer: the answer is 0.

    Args:
        root: the device's root folder.
        lines: oldest first; each is stamped with the time of this call.
        pid: process id the records carry.
        tid: thread id the records carry.
        uid: user id the records carry.
        buffer: the ring buffer they go to.
    """
    records = [
        LogRecord(buffer, line.priority, line.tag, line.message, pid, tid, uid, time.time_ns())
        for line in lines
    ]
    try:
        return write_records(str(root), records) if records else 0
    except OSError:
        return 0


def clear(root: Path) -> None:
    """Ask a device's daemon to empty all its buffers, without waiting for it; nothing where none runs."""
    with contextlib.suppress(OSError), connect(str(root)) as connection:
        connection.sendall(encode_line({"op": "clear", "buffers": list(BUFFERS)}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What a reader asked for."""

    buffers: tuple[str, ...]
    follow: bool = False
    tail: int | None = None
    since_ns: int | None = None
    pid: int | None = None

    @classmethod
    def decode(cls, request: Mapping[str, Any]) -> Query:
        """Return the query of a `read` request; ValueError where it makes no sense."""
        numbers = {name: request.get(name) for name in ("tail", "since_ns", "pid")}
        if not all(number is None or type(number) is int for number in numbers.values()):
            raise ValueError("tail, since_ns and pid are integers")
        return cls(buffers=_buffers(request), follow=request.get("follow") is True, **numbers)

    def admits(self, entry: Entry) -> bool:
        """Whether the entry is by the writer, and of the time, that was asked for."""
        return (self.pid is None or entry.pid == self.pid) and (
            self.since_ns is None or entry.time_ns >= self.since_ns
        )


class LogDaemon:
    """Serve one device's log buffers.

    Args:
        root: the device's root folder; the socket is `dev/socket/logd` below it.

    Attributes:
        clock_offset_ns: how far the device's clock is ahead of the host's, in nanoseconds.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._buffers = {name: RingBuffer() for name in BUFFERS}
        self._sequence = 0
        self.clock_offset_ns = 0
        self._readers: set[asyncio.Event] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. A socket file left by an earlier daemon is replaced."""
        (self._root / "dev" / "socket").mkdir(parents=True, exist_ok=True)
        (self._root / "dev" / "socket" / "logd").unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with_address(str(self._root), listener.bind)
        except OSError:
            listener.close()
            raise
        # From 3.13 asyncio would look for the socket file by an address that may be no lasting path.
        options: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        self._server = await asyncio.start_unix_server(
            self._serve, sock=listener, limit=_MAX_LINE_BYTES, **options
        )

    async def close(self) -> None:
        """Hang up on everybody and remove the socket. May be called twice."""
        if self._server is None:
            return
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None
        (self._root / "dev" / "socket" / "logd").unlink(missing_ok=True)

    def append(self, record: LogRecord) -> None:
        """Store a record and wake the readers."""
        self._sequence += 1
        self._buffers[record.buffer].append(make_entry(self._sequence, record))
        for reader in self._readers:
            reader.set()

    def clear(self) -> None:
        """Empty all buffers."""
        for buffer in self._buffers.values():
            buffer.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # a coroutine that runs is in a task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            # Only `close` cancels this task, and asyncio before 3.12 reports a cancelled one as an error.
            with contextlib.suppress(ConnectionError, ValueError, RecursionError, asyncio.CancelledError):
                await self._answer(json.loads(await reader.readline()), reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, request: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not isinstance(request, dict):
            raise ValueError("a request is an object")
        match request.get("op"):
            case "write":
                reply: dict[str, Any] = {"stored": await self._store(reader)}
            case "read":
                await self._read(Query.decode(request), reader, writer)
                return
            case "clear":
                reply = {"cleared": sum(self._buffers[name].clear() for name in _buffers(request))}
            case "size":
                reply = self._sizes(_buffers(request))
            case "resize":
                limit = request.get("limit")
                if type(limit) is not int:
                    raise ValueError("limit is a number of bytes")
                for name in _buffers(request):
                    self._buffers[name].resize(limit)
                reply = self._sizes(_buffers(request))
            case other:
                raise ValueError(f"no such operation: {other!r}")
        writer.write(encode_line(reply))
        await writer.drain()

    async def _store(self, reader: asyncio.StreamReader) -> int:
        stored = 0
        while line := await reader.readline():
            record = decode_record(json.loads(line))
            self.append(record._replace(time_ns=max(0, record.time_ns + self.clock_offset_ns)))
            stored += 1
        return stored

    def _sizes(self, names: Iterable[str]) -> dict[str, dict[str, int]]:
        return {
            name: {"limit": self._buffers[name].limit_bytes, "used": self._buffers[name].used_bytes}
            for name in names
        }

    def _after(self, sequence: int, query: Query) -> list[bytes]:
        found = [
            entry
            for name in query.buffers
            for entry in self._buffers[name].after(sequence)
            if query.admits(entry)
        ]
        found.sort(key=lambda entry: entry.sequence)
        return [entry.wire for entry in found]

    async def _read(self, query: Query, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines, cursor = self._after(0, query), self._sequence
        if query.tail is not None:
            lines = lines[max(len(lines) - query.tail, 0) :]
        writer.writelines(lines)
        if not query.follow:
            writer.write(encode_line({"end": True}))
            await writer.drain()
            return
        await writer.drain()
        changed = asyncio.Event()
        self._readers.add(changed)
        gone = asyncio.ensure_future(reader.read())
        gone.add_done_callback(lambda _: changed.set())
        try:
            while not gone.done():
                if any(self._buffers[name].dropped > cursor for name in query.buffers):
                    return
                lines, cursor = self._after(cursor, query), self._sequence
                writer.writelines(lines)
                await writer.drain()
                if self._sequence == cursor and not gone.done():
                    changed.clear()
                    await changed.wait()
        finally:
            self._readers.discard(changed)
            gone.cancel()


def _buffers(request: Mapping[str, Any]) -> tuple[str, ...]:
    names = request.get("buffers")
    if not isinstance(names, list) or not names or not all(name in list(BUFFERS) for name in names):
        raise ValueError("buffers is a list of buffer names")
    return tuple(dict.fromkeys(names))
