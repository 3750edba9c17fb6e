"""The `htp` engine: Qualcomm's own HTP simulator, at the Hexagon of the device's chip."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_devicelab.errors import ModelError
from pytest_devicelab.evidence.record import NodePlacement, Quantization
from pytest_devicelab.virtual.context_binary import read_context_binary
from pytest_devicelab.virtual.engine import EngineJob, EngineRefused, EngineResult, LogLine, Tensors
from pytest_devicelab.virtual.onnx_model import (
    edge_conversions,
    load_model,
    op_types,
    output_quantization,
    wrap_context,
)
from pytest_devicelab.virtual.placement import left_to_cpu, node_placements, partition_count
from pytest_devicelab.virtual.profile import op_rows
from pytest_devicelab.virtual.runtime_log import QNN_TAG, captured, log_lines, misread_chip, refused_ops
from pytest_devicelab.virtual.simulator import objection, open_session, unknown_options, versions

if TYPE_CHECKING:
    import onnx

# QNN error codes. Source: QnnCommon.h, QnnContext.h, QnnDevice.h.
_CONTEXT_BINARY_CONFIGURATION = 5005
_DEVICE_CREATE = 14001
_OP_REJECTED = 3110

_STRICT = MappingProxyType({"session.disable_cpu_ep_fallback": "1"})
_CODE = re.compile(r"Code: (\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Program:
    """What to open a session on."""

    source: Path | bytes
    ops: Mapping[str, str] = field(default_factory=dict)
    edges: frozenset[str] = frozenset()
    quantization: Mapping[str, Quantization] = field(default_factory=dict)
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Computed:
    """What came out of the session. `first_bytes` of the log are about opening it and its first inference."""

    outputs: tuple[Tensors, ...]
    placement: tuple[NodePlacement, ...]
    partitions: int
    first_bytes: int
    load_us: float
    inference_us: tuple[float, ...]


def run_htp(job: EngineJob) -> EngineResult:
    """Run a job on the HTP simulator.

    Raises:
        EngineRefused: the chip, an option or the model cannot be simulated; the model does not finalize; with
            `strict` (and always for a context binary) a node would run on the CPU; or a context binary was
            made for another Hexagon, which the simulator would load and a phone does not.
    """
    if problem := objection(job.soc):
        raise EngineRefused(problem, code=_DEVICE_CREATE)
    if unknown := unknown_options(job.options):
        raise EngineRefused(f"unknown option of the QNN execution provider: {', '.join(unknown)}")
    program = _from_context(job) if job.format == "context_binary" else _from_onnx(job)
    log_file = job.work / "runtime.log"
    profile = job.work / "qnn-profiling-data_0.csv" if job.profile else None
    try:
        with contextlib.chdir(job.work), captured(log_file) as written:
            problem = _strict_problem(job) if job.strict and job.format == "onnx" else ""
            computed = None if problem else _compute(job, program, profile, written)
    except Exception as error:  # onnxruntime's errors have no base class of their own
        log = log_file.read_bytes()
        raise _refusal(job, str(error), log) from error
    log = log_file.read_bytes()
    if computed is None:
        named = "; ".join(f"{op.op} {op.node}: {op.reason}" for op in refused_ops(log))
        reason = f"not the whole graph runs on the NPU: {named or problem}"
        raise _refusal(job, reason, log, code=_OP_REJECTED)
    _check(job, program, computed, log)
    profile_csv = profile.read_bytes() if profile and profile.exists() else b""
    return EngineResult(
        outputs=computed.outputs,
        quantization=program.quantization,
        log=_shown(job, log, computed.first_bytes),
        ops=op_rows(profile_csv, program.ops, partitions=computed.partitions),
        placement=computed.placement,
        profile_csv=profile_csv,
        versions=versions(),
        load_us=computed.load_us,
        inference_us=computed.inference_us,
    )


def _strict_problem(job: EngineJob) -> str:
    """Say what ONNX Runtime has against a model none of whose nodes may run on the CPU; empty when nothing.

    The session is only opened, never run: in the one that computes, this switch would undo
    `offload_graph_io_quantization` and so change bits.
    """
    try:
        open_session(job.model.resolve(), job.soc, job.options, entries=_STRICT)
    except Exception as error:  # onnxruntime's errors have no base class of their own
        return str(error)
    return ""


def _from_onnx(job: EngineJob) -> _Program:
    try:
        model = load_model(job.model.resolve())
    except ModelError as error:
        raise EngineRefused(str(error)) from error
    return _Program(
        source=job.model.resolve(),
        ops=op_types(model),
        edges=edge_conversions(model),
        quantization=_of_integers(model),
        whole=job.strict,
    )


def _of_integers(model: onnx.ModelProto) -> Mapping[str, Quantization]:
    import onnx

    floats = {
        value.name
        for value in model.graph.output
        if value.type.tensor_type.elem_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    }
    return {name: how for name, how in output_quantization(model).items() if name not in floats}


def _from_context(job: EngineJob) -> _Program:
    try:
        info = read_context_binary(job.model)
    except ModelError as error:
        raise EngineRefused(str(error), code=_CONTEXT_BINARY_CONFIGURATION) from error
    if info.hexagon != job.soc.hexagon:
        raise EngineRefused(
            f"Context binary was made for {info.hexagon or 'an unknown Hexagon'} "
            f"(soc_model {info.soc_model}); this device, {job.soc.name}, has {job.soc.hexagon}",
            code=_CONTEXT_BINARY_CONFIGURATION,
        )
    if len(info.graphs) != 1:
        raise EngineRefused(f"Context binary holds {len(info.graphs)} graphs; one is supported")
    graph = info.graphs[0]
    return _Program(
        source=wrap_context(job.model.read_bytes(), graph),
        quantization={tensor.name: tensor.quantization for tensor in graph.outputs if tensor.quantization},
        whole=True,
    )


def _compute(
    job: EngineJob, program: _Program, profile: Path | None, written: Callable[[], int]
) -> _Computed:
    began_ns = time.monotonic_ns()
    session: Any = open_session(program.source, job.soc, job.options, profile=profile)
    load_us = (time.monotonic_ns() - began_ns) / 1000
    names = [output.name for output in session.get_outputs()]
    placement = node_placements(session, program.ops)
    outputs, times_us, first_bytes = [], [], written()
    for sample in job.inputs:
        began_ns = time.monotonic_ns()
        computed = session.run(None, dict(sample))
        times_us.append((time.monotonic_ns() - began_ns) / 1000)
        outputs.append(dict(zip(names, computed, strict=True)))
        if len(outputs) == 1:
            first_bytes = written()
    return _Computed(
        outputs=tuple(outputs),
        placement=placement,
        partitions=partition_count(session),
        first_bytes=first_bytes,
        load_us=load_us,
        inference_us=tuple(times_us),
    )


def _check(job: EngineJob, program: _Program, computed: _Computed, log: bytes) -> None:
    """Refuse results that are not this chip's."""
    if problem := misread_chip(log, (job.soc.hexagon or "").removeprefix("V")):
        raise _refusal(job, f"{job.soc.name}: {problem}", log, code=_DEVICE_CREATE)
    if not program.whole:
        return
    stray = left_to_cpu(computed.placement, refused_ops(log), ops=program.ops, edges=program.edges)
    if stray or computed.partitions != 1:
        named = "; ".join(f"{op.op} {op.node}: {op.reason}" for op in stray)
        reason = named or f"it is in {computed.partitions} parts"
        raise _refusal(job, f"not the whole graph runs on the NPU: {reason}", log, code=_OP_REJECTED)


def _refusal(job: EngineJob, message: str, log: bytes, *, code: int = 0) -> EngineRefused:
    found = _CODE.search(message)
    return EngineRefused(
        message, code=code or (int(found.group(1)) if found else 1), log=_shown(job, log, len(log))
    )


def _shown(job: EngineJob, log: bytes, first_bytes: int) -> tuple[LogLine, ...]:
    """Show the first inference in full; of the others, which repeat it, only warnings and errors.

    Under ONNX Runtime QNN's own verbose lines stay out, as from an app, whose default logger is not verbose:
    they are most of the log, and would push the reasons of a refusal out of logcat's ring buffer.
    """
    level = job.log_level
    first = log_lines(log[:first_bytes], level)
    if job.format == "onnx":
        first = tuple(line for line in first if (line.tag, line.priority) != (QNN_TAG, "V"))
    return first + log_lines(log[first_bytes:], "warn" if level in ("info", "verbose") else level)
