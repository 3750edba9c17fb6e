"""Compressed logs: gzip and zstd, told by their first bytes, a piece at a time."""

from __future__ import annotations

import importlib
import platform
import zlib
from collections.abc import Callable
from typing import BinaryIO, Protocol

from pytest_devicelab.errors import UserError

# What a piece grows to is in memory at once: at most 32 MiB, at zstd's densest.
_PIECE_BYTES = 1 << 10
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class Member(Protocol):
    """Decompresses one member of a gzip file, or one frame of a zstd file."""

    @property
    def eof(self) -> bool:
        """Whether its end was seen."""

    @property
    def unused_data(self) -> bytes:
        """What was given to it beyond its end."""

    def decompress(self, data: bytes, /) -> bytes:
        """Take in a piece; return what it grows to."""


class PackedReader:
    """Reads a compressed log, of one or several members, as far as it is whole.

    Args:
        stream: at the log's beginning.
        new_member: makes what decompresses a member.
        error: what that raises over data it cannot read.

    Attributes:
        broken: why reading ended before the end of the log; empty while it did not.
    """

    def __init__(self, stream: BinaryIO, *, new_member: Callable[[], Member], error: type[Exception]) -> None:
        self.broken = ""
        self._stream = stream
        self._new_member = new_member
        self._error = error
        self._member = new_member()
        self._inside = False
        self._packed = b""
        self._ready = memoryview(b"")

    def readinto(self, view: memoryview) -> int:
        """Fill a buffer from its start; return how many bytes, 0 at the end."""
        while not self._ready:
            if not self._packed:
                self._packed = self._stream.read(_PIECE_BYTES)
            if not self._packed and self._inside:
                self.broken = "the compressed data ends in the middle"
            if not self._packed or self.broken:
                return 0
            self._unpack()
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _unpack(self) -> None:
        try:
            self._ready = memoryview(self._member.decompress(self._packed))
        except self._error as error:
            self.broken = str(error)
            return
        self._inside = not self._member.eof
        self._packed = b""
        if self._member.eof:
            self._packed = self._member.unused_data.lstrip(b"\0")  # tape drives pad with NUL
            self._member = self._new_member()


def open_compressed(stream: BinaryIO, head: bytes) -> PackedReader | None:
    """Return what decompresses a log; None for one that is not compressed.

    Args:
        stream: at the log's beginning.
        head: its first four bytes, not taken from the stream.

    Raises:
        UserError: it is zstd, and nothing that is installed reads that.
    """
    if head.startswith(_GZIP):
        return PackedReader(stream, new_member=lambda: zlib.decompressobj(wbits=31), error=zlib.error)
    return _zstd(stream) if head.startswith(_ZSTD) else None


def _zstd(stream: BinaryIO) -> PackedReader:
    for name in ("compression.zstd", "zstandard"):  # Python 3.14 brings the first
        try:
            zstd = importlib.import_module(name)
        except ImportError:
            continue
        if name == "zstandard":
            return PackedReader(
                stream, new_member=zstd.ZstdDecompressor().decompressobj, error=zstd.ZstdError
            )
        return PackedReader(stream, new_member=zstd.ZstdDecompressor, error=zstd.ZstdError)
    raise UserError(
        "this log is compressed with zstd",
        why=f"Python {platform.python_version()} cannot read that by itself",
        fix="pip install pytest-devicelab[zstd], or decompress it: zstd -dc LOG.zst | devicelab logs -",
    )
