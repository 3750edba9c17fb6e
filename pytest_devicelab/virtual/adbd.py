"""The device side of one ADB connection: the handshake, and many byte streams over one TCP socket.

A stream stops and waits: after each WRTE its sender owes nothing and may send nothing until the OKAY.
So every stream holds at most one unread payload, and no peer can make the other buffer without bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Protocol

from pytest_devicelab.virtual.faults.link import Link, Valve
from pytest_devicelab.virtual.wire import (
    MAX_PAYLOAD_BYTES,
    VERSION,
    VERSION_CHECKSUM,
    Command,
    Packet,
    PacketReader,
    WireError,
    encode_header,
)

# Not offered, because it would have to be implemented: compression, abb (a binder bridge), delayed_ack.
FEATURES = (
    "shell_v2",
    "cmd",
    "stat_v2",
    "ls_v2",
    "fixed_push_mkdir",
    "fixed_push_symlink_timestamp",
    "apex",
    "sendrecv_v2",
)

Service = Callable[["Stream"], Awaitable[None]]

# What an AUTH packet holds. Source: AOSP packages/modules/adb, protocol.txt.
_AUTH_TOKEN, _AUTH_SIGNATURE = 1, 2
_TOKEN_BYTES = 20

_log = logging.getLogger(__name__)


class StreamClosed(EOFError):
    """The host closed the stream, or the whole connection is gone."""


class Host(Protocol):
    """The device behind a connection: what it calls itself and what it serves."""

    @property
    def link(self) -> Link:
        """The cable, and what is wrong with it."""

    def banner(self) -> str:
        """Return the properties the host lists, `ro.product.model=...;...`, without features."""

    def service(self, connection: Connection, name: str) -> Service | None:
        """Return what serves a stream opened under that name; None refuses it."""

    def connected(self, connection: Connection) -> None:
        """Take note of a new connection."""

    def disconnected(self, connection: Connection) -> None:
        """Take note that the connection is gone."""


class Stream:
    """One byte stream of a connection. Reading and writing may go on at the same time."""

    def __init__(self, connection: Connection, local: int, remote: int) -> None:
        self._connection = connection
        self.local = local
        self.remote = remote
        self.closed = asyncio.Event()
        self._unread = memoryview(b"")
        self._arrived: memoryview | None = None
        self._changed = asyncio.Event()
        self._credit = asyncio.Event()
        self._writing = asyncio.Lock()
        if remote:
            self._credit.set()

    async def read(self, limit: int = MAX_PAYLOAD_BYTES) -> memoryview:
        """Return the next bytes, at least one and at most `limit`.

        Raises:
            StreamClosed: no more will come.
        """
        while not self._unread:
            if self._arrived is not None:
                self._unread, self._arrived = self._arrived, None
                if not self.closed.is_set():
                    self._connection.send(Command.OKAY, self.local, self.remote)
            elif self.closed.is_set():
                raise StreamClosed
            else:
                self._changed.clear()
                await self._changed.wait()
        taken, self._unread = self._unread[:limit], self._unread[limit:]
        return taken

    async def read_exactly(self, size_bytes: int) -> bytes:
        """Return that many bytes; raises `StreamClosed` when the stream ends before."""
        pieces = bytearray()
        while len(pieces) < size_bytes:
            pieces += await self.read(size_bytes - len(pieces))
        return bytes(pieces)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes, in as many packets as it takes; raises `StreamClosed` when nobody wants them."""
        view = memoryview(data)
        step = self._connection.max_payload
        async with self._writing:
            for start in range(0, len(view), step):
                await self._credit.wait()
                if self.closed.is_set():
                    raise StreamClosed
                self._credit.clear()
                self._connection.send(Command.WRTE, self.local, self.remote, view[start : start + step])

    def close(self) -> None:
        """End the stream; what was written before still arrives. Safe to call twice."""
        if not self.closed.is_set():
            self.ended()
            self._connection.forget(self)
            self._connection.send(Command.CLSE, self.local, self.remote)

    def feed(self, payload: memoryview) -> None:
        """Accept what the host sent; raises `WireError` when it did not wait for our OKAY."""
        if self._arrived is not None:
            raise WireError(f"stream {self.local}: WRTE before the OKAY for the last one")
        if payload:
            self._arrived = payload
            self._changed.set()
        else:
            self._connection.send(Command.OKAY, self.local, self.remote)

    def acknowledged(self, remote: int) -> None:
        """Accept an OKAY: the host wants more, and the first one names its end of the stream."""
        self.remote = remote
        self._credit.set()

    def ended(self) -> None:
        """Wake everybody who waits: nothing more will come or go."""
        self.closed.set()
        self._changed.set()
        self._credit.set()


