"""Leases: one holder of a device at any time, across threads, pytest workers and processes of one host."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pytest_devicelab.errors import InfrastructureError


def lease_folder() -> Path:
    """Return the folder all processes of this user on this host take their leases in."""
    folder = Path(tempfile.gettempdir()) / f"devicelab-leases-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise InfrastructureError(
            f"{folder} is not ours",
            why="another user made it",
            fix="remove it, or set TMPDIR to another folder",
        )
    return folder


@contextmanager
def hold(
    device_key: str,
    holder: str,
    *,
    timeout_s: float = 600.0,
    folder: Path | None = None,
    waiting: Callable[[str], None] = lambda reason: None,
) -> Iterator[None]:
    """Hold a device exclusively for the duration of a block.

    The lock is the kernel's (`flock`), so it is free again when its holder dies, however it dies.

    Args:
        device_key: what makes the device one device on this host: its serial.
        holder: who holds it, for whoever has to wait.
        folder: where leases are taken; `lease_folder()` where None.
        timeout_s: how long to wait for another holder.
        waiting: called once, with the reason, when the device is held by somebody else.

    Raises:
        InfrastructureError: it was not free in time; says who held it.
    """
    # The readable part is for people; the hash keeps keys apart that read alike.
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", device_key)[:64]
    name = f"{readable}-{hashlib.sha256(device_key.encode()).hexdigest()[:16]}"
    base = folder or lease_folder()
    lock = FileLock(base / f"{name}.lock", thread_local=False)
    note = base / f"{name}.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        reason = f"{device_key} is held by {_holder(note)}"
        waiting(reason)
        try:
            lock.acquire(timeout=timeout_s)
        except Timeout as error:
            raise InfrastructureError(
                f"device {device_key} was not free within {timeout_s:g} s",
                why=reason,
                fix="let that session end, or stop it",
            ) from error
    try:
        note.write_text(
            json.dumps(
                {"holder": holder, "pid": os.getpid(), "user": getpass.getuser(), "since": time.time()}
            )
        )
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _holder(note: Path) -> str:
    try:
        facts = json.loads(note.read_text())
        return f"{facts['holder']} (pid {facts['pid']}, user {facts['user']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
