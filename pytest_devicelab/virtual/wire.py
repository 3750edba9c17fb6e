"""ADB packets: 24 bytes of header and a payload, cut out of a TCP byte stream and put into it.

Source: AOSP packages/modules/adb, protocol.txt.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

VERSION_CHECKSUM = 0x01000000
VERSION = 0x01000001  # from here on neither side computes or reads checksums
MAX_PAYLOAD_BYTES = 1024 * 1024

_HEADER = struct.Struct("<6I")


class Command(IntEnum):
    """The verbs of the protocol: four ASCII letters, read as a little-endian number."""

    CNXN = 0x4E584E43
    AUTH = 0x48545541
    STLS = 0x534C5453
    OPEN = 0x4E45504F
    OKAY = 0x59414B4F
    WRTE = 0x45545257
    CLSE = 0x45534C43


class WireError(Exception):
    """The peer sent something that is no ADB packet; the connection cannot be used any further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """One ADB packet. `payload` is the receive buffer itself, not a copy of it."""

    command: Command
    arg0: int
    arg1: int
    payload: memoryview


def encode_header(
    command: Command, arg0: int, arg1: int, payload: bytes | memoryview, *, checksum: bool
) -> bytes:
    """Return the 24 bytes that go before `payload`.

    Args:
        command: the packet's verb.
        arg0: the sender's stream, or the version.
        arg1: the receiver's stream, or the largest payload.
        payload: at most as many bytes as the receiver takes.
        checksum: whether the peer wants the sum of all payload bytes; otherwise the field is 0.
    """
    total = sum(payload) & 0xFFFFFFFF if checksum else 0
    return _HEADER.pack(command, arg0, arg1, len(payload), total, command ^ 0xFFFFFFFF)


class PacketReader:
    """Cuts a byte stream into packets, receiving each payload straight into its own buffer.

    The owner receives into `buffer()` and says with `received(n)` how much arrived. That way a payload of
    1 MiB is never joined from pieces, which is what makes the transfer rates of a virtual device bearable.
    """

    def __init__(self) -> None:
        self._header = bytearray(_HEADER.size)
        self._target = memoryview(self._header)
        self._filled = 0
        self._command: Command | None = None
        self._arg0 = 0
        self._arg1 = 0

    def buffer(self) -> memoryview:
        """Return the memory the next bytes belong in; never empty."""
        return self._target[self._filled :]

    def received(self, size_bytes: int) -> Packet | None:
        """Take note of bytes put into `buffer()`; returns a packet when they completed one.

        Raises:
            WireError: the header is not one of ADB's, or announces more than `MAX_PAYLOAD_BYTES`.
        """
        self._filled += size_bytes
        if self._filled < len(self._target):
            return None
        if self._command is None:
            payload_bytes = self._read_header()
            if payload_bytes:
                self._target, self._filled = memoryview(bytearray(payload_bytes)), 0
                return None
            return self._finish(memoryview(b""))
        return self._finish(self._target)

    def _read_header(self) -> int:
        number, self._arg0, self._arg1, payload_bytes, _checksum, magic = _HEADER.unpack(self._header)
        if magic != number ^ 0xFFFFFFFF:
            raise WireError(f"bad magic {magic:#010x} after command {number:#010x}")
        if payload_bytes > MAX_PAYLOAD_BYTES:
            raise WireError(f"payload of {payload_bytes} bytes; {MAX_PAYLOAD_BYTES} were agreed on")
        try:
            self._command = Command(number)
        except ValueError:
            raise WireError(f"unknown command {number:#010x}") from None
        return int(payload_bytes)

    def _finish(self, payload: memoryview) -> Packet:
        assert self._command is not None
        packet = Packet(command=self._command, arg0=self._arg0, arg1=self._arg1, payload=payload)
        self._target, self._filled, self._command = memoryview(self._header), 0, None
        return packet
