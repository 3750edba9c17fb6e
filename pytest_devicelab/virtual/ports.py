"""TCP ports through a device's connection: `adb forward` into it, `adb reverse` out of it.

A virtual device has no network of its own: its ports are those of the host's loopback interface.

Source: AOSP packages/modules/adb, SERVICES.TXT and adb.cpp (handle_forward_request).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Coroutine
from typing import Any

from pytest_devicelab.virtual.adbd import Connection, Service, Stream, StreamClosed

LOOPBACK = "127.0.0.1"

_CHUNK_BYTES = 256 * 1024
_TCP = re.compile(r"tcp:(\d{1,5})", re.ASCII)


def forward_service(name: str) -> Service | None:
    """Return what connects a stream `tcp:PORT` to that port of the device; None for every other name."""
    port = parse_port(name)
    if not port:
        return None

    async def serve(stream: Stream) -> None:
        with contextlib.suppress(OSError):  # refused: all the host is told is that the stream has ended
            await _bridge(stream, *await asyncio.open_connection(LOOPBACK, port))

    return serve


def parse_port(name: str) -> int | None:
    """Return N of `tcp:N` with N a TCP port or 0; None for anything else."""
    found = _TCP.fullmatch(name)
    return int(found[1]) if found and int(found[1]) < 65536 else None


class ReverseTable:
    """The ports of the device that one connection's host serves."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._servers: dict[str, tuple[asyncio.Server, str]] = {}

    def service(self, name: str) -> Service | None:
        """Return what answers `reverse:...`; None for every other name."""
        kind, _, request = name.partition(":")
        if kind != "reverse":
            return None

        async def serve(stream: Stream) -> None:
            # The host has sent a first OKAY of its own: here goes one answer only.
            await stream.write(await self._answer(request))

        return serve

    def close(self) -> None:
        """Stop listening on every port."""
        for server, _ in self._servers.values():
            server.close()
        self._servers.clear()

    async def _answer(self, request: str) -> bytes:
        if request == "list-forward":
            lines = (f"host {remote} {local}\n" for remote, (_, local) in self._servers.items())
            return _string("".join(lines))
        if request == "killforward-all":
            self.close()
            return b"OKAY"
        verb, _, rest = request.partition(":")
        if verb == "killforward":
            return self._remove(rest)
        if verb == "forward":
            mapping = rest.removeprefix("norebind:")
            return await self._add(mapping, rebind=mapping == rest)
        return _failure(f"unknown reverse request {verb!r}")

    def _remove(self, remote: str) -> bytes:
        if remote not in self._servers:
            return _failure(f"listener '{remote}' not found")
        self._servers.pop(remote)[0].close()
        return b"OKAY"

    async def _add(self, mapping: str, *, rebind: bool) -> bytes:
        remote, _, local = mapping.partition(";")
        port = parse_port(remote)
        if port is None or not parse_port(local):
            return _failure(f"bad reverse: '{mapping}' is not tcp:PORT;tcp:PORT")
        if remote in self._servers and not rebind:
            return _failure(f"cannot rebind existing socket '{remote}'")
        if remote in self._servers:
            self._remove(remote)

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._connection.start(self._carry(local, reader, writer))

        try:
            server = await asyncio.start_server(accept, LOOPBACK, port)
        except OSError as error:
            return _failure(f"cannot bind listener: {error.strerror}")
        bound = server.sockets[0].getsockname()[1]
        self._servers[f"tcp:{bound}"] = server, local
        return b"OKAY" + (b"" if port else _string(str(bound)))

    async def _carry(self, local: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            stream = self._connection.open(local)
        except StreamClosed:
            writer.close()
            return
        try:
            await _bridge(stream, reader, writer)
        finally:
            stream.close()


async def _bridge(stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Move bytes both ways until either side ends."""

    async def inbound() -> None:
        with contextlib.suppress(StreamClosed, OSError):
            while True:
                writer.write(await stream.read())
                await writer.drain()

    async def outbound() -> None:
        with contextlib.suppress(StreamClosed, OSError):
            while data := await reader.read(_CHUNK_BYTES):
                await stream.write(data)

    try:
        await _first_of(inbound(), outbound())
    finally:
        writer.close()


async def _first_of(*work: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _string(text: str) -> bytes:
    return f"{len(text):04x}{text}".encode()


def _failure(reason: str) -> bytes:
    return b"FAIL" + _string(reason[:1000])
