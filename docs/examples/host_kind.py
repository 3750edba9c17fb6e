"""A kind of device of another package: this very machine, without adb, as a device among the others."""

from __future__ import annotations

from dataclasses import replace

from pytest_devicelab.errors import InfrastructureError, ModelError
from pytest_devicelab.evidence.record import NodePlacement, RunRecord, TensorRecord
from pytest_devicelab.lab.executor import ExecutorContext
from pytest_devicelab.lab.request import RunRequest, unreached
from pytest_devicelab.matrix.specs import DeviceSpec
from pytest_devicelab.runtimes.host import run_on_host
from pytest_devicelab.virtual.onnx_model import load_model, op_types


class HostExecutor:
    """Runs models in this process. Whatever happens becomes a record; nothing is raised for it."""

    def __init__(self, context: ExecutorContext) -> None:
        self._store = context.store

    def carry_out(self, spec: DeviceSpec, request: RunRequest) -> RunRecord:
        """Return the record of a run; it is in the store by then."""
        try:
            outputs = run_on_host(request.path, request.inputs)
            tensors = tuple(
                TensorRecord(
                    name=name,
                    dtype=array.dtype.name,
                    shape=array.shape,
                    sha256=self._store.arrays.write(array),
                )
                for name, array in outputs.items()
            )
            nodes = op_types(load_model(request.path))
            placement = tuple(NodePlacement(node=node, op=op, unit="cpu") for node, op in nodes.items())
            blank = unreached(spec, request, self._store.id, InfrastructureError("not run yet"))
            samples = len(next(iter(request.inputs.values())))
            record = replace(blank, status="ok", error="", attempts=(), backend="cpu", samples=samples)
            record = replace(record, outputs=tensors, placement=placement)
        except ModelError as error:
            failure = InfrastructureError(error.what, why=error.why, fix=error.fix)
            record = unreached(spec, request, self._store.id, failure)
        self._store.write_record(record)
        return record

    def close(self) -> None:
        """Nothing is kept open between runs."""
