"""Faults of what a device stores: full disks, damaged transfers, old files under new names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pytest_devicelab.virtual.faults.fault import Subject
from pytest_devicelab.virtual.tools import trouble

_SLOTS = "data/local/tmp/devicelab/slots"
# Enough to be another model: one bit of one weight may well change no output at all.
_STALE_BYTES = 512


class CorruptPush:
    """One bit of byte `at_byte` of each of the next `files` pushed files flips on its way to the flash.

    On a phone: adb says that the push went well; only a hash of the file on the device tells.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._at_byte, self._files = int(values["at_byte"]), int(values["files"])

    def begin(self, device: Subject) -> None:
        """Damage the files that come."""
        device.storage.corrupt_at_byte, device.storage.corrupt_files = self._at_byte, self._files

    def struck(self, device: Subject) -> bool:
        """Say whether a file has come."""
        return device.storage.corrupt_files < self._files

    def end(self, device: Subject) -> None:
        """Damage no more; those that are damaged stay so."""
        device.storage.corrupt_at_byte, device.storage.corrupt_files = None, 0


class DiskFull:
    """`/data` has `free_bytes` left, for what is pushed and for what the model runners write.

    On a phone: a push fails with "No space left on device", and so does a runner when it writes its results.
    The host's own programs (`cat >`, `cp`, `tar`) do not notice.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._free_bytes = int(values["free_bytes"])

    def begin(self, device: Subject) -> None:
        """Fill it up."""
        device.storage.free_bytes = self._free_bytes
        trouble.write(str(device.root), "disk_full", {"free_bytes": self._free_bytes})

    def end(self, device: Subject) -> None:
        """Make room."""
        device.storage.free_bytes = None
        trouble.write(str(device.root), "disk_full", None)


class StaleSlot:
    """Every file pushed into a slot becomes another one of the same name and size, as an interrupted update leaves it.

    On a phone: the file is there, with the right name, size and time, and is not the one that was sent. Once.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        del values
        self._aged = 0

    def begin(self, device: Subject) -> None:
        """Change some bytes in the middle of each file."""
        for path in (device.root / _SLOTS).glob("*/*"):
            if path.is_file() and not path.is_symlink():
                _age(path)
                self._aged += 1

    def struck(self, device: Subject) -> bool:
        """Say whether there was a file."""
        del device
        return self._aged > 0

    def end(self, device: Subject) -> None:
        """Nothing: the files stay as they are."""


def _age(path: Path) -> None:
    before = path.stat()
    data = path.read_bytes()
    start = max(0, len(data) // 2 - _STALE_BYTES // 2)
    changed = bytes(byte ^ 0x55 for byte in data[start : start + _STALE_BYTES])
    path.write_bytes(data[:start] + changed + data[start + _STALE_BYTES :])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
