"""Seats: a file for each process that holds or awaits a device, locked by the kernel for as long as it lives.

The folder is shared by all users of a host, so nothing in it is trusted: a file is opened without following links, made
only where there is none, and what it says is data.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_devicelab.errors import HostFailed

# Not $TMPDIR: users who have one each would never meet, and hold one device twice.
_SHARED_FOLDER = Path("/tmp/devicelab-leases")
_OPEN_FOR_ALL = 0o1777  # who made a file is the only one who may remove it
_LONGEST_BYTES = 4096
_BEAT_BYTES = 20
WAITING, HELD = ".waiting", ".held"
"""How the names of seats end."""


def lease_folder() -> Path:
    """Return the folder all users of this host take their leases in: $DEVICELAB_LEASES, or one below /tmp.

    Raises:
        HostFailed: what is there is not a folder that all can use and nobody can empty.
    """
    chosen = os.environ.get("DEVICELAB_LEASES")
    folder = Path(chosen) if chosen else _SHARED_FOLDER
    try:
        with suppress(FileExistsError):
            folder.mkdir()
        facts = folder.lstat()
        # Also where a process of ours died between the two steps. A folder of the user's choice stays as it is.
        mine = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid()
        if mine and not chosen and stat.S_IMODE(facts.st_mode) != _OPEN_FOR_ALL:
            folder.chmod(_OPEN_FOR_ALL)
            facts = folder.lstat()
    except OSError as error:
        raise unusable(folder, str(error)) from error
    if not stat.S_ISDIR(facts.st_mode):
        raise unusable(folder, "it is a link or a file")
    if not chosen and stat.S_IMODE(facts.st_mode) != _OPEN_FOR_ALL:
        raise unusable(folder, f"its mode is {stat.S_IMODE(facts.st_mode):o}, not {_OPEN_FOR_ALL:o}")
    return folder


def open_shared(path: Path) -> int:
    """Return a descriptor of a file that all users may write; made where there is none.

    It is opened without O_CREAT first, which Linux denies in such a folder when the file is another user's.

    Raises:
        HostFailed: a link, or something that is no plain file, is in its place.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            os.fchmod(descriptor, 0o666)
    except OSError as error:
        raise unusable(path, str(error)) from error
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
        os.close(descriptor)
        raise unusable(path, "it is not a plain file with one name")
    return descriptor


def now_ns() -> int:
    """Return nanoseconds since the machine started: no clock correction makes a heartbeat look old."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Seat:
    """The seat of one who wants a device. It ends with `close()`, and with this process however that ends.

    Args:
        folder: where leases are taken.
        stem: the device's part of file names.
        claim: who it is, as JSON.
    """

    def __init__(self, folder: Path, stem: str, claim: bytes) -> None:
        # Names sort by time: that is the queue.
        self.name = f"{stem}.{now_ns():020d}-{os.getpid()}-{secrets.token_hex(4)}{WAITING}"
        self._path = folder / self.name
        unseen = folder / f".{self.name}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._descriptor = os.open(unseen, flags, 0o644)
        except OSError as error:
            raise unusable(folder, str(error)) from error
        try:
            os.fchmod(self._descriptor, 0o644)  # others look at it, whatever our umask is
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            write_whole(self._descriptor, b"%*d\n" % (_BEAT_BYTES, now_ns()) + claim)
            unseen.rename(self._path)  # nobody ever sees a living one without its lock
        except OSError as error:
            os.close(self._descriptor)
            unseen.unlink(missing_ok=True)
            raise unusable(folder, str(error)) from error

    def beat(self, at_ns: int) -> None:
        """Say that its owner lived at that time."""
        try:
            os.pwrite(self._descriptor, b"%*d" % (_BEAT_BYTES, at_ns), 0)
        except OSError as error:  # where writing over something takes new room
            raise unusable(self._path.parent, str(error)) from error

    def leave_queue(self) -> None:
        """Become the seat of a holder; the caller has the record locked."""
        self.name = self.name.removesuffix(WAITING).removesuffix(HELD) + HELD
        try:
            self._path = self._path.rename(self._path.with_name(self.name))
        except OSError as error:
            raise unusable(self._path.parent, str(error)) from error

    def close(self) -> None:
        """Give the seat up; does nothing the second time."""
        descriptor, self._descriptor = self._descriptor, -1  # a late beat must not reach another file
        if descriptor < 0:
            return
        with suppress(OSError):
            self._path.unlink()
        os.close(descriptor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A seat whose owner is alive, as others see it: how long ago it beat, and its claim as it wrote it."""

    name: str
    beat_age_s: float
    claim: bytes


def look(folder: Path, name: str) -> Seen | None:
    """Return what a seat says, or None where it is gone or its owner is dead; a dead one's seat is removed."""
    path = folder / name
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        beat, _, claim = os.read(descriptor, _LONGEST_BYTES).partition(b"\n")
        beaten = int(beat) if beat.strip().isdigit() else 0
        return Seen(name=name, beat_age_s=(now_ns() - beaten) / 1e9, claim=claim)
    finally:
        os.close(descriptor)
    with suppress(OSError):  # another user's stays: only its owner may remove it
        path.unlink()
    return None


def write_whole(descriptor: int, data: bytes) -> None:
    """Write data at the beginning of a file; `OSError` where the disk has room for a part of it only."""
    if os.pwrite(descriptor, data, 0) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def unusable(path: Path, why: str) -> HostFailed:
    """Return the error of a folder, or a file in it, that leases cannot be kept in."""
    return HostFailed(
        f"leases cannot be kept in {path}",
        why=why,
        fix="make room or remove it, or set DEVICELAB_LEASES to a folder that all users of these devices can write",
    )
