"""The `cpu` engine: ONNX Runtime's CPU provider, for chips without an NPU we can simulate."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import time
from typing import Any

from pytest_devicelab.errors import ModelError, UserError
from pytest_devicelab.evidence.record import NodePlacement
from pytest_devicelab.virtual.engine import EngineJob, EngineRefused, EngineResult, Tensors
from pytest_devicelab.virtual.onnx_model import load_model
from pytest_devicelab.virtual.runtime_log import captured, log_lines

_DEVICE_CREATE = 14001


def require_onnxruntime() -> Any:
    """Import onnxruntime; raises UserError, saying how to install it, when it is missing."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise UserError(
            "ONNX Runtime is not installed",
            why=str(error),
            fix="pip install 'pytest-devicelab[virtual]'",
        ) from None


def run_cpu(job: EngineJob) -> EngineResult:
    """Run a job on the CPU, on one thread so that the same bits come out every time.

    Options of the QNN execution provider do not apply here.

    Raises:
        EngineRefused: the model is a context binary, `strict` asks for an NPU, or it does not run.
    """
    if job.format == "context_binary":
        raise EngineRefused(
            f"{job.soc.name} has no NPU that is simulated here (engine: cpu): a context binary cannot run",
            code=_DEVICE_CREATE,
        )
    if job.strict:
        raise EngineRefused("strict asks for every node on an NPU; this device has engine: cpu")
    log_file = job.work / "runtime.log"
    try:
        model = load_model(job.model.resolve())
        with contextlib.chdir(job.work), captured(log_file):
            outputs, load_us, inference_us = _compute(job)
    except ModelError as error:
        raise EngineRefused(str(error)) from error
    except Exception as error:  # onnxruntime's errors have no base class of their own
        raise EngineRefused(str(error), log=log_lines(log_file.read_bytes(), job.log_level)) from error
    return EngineResult(
        outputs=outputs,
        log=log_lines(log_file.read_bytes(), job.log_level),
        placement=tuple(
            NodePlacement(node=node.name, op=node.op_type, unit="cpu") for node in model.graph.node
        ),
        versions={name: importlib.metadata.version(name) for name in ("onnx", "onnxruntime", "numpy")},
        load_us=load_us,
        inference_us=inference_us,
    )


def _compute(job: EngineJob) -> tuple[tuple[Tensors, ...], float, tuple[float, ...]]:
    """Return the outputs, how long loading took, and each sample, microseconds."""
    ort = require_onnxruntime()
    ort.disable_telemetry_events()
    settings = ort.SessionOptions()
    # The model as it is written, as in the reference run on the host, so that the two are the same everywhere.
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads = 1
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 0
    began_ns = time.monotonic_ns()
    session = ort.InferenceSession(str(job.model.resolve()), settings, providers=["CPUExecutionProvider"])
    load_us = (time.monotonic_ns() - began_ns) / 1000
    names = [output.name for output in session.get_outputs()]
    # Each inference logs the same again: once is enough.
    quiet = ort.RunOptions()
    quiet.log_severity_level = 2
    outputs, times_us = [], []
    for sample in job.inputs:
        began_ns = time.monotonic_ns()
        computed = session.run(None, dict(sample), quiet)
        times_us.append((time.monotonic_ns() - began_ns) / 1000)
        outputs.append(dict(zip(names, computed, strict=True)))
    return tuple(outputs), load_us, tuple(times_us)
