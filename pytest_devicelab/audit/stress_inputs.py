"""Inputs worth trying on every model: where rounding, saturation and layout mistakes show without a data set."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from pytest_devicelab.audit.graph import Graph, parse_graph, read_model
from pytest_devicelab.errors import ModelError
from pytest_devicelab.runtimes.inputs import Arrays
from pytest_devicelab.virtual.onnx_model import MOVES_ONLY

Array = npt.NDArray[np.generic]

_HOT = 16  # positions of the one-hot case, spread over the input
_LARGEST = 1 << 28  # elements of one sample; beyond it the shape is taken for a mistake
_CODES = re.compile(r"(u?)int([0-9]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Input:
    """One input of a model.

    Attributes:
        shape: of one sample, without the batch dimension.
        low: the smallest value worth feeding; `high` the largest.
        known: whether both come from the model's own quantization.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    low: float
    high: float
    known: bool

    def array(self, samples: npt.NDArray[np.float64]) -> Array:
        """Return samples `[N, elements]` as the model takes them."""
        if self.dtype.kind == "f":
            largest = np.finfo(self.dtype.name).max  # 16-bit codes can reach beyond 16-bit floats
            samples = np.clip(samples, -largest, largest)
        return samples.reshape(len(samples), *self.shape).astype(self.dtype)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def stress_inputs(
    model: Path,
    *,
    rng: np.random.Generator,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    calibration: Arrays | None = None,
    samples: int = 8,
) -> dict[str, Arrays]:
    """Make inputs that find what a data set hides.

    The range of an input is what its QuantizeLinear can represent, or what its integer type holds when the model
    dequantizes it; -1 to 1 for other floats, and 0 to 1 for other integers, which may be indices.

    Args:
        model: an ONNX file; its declared inputs and their quantization decide the arrays.
        rng: makes the noise; the same generator makes the same noise.
        shapes: for inputs that leave dimensions other than the batch open, the shape of one sample.
        calibration: arrays `[N, ...]` by input name, to be tried too.
        samples: how many samples of noise and of calibration.

    Returns:
        By case, arrays `[N, ...]` by input name: `zeros`, `ones`, `ramp` (up and down), `one_hot`, `noise`; `range_min`
        and `range_max` when the quantization of an input is known; `calibration` when it is given.

    Raises:
        ModelError: the file is not ONNX, an input's shape is open, or the calibration does not fit the model.
    """
    graph = parse_graph(read_model(model))
    constants = {tensor.name for tensor in graph.model.graph.initializer}
    values = [value for value in graph.model.graph.input if value.name not in constants]
    inputs = [_read_input(graph, value, (shapes or {}).get(value.name)) for value in values]
    if not inputs:
        raise ModelError(f"{model}: the model has no inputs", fix="export it again, with its inputs")
    hot = min(_HOT, max(each.elements for each in inputs))
    cases: dict[str, Arrays] = {
        "zeros": {each.name: each.array(_constant(each, 0.0)) for each in inputs},
        "ones": {each.name: each.array(_constant(each, 1.0)) for each in inputs},
        "ramp": {each.name: each.array(_ramp(each)) for each in inputs},
        "one_hot": {each.name: each.array(_one_hot(each, hot)) for each in inputs},
        "noise": {each.name: each.array(_noise(each, samples, rng)) for each in inputs},
    }
    if any(each.known for each in inputs):
        cases["range_min"] = {each.name: each.array(_constant(each, each.low)) for each in inputs}
        cases["range_max"] = {each.name: each.array(_constant(each, each.high)) for each in inputs}
    if calibration is not None:
        cases["calibration"] = _calibration(inputs, calibration, samples)
    return cases


def join_cases(cases: Mapping[str, Arrays]) -> Arrays:
    """Lay all cases end to end in one set of arrays `[N, ...]`, to be run at once or saved for a matrix."""
    first = next(iter(cases.values()))
    return {name: np.concatenate([arrays[name] for arrays in cases.values()]) for name in first}


def _constant(each: _Input, value: float) -> npt.NDArray[np.float64]:
    return np.full((1, each.elements), value)


def _ramp(each: _Input) -> npt.NDArray[np.float64]:
    up = np.linspace(each.low, each.high, each.elements)
    return np.stack([up, up[::-1]])


