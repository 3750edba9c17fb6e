"""A synthetic NPU for tests: onnx's reference operators, with a rounding of our choice wherever codes are made.

Written apart from what the package expects of a chip: here floats are rounded, there integers are divided.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from pytest_devicelab.evidence.record import NodePlacement
from pytest_devicelab.virtual.engine import Engine, EngineJob, EngineResult, Tensors

Reals = npt.NDArray[np.float64]


def _away(x: Reals) -> Reals:
    return np.asarray(np.copysign(np.floor(np.abs(x) + 0.5), x))


def _toward(x: Reals) -> Reals:
    return np.asarray(np.copysign(np.ceil(np.abs(x) - 0.5), x))


ROUNDERS: Mapping[str, Callable[[Reals], Reals]] = {
    "half even": np.rint,
    "half away from zero": _away,
    "half toward zero": _toward,
    "half up": lambda x: np.floor(x + 0.5),
    "half down": lambda x: np.ceil(x - 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
    "truncate": np.trunc,
}


def engine(rounder: Callable[[Reals], Reals], *, wrap: bool = False, unit: str = "htp") -> Engine:
    """Return an engine whose QuantizeLinear rounds so, and whose codes wrap or saturate."""

    class QuantizeLinear(OpRun):
        op_domain = ""

        def _run(self, x: Any, scale: Any, zero: Any = None, **attributes: Any) -> tuple[Any]:
            limits = np.iinfo(zero.dtype)
            codes = rounder(np.asarray(x, np.float64) / np.float64(scale)) + np.float64(zero)
            if wrap:
                return (codes.astype(np.int64).astype(zero.dtype),)
            return (np.clip(codes, limits.min, limits.max).astype(zero.dtype),)

    class DequantizeLinear(OpRun):
        op_domain = ""

        def _run(self, x: Any, scale: Any, zero: Any = None, **attributes: Any) -> tuple[Any]:
            return ((x.astype(np.float64) - np.float64(zero)) * np.float64(scale),)

    def run(job: EngineJob) -> EngineResult:
        model = onnx.load(job.model)
        evaluator = ReferenceEvaluator(model, new_ops=[QuantizeLinear, DequantizeLinear])
        names = [output.name for output in model.graph.output]
        outputs: tuple[Tensors, ...] = tuple(
            dict(zip(names, cast("list[Any]", evaluator.run(None, dict(sample))), strict=True))
            for sample in job.inputs
        )
        placement = tuple(
            NodePlacement(node=node.name, op=node.op_type, unit=unit) for node in model.graph.node
        )
        return EngineResult(outputs=outputs, placement=placement, versions={"synthetic": json.dumps(wrap)})

    return run
