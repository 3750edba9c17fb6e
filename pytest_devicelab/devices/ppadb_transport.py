"""The transport on pure-python-adb: its connections, messages and file transfers, with its known defects mended.

ppadb sends and receives with single system calls and takes a short one for the whole; it has no deadlines, loops for
ever on a connection that ended, decodes bytes as UTF-8, and knows only the first shell protocol, which has no exit
status. So its connection reads and writes through our `Stream`, commands are framed by us, and what cannot be mended
is refused. docs/reference/transports.md lists each defect.

Imported only where a matrix says `transport: ppadb`.
"""

from __future__ import annotations

import socket
import struct
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pytest_devicelab.devices.adb_stream import SERVER_ANSWERS_S, Stream, no_server
from pytest_devicelab.devices.adb_transport import SYNC_CHUNK_BYTES, AdbTransport
from pytest_devicelab.devices.transport import LONGEST_PULL_BYTES
from pytest_devicelab.errors import DeviceLost, TransferError

with warnings.catch_warnings():
    # Its regular expressions are not raw strings, which Python 3.12 warns of.
    warnings.simplefilter("ignore")
    from ppadb.connection import Connection
    from ppadb.sync import Sync

_EXACT_BYTES = 4
"""Up to so many bytes ppadb means exactly that number: a status, a length."""


class _Connection(Connection):  # type: ignore[misc]  # ppadb has no types
    """ppadb's connection, whose every byte goes through a `Stream`: whole, in time, and with our errors."""

    def __init__(self, host: str, port: int, *, what: str, timeout_s: float) -> None:
        super().__init__(host, port, timeout=min(timeout_s, SERVER_ANSWERS_S))
        self._what = what
        self._timeout_s = timeout_s
        self._syncing = False
        self._pulled = False
        deadline = time.monotonic() + timeout_s
        try:
            sock = self.connect()
        except (RuntimeError, UnicodeError) as error:
            self.close()
            raise no_server(host, port, what, str(error)) from None
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # ppadb makes closing a reset, which takes away what is still on its way.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
        self.stream = Stream(sock, deadline=deadline, what=what, timeout_s=timeout_s)

    def send(self, msg: str) -> bool:
        """Ask for a service; what does not fit into a message is refused."""
        self.stream.message(msg)
        return bool(super().send(msg))

    def begin_sync(self) -> None:
        """Ask for the sync service, whose answers are of another form from here on."""
        self.send("sync:")
        self._syncing = True

    def read(self, length: int = 0) -> bytes:
        """Return what ppadb's `pull` reads by itself: the word before each piece, and what follows the last one.

        ppadb skips words it does not know, up to one it does: a file could seem whole that is not.
        """
        word = self.stream.read(length)
        if not self._pulled and word not in (b"DATA", b"DONE", b"FAIL"):
            raise TransferError(
                f"{self._what} failed",
                why=f"the device says: {word.decode('utf-8', 'replace')}",
                fix="it does not speak adb's protocol: restart it, and have its adbd looked at",
            )
        self._pulled = word == b"DONE"
        return word

    def _recv(self, length: int) -> bytes:
        return self.stream.read(length) if length <= _EXACT_BYTES else self.stream.read_some(length)

    def _recv_into(self, length: int) -> bytearray:
        return bytearray(self.stream.read(length))

    def _send(self, data: bytes) -> None:
        self.stream.send(data)

    def _check_status(self) -> bool:
        status = self._recv(4)
        if status == b"OKAY":
            return True
        if status != b"FAIL":
            raise self.stream.lost(f"the adb server answered {status!r}")
        if not self._syncing:
            raise self.stream.lost(self.stream.sized_text())
        said = self.stream.read(min(int.from_bytes(self._recv(4), "little"), 4096))
        raise TransferError(
            f"{self._what} was refused",
            why=f"the device says: {said.decode('utf-8', 'replace')}",
            fix="look at `adb shell df /data/local/tmp`",
        )


class _Sync(Sync):  # type: ignore[misc]  # ppadb has no types
    """ppadb's sync service, bounded: a device must not fill the host's disk."""

    def __init__(self, connection: _Connection, *, what: str, limit_bytes: int = LONGEST_PULL_BYTES) -> None:
        super().__init__(connection)
        self._stream = connection.stream
        self._what = what
        self._limit_bytes = limit_bytes
        self.received = 0

    def _read_data(self) -> bytes:
        length = int.from_bytes(self._stream.read(4), "little")
        self.received += length
        if length > SYNC_CHUNK_BYTES or self.received > self._limit_bytes:
            raise TransferError(
                f"{self._what} was broken off",
                why=f"the device goes on sending after {self._limit_bytes:,} bytes, which is all that was to come"
                if length <= SYNC_CHUNK_BYTES
                else f"the device sends a piece of {length:,} bytes; {SYNC_CHUNK_BYTES:,} are allowed",
                fix="look at the file on the device; what came of it was removed",
            )
        return self._stream.read(length)


class PpadbTransport(AdbTransport):
    """One device behind an adb server, reached through pure-python-adb. Arguments as for `AdbTransport`."""

    def push(self, local: Path, remote: str, *, timeout_s: float) -> int:
        """Send a file with ppadb's sync service; returns the bytes sent."""
        what = self._doing(f"push of {local.name}")
        with self._connected(what, timeout_s) as connection, _translated(what):
            self._choose(connection)
            connection.begin_sync()
            try:
                _Sync(connection, what=what).push(str(local), remote, 0o644)
            except DeviceLost:
                # A device that refuses a file may hang up before all of it was sent: its reason is what counts.
                with suppress(DeviceLost):
                    connection.check_status()
                raise
        return local.stat().st_size

    def pull(
        self, remote: str, local: Path, *, timeout_s: float, limit_bytes: int = LONGEST_PULL_BYTES
    ) -> int:
        """Receive a file with ppadb's sync service; returns the bytes received.

        ppadb writes into the file it is to make, and returns the device's refusal as if it were a result.
        """
        what = self._doing(f"pull of {remote}")
        part = local.with_name(local.name + ".part")
        try:
            with self._connected(what, timeout_s) as connection, _translated(what):
                self._choose(connection)
                connection.begin_sync()
                sync = _Sync(connection, what=what, limit_bytes=limit_bytes)
                said = sync.pull(remote, str(part))
            if said is not None:
                raise TransferError(
                    f"{what} failed",
                    why=f"the device says: {said}",
                    fix="see the run's stderr: a missing output means the runner did not write it",
                )
            part.replace(local)
        finally:
            part.unlink(missing_ok=True)
        return sync.received

    @contextmanager
    def _server(self, what: str, timeout_s: float) -> Iterator[Stream]:
        with self._connected(what, timeout_s) as connection:
            yield connection.stream

    @contextmanager
    def _open(self, doing: str, timeout_s: float) -> Iterator[Stream]:
        with self._connected(self._doing(doing), timeout_s) as connection:
            self._choose(connection)
            yield connection.stream

    @contextmanager
    def _connected(self, what: str, timeout_s: float) -> Iterator[_Connection]:
        with _Connection(self._host, self._port, what=what, timeout_s=timeout_s) as connection:
            yield connection

    def _choose(self, connection: _Connection) -> None:
        connection.send(f"host:transport:{self._serial}")


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn what ppadb raises for bytes that are not UTF-8 into an error of ours."""
    try:
        yield
    except UnicodeError as error:
        raise TransferError(
            f"{what} failed",
            why=f"ppadb reads and writes UTF-8 only: {error}",
            fix="use another name, or `transport: adb`, which takes any bytes",
        ) from None