def _one_hot(each: _Input, count: int) -> npt.NDArray[np.float64]:
    hot = np.zeros((count, each.elements))
    hot[np.arange(count), np.linspace(0, each.elements - 1, count).astype(int)] = each.high
    return hot


def _noise(each: _Input, samples: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    if each.dtype.kind == "f":
        return rng.uniform(each.low, each.high, size=(samples, each.elements))
    return rng.integers(int(each.low), int(each.high), endpoint=True, size=(samples, each.elements)).astype(
        float
    )


def _calibration(inputs: list[_Input], given: Arrays, samples: int) -> dict[str, Array]:
    wanted = {each.name: (each.dtype.name, each.shape) for each in inputs}
    found = {name: (array.dtype.name, array.shape[1:]) for name, array in given.items()}
    counts = {len(array) if array.ndim else 0 for array in given.values()}
    if found != wanted or len(counts) != 1 or 0 in counts:
        raise ModelError(
            "the calibration samples are not inputs of the model",
            why=f"one sample of the model is {wanted}; the calibration has {found}, with {sorted(counts)} samples",
            fix="give one array `[N, ...]` for each input, by its name and in its dtype",
        )
    return {name: array[:samples] for name, array in given.items()}


def _read_input(graph: Graph, value: onnx.ValueInfoProto, shape: tuple[int, ...] | None) -> _Input:
    form = value.type.tensor_type
    try:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(form.elem_type))
    except (KeyError, TypeError) as error:
        raise ModelError(f"input {value.name} is not a tensor of a known type", why=repr(error)) from error
    if dtype.kind not in "fiub":
        raise ModelError(f"input {value.name} is not a tensor of numbers", why=f"its type is {dtype}")
    sizes = tuple(size.dim_value if size.HasField("dim_value") else None for size in form.shape.dim)
    if not sizes or sizes[0] not in (1, None):
        raise ModelError(
            f"input {value.name} has no batch dimension of 1",
            why=f"the model declares {list(sizes)}",
            fix="export it with a batch dimension of 1",
        )
    if shape is None:
        if None in sizes[1:]:
            raise ModelError(
                f"input {value.name} leaves its shape open",
                why=f"the model declares {['?' if size is None else size for size in sizes]}",
                fix=f"stress_inputs(..., shapes={{{value.name!r}: (...)}}) with the shape of one sample, no batch",
            )
        shape = tuple(size for size in sizes[1:] if size is not None)
    elif len(shape) != len(sizes) - 1 or any(
        want not in (None, size) for want, size in zip(sizes[1:], shape, strict=True)
    ):
        raise ModelError(
            f"shape {list(shape)} is none of input {value.name}", why=f"the model declares {list(sizes)}"
        )
    if not 0 < math.prod(shape) <= _LARGEST:
        raise ModelError(
            f"input {value.name} has {math.prod(shape):,} elements",
            why=f"1 to {_LARGEST:,} can be made",
            fix="check the shape the model declares",
        )
    low, high, known = _range(graph, value.name, dtype)
    return _Input(name=value.name, dtype=dtype, shape=shape, low=low, high=high, known=known)


def _range(graph: Graph, name: str, dtype: np.dtype[np.generic]) -> tuple[float, float, bool]:
    """Return the smallest and largest value worth feeding, and whether the model's own quantization says so."""
    carriers = {name}  # the input, and what only moves its values
    for node in graph.model.graph.node:
        if not node.input or node.input[0] not in carriers:
            continue
        if node.op_type in MOVES_ONLY:
            carriers.update(node.output)
        elif node.op_type == "DequantizeLinear" and dtype.kind in "iu":
            limits = np.iinfo(dtype.name)
            return float(limits.min), float(limits.max), True
        elif node.op_type == "QuantizeLinear":
            quantization = graph.quantization(node)
            codes = _code_range(quantization.dtype) if quantization else None
            if quantization and codes:
                low, high = (quantization.scale * (code - quantization.zero_point) for code in codes)
                return low, high, True
    return (-1.0, 1.0, False) if dtype.kind == "f" else (0.0, 1.0, False)


def _code_range(dtype: str) -> tuple[int, int] | None:
    """Return the smallest and largest code of an integer type, `uint4` to `int32`; None for any other."""
    match = _CODES.fullmatch(dtype)
    if match is None:
        return None
    bits = int(match[2])
    return (0, 2**bits - 1) if match[1] else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
