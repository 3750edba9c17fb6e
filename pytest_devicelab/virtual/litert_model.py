"""What a .tflite file declares, and what LiteRT computes of it on this machine's CPU."""

from __future__ import annotations

import importlib
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_devicelab.errors import ModelError, UserError
from pytest_devicelab.evidence.record import NodePlacement, Quantization
from pytest_devicelab.virtual.context_binary import TensorInfo
from pytest_devicelab.virtual.engine import Tensors

_INTEGERS = ("int8", "uint8", "int16")


@dataclass(frozen=True, slots=True, kw_only=True)
class LitertModel:
    """A model that is loaded, on one thread so that the same bits come out every time.

    Attributes:
        inputs: what it takes, by the names of the tensors in the file.
        outputs: what it gives.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    _interpreter: Any

    def run(self, sample: Mapping[str, npt.NDArray[np.generic]]) -> Tensors:
        """Run one sample: arrays of the declared shapes by input name."""
        taken = self._interpreter.get_input_details()
        for info, detail in zip(self.inputs, taken, strict=True):
            self._interpreter.set_tensor(detail["index"], sample[info.name])
        self._interpreter.invoke()
        given = self._interpreter.get_output_details()
        return {
            info.name: self._interpreter.get_tensor(detail["index"])
            for info, detail in zip(self.outputs, given, strict=True)
        }

    def nodes(self) -> tuple[NodePlacement, ...]:
        """Return the model's operators by the name of their first output: all on the CPU, LiteRT's or XNNPACK's."""
        names = {detail["index"]: str(detail["name"]) for detail in self._interpreter.get_tensor_details()}
        return tuple(
            NodePlacement(
                node=names.get(operator["outputs"][0], str(operator["index"])),
                op=str(operator["op_name"]),
                unit="cpu",
            )
            for operator in self._interpreter._get_ops_details()
            if operator["op_name"] != "DELEGATE" and len(operator["outputs"])
        )


def require_litert() -> Any:
    """Import LiteRT's interpreter; UserError, saying how to install it, where it is missing."""
    try:
        return importlib.import_module("ai_edge_litert.interpreter")
    except ImportError as error:
        raise UserError(
            "LiteRT is not installed",
            why=str(error),
            fix="pip install 'pytest-devicelab[litert]'",
            missing=("ai_edge_litert",),
        ) from None


def load_litert(path: Path, *, kernels: str) -> LitertModel:
    """Load a .tflite file.

    Args:
        path: the file.
        kernels: what to compute with: `xnnpack`, the delegate that is LiteRT's default; `builtin`, its own optimized
            kernels without it; `reference`, its plain ones, which say what the model means.

    Raises:
        ModelError: it is no such file, LiteRT does not take it, or a dimension other than the batch is open.
        UserError: LiteRT is not installed.
    """
    litert = require_litert()
    resolvers = litert.OpResolverType
    resolver = {
        "xnnpack": resolvers.BUILTIN,
        "builtin": resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        "reference": resolvers.BUILTIN_REF,
    }[kernels]
    try:
        # Read here: the interpreter's message for a file it cannot open names no reason.
        interpreter = litert.Interpreter(
            model_content=path.read_bytes(), num_threads=1, experimental_op_resolver_type=resolver
        )
        interpreter.allocate_tensors()
        taken, given = interpreter.get_input_details(), interpreter.get_output_details()
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{path}: not a model LiteRT can run",
            why=str(error).strip()[:500],
            fix="name a .tflite file whose operators LiteRT has; convert the model anew if it was cut short",
        ) from error
    _refuse_open_shapes(path, taken)
    return LitertModel(inputs=_tensors(path, taken), outputs=_tensors(path, given), _interpreter=interpreter)


def litert_versions() -> Mapping[str, str]:
    """Return the versions of the libraries that decide what is computed."""
    return {name: importlib.metadata.version(name) for name in ("ai-edge-litert", "numpy")}


def _refuse_open_shapes(path: Path, details: Sequence[Mapping[str, Any]]) -> None:
    """A batch left open is 1; any other dimension left open is for nobody here to choose."""
    open_ = {
        str(detail["name"]): [int(extent) for extent in detail["shape_signature"]]
        for detail in details
        if any(extent < 0 for extent in detail["shape_signature"][1:])
    }
    if open_:
        raise ModelError(
            f"{path}: the model leaves dimensions of its inputs open",
            why=f"shapes by input, -1 for open: {open_}",
            fix="convert it with fixed shapes; only the first dimension, the batch, may be open, and is then 1",
        )


def _tensors(path: Path, details: Sequence[Mapping[str, Any]]) -> tuple[TensorInfo, ...]:
    found = tuple(
        TensorInfo(
            name=str(detail["name"]),
            dtype=np.dtype(detail["dtype"]).name,
            shape=tuple(int(extent) for extent in detail["shape"]),
            quantization=_quantization(detail),
        )
        for detail in details
    )
    names = [tensor.name for tensor in found]
    if len(set(names)) != len(names):
        raise ModelError(
            f"{path}: two inputs or two outputs have one name",
            why=f"{names}",
            fix="convert the model anew with a name for each",
        )
    return found


def _quantization(detail: Mapping[str, Any]) -> Quantization | None:
    """Return how a tensor of integers is quantized; None where it is not, or not as a whole."""
    scales, zero_points = (detail["quantization_parameters"][key] for key in ("scales", "zero_points"))
    dtype = np.dtype(detail["dtype"]).name
    if dtype not in _INTEGERS or len(scales) != 1 or not (math.isfinite(scales[0]) and scales[0] > 0):
        return None
    return Quantization(scale=float(scales[0]), zero_point=int(zero_points[0]), dtype=dtype)
