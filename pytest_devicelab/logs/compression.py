"""Compressed logs: gzip and zstd, told by their first bytes, a piece at a time."""

from __future__ import annotations

import importlib
import platform
import zlib
from typing import Any, BinaryIO

from pytest_devicelab.errors import UserError

_PIECE = 1 << 16
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class GzipReader:
    """Reads a gzip file, of one or several members, as far as it is whole.

    Attributes:
        broken: why reading ended before the end of the log; empty while it did not.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.broken = ""
        self._stream = stream
        self._pending = b""
        self._member = zlib.decompressobj(wbits=31)
        self._begun = False

    def readinto(self, view: memoryview) -> int:
        """Fill a buffer from its start; return how many bytes, 0 at the end."""
        while not self.broken:
            if not self._pending:
                self._pending = self._stream.read(_PIECE)
            if not self._pending:
                self.broken = "the gzip data ends in the middle" if self._begun else ""
                return 0
            self._begun = True
            try:
                piece = self._member.decompress(self._pending, len(view))
            except zlib.error as error:
                self.broken = str(error)
                return 0
            self._pending = self._member.unconsumed_tail
            if self._member.eof:
                self._pending = self._member.unused_data.lstrip(b"\0")  # tape drives pad with NUL
                self._member = zlib.decompressobj(wbits=31)
                self._begun = False
            if piece:
                view[: len(piece)] = piece
                return len(piece)
        return 0


class ZstdReader:
    """Reads a zstd file, of one or several frames, as far as it is whole.

    Attributes:
        broken: why reading ended before the end of the log; empty while it did not.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.broken = ""
        self._error, self._reader = _open_zstd(stream)

    def readinto(self, view: memoryview) -> int:
        """Fill a buffer from its start; return how many bytes, 0 at the end."""
        try:
            count: int = self._reader.readinto(view)
        except (self._error, EOFError) as error:
            self.broken = str(error)
            return 0
        return count


def _open_zstd(stream: BinaryIO) -> tuple[type[Exception], Any]:
    for module in ("compression.zstd", "zstandard"):  # Python 3.14 brings the first
        try:
            zstd = importlib.import_module(module)
        except ImportError:
            continue
        if module == "zstandard":
            reader = zstd.ZstdDecompressor().stream_reader(stream, read_across_frames=True)
        else:
            reader = zstd.ZstdFile(stream)
        return zstd.ZstdError, reader
    raise UserError(
        "this log is compressed with zstd",
        why=f"Python {platform.python_version()} cannot read that by itself",
        fix="pip install zstandard, or decompress it: zstd -dc LOG.zst | devicelab logs -",
    )


def open_compressed(stream: BinaryIO, head: bytes) -> GzipReader | ZstdReader | None:
    """Return what decompresses a log; None for one that is not compressed.

    Args:
        stream: at the log's beginning.
        head: its first four bytes, not taken from the stream.
    """
    if head.startswith(_GZIP):
        return GzipReader(stream)
    return ZstdReader(stream) if head.startswith(_ZSTD) else None
