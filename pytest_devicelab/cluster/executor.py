"""Carries runs out on devices of kind cluster: on any idle unit of the chip, wherever in the cluster it is."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from pytest_devicelab.cluster.errand import NotCarriedOut, send
from pytest_devicelab.cluster.head import HeadWatch
from pytest_devicelab.cluster.names import host_of
from pytest_devicelab.cluster.parcel import Parcel, read, unpack
from pytest_devicelab.cluster.ray_edge import answers, connect, leave, require_ray
from pytest_devicelab.cluster.roster import Roster
from pytest_devicelab.cluster.tries import Tries
from pytest_devicelab.errors import DeviceLost, InfrastructureError, SessionEnded, UserError
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.lab.executor import ExecutorContext
from pytest_devicelab.lab.request import RunRequest, unreached
from pytest_devicelab.lab.retry import RetryQuota
from pytest_devicelab.matrix.specs import DeviceSpec
from pytest_devicelab.virtual.onnx_model import external_files, load_model

# Failures of a device that is not there, or of its lab host; see lab/retry.py.
_GONE = frozenset({"lost", "absent", "quarantined", "adb", "host"})
# Runs of other sessions may be before ours at its unit, several of them, and each may take as long as ours.
_QUEUE = 5
_MARGIN_S = 120.0
_IDLE_S = 20.0
_NOTHING = Parcel(record=b"", files={}, arrays={})


class ClusterExecutor:
    """Sends runs to units that lab hosts have joined with.

    Args:
        context: the session; its matrix says where the cluster is.

    Raises:
        UserError: Ray is not installed, or the matrix names no cluster.
    """

    def __init__(self, context: ExecutorContext) -> None:
        require_ray()
        if context.matrix.lab.cluster is None:
            raise UserError(
                f"{context.matrix.path}: devices of kind cluster, and no cluster",
                why="nothing says where its head is",
                fix="add `lab: {cluster: HOST:PORT}`",
            )
        self._address = context.matrix.lab.cluster
        self._store = context.store
        self._progress = context.progress
        self._connecting = threading.Lock()
        self._ended = threading.Event()
        self._roster = Roster(self._address, self._progress)
        self._head: HeadWatch | None = None

    @staticmethod
    def require() -> None:
        """Raise UserError when no run could be carried out here, before anything is started."""
        require_ray()

    def close(self) -> None:
        """Wait for no more runs, which are ended where they are; the next session of this process gets the cluster."""
        self._ended.set()
        self._roster.close()
        if self._head is not None:
            self._head.close()

    def carry_out(self, spec: DeviceSpec, request: RunRequest) -> RunRecord:
        """Return the record of a run; units that are lost meanwhile are replaced by equal ones."""
        locks = self._store.root / "locks"
        locks.mkdir(exist_ok=True)
        with FileLock(locks / f"{request.id}.lock"):
            known = self._store.read_record(request.id)
            if known is not None:
                return known
            tries = Tries(self._store.run_folder(request.id))
            try:
                return self._make(spec, request, tries)
            except SessionEnded as ended:
                # No record: whoever resumes the session makes the run.
                return unreached(spec, request, self._store.id, ended)
            except InfrastructureError as error:
                _, record = tries.before(_NOTHING, unreached(spec, request, self._store.id, error))
                self._store.write_record(record)
                return record

    def _make(self, spec: DeviceSpec, request: RunRequest, tries: Tries) -> RunRecord:
        """Send a run to one unit after the other, until one has not gone away in it."""
        ray, head = self._connect()
        files = _model_files(request.path)
        allowed_s = _QUEUE * request.timeout_s * (1 + request.retries.per_run) + _MARGIN_S
        quota = RetryQuota(self._store.root, request.retries)
        while True:
            name, unit = self._roster.take(ray, head, spec, request.unit)
            self._progress(f"device={spec.id} model={request.model.id} {request.purpose}: sent to {name}")
            started, clock = datetime.now(UTC).isoformat(timespec="milliseconds"), time.monotonic()
            try:
                parcel = send(
                    ray,
                    unit,
                    request,
                    files,
                    self._store.id,
                    retries_used=quota.used(),
                    head=head,
                    ended=self._ended,
                    name=name,
                    allowed_s=allowed_s,
                )
                record = read(parcel, run_id=request.id, host=host_of(name))
            except ray.exceptions.RayError as error:  # its host died, or what it had made went with it
                if not answers(self._address):
                    raise head.error() from None
                why = str(error).splitlines()[0][:200]
                self._roster.lose(name, why)
                lost = DeviceLost(f"unit {name} was lost", why=why)
                tries.note(lost, started=started, duration_s=round(time.monotonic() - clock, 3))
                continue
            except NotCarriedOut as error:
                if quota.refuse(tries.count + 1):
                    raise
                tries.note(error, started=started, duration_s=round(time.monotonic() - clock, 3))
                continue
            finally:
                self._roster.let_go(name)
            quota.use(len(record.attempts) - 1)
            if _unit_gone(record):
                self._roster.lose(name, record.error.splitlines()[0][:200])
                if self._roster.equals(ray, spec):
                    tries.keep(parcel, record, name)
                    continue
            return unpack(*tries.before(parcel, record), spec, self._store, unit=name)

    def _connect(self) -> tuple[Any, HeadWatch]:
        """Return the module `ray`, connected, and who watches the head of the cluster."""
        with self._connecting:  # Ray cannot be connected from two threads at once
            if self._head is not None and self._head.lost:
                self._head.wait_left()
                self._head = None
            ray = connect(self._address)
            if self._head is None:
                self._head = HeadWatch(self._address, self._leave)
            return ray, self._head

    def _leave(self) -> None:
        """Disconnect from a cluster without a head, when the runs that were on their way have failed."""
        self._roster.wait_idle(_IDLE_S)
        leave()


def _unit_gone(record: RunRecord) -> bool:
    """Say whether a run failed because its device is not there, which an equal one may make up for."""
    if record.status != "failed":
        return False
    return not record.attempts or record.attempts[-1].failure in _GONE


def _model_files(model: Path) -> dict[str, bytes]:
    """Return a model's files by their path beside it: weights may lie in files of their own."""
    folder = model.resolve().parent
    weights = external_files(load_model(model), folder) if model.suffix == ".onnx" else ()
    beside = {str(path.relative_to(folder)): path.read_bytes() for path in weights}
    return {model.name: model.read_bytes(), **beside}
