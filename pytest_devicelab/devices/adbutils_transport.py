"""The adbutils transport: its connections, with our framing, deadlines and bulk transfer.

adbutils' own `sync.push` sends 4 KiB chunks, ignores short sends and drops the device's reason for a failure;
its timeouts are per read, so a device that drips one byte a second never times out; and each `close()` sleeps
10 ms. So only its connection to the server is used here.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pytest_devicelab.devices.device import ShellResult
from pytest_devicelab.errors import DeadlineExceeded, DeviceLost, TransferError

# The largest DATA packet a device must accept. Source: AOSP adb, SYNC.TXT and file_sync_protocol.h (SYNC_DATA_MAX).
SYNC_CHUNK_BYTES = 64 * 1024
_PUSHED_MODE = 0o100644
_STDOUT, _STDERR, _EXIT = 1, 2, 3


class _Stream:
    """A socket to one service of the device, with one deadline for everything done on it."""

    def __init__(self, sock: socket.socket, *, deadline: float, what: str, timeout_s: float) -> None:
        self._sock = sock
        self._deadline = deadline
        self._what = what
        self._timeout_s = timeout_s

    def _arm(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(
                f"{self._what} took longer than its deadline",
                why=f"no end after {self._timeout_s:g} s; adb itself never times out",
                fix="look at the device; raise lab.run_timeout_s in the matrix if the work is just long",
                timeout_s=self._timeout_s,
            )
        self._sock.settimeout(left)

    def send(self, data: bytes | memoryview) -> None:
        try:
            self._arm()
            self._sock.sendall(data)
        except TimeoutError:
            self._arm()
            raise
        except OSError as error:
            raise self.lost(str(error)) from error

    def read(self, size: int) -> bytes:
        """Return exactly `size` bytes."""
        buffer = bytearray(size)
        view = memoryview(buffer)
        filled = 0
        while filled < size:
            try:
                self._arm()
                # The adb server sends in small pieces and waits for each to be acknowledged, which the kernel would
                # put off by 40 ms. Linux forgets the setting, so it is made again for every read.
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                count = self._sock.recv_into(view[filled:])
            except TimeoutError:
                continue  # _arm raises once the deadline is really past
            except OSError as error:
                raise self.lost(str(error)) from error
            if count == 0:
                raise self.lost("the connection ended early")
            filled += count
        return bytes(buffer)

    def command(self, service: str) -> None:
        """Ask for a service and wait for the server's OKAY."""
        payload = service.encode()
        self.send(b"%04x" % len(payload) + payload)
        status = self.read(4)
        if status != b"OKAY":
            reason = (
                self.read(int(self.read(4), 16)).decode("utf-8", "replace")
                if status == b"FAIL"
                else repr(status)
            )
            raise self.lost(reason)

    def lost(self, why: str) -> DeviceLost:
        return DeviceLost(
            f"{self._what} failed: the device went away",
            why=why,
            fix="check the cable or the network, and what `adb devices -l` says of it",
        )


