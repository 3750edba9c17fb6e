"""Who is at a session: one controller, and its workers, of which some may outlive it by seconds."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from pytest_devicelab.errors import InfrastructureError, UserError
from pytest_devicelab.evidence.atomic import unwritable

_POLL_S = 0.05
# execnet ends a worker whose controller is gone within about ten seconds.
_WORKERS_TIMEOUT_S = 40.0


class SessionLock:
    """A hold on a session's folder that ends with `close()`, and with this process however that ends.

    Args:
        descriptor: the lock file, open and locked.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, root: Path) -> SessionLock:
        """Become the controller of a session, once no worker of the one before is left.

        Raises:
            UserError: a living process runs this session; says which.
            InfrastructureError: workers of a controller that died do not end, or the folder cannot be written to.
        """
        descriptor = _open(root / "locks" / "session.lock")
        if not _locked(descriptor, fcntl.LOCK_EX):
            owner = os.pread(descriptor, 200, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise UserError(
                f"session {root} is being run",
                why=f"by process {owner}" if owner.isdigit() else "by another process",
                fix="wait for it to end, or end it",
            )
        try:
            with suppress(OSError):  # on a full disk; it is only told to whoever comes second
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
            _await_workers(root)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    @classmethod
    def join(cls, root: Path) -> SessionLock:
        """Be at a session as a worker of its controller."""
        descriptor = _open(root / "locks" / "workers.lock")
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return cls(descriptor)

    def close(self) -> None:
        """Leave the session."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _await_workers(root: Path) -> None:
    """Wait until nobody writes here who still works for a controller that died: what it writes is about a dead lab."""
    descriptor = _open(root / "locks" / "workers.lock")
    try:
        deadline = time.monotonic() + _WORKERS_TIMEOUT_S
        while not _locked(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise InfrastructureError(
                    f"workers of session {root} do not end",
                    why=f"their pytest is gone, and they were given {_WORKERS_TIMEOUT_S:g} s",
                    fix=f"end them: `fuser {root / 'locks' / 'workers.lock'}` lists their ids",
                )
            time.sleep(_POLL_S)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise unwritable(path, error) from error


def _locked(descriptor: int, kind: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        return True
    return False
