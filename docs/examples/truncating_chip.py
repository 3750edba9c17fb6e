"""A chip that drops the fraction of its outputs instead of rounding: what would a fleet with it look like?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pytest_devicelab.virtual.engine import EngineJob, EngineRefused, EngineResult, LogLine
from pytest_devicelab.virtual.engines.cpu import run_cpu

_STEP = np.float32(1 / 64)


def truncating(job: EngineJob) -> EngineResult:
    """Compute on the CPU, then cut every float output down to a multiple of 1/64.

    Raises:
        EngineRefused: the model is a context binary, which only Qualcomm's runtime can read.
    """
    if job.format != "onnx":
        raise EngineRefused("this engine runs ONNX models: give the device `runtime: ort`", code=5005)
    # The CPU engine refuses `strict`, which asks for an NPU; here we are the NPU.
    done = run_cpu(replace(job, strict=False))
    outputs = tuple(
        {
            name: np.floor(np.asarray(array, np.float32) / _STEP) * _STEP
            if array.dtype == np.float32
            else array
            for name, array in sample.items()
        }
        for sample in done.outputs
    )
    return replace(
        done,
        outputs=outputs,
        # A runtime says where it put each node. An engine that says nothing makes placement inconclusive.
        placement=tuple(replace(node, unit="htp") for node in done.placement),
        log=(LogLine(tag="truncating", priority="I", message=f"{len(outputs)} samples"),),
    )
