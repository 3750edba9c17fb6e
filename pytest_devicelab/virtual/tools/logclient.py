"""Speak to a virtual device's log daemon from a short-lived program.

Standard library only, and none of its slow parts: every `logcat` on the device starts with this. The
wire format is described in `pytest_devicelab.virtual.logd`.
"""

# Programs on the device start without pathlib, which alone takes some milliseconds.
# ruff: noqa: PTH118

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

# Buffer name -> the id a binary log record carries. Source: AOSP liblog, log_id_t.
BUFFERS = {"main": 0, "radio": 1, "events": 2, "system": 3, "crash": 4, "kernel": 7}
DEFAULT_BUFFERS = ("main", "system", "crash")
PRIORITIES = "VDIWEF"
MAX_PAYLOAD_BYTES = 4068
MAX_ENTRY_BYTES = 5120
WRITE_TIMEOUT_S = 10.0
# A socket's address holds 108 bytes, less than the path of many a temporary folder.
_MAX_ADDRESS_BYTES = 100


class LogRecord(NamedTuple):
    """One record of a log buffer; a tuple because importing dataclasses would double the start-up time.

    Attributes:
        message: may hold newlines; bytes that are not UTF-8 are kept as surrogate escapes.
        time_ns: when it was written, nanoseconds since 1970.
    """

    buffer: str
    priority: str
    tag: str
    message: str
    pid: int
    tid: int
    uid: int
    time_ns: int


class LogInterrupted(Exception):
    """The daemon ended a reading early: it was shut down, or dropped records before they were read."""


def encode_line(value: Mapping[str, Any]) -> bytes:
    """Return a value as one line of the protocol: ASCII JSON, so that any byte survives."""
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def encode_text(text: str) -> bytes:
    """Return the bytes behind a text of the log, as the writer wrote them."""
    return text.encode("utf-8", "surrogateescape")


def with_address(root: str, use: Any) -> None:
    """Call `use` with an address of the device's log socket that fits into a socket address.

    Args:
        root: the device's root folder on the host.
        use: `socket.bind` or `socket.connect` of a Unix socket.
    """
    folder = os.path.join(root, "dev", "socket")
    address = os.path.join(folder, "logd")
    if len(os.fsencode(address)) <= _MAX_ADDRESS_BYTES:
        use(address)
        return
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        use(f"/proc/self/fd/{descriptor}/logd")
    finally:
        os.close(descriptor)


def connect(root: str, *, timeout_s: float | None = WRITE_TIMEOUT_S) -> socket.socket:
    """Return a connection to the device's log daemon.

    Raises:
        OSError: no daemon listens for this device.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        with_address(root, connection.connect)
    except BaseException:
        connection.close()
        raise
    return connection


def write_records(root: str, records: Iterable[LogRecord]) -> int:
    """Store records and return how many the daemon confirmed; what it confirmed can be read at once.

    Raises:
        OSError: no daemon listens for this device, or it does not answer.
    """
    with connect(root) as connection:
        lines = (encode_line(record._asdict()) for record in records)
        connection.sendall(encode_line({"op": "write"}) + b"".join(lines))
        connection.shutdown(socket.SHUT_WR)
        return int(_reply(connection).get("stored", 0))


def ask(root: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the daemon's answer to `clear`, `size` or `resize`.

    Raises:
        OSError: no daemon listens for this device, or it does not answer.
    """
    with connect(root) as connection:
        connection.sendall(encode_line(request))
        connection.shutdown(socket.SHUT_WR)
        return _reply(connection)


def read_batches(root: str, request: Mapping[str, Any]) -> Iterator[list[LogRecord]]:
    """Yield the records a `read` request asks for, in batches as they arrive.

    Raises:
        OSError: no daemon listens for this device.
        LogInterrupted: the daemon hung up before the end.
    """
    with connect(root, timeout_s=None) as connection:
        connection.sendall(encode_line(request))
        pending = b""
        while chunk := connection.recv(1 << 16):
            *lines, pending = (pending + chunk).split(b"\n")
            decoded = [json.loads(line) for line in lines]
            batch = [LogRecord(**item) for item in decoded if "end" not in item]
            if batch:
                yield batch
            if len(batch) < len(decoded):
                return
    raise LogInterrupted("the log daemon closed the connection")


def _reply(connection: socket.socket) -> dict[str, Any]:
    with connection.makefile("rb") as stream:
        line = stream.readline()
    if not line:
        raise ConnectionResetError("the log daemon refused the request")
    answer: dict[str, Any] = json.loads(line)
    return answer
