"""The transport: one device behind an adb server, spoken to in the server's own protocol.

The adb clients there are for Python do not serve: adbutils sends files in 4 KiB pieces, ignores short sends and drops
the device's reason for a failure; its timeouts are per read, so a device that drips one byte a second never times out;
and where no server answers it starts one, on the port the user's own adb uses. What they say to the server is little.

Source: AOSP adb, SERVICES.TXT, SYNC.TXT, file_sync_protocol.h, shell_protocol.h.
"""

from __future__ import annotations

import re
import secrets
import struct
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from io import FileIO
from pathlib import Path

from pytest_devicelab.devices.adb_stream import Stream, open_server, too_late
from pytest_devicelab.devices.device import ShellResult
from pytest_devicelab.devices.transport import LONGEST_PULL_BYTES
from pytest_devicelab.errors import DeviceLost, TransferError

# The largest DATA packet a device must accept. Source: file_sync_protocol.h (SYNC_DATA_MAX).
SYNC_CHUNK_BYTES = 64 * 1024
# Packets are handed to the kernel sixteen at a time: a system call for each costs a fifth of a push's speed.
_BATCH_PACKETS = 16
# What a runner may print. A device that never stops must not fill the memory of the host.
_LONGEST_OUTPUT_BYTES = 256 * 1024 * 1024
_PUSHED_MODE = 0o100644
_GOING_DOWN_S = 0.5
# A field of protobuf: number 5 and kind 2 in one byte, the length in the next, then the text.
_FIELD = re.compile(r"\*([\x05-\x20])")
_RELEASE = re.compile(r"\d{1,3}(\.\d{1,3}){2}(-\w{1,20})?", re.ASCII)
_STDOUT, _STDERR, _EXIT = 1, 2, 3


