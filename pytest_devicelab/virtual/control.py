"""Trouble on demand: a socket on which a virtual device is told to drop its connections, or to have a fault.

The socket is `dev/socket/control` below the device's root. A client sends one command on a line and gets
one line back: `ok` and maybe an answer, or what was wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pytest_devicelab.errors import DevicelabError, InfrastructureError

_MAX_ADDRESS_BYTES = 108  # with the closing NUL


@contextlib.contextmanager
def _address(root: Path) -> Iterator[str]:
    """Give a name of the socket that fits the 108 bytes of a socket address, however deep `root` lies."""
    path = str(root / "dev" / "socket" / "control")
    if len(os.fsencode(path)) < _MAX_ADDRESS_BYTES:
        yield path
        return
    folder = os.open(root / "dev" / "socket", os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/control"
    finally:
        os.close(folder)


def control(root: Path, command: str, *, timeout_s: float = 10.0) -> str:
    """Tell a virtual device to do something, and wait until it is done; returns its answer, empty for most.

    Args:
        root: the device's root folder.
        command: `drop` cuts every connection; `offline` also stops listening; `online` listens again;
            `fault NAME key=value ...` lets a fault begin, `fault clear [NAME]` ends it, `fault list`
            names all. Words are quoted as in a shell.
        timeout_s: the longest to wait for the answer, in seconds.

    Raises:
        InfrastructureError: the device does not know the command, or nobody serves it.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, _address(root) as address:
            client.settimeout(timeout_s)
            client.connect(address)
            client.sendall(command.encode() + b"\n")
            with client.makefile("rb") as replies:
                reply = replies.readline().decode().strip()
    except OSError as error:
        raise InfrastructureError(
            f"virtual device at {root} does not answer to {command!r}",
            why=str(error),
            fix="start the virtual lab that serves it, and call this on the same machine",
        ) from error
    word, _, answer = reply.partition(" ")
    if word != "ok":
        raise InfrastructureError(f"virtual device at {root} refused {command!r}", why=reply)
    return answer


class ControlSocket:
    """The device's end.

    Args:
        root: the device's root folder.
        commands: what to do for each command of one word.
        fault: what to do for `fault`, with the words after it; returns what to say.
    """

    def __init__(
        self,
        root: Path,
        commands: Mapping[str, Callable[[], Awaitable[None]]],
        fault: Callable[[Sequence[str]], str],
    ) -> None:
        self._root = root
        self._commands = commands
        self._fault = fault
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen; a socket left by an earlier process is replaced."""
        path = self._root / "dev" / "socket" / "control"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _address(self._root) as address:
            listener.bind(address)
            self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=1024)

    def close(self) -> None:
        """Stop listening. Safe to call twice."""
        if self._server is not None:
            self._server.close()
            self._server = None
            (self._root / "dev" / "socket" / "control").unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: a line longer than any command
            command = (await reader.readline()).decode(errors="replace").strip()
            writer.write(f"{await self._carry_out(command)}\n".encode())
            await writer.drain()
        writer.close()

    async def _carry_out(self, command: str) -> str:
        if action := self._commands.get(command):
            await action()
            return "ok"
        word, *words = shlex.split(command) or [""]
        if word != "fault":
            return f"no such command; there are: {', '.join((*self._commands, 'fault'))}"
        try:
            return f"ok {self._fault(words)}".strip()
        except DevicelabError as error:
            return " ".join(str(error).split())