class AdbutilsTransport:
    """One device behind an adb server, reached through adbutils.

    Args:
        host: the adb server's address; `port`: its port.
        serial: the device's serial; `host:port` for a device over TCP, which is then connected anew when lost.
        name: the device's id in the matrix, for messages.
    """

    def __init__(self, *, host: str, port: int, serial: str, name: str) -> None:
        self._host = host
        self._port = port
        self._serial = serial
        self._name = name

    @property
    def serial(self) -> str:
        """The serial adb knows the device by."""
        return self._serial

    def shell(self, command: str, *, timeout_s: float) -> ShellResult:
        """Run a command line over the shell v2 protocol.

        Source: AOSP adb, shell_protocol.h: packets of u8 id, u32 little-endian length, payload.
        """
        out, err = bytearray(), bytearray()
        with self._open(f"`{_excerpt(command)}`", timeout_s) as stream:
            stream.command(f"shell,v2,raw:{command}")
            stream.send(struct.pack("<BI", 3, 0))  # close standard input: nothing of ours is ever interactive
            while True:
                kind, size = struct.unpack("<BI", stream.read(5))
                data = stream.read(size)
                if kind == _STDOUT:
                    out += data
                elif kind == _STDERR:
                    err += data
                elif kind == _EXIT:
                    return ShellResult(stdout=bytes(out), stderr=bytes(err), exit_code=data[0])

    def push(self, local: Path, remote: str, *, timeout_s: float) -> int:
        """Send a file with the sync service, 64 KiB a packet; returns the bytes sent."""
        size = local.stat().st_size
        with self._open(f"push of {local.name}", timeout_s) as stream, local.open("rb", buffering=0) as file:
            stream.command("sync:")
            stream.send(_sync_packet(b"SEND", f"{remote},{_PUSHED_MODE}".encode()))
            buffer = bytearray(8 + SYNC_CHUNK_BYTES)
            view = memoryview(buffer)
            sent = 0
            while count := file.readinto(view[8:]):
                buffer[:8] = struct.pack("<4sI", b"DATA", count)
                stream.send(view[: 8 + count])
                sent += count
            stream.send(struct.pack("<4sI", b"DONE", int(local.stat().st_mtime)))
            status, length = struct.unpack("<4sI", stream.read(8))
            if status != b"OKAY" or sent != size:
                reason = stream.read(length).decode("utf-8", "replace") if status == b"FAIL" else repr(status)
                raise TransferError(
                    f"device {self._name} ({self._serial}): push of {local.name} was refused",
                    why=f"the device says: {reason}; {sent:,} of {size:,} bytes were sent to {remote}",
                    fix=f"look at `adb -s {self._serial} shell df /data/local/tmp`",
                )
        return size

    def pull(self, remote: str, local: Path, *, timeout_s: float) -> int:
        """Receive a file with the sync service; returns the bytes received."""
        part = local.with_name(local.name + ".part")
        received = 0
        try:
            with self._open(f"pull of {remote}", timeout_s) as stream, part.open("wb", buffering=0) as file:
                stream.command("sync:")
                stream.send(_sync_packet(b"RECV", remote.encode()))
                while True:
                    status, length = struct.unpack("<4sI", stream.read(8))
                    if status == b"DONE":
                        break
                    if status != b"DATA" or length > SYNC_CHUNK_BYTES:
                        reason = stream.read(min(length, 4096)) if status == b"FAIL" else status
                        raise TransferError(
                            f"device {self._name} ({self._serial}): pull of {remote} failed",
                            why=f"the device says: {reason.decode('utf-8', 'replace')}",
                            fix="see the run's stderr: a missing output means the runner did not write it",
                        )
                    file.write(stream.read(length))
                    received += length
            part.replace(local)
        finally:
            with suppress(FileNotFoundError):
                part.unlink()
        return received

    def reconnect(self, *, timeout_s: float) -> None:
        """Wait until the device answers a command again; connect anew where its serial is an address."""
        deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            try:
                if ":" in self._serial:
                    self._connect(max(left, 0.1))
                if self.shell("echo ready", timeout_s=max(left, 0.1)).stdout.strip() == b"ready":
                    return
            except (DeviceLost, DeadlineExceeded):
                if left <= 0:
                    raise
            time.sleep(min(0.2, max(left, 0)))

    def _connect(self, timeout_s: float) -> None:
        with self._server_stream(f"connect to {self._serial}", timeout_s) as stream:
            stream.command(f"host:connect:{self._serial}")
            # The server says OKAY even when it failed; only the text tells.
            reply = stream.read(int(stream.read(4), 16)).decode("utf-8", "replace")
            if not reply.startswith(("connected", "already connected")):
                raise stream.lost(reply)

    @contextmanager
    def _open(self, doing: str, timeout_s: float) -> Iterator[_Stream]:
        with self._server_stream(f"device {self._name} ({self._serial}): {doing}", timeout_s) as stream:
            stream.command(f"host:transport:{self._serial}")
            yield stream

    @contextmanager
    def _server_stream(self, what: str, timeout_s: float) -> Iterator[_Stream]:
        from adbutils import AdbClient
        from adbutils.errors import AdbError

        deadline = time.monotonic() + timeout_s
        try:
            connection = AdbClient(host=self._host, port=self._port).make_connection(timeout_s)
        except (AdbError, OSError) as error:
            raise DeviceLost(
                f"{what} failed: no adb server at {self._host}:{self._port}",
                why=str(error),
                fix="start it with `adb start-server`, or leave `lab: {adb: private}` in the matrix",
            ) from error
        sock = connection.conn
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield _Stream(sock, deadline=deadline, what=what, timeout_s=timeout_s)
        finally:
            sock.close()


def _sync_packet(kind: bytes, payload: bytes) -> bytes:
    return struct.pack("<4sI", kind, len(payload)) + payload


def _excerpt(command: str, limit: int = 60) -> str:
    flat = " ".join(command.split())
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."