class AdbTransport:
    """One device behind an adb server.

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
        """Run a command line over the shell v2 protocol: packets of u8 id, u32 little-endian length, payload."""
        parts: dict[int, bytearray] = {_STDOUT: bytearray(), _STDERR: bytearray()}
        left = _LONGEST_OUTPUT_BYTES
        with closing(self._packets(command, timeout_s)) as packets:
            for kind, data in packets:
                left -= len(data)
                if left < 0:
                    raise self._printed_too_much(command)
                if kind in parts:
                    parts[kind] += data
                elif kind == _EXIT and data:
                    break
        return ShellResult(stdout=bytes(parts[_STDOUT]), stderr=bytes(parts[_STDERR]), exit_code=data[0])

    def stream(self, command: str, sink: Callable[[bytes], bool], *, timeout_s: float) -> None:
        """Hand what a command prints to `sink` as it comes, until that says True or the command ends."""
        with closing(self._packets(command, timeout_s)) as packets:
            for kind, data in packets:
                if kind == _EXIT or (kind == _STDOUT and sink(data)):
                    return

    def _packets(self, command: str, timeout_s: float) -> Generator[tuple[int, bytes], None, None]:
        """Run a command line and yield kind and payload of what comes, without end; to close it is to hang up."""
        with self._open(f"`{_excerpt(command)}`", timeout_s) as stream:
            stream.command(f"shell,v2,raw:{command}")
            stream.send(struct.pack("<BI", 3, 0))  # close standard input: nothing of ours is ever interactive
            while True:
                kind, size = struct.unpack("<BI", stream.read(5))
                if size > _LONGEST_OUTPUT_BYTES:
                    raise self._printed_too_much(command)
                yield kind, stream.read(size)

    def _printed_too_much(self, command: str) -> TransferError:
        return TransferError(
            f"device {self._name} ({self._serial}): `{_excerpt(command)}` printed too much",
            why=f"more than {_LONGEST_OUTPUT_BYTES:,} bytes",
            fix="let it write to a file, and pull that",
        )

    def push(self, local: Path, remote: str, *, timeout_s: float) -> int:
        """Send a file with the sync service; returns the bytes sent."""
        with self._open(f"push of {local.name}", timeout_s) as stream, local.open("rb", buffering=0) as file:
            stream.command("sync:")
            stream.send(_sync_packet(b"SEND", f"{remote},{_PUSHED_MODE}"))
            try:
                sent = _send_file(stream, file)
                stream.send(struct.pack("<4sI", b"DONE", int(local.stat().st_mtime)))
            except DeviceLost:
                # A device that refuses a file may hang up before all of it was sent: its reason is what counts.
                with suppress(DeviceLost):
                    self._expect_pushed(stream, local, remote)
                raise
            self._expect_pushed(stream, local, remote)
        return sent

    def _expect_pushed(self, stream: Stream, local: Path, remote: str) -> None:
        status, length = struct.unpack("<4sI", stream.read(8))
        if status != b"OKAY":
            said = stream.read(min(length, 4096)) if status == b"FAIL" else status
            raise TransferError(
                f"device {self._name} ({self._serial}): push of {local.name} was refused",
                why=f"the device says of {remote}: {said.decode('utf-8', 'replace')}",
                fix=f"look at `adb -s {self._serial} shell df /data/local/tmp`",
            )

    def pull(
        self, remote: str, local: Path, *, timeout_s: float, limit_bytes: int = LONGEST_PULL_BYTES
    ) -> int:
        """Receive a file with the sync service; returns the bytes received."""
        part = local.with_name(local.name + ".part")
        received = 0
        view = memoryview(bytearray(SYNC_CHUNK_BYTES))
        try:
            with self._open(f"pull of {remote}", timeout_s) as stream, part.open("wb") as file:
                stream.command("sync:")
                stream.send(_sync_packet(b"RECV", remote))
                while True:
                    status, length = struct.unpack("<4sI", stream.read(8))
                    if status == b"DONE":
                        break
                    if status != b"DATA" or length > SYNC_CHUNK_BYTES:
                        said = stream.read(min(length, 4096)) if status == b"FAIL" else status
                        raise TransferError(
                            f"device {self._name} ({self._serial}): pull of {remote} failed",
                            why=f"the device says: {said.decode('utf-8', 'replace')}",
                            fix="see the run's stderr: a missing output means the runner did not write it",
                        )
                    if received + length > limit_bytes:
                        raise self._too_long(remote, limit_bytes)
                    stream.read_into(view[:length])
                    file.write(view[:length])
                    received += length
            part.replace(local)
        finally:
            part.unlink(missing_ok=True)
        return received

    def _too_long(self, remote: str, limit_bytes: int) -> TransferError:
        return TransferError(
            f"device {self._name} ({self._serial}): pull of {remote} was broken off",
            why=f"the device goes on sending after {limit_bytes:,} bytes, which is all that was to come",
            fix="look at the file on the device; what came of it was removed",
        )

    def reconnect(self, *, timeout_s: float) -> None:
        """Wait until the device answers a command; connect anew where its serial is an address."""
        deadline = time.monotonic() + timeout_s
        while True:
            left = max(deadline - time.monotonic(), 0.1)
            # A word nobody can have said before: a device that only repeats an old answer has not proved itself.
            token = secrets.token_hex(8)
            try:
                if self.shell(f"echo {token}", timeout_s=left).stdout.strip() == token.encode():
                    return
            except DeviceLost:
                if time.monotonic() >= deadline:
                    raise
                if self._over_tcp:
                    with suppress(DeviceLost):
                        self._ask(f"host:connect:{self._serial}", left)
            if time.monotonic() >= deadline:
                raise too_late(f"device {self._name} ({self._serial}): `echo`", timeout_s)
            time.sleep(0.1)

    def restart(self, *, timeout_s: float) -> None:
        """Have the server drop its connection to the device and make it anew.

        Source: AOSP adb, SERVICES.TXT and adb.cpp (`host:disconnect:`, `host:connect:`, `host-serial:...:reconnect`).
        """
        deadline = time.monotonic() + timeout_s
        if not self._over_tcp:
            self._ask(f"host-serial:{self._serial}:reconnect", timeout_s)
            return
        with suppress(DeviceLost):  # the server may have dropped it already
            self._ask(f"host:disconnect:{self._serial}", timeout_s)
        self._ask(f"host:connect:{self._serial}", max(deadline - time.monotonic(), 0.1))

    def adb_version(self, *, timeout_s: float) -> str | None:
        """Return the version of the adb server; of an older one, which does not say, that of its protocol: `41`.

        Source: AOSP adb, adb.cpp (`host:server-status`), proto/adb_host.proto (AdbServerStatus: version is field 5),
        SERVICES.TXT (`host:version`, four hex digits).
        """
        for service, read in (("host:server-status", _release), ("host:version", _protocol)):
            with suppress(DeviceLost), self._server("version", timeout_s) as stream:
                stream.command(service)
                if version := read(stream.sized_text()):
                    return version
        return None

    def reboot(self, *, timeout_s: float) -> None:
        """Reboot the device; returns when it has gone down."""
        with self._open("reboot", timeout_s) as stream:
            stream.command("reboot:")
            with suppress(DeviceLost):  # which is the purpose
                stream.read(1)
        # A device may end this connection a moment before it goes down, and would still answer meanwhile.
        time.sleep(_GOING_DOWN_S)

    @property
    def _over_tcp(self) -> bool:
        return ":" in self._serial

    def _ask(self, service: str, timeout_s: float) -> None:
        """Ask the server for something it answers with a text.

        It says OKAY to `connect` even when that failed. Whether it did shows when the device is used.
        """
        with self._server(service.removeprefix("host:"), timeout_s) as stream:
            stream.command(service)
            stream.sized_text()

    def _doing(self, doing: str) -> str:
        return f"device {self._name} ({self._serial}): {doing}"

    def _server(self, what: str, timeout_s: float) -> AbstractContextManager[Stream]:
        return open_server(self._host, self._port, what, timeout_s)

    @contextmanager
    def _open(self, doing: str, timeout_s: float) -> Iterator[Stream]:
        with self._server(self._doing(doing), timeout_s) as stream:
            stream.command(f"host:transport:{self._serial}")
            yield stream


def _release(status: str) -> str | None:
    texts = (status[found.end() : found.end() + ord(found[1])] for found in _FIELD.finditer(status))
    return next((text for text in texts if _RELEASE.fullmatch(text)), None)


def _protocol(version: str) -> str | None:
    return str(int(version, 16)) if re.fullmatch(r"[0-9a-fA-F]{4}", version) else None


def _send_file(stream: Stream, file: FileIO) -> int:
    """Send the whole content as DATA packets; returns its size in bytes."""
    view = memoryview(bytearray(_BATCH_PACKETS * (8 + SYNC_CHUNK_BYTES)))
    sent = 0
    while True:
        filled = 0
        for _ in range(_BATCH_PACKETS):
            count = file.readinto(view[filled + 8 : filled + 8 + SYNC_CHUNK_BYTES])
            if not count:
                break
            struct.pack_into("<4sI", view, filled, b"DATA", count)
            filled += 8 + count
            sent += count
        if not filled:
            return sent
        stream.send(view[:filled])


def _sync_packet(kind: bytes, text: str) -> bytes:
    payload = text.encode("utf-8", "surrogateescape")
    return struct.pack("<4sI", kind, len(payload)) + payload


def _excerpt(command: str, limit: int = 60) -> str:
    flat = " ".join(command.split())
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."
