"""Runs on the devices beside this host: lease one, run, let it go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pytest_devicelab.errors import InfrastructureError, LeaseLost
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.attempts import run_on_device
from pytest_devicelab.lab.lab import Lab
from pytest_devicelab.lab.request import RunRequest, unreached
from pytest_devicelab.matrix.specs import DeviceSpec


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
            with self._lab.lease(spec) as device:
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
        except InfrastructureError as error:
            # Whoever held the device instead of us may have made the very run.
            record = self._store.read_record(request.id)
            if record is None:
                record = unreached(spec, request, self._store.id, error)
                # A lost lease leaves no record: its new holder may be at it. Who asks again waits for the device again.
                if not isinstance(error, LeaseLost):
                    self._store.write_record(record)
            return record

    def close(self) -> None:
        """Nothing is kept open between runs."""
