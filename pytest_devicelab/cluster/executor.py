"""Carries runs out on devices of kind cluster: on any idle unit of the chip, wherever in the cluster it is."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from pytest_devicelab.cluster.errand import loads, send
from pytest_devicelab.cluster.head import HeadWatch
from pytest_devicelab.cluster.names import chip_of, host_of, make_of
from pytest_devicelab.cluster.parcel import read, unpack
from pytest_devicelab.cluster.ray_edge import NAMESPACE, answers, connect, require_ray, within
from pytest_devicelab.errors import DeviceLost, InfrastructureError, UserError
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.lab.executor import ExecutorContext
from pytest_devicelab.lab.request import RunRequest, unreached
from pytest_devicelab.matrix.specs import DeviceSpec
from pytest_devicelab.virtual.onnx_model import external_files, load_model

# Failures of a device that is not there; see lab/retry.py.
_GONE = frozenset({"lost", "absent", "quarantined", "adb"})
_LIST_S = 20.0
# Whoever has the unit before us may be at it for as long as a run of ours takes, and there may be several.
_QUEUE = 5
_MARGIN_S = 120.0
_LEAVE_S = 20.0


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
        self._guard = threading.Lock()
        self._busy: Counter[str] = Counter()
        self._lost: dict[str, str] = {}
        self._head: HeadWatch | None = None

    @staticmethod
    def require() -> None:
        """Raise UserError when no run could be carried out here, before anything is started."""
        require_ray()

    def close(self) -> None:
        """Leave the cluster to the next session of this process."""
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
            try:
                return self._send(spec, request)
            except InfrastructureError as error:
                record = unreached(spec, request, self._store.id, error)
                self._store.write_record(record)
                return record

    def _send(self, spec: DeviceSpec, request: RunRequest) -> RunRecord:
        ray, head = self._connect()
        allowed_s = _QUEUE * request.timeout_s * (1 + request.retries.per_run) + _MARGIN_S
        files = _model_files(request.path)
        while True:
            name, unit = self._take(ray, spec, request.unit)
            self._progress(f"device={spec.id} model={request.model.id} {request.purpose}: sent to {name}")
            try:
                parcel = send(
                    ray, unit, request, files, self._store.id, head=head, name=name, allowed_s=allowed_s
                )
                record = read(parcel, run_id=request.id, host=host_of(name))
            except ray.exceptions.RayTaskError as error:
                raise InfrastructureError(
                    f"device {spec.id}: lab host {host_of(name)} could not carry the run out",
                    why=str(error.cause if error.cause is not None else error)[-500:],
                    fix="see that the lab host has the same version of pytest-devicelab",
                ) from None
            except ray.exceptions.RayError as error:  # its host died, or what it had made went with it
                if not answers(self._address):
                    raise head.error() from None
                self._lose(name, str(error).splitlines()[0][:200])
                continue
            finally:
                with self._guard:
                    self._busy[name] -= 1
            if _unit_gone(record):
                self._lose(name, record.error.splitlines()[0][:200])
                if self._equals(ray, spec):
                    continue
            return unpack(parcel, record, spec, self._store, unit=name)

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
        import ray

        deadline = time.monotonic() + _LEAVE_S
        while self._under_way() and time.monotonic() < deadline:
            time.sleep(0.1)
        with suppress(InfrastructureError):
            within(_LEAVE_S, ray.shutdown, what=f"Ray does not leave the cluster at {self._address}")

    def _under_way(self) -> bool:
        with self._guard:
            return any(self._busy.values())

    def _lose(self, name: str, why: str) -> None:
        with self._guard:
            self._lost[name] = why
        self._progress(f"lost {name}; looking for an equal unit")

    def _take(self, ray: Any, spec: DeviceSpec, wanted: str) -> tuple[str, Any]:
        """Return the unit that is wanted, else the equal one that has least to do, and its name.

        Raises:
            DeviceLost: none is left; quotes those that were lost.
        """
        units: dict[str, Any] = {}
        for name in self._equals(ray, spec):
            with suppress(ValueError):  # it ended meanwhile
                units[name] = ray.get_actor(name, namespace=NAMESPACE)
        waited = loads(ray, units) if len(units) > 1 else dict.fromkeys(units, 0.0)
        with self._guard:
            # Two threads that look at the same time see the same load: what we sent ourselves counts at once.
            least = sorted(
                units, key=lambda name: (name != wanted, max(waited[name], self._busy[name]), name)
            )
            if least:
                self._busy[least[0]] += 1
                return least[0], units[least[0]]
            chip = spec.soc.name if spec.soc else None
            lost = "; ".join(f"{name}: {why}" for name, why in self._lost.items() if chip_of(name) == chip)
        raise DeviceLost(
            f"device {spec.id}: no unit with chip {chip} is in the cluster at {self._address}",
            why=f"lost: {lost}" if lost else "no lab host has joined with one",
            fix="say `devicelab lab join` on a host that has one",
        )

    def _equals(self, ray: Any, spec: DeviceSpec) -> list[str]:
        """Return the units that may stand for a device: of its chip, and all of one make, phones before simulators.

        A unit that was lost still says which make is meant: a simulator never takes over from a phone.
        """
        chip = spec.soc.name if spec.soc else None
        found = within(
            _LIST_S,
            lambda: [
                str(each["name"])
                for each in ray.util.list_named_actors(all_namespaces=True)
                if each["namespace"] == NAMESPACE
            ],
            what=f"the Ray cluster at {self._address} does not say who is in it",
        )
        with self._guard:
            lost = set(self._lost)
        known = [name for name in {*found, *lost} if chip_of(name) == chip]
        make = min((make_of(name) for name in known), default=None)
        return [name for name in known if make_of(name) == make and name not in lost]


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
