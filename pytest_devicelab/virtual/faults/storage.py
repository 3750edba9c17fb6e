"""How a device stores what is pushed to it: a fault has it run out of space, or damage a byte."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

Write = Callable[[memoryview], int]


@dataclass(slots=True, kw_only=True)
class Storage:
    """How a device's storage is just now.

    Attributes:
        free_bytes: how much may still be pushed; None for as much as the host has.
        corrupt_at_byte: the byte of a pushed file that is not stored as it came; None for none.
        corrupt_files: how many pushed files that still concerns.
    """

    free_bytes: int | None = None
    corrupt_at_byte: int | None = None
    corrupt_files: int = 0

    def writer(self, write: Write) -> Write:
        """Return what to call in the place of a new file's `write`."""
        at_byte = self.corrupt_at_byte if self.corrupt_files else None
        if at_byte is None and self.free_bytes is None:
            return write
        self.corrupt_files = max(0, self.corrupt_files - 1)
        position = 0

        def store(piece: memoryview) -> int:
            nonlocal position
            if self.free_bytes is not None:
                if self.free_bytes < len(piece):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self.free_bytes -= len(piece)
            stored = bytearray(piece)
            if at_byte is not None and position <= at_byte < position + len(stored):
                stored[at_byte - position] ^= 0x01
            position += len(stored)
            return _write_all(write, memoryview(stored))

        return store


def _write_all(write: Write, data: memoryview) -> int:
    size_bytes = len(data)
    while data:
        data = data[write(data) :]
    return size_bytes
