"""Carry a run out, in as many attempts as the failures of the lab allow, and write its record, whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.evidence.record import Attempt, RecoveryStep, RunRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.measuring import MeasuringRun
from pytest_devicelab.lab.recovery import Recover, after_attempt, clean, recover
from pytest_devicelab.lab.request import RunRequest
from pytest_devicelab.lab.retry import RetryQuota, failure_class, runner_failure, why_never
from pytest_devicelab.lab.runner import Run


def run_on_device(
    device: AdbDevice,
    request: RunRequest,
    store: SessionStore,
    *,
    cache: Path,
    progress: Callable[[str], None] = lambda text: None,
    recover: Recover = recover,
) -> RunRecord:
    """Run a model on a device that is held, and return the record, which is on disk by then.

    A model the chip refuses gives a record with status `refused`; a lab that failed, also in its last attempt, gives
    one with status `failed`. Neither raises. Bytes are only ever judged later.

    Raises:
        LeaseLost: the device is not ours any more. Whoever holds it may be making this very run: nothing is written.
    """
    quota = RetryQuota(store.root, request.retries)
    kind = Run if request.measure is None else MeasuringRun
    attempts: list[Attempt] = []
    steps, device.recovery = list(device.recovery), ()
    while True:
        started, clock = datetime.now(UTC).isoformat(timespec="milliseconds"), time.monotonic()
        record, error = kind(device, request, store, cache, progress).carry_out()
        attempt = Attempt(
            number=len(attempts) + 1,
            started=started,
            duration_s=round(time.monotonic() - clock, 3),
            error=record.error if record.status == "failed" else "",
            failure=_failure(record, error),
        )
        again = False
        if attempt.failure:
            again, attempt = _decide(device, attempt, error, record.error, quota, recover, steps)
        if again:
            # Nothing is written yet: another process would take a record it finds for the last word.
            progress(
                f"device={device.id} model={request.model.id} retrying after: {record.error.splitlines()[0]}"
            )
            device.require_held()
            attempt = replace(
                attempt, files=_set_aside(store.run_folder(request.id), record.files, attempt.number)
            )
            attempts.append(attempt)
            continue
        attempts.append(attempt)
        record = replace(record, attempts=tuple(attempts), recovery=tuple(steps))
        device.require_held()
        store.write_record(record)
        return record


def _failure(record: RunRecord, error: InfrastructureError | None) -> str:
    if error is not None:
        return failure_class(error)
    return runner_failure(record.events) if record.status == "failed" else ""


def _decide(
    device: AdbDevice,
    attempt: Attempt,
    error: InfrastructureError | None,
    said: str,
    quota: RetryQuota,
    recover: Recover,
    steps: list[RecoveryStep],
) -> tuple[bool, Attempt]:
    """Say whether to try again; the device has proved itself then. What was tried for that is added to `steps`."""
    if never := why_never(attempt.failure):
        return False, replace(attempt, decision=f"not tried again: {never}")
    problem = error or InfrastructureError(said.splitlines()[0])
    # Whoever comes next needs a device that answers, whether or not this run is tried again.
    recovery = recover(device, problem)
    steps += after_attempt(recovery.steps, attempt.number)
    if not recovery.helped:
        return False, replace(attempt, decision="not tried again: the device could not be recovered")
    refusal = quota.refuse(attempt.number)
    if refusal:
        return False, replace(attempt, decision=refusal)
    if attempt.failure == "disk_full":
        steps += after_attempt([clean(device, problem.what)], attempt.number)
    return True, replace(attempt, decision="tried again")


def _set_aside(folder: Path, files: Mapping[str, str], number: int) -> Mapping[str, str]:
    """Move what an attempt left into a folder of its own, so that the next does not write over it."""
    aside = folder / f"attempt-{number}"
    moved = {}
    for name, file in files.items():
        if (folder / file).is_file():
            aside.mkdir(exist_ok=True)
            (folder / file).replace(aside / file)
            moved[name] = f"{aside.name}/{file}"
    return moved