class Connection(asyncio.BufferedProtocol):
    """One host's TCP connection to the device."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._reader = PacketReader()
        self._transport: asyncio.Transport | None = None
        self._valve: Valve | None = None
        self._checksum = True
        self._online = False
        self._streams: dict[int, Stream] = {}
        self._ids = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self.max_payload = MAX_PAYLOAD_BYTES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio. The host speaks first, so there is nothing to send yet."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._valve = Valve(self._host.link, transport)
        self._host.connected(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Called by asyncio: where to receive into."""
        assert self._valve is not None
        return self._valve.admit(self._reader.buffer())

    def buffer_updated(self, nbytes: int) -> None:
        """Called by asyncio: that many bytes were received."""
        assert self._valve is not None
        if not self._valve.received(nbytes):
            return
        try:
            packet = self._reader.received(nbytes)
            if packet is not None:
                self._handle(packet)
        except WireError as error:
            _log.warning("dropped an adb connection: %s", error)
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio: the socket is gone, and with it every stream."""
        self._online = False
        if self._valve is not None:
            self._valve.close()
        for stream in self._streams.values():
            stream.ended()
        self._streams.clear()
        self._host.disconnected(self)

    def abort(self) -> None:
        """Cut the connection at once, as a pulled cable does."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close the connection once what was sent is on its way."""
        if self._transport is not None:
            self._transport.close()

    async def finished(self) -> None:
        """Wait until every service of this connection has put its house in order."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def open(self, destination: str) -> Stream:
        """Ask the host for a stream to `tcp:PORT`; its first write waits until the host agrees.

        Raises:
            StreamClosed: the connection is gone.
        """
        if not self._online:
            raise StreamClosed
        stream = Stream(self, next(self._ids), 0)
        self._streams[stream.local] = stream
        self.send(Command.OPEN, stream.local, 0, destination.encode() + b"\0")
        return stream

    def forget(self, stream: Stream) -> None:
        """Stop handing packets to a stream that we ended."""
        self._streams.pop(stream.local, None)

    def send(self, command: Command, arg0: int, arg1: int, payload: bytes | memoryview = b"") -> None:
        """Put one packet on the wire; does nothing once the connection is gone."""
        if self._transport is None or self._valve is None or self._transport.is_closing():
            return
        header = encode_header(command, arg0, arg1, payload, checksum=self._checksum)
        if len(payload) < 4096:
            self._valve.send(header + payload)
        else:
            self._valve.send(header)
            self._valve.send(payload)

    def _handle(self, packet: Packet) -> None:
        if packet.command is Command.CNXN and not self._host.link.authorized:
            self._ask_for_key()
        elif packet.command is Command.CNXN:
            self._handshake(packet)
        elif packet.command is Command.AUTH and not self._online:
            # A signature no key of ours made: ask again, and the host offers its public key, which waits
            # for somebody to tap "Allow".
            if packet.arg0 == _AUTH_SIGNATURE:
                self._ask_for_key()
        elif not self._online:
            raise WireError(f"{packet.command.name} before the handshake")
        elif packet.command is Command.OPEN:
            self._accept(packet)
        elif stream := self._streams.get(packet.arg1):
            self._hand_to(stream, packet)

    def _ask_for_key(self) -> None:
        self.send(Command.AUTH, _AUTH_TOKEN, 0, secrets.token_bytes(_TOKEN_BYTES))

    def _handshake(self, packet: Packet) -> None:
        for stream in self._streams.values():
            stream.ended()
        self._streams.clear()
        self.max_payload = min(MAX_PAYLOAD_BYTES, packet.arg1)
        if packet.arg0 < VERSION_CHECKSUM or self.max_payload < 4096:
            raise WireError(f"host speaks version {packet.arg0:#x} with payloads of {packet.arg1} bytes")
        self._online = True
        banner = f"device::{self._host.banner()};features={','.join(FEATURES)}"
        # The host cannot know yet what we agreed on, so this one packet is always summed up.
        self._checksum = True
        self.send(Command.CNXN, VERSION, MAX_PAYLOAD_BYTES, banner.encode())
        self._checksum = packet.arg0 < VERSION

    def _accept(self, packet: Packet) -> None:
        name = bytes(packet.payload).rstrip(b"\0").decode("utf-8", "surrogateescape")
        service = self._host.service(self, name) if packet.arg0 else None
        if service is None:
            self.send(Command.CLSE, 0, packet.arg0)
            return
        stream = Stream(self, next(self._ids), packet.arg0)
        self._streams[stream.local] = stream
        self.send(Command.OKAY, stream.local, stream.remote)
        self.start(self._serve(stream, service, name))

    def start(self, work: Awaitable[None]) -> None:
        """Run work that belongs to this connection, such as one service of one stream."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, stream: Stream, service: Service, name: str) -> None:
        try:
            with contextlib.suppress(StreamClosed):
                await service(stream)
        except Exception:
            _log.exception("service %r failed", name[:200])
        finally:
            stream.close()

    def _hand_to(self, stream: Stream, packet: Packet) -> None:
        if packet.command is Command.WRTE:
            stream.feed(packet.payload)
        elif packet.command is Command.OKAY:
            stream.acknowledged(packet.arg0)
        elif packet.command is Command.CLSE:
            stream.close()
