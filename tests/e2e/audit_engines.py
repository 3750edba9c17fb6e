"""Engines with a known fault in the deep model of `tests.unit.deep_model`; they run on the virtual device."""

from __future__ import annotations

from dataclasses import replace

import onnx

from pytest_devicelab.virtual.engine import EngineJob, EngineRefused, EngineResult
from pytest_devicelab.virtual.engines.cpu import run_cpu
from tests.unit.deep_model import plant

FAULTY = "layer23"
FUSED = "layer10"


def planted(job: EngineJob) -> EngineResult:
    """The numbers of the CPU, but for one element of one layer."""
    return _with_fault(job, FAULTY)


def fusing(job: EngineJob) -> EngineResult:
    """A fault that tapping hides, as where a tap keeps a compiler from fusing."""
    tapped = len(onnx.load(job.model).graph.output) > 1
    return run_cpu(job) if tapped else _with_fault(job, FUSED)


def refusing(job: EngineJob) -> EngineResult:
    """A model this chip does not take."""
    raise EngineRefused("Failed to finalize QNN graph", code=1002)


def _with_fault(job: EngineJob, node: str) -> EngineResult:
    model = job.model.read_bytes()
    if node not in {each.name for each in onnx.load_model_from_string(model).graph.node}:
        return run_cpu(job)
    path = job.work / "faulty.onnx"
    path.write_bytes(plant(model, node))
    return run_cpu(replace(job, model=path))
