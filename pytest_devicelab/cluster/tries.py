"""What units that went away in the middle left of a run: it is kept, and counts, before what the last of them did."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from pytest_devicelab.cluster.names import host_of
from pytest_devicelab.cluster.parcel import Parcel, write_evidence
from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.evidence.record import Attempt, RecoveryStep, RunRecord
from pytest_devicelab.lab.retry import failure_class

_AGAIN = "tried again, where an equal unit was free"
_OF_ATTEMPT = re.compile(r"attempt-([0-9]{1,4})/(.*)", re.DOTALL)


class Tries:
    """The attempts at one run on units that are gone, oldest first.

    Args:
        folder: of the run, in the controller's store.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._attempts: tuple[Attempt, ...] = ()
        self._recovery: tuple[RecoveryStep, ...] = ()

    @property
    def count(self) -> int:
        """How many attempts there were."""
        return len(self._attempts)

    def note(self, error: InfrastructureError, *, started: str, duration_s: float) -> None:
        """Note that a unit, or what was at the run there, was lost with all that it had made.

        Args:
            error: what was lost.
            started: when the run was sent there, ISO 8601.
            duration_s: how long it was waited for.
        """
        attempt = Attempt(
            number=self.count + 1,
            started=started,
            duration_s=duration_s,
            error=str(error),
            failure=failure_class(error),
            decision=_AGAIN,
        )
        self._attempts += (attempt,)

    def keep(self, parcel: Parcel, record: RunRecord, unit: str) -> None:
        """Keep what came from a unit whose device is gone, as attempts that were followed by another.

        Raises:
            InfrastructureError: a file is named elsewhere.
        """
        parcel, record = self.before(parcel, record)
        self._attempts, self._recovery = record.attempts, record.recovery
        if not record.attempts:
            return
        last = record.attempts[-1]
        files = {name: _in_attempt(path, last.number) for name, path in record.files.items()}
        self._attempts = (*record.attempts[:-1], replace(last, files=files, decision=_AGAIN))
        aside = {_in_attempt(path, last.number): content for path, content in parcel.files.items()}
        write_evidence(self._folder, aside, host_of(unit))

    def before(self, parcel: Parcel, record: RunRecord) -> tuple[Parcel, RunRecord]:
        """Return a run with the attempts kept so far before its own, which are numbered on."""
        offset = self.count
        own = tuple(
            replace(
                attempt,
                number=attempt.number + offset,
                files={name: _later(path, offset) for name, path in attempt.files.items()},
            )
            for attempt in record.attempts
        )
        steps = tuple(replace(step, attempt=step.attempt + offset) for step in record.recovery)
        files = {_later(path, offset): content for path, content in parcel.files.items()}
        return replace(parcel, files=files), replace(
            record, attempts=(*self._attempts, *own), recovery=(*self._recovery, *steps)
        )


def _later(path: str, offset: int) -> str:
    found = _OF_ATTEMPT.fullmatch(path)
    return f"attempt-{int(found[1]) + offset}/{found[2]}" if found else path


def _in_attempt(path: str, number: int) -> str:
    return path if _OF_ATTEMPT.fullmatch(path) else f"attempt-{number}/{path}"
