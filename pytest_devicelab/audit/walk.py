"""What every experiment on the layers of a model needs: its graph, its taps, some samples, and runs of its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pytest_devicelab.audit.cut import SubModel
from pytest_devicelab.audit.graph import parse_graph, read_model
from pytest_devicelab.audit.taps import Tap, find_taps
from pytest_devicelab.evidence.record import RunRecord, TensorRecord
from pytest_devicelab.lab.session import LabSession, side_by_side
from pytest_devicelab.matrix.specs import DeviceSpec, ModelSpec
from pytest_devicelab.runtimes.inputs import Arrays

Array = npt.NDArray[np.generic]


class Walk:
    """A model on its way through a lab, layer by layer.

    Args:
        session: where it runs; every run is a record of it, so that a walk that was broken off goes on where it stopped.
        model: what the matrix says of the model.
        samples: how many of the model's inputs to use, from the first.
        taps: where to look; None for `find_taps` of the model.

    Raises:
        UserError: the model or its inputs cannot be used.
    """

    def __init__(
        self, session: LabSession, model: ModelSpec, samples: int, taps: Sequence[Tap] | None = None
    ) -> None:
        self.session = session
        self.model = model
        self.inputs: Arrays = {name: array[:samples] for name, array in session.inputs(model).items()}
        self.samples = len(next(iter(self.inputs.values())))
        self.content = read_model(model.path)
        self.graph = parse_graph(self.content)
        # Both runtimes keep the graph's edges on the NPU unless the matrix says otherwise.
        offloaded_io = model.options.get("offload_graph_io_quantization", "0") != "0"
        self.taps = tuple(taps) if taps is not None else find_taps(self.content, offloaded_io=offloaded_io)

    def run(
        self, devices: Sequence[DeviceSpec], path: Path, inputs: Arrays | None = None
    ) -> Mapping[str, RunRecord]:
        """Run a file made from the model on several devices at once; the walk's own inputs where None are given."""
        feed = self.inputs if inputs is None else inputs
        run = partial(self.session.run, model=self.model, inputs=feed, purpose="taps", path=path)
        records = side_by_side([partial(run, spec) for spec in devices])
        return {spec.id: record for spec, record in zip(devices, records, strict=True)}

    def run_part(
        self, devices: Sequence[DeviceSpec], name: str, part: SubModel, known: Mapping[str, TensorRecord]
    ) -> Mapping[str, RunRecord]:
        """Run a part of the model, fed with known tensors and the model's own inputs."""
        path = self.session.keep_model(f"{self.model.id}.{name}.onnx", part.model)
        return self.run(devices, path, self.feed(part, known))

    def feed(self, part: SubModel, known: Mapping[str, TensorRecord]) -> Arrays:
        """Return the inputs of a part of the model, `[N, ...]` by name."""
        return {name: self.read(known[name]) if name in known else self.inputs[name] for name in part.inputs}

    def read(self, tensor: TensorRecord) -> Array:
        """Return a tensor of a run, `[N, ...]`."""
        return self.session.store.read_output(tensor)
