"""One session's runs: each is carried out once, and whoever asks again gets the record from disk."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.errors import ModelError
from pytest_devicelab.evidence.record import Purpose, RunRecord, TensorRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.executor import LOCAL_KINDS, Executor, ExecutorContext, make_executor
from pytest_devicelab.lab.gate import HealthGate
from pytest_devicelab.lab.lab import Lab
from pytest_devicelab.lab.local import LocalExecutor
from pytest_devicelab.lab.request import RunRequest, fingerprint_of, make_request, model_sha256
from pytest_devicelab.matrix.soc import Soc
from pytest_devicelab.matrix.specs import DeviceSpec, MatrixSpec, ModelSpec
from pytest_devicelab.runtimes.inputs import Arrays, load_inputs
from pytest_devicelab.runtimes.registry import runtime_of_file

# Bits either repeat or they do not: a few samples, run again from a cold start, tell.
REPEAT_SAMPLES = 32
# Side by side, simulated devices share this machine's cores, and phones wait for theirs.
_THREADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run and its outputs, by name, each `[N, ...]`."""

    record: RunRecord
    outputs: Arrays


class LabSession:
    """The runs of one session in one process; processes share them through the store.

    Args:
        matrix: the device matrix.
        devices: the selected devices, in matrix order.
        store: the session's folder.
        lab: the lab that is up.
        cache: folder for compiled models and packed inputs, kept between sessions.
        progress: told what is being done.
    """

    def __init__(
        self,
        *,
        matrix: MatrixSpec,
        devices: tuple[DeviceSpec, ...],
        store: SessionStore,
        lab: Lab,
        cache: Path,
        progress: Callable[[str], None],
    ) -> None:
        self.matrix = matrix
        self.devices = devices
        self.store = store
        self.lab = lab
        self.cache = cache
        self._progress = progress
        self._guard = threading.Lock()
        self._inputs: dict[str, Arrays] = {}
        self._simulated: set[str] = set()
        self._executors: dict[str, Executor] = {}

    def chip(self, spec: DeviceSpec) -> Soc | None:
        """Return a device's chip: what the matrix says, else what the device says of itself.

        Raises:
            InfrastructureError: the device has to be asked, and cannot be reached.
        """
        if spec.soc is not None:
            return spec.soc
        with self.lab.lease(spec) as device:
            return device.chip(device.identity().properties)

    def inputs(self, model: ModelSpec) -> Arrays:
        """Return the model's evaluation inputs, `[N, ...]` by input name."""
        if model.inputs is None:
            raise ModelError(
                f"{model.source}: model {model.id} has no inputs",
                why="a comparison needs something to run",
                fix="add `inputs: file.npz` with one array `[N, ...]` for each input of the model",
            )
        with self._guard:
            if model.id not in self._inputs:
                self._inputs[model.id] = load_inputs(model.inputs, samples=model.samples)
            return self._inputs[model.id]

    def reference_inputs(self, model: ModelSpec) -> Arrays:
        """Return the evaluation inputs as the model's float reference takes them, `[N, ...]` by input name."""
        if model.reference_inputs is None:
            return self.inputs(model)
        return load_inputs(model.reference_inputs, samples=model.samples)

    def evaluate(self, spec: DeviceSpec, model: ModelSpec) -> RunRecord:
        """Return the record of the model on all evaluation inputs on a device."""
        return self.run(spec, model, self.inputs(model), "evaluate")

    def repeat(self, spec: DeviceSpec, model: ModelSpec) -> RunRecord:
        """Return the record of a second, cold run on the first few inputs."""
        few = {name: array[:REPEAT_SAMPLES] for name, array in self.inputs(model).items()}
        # Whether a device repeats its bits, only that very unit of a pool can say.
        unit = self.evaluate(spec, model).device.serial if spec.pool or spec.kind == "cluster" else ""
        return self.run(spec, model, few, "repeat", unit=unit)

    def measure(self, spec: DeviceSpec, model: ModelSpec) -> RunRecord:
        """Return the record of the run that measures time, memory and energy, on the first sample.

        Where the evaluation brings such figures by itself, as in AI Hub, or cannot be carried out, it is that record: a
        cloud is never asked, and paid, for a run that it makes nothing of.
        """
        evaluated = self.evaluate(spec, model)
        measurable = spec.kind in LOCAL_KINDS or spec.kind == "cluster"
        if evaluated.measured is not None or evaluated.status != "ok" or not measurable:
            return evaluated
        one = {name: array[:1] for name, array in self.inputs(model).items()}
        # One unit of a pool stands for the others in bits, not in time: it is the one the outputs are from.
        unit = evaluated.device.serial if spec.pool or spec.kind == "cluster" else ""
        return self.run(spec, model, one, "measure", unit=unit)

    def run(
        self,
        spec: DeviceSpec,
        model: ModelSpec,
        inputs: Arrays,
        purpose: Purpose,
        *,
        path: Path | None = None,
        unit: str = "",
    ) -> RunRecord:
        """Return the record of a model on a device, carrying the run out unless this session has it already.

        Args:
            spec: the device.
            model: what the matrix says of the model.
            inputs: arrays `[N, ...]` by input name.
            purpose: why it is run.
            path: a file made from the model, such as a tapped one; the model's own file where None.
            unit: serial of the unit of a pool to make it on, where that is still there; empty for any.
        """
        request = make_request(self.matrix, spec, model, inputs, purpose, path or model.path)
        request = replace(request, unit=unit)
        record = self._known_or_made(spec, request)
        if record.device.simulated:
            self._simulated.add(spec.id)
        return record

    def _known_or_made(self, spec: DeviceSpec, request: RunRequest) -> RunRecord:
        record = self.store.read_record(request.id)
        return record or self._executor(spec.kind).carry_out(spec, request)

    def _executor(self, kind: str) -> Executor:
        with self._guard:
            if kind not in self._executors:
                self._executors[kind] = self._make_executor(kind)
            return self._executors[kind]

    def _make_executor(self, kind: str) -> Executor:
        if kind in LOCAL_KINDS:
            return LocalExecutor(self.lab, self.store, cache=self.cache, progress=self._progress)
        context = ExecutorContext(
            matrix=self.matrix, store=self.store, cache=self.cache, progress=self._progress
        )
        return make_executor(kind, context)

    def close(self) -> None:
        """Make no more runs; let go of what executors hold between them."""
        for executor in self._executors.values():
            executor.close()

    def evaluate_all(self, model: ModelSpec) -> Mapping[str, RunRecord]:
        """Return the evaluation record of every selected device, in matrix order; devices run side by side."""
        # Whoever waits for a cloud's queue has a thread of its own; those that compute here share a few.
        ordered = sorted(self.devices, key=lambda spec: spec.kind in LOCAL_KINDS)
        waiting = sum(spec.kind not in LOCAL_KINDS for spec in ordered)
        records = side_by_side([partial(self.evaluate, spec, model) for spec in ordered], waiting=waiting)
        made = {spec.id: record for spec, record in zip(ordered, records, strict=True)}
        return {spec.id: made[spec.id] for spec in self.devices}

    def watched(self, device: AdbDevice, user: str) -> AbstractContextManager[None]:
        """Have the health of a device looked at before and after a block, and blame `user` for what changed."""
        gate = HealthGate(device, self.matrix.lab.health, self.store, user=user, progress=self._progress)
        return gate.around()

    def any_simulated(self, devices: Collection[str]) -> bool:
        """Say whether a simulator stands for any of these devices, by the matrix or by the device's own word."""
        known = self._simulated | {spec.id for spec in self.devices if spec.simulated}
        return not known.isdisjoint(devices)

    def keep_model(self, name: str, content: bytes) -> Path:
        """Keep a model made from one of the matrix's, such as a tapped one, in the session's folder."""
        return self.store.write_file(name, content)

    def outputs(self, record: RunRecord) -> Arrays:
        """Return the outputs of a run, `[N, ...]` by name, verified against the hashes the device computed."""
        return {tensor.name: self.store.read_output(tensor) for tensor in record.outputs}

    def on_host(self, path: Path, inputs: Arrays) -> Arrays:
        """Return the outputs of a model file run on this machine's CPU by its runtime; computed once a session."""
        digest = hashlib.sha256(model_sha256(path).encode())
        digest.update(fingerprint_of(inputs))
        key = digest.hexdigest()[:32]
        locks = self.store.root / "locks"
        locks.mkdir(exist_ok=True)
        with FileLock(locks / f"{key}.lock"):
            known = self.store.read_reference(key)
            if known is None:
                self._progress(
                    f"host {path.name}: running {len(next(iter(inputs.values())))} samples on the CPU"
                )
                known = tuple(
                    TensorRecord(
                        name=name,
                        dtype=array.dtype.name,
                        shape=array.shape,
                        sha256=self.store.arrays.write(array),
                    )
                    for name, array in runtime_of_file(path).run_on_host(path, inputs).items()
                )
                self.store.write_reference(key, known)
        return {tensor.name: self.store.read_output(tensor) for tensor in known}


T = TypeVar("T")


def side_by_side(tasks: Sequence[Callable[[], T]], *, waiting: int = 0) -> list[T]:
    """Do tasks at once, each with what the caller's context holds; return their results in order.

    The first `waiting` of them only wait for others, and get threads of their own.
    """
    with ThreadPoolExecutor(_THREADS + waiting) as pool:
        futures = [pool.submit(copy_context().run, task) for task in tasks]
        return [future.result() for future in futures]


def read_labels(path: Path) -> npt.NDArray[np.integer]:
    """Read class labels, `[N]` integers; ModelError when the file is something else."""
    try:
        with path.open("rb") as file:
            labels = np.load(file, allow_pickle=False)
    except Exception as error:  # a damaged file fails in all the ways of zip and numpy's header parser
        raise ModelError(
            f"{path}: labels cannot be read", why=str(error), fix="save them with numpy.save"
        ) from error
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        found = f"{labels.dtype} {labels.shape}" if isinstance(labels, np.ndarray) else type(labels).__name__
        raise ModelError(
            f"{path}: labels are not [N] integers", why=f"found {found}", fix="one class index a sample"
        )
    return labels
