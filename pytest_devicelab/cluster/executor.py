"""Carries runs out on devices of kind cluster: on any idle unit of the chip, wherever in the cluster it is."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from filelock import FileLock

from pytest_devicelab.cluster.parcel import Parcel, unpack
from pytest_devicelab.cluster.ray_edge import NAMESPACE, connect, require_ray
from pytest_devicelab.cluster.unit import chip_of, host_of
from pytest_devicelab.errors import DeadlineExceeded, DeviceLost, InfrastructureError, UserError
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.lab.executor import ExecutorContext
from pytest_devicelab.lab.request import RunRequest, unreached
from pytest_devicelab.matrix.specs import DeviceSpec
from pytest_devicelab.virtual.onnx_model import external_files, load_model

# Whoever has the unit before us may be at it for as long as a run of ours takes, and there may be several.
_QUEUE = 5
_MARGIN_S = 120.0


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
        self._guard = threading.Lock()
        self._busy: Counter[str] = Counter()
        self._lost: dict[str, str] = {}

    @staticmethod
    def require() -> None:
        """Raise UserError when no run could be carried out here, before anything is started."""
        require_ray()

    def close(self) -> None:
        """Leave the cluster to the next session of this process."""

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
        ray = connect(self._address)
        allowed_s = _QUEUE * request.timeout_s * (1 + request.retries.per_run) + _MARGIN_S
        paths = [request.path]
        if request.path.suffix == ".onnx":
            paths += external_files(load_model(request.path), request.path)
        files = {path.name: path.read_bytes() for path in paths}
        while True:
            name, unit = self._take(ray, spec)
            self._progress(f"device={spec.id} model={request.model.id} {request.purpose}: sent to {name}")
            try:
                parcel: Parcel = ray.get(unit.run.remote(request, files, self._store.id), timeout=allowed_s)
                return unpack(parcel, spec, self._store, run_id=request.id, host=host_of(name))
            except ray.exceptions.GetTimeoutError:
                raise DeadlineExceeded(
                    f"device {spec.id}: no answer from {name} within {allowed_s:g} s",
                    fix="see what that lab host does",
                ) from None
            except (ray.exceptions.RayActorError, ray.exceptions.RaySystemError) as error:
                with self._guard:
                    self._lost[name] = str(error).splitlines()[0][:200]
                self._progress(
                    f"device={spec.id} model={request.model.id} lost {name}; looking for an equal unit"
                )
            except ray.exceptions.RayTaskError as error:
                raise InfrastructureError(
                    f"device {spec.id}: lab host {host_of(name)} could not carry the run out",
                    why=str(error.cause if error.cause is not None else error)[-500:],
                    fix="see that the lab host has the same version of pytest-devicelab",
                ) from None
            finally:
                with self._guard:
                    self._busy[name] -= 1

    def _take(self, ray: Any, spec: DeviceSpec) -> tuple[str, Any]:
        """Return the unit of this chip that has least to do, and its name.

        Raises:
            DeviceLost: none is left; quotes those that were lost.
        """
        wanted = spec.soc.name if spec.soc else None
        names = [
            str(each["name"])
            for each in ray.util.list_named_actors(all_namespaces=True)
            if each["namespace"] == NAMESPACE and chip_of(str(each["name"])) == wanted
        ]
        with self._guard:
            for name in sorted((name for name in names if name not in self._lost), key=self._load):
                try:
                    unit = ray.get_actor(name, namespace=NAMESPACE)
                except ValueError:
                    continue  # it ended meanwhile
                self._busy[name] += 1
                return name, unit
            lost = "; ".join(f"{name}: {why}" for name, why in self._lost.items() if chip_of(name) == wanted)
        raise DeviceLost(
            f"device {spec.id}: no unit with chip {wanted} is in the cluster at {self._address}",
            why=f"lost: {lost}" if lost else "no lab host has joined with one",
            fix="say `devicelab lab join` on a host that has one",
        )

    def _load(self, name: str) -> tuple[int, str]:
        return self._busy[name], name
