"""Runs on the devices beside this host: lease one, run, let it go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pytest_devicelab.errors import DeviceBusy, InfrastructureError, LeaseLost
from pytest_devicelab.evidence.atomic import host_failed
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.attempts import run_on_device
from pytest_devicelab.lab.lab import Lab
from pytest_devicelab.lab.request import RunRequest, unreached
from pytest_devicelab.matrix.specs import DeviceSpec

# How long to wait for another unit that makes the very run.
_PATIENCE_S = 600.0


class LocalExecutor:
    """Carries runs out on phones and virtual devices that an adb server of this lab reaches.

    Args:
        lab: the lab that is up.
        store: where records go.
        cache: folder for compiled models and packed inputs.
        progress: told what is being done.
    """

    def __init__(
        self, lab: Lab, store: SessionStore, *, cache: Path, progress: Callable[[str], None]
    ) -> None:
        self._lab = lab
        self._store = store
        self._cache = cache
        self._progress = progress

    def carry_out(self, spec: DeviceSpec, request: RunRequest) -> RunRecord:
        """Return the record of a run, which is on disk by then unless the device is somebody else's now."""
        try:
            if spec.pool:
                # Wait for one that another unit is making before a unit of ours is taken out of service for it.
                with self._making(spec, request):
                    pass
                if (record := self._store.read_record(request.id)) is not None:
                    return record
            # Whoever makes a run has its unit already, so waiting with a unit in hand keeps nobody from ending.
            with self._lab.lease(spec, unit=request.unit) as device, self._making(spec, request):
                # Whoever held the device before may have made the very run that is asked for.
                record = self._store.read_record(request.id)
                if record is None:
                    record = run_on_device(
                        device,
                        request,
                        self._store,
                        cache=self._cache,
                        progress=self._progress,
                        recover=self._lab.recover,
                    )
                return record
        except (InfrastructureError, OSError) as problem:
            error = problem if isinstance(problem, InfrastructureError) else host_failed(problem)
            # Whoever held the device instead of us may have made the very run.
            record = self._store.read_record(request.id)
            if record is None:
                record = unreached(spec, request, self._store.id, error)
                # A lost lease leaves no record: its new holder may be at it. Who asks again waits for the device again.
                if not isinstance(error, LeaseLost):
                    self._store.write_record(record)
            return record

    @contextmanager
    def _making(self, spec: DeviceSpec, request: RunRequest) -> Iterator[None]:
        """Make a run of a pool in this block: two units must not make the same one at the same time.

        Raises:
            DeviceBusy: another unit did not end it in time.
        """
        if not spec.pool:  # its lease does it
            yield
            return
        locks = self._store.root / "locks"
        locks.mkdir(exist_ok=True)
        lock = FileLock(locks / f"{request.id}.run.lock")
        try:
            lock.acquire(timeout=_PATIENCE_S)
        except Timeout as error:
            raise DeviceBusy(
                f"device {spec.id}: another unit did not end run {request.id} within {_PATIENCE_S:g} s",
                why="the process that makes it may be stopped",
                fix="end that process, then run it again",
            ) from error
        try:
            yield
        finally:
            lock.release()

    def close(self) -> None:
        """Nothing is kept open between runs."""
