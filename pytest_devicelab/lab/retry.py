"""Which failures may be tried again, and how often: those of the lab, never a result."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pytest_devicelab.errors import (
    AdbServerLost,
    DeadlineExceeded,
    DeviceAbsent,
    DeviceLost,
    HostFailed,
    InfrastructureError,
    OutputIncomplete,
    Quarantined,
    Throttled,
    TransferError,
    Unfit,
)
from pytest_devicelab.evidence.atomic import unwritable
from pytest_devicelab.evidence.events import Event
from pytest_devicelab.matrix.specs import Retries

NPU_CRASH = "npu_crash"
_OF_ERRORS: tuple[tuple[type[InfrastructureError], str], ...] = (
    (HostFailed, "host"),
    (OutputIncomplete, "output"),
    (Quarantined, "quarantined"),
    (Unfit, "unfit"),
    (Throttled, "throttled"),
    (AdbServerLost, "adb"),
    (DeviceAbsent, "absent"),
    (DeviceLost, "lost"),
    (DeadlineExceeded, "deadline"),
    (TransferError, "transfer"),
)
# A runner that failed and left no trace of the NPU restarting: nobody knows that it was not the model.
_NEVER = {
    "output": "an output that is short or missing is a result",
    "runner": "a runner that failed by itself is a result",
    "quarantined": "the device is in quarantine",
    "unfit": "the device has to be cooled, charged or cleared first",
    "host": "it is this host, not the device, that has no room for the evidence",
}


def failure_class(error: InfrastructureError) -> str:
    """Return the class of a failure of the lab.

    Returns:
        `host`, `output`, `quarantined`, `unfit`, `throttled`, `disk_full`, `adb`, `absent`, `lost`, `deadline`,
        `transfer`, or `lab`.
    """
    if not isinstance(error, HostFailed | OutputIncomplete) and "No space left on device" in str(error):
        return "disk_full"
    return next((name for kind, name in _OF_ERRORS if isinstance(error, kind)), "lab")


def why_never(failure: str) -> str:
    """Return why a failure of this class is never tried again; empty where it may be."""
    return _NEVER.get(failure, "")


def runner_failure(events: Iterable[Event]) -> str:
    """Return the class of a runner's failure: `npu_crash` where the logs say that the NPU restarted, else `runner`."""
    return NPU_CRASH if any(event.kind == "npu_crash" for event in events) else "runner"


class RetryQuota:
    """How many tries are left to one run, and to the session: counted in its folder, for all its processes.

    Args:
        session: the session's folder.
        allowed: what the matrix allows.
    """

    def __init__(self, session: Path, allowed: Retries) -> None:
        self._folder = session / "retries"
        self._allowed = allowed

    def refuse(self, attempts: int) -> str:
        """Take one further try for a run that failed; returns why there is none, empty where there is.

        Args:
            attempts: how many tries the run has had.
        """
        if attempts > self._allowed.per_run:
            return f"not tried again: a run has {self._allowed.per_run} retries (lab.retries.per_run)"
        if not self._take():
            return (
                f"not tried again: all {self._allowed.per_session} retries of this session are used up "
                "(lab.retries.per_session)"
            )
        return ""

    def used(self) -> int:
        """Return how many tries the session has taken."""
        return sum(1 for _ in self._folder.glob("[0-9]*"))

    def use(self, tries: int) -> None:
        """Take tries that were made already, in another store's name, as far as there are any left."""
        for _ in range(tries):
            self._take()

    def _take(self) -> bool:
        try:
            self._folder.mkdir(exist_ok=True)
            for number in range(1, self._allowed.per_session + 1):
                try:
                    # Whoever makes the file has the try, whichever process it is.
                    os.close(
                        os.open(self._folder / f"{number:05d}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
                    )
                except FileExistsError:
                    continue
                return True
        except OSError as error:
            raise unwritable(self._folder, error) from error
        return False
