"""Scratch folders of labs, `$TMPDIR/dl-*`: one a lab, removed at its end, or by a later lab when it was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from pytest_devicelab.errors import HostFailed

_PREFIX = "dl-"
_OWNER = ".owner"
# A living owner locks its folder in the moment it makes it.
_UNOWNED_S = 10.0


class Scratch:
    """A folder with a short path, because those of Unix sockets below it are limited to 107 bytes.

    To make one removes those whose owner is dead. An owner is alive as long as it has its `.owner` file locked, which
    the kernel knows; a folder without such a file is left alone, unless it is empty and not new.

    Raises:
        HostFailed: there is no room, or no folder, for temporary files.
    """

    def __init__(self) -> None:
        try:
            sweep_scratch(Path(tempfile.gettempdir()))
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            unseen = self.path / f"{_OWNER}.new"
            self._descriptor = os.open(unseen, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            unseen.rename(self.path / _OWNER)  # nobody ever sees a living one without its lock
        except OSError as error:
            raise HostFailed(
                "no temporary folder can be made for the lab",
                why=str(error),
                fix="make room for temporary files, or name another place with TMPDIR",
            ) from error

    def close(self) -> None:
        """Remove it; does nothing the second time, and never raises."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(descriptor)


def sweep_scratch(temporary: Path) -> None:
    """Remove scratch folders of ours whose owner is dead, and end what still runs on virtual devices in them."""
    for folder in temporary.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            facts = folder.lstat()
            if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid():
                _sweep(folder)


def _sweep(folder: Path) -> None:
    owner = folder / _OWNER
    try:
        descriptor = os.open(owner, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        # Its owner was killed before it had it locked, or while it removed it: then there is nothing in it.
        if time.time() - folder.stat().st_mtime > _UNOWNED_S:
            folder.rmdir()
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: it is alive
        _end_devices(folder / "v")
        for entry in folder.iterdir():
            if entry != owner:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        # Last, so that what could not be removed now is known for ours the next time.
        owner.unlink()
        folder.rmdir()
    finally:
        os.close(descriptor)


def _end_devices(farm: Path) -> None:
    from pytest_devicelab.virtual.processes import end_all

    if farm.is_dir():
        end_all(root.resolve() for root in farm.iterdir())
