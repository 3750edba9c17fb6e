"""The extension point for numerics: what computes when a virtual device runs a model.

An engine is a callable `(EngineJob) -> EngineResult`, named in the matrix as `htp`, `cpu`, or
`package.module:callable`. It runs in the process that stands for the runner on the device
(`qnn-net-run`, `ort-run`), so it may load libraries and crash without harm to the lab.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from pytest_devicelab.evidence.record import NodePlacement, OpRow, Quantization
from pytest_devicelab.matrix.soc import Soc

Tensors = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineJob:
    """One model and what to run through it.

    Attributes:
        model: the file on the device.
        format: what it is. A device's engine is only ever given an ONNX model or a QNN context binary.
        inputs: one mapping a sample, input name -> array of the shape the model declares.
        soc: the chip the device stands for.
        options: options of the QNN execution provider.
        log_level: `off`, `error`, `warn`, `info` or `verbose`.
        profile: whether op rows are wanted.
        strict: refuse the model instead of leaving any of its nodes to the CPU.
        work: an empty folder for files the engine needs.
    """

    model: Path
    format: Literal["onnx", "context_binary", "tflite", "pte"]
    inputs: tuple[Tensors, ...]
    soc: Soc
    work: Path
    options: Mapping[str, str] = field(default_factory=dict)
    log_level: str = "warn"
    profile: bool = False
    strict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line for logcat. `priority` is one of V D I W E F."""

    tag: str
    priority: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineResult:
    """What the engine computed and said.

    Attributes:
        outputs: one mapping a sample, in the order of `job.inputs`; arrays in the model's own dtypes.
        quantization: of outputs that hold quantized integers.
        log: lines for logcat, oldest first.
        ops: rows of the op profile, when asked for.
        placement: where each node ran, when the runtime can say.
        profile_csv: the profile as the runtime wrote it, when it writes one.
        versions: of the libraries that decide the result.
        load_us: how long the model took to load, microseconds of this host; None where the engine does not say.
        inference_us: how long each sample took, likewise; empty where the engine does not say.
    """

    outputs: tuple[Tensors, ...]
    quantization: Mapping[str, Quantization] = field(default_factory=dict)
    log: tuple[LogLine, ...] = ()
    ops: tuple[OpRow, ...] = ()
    placement: tuple[NodePlacement, ...] = ()
    profile_csv: bytes = b""
    versions: Mapping[str, str] = field(default_factory=dict)
    load_us: float | None = None
    inference_us: tuple[float, ...] = ()


class EngineRefused(Exception):
    """The engine cannot run this model on this chip: a finding, reported as the runtime would.

    Args:
        message: what the runtime says.
        code: QNN error code, such as 1002 (memory or finalize) or 5005 (context does not load).
        log: lines for logcat that led here.
    """

    def __init__(self, message: str, *, code: int = 1, log: tuple[LogLine, ...] = ()) -> None:
        self.code = code
        self.log = log
        super().__init__(message)


class Engine(Protocol):
    """The numerics of a virtual device."""

    def __call__(self, job: EngineJob) -> EngineResult:
        """Run every sample of the job; raises `EngineRefused` when the model cannot run on this chip."""
