"""Probes of functions of one tensor: the whole table of an 8-bit operator, and its 16-bit brother."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_devicelab.audit.fingerprint.expect import function_of
from pytest_devicelab.audit.fingerprint.probe import Probe
from pytest_devicelab.audit.fingerprint.sketch import Grid, Sketch

Reals = npt.NDArray[np.float64]

_LEAKY = 0.125


@dataclass(frozen=True, slots=True, kw_only=True)
class _Function:
    """An operator and what it computes.

    Attributes:
        exact: the function, in float64.
        inside: real values of the lowest and the highest input code.
        outside: real values of the lowest and the highest output code.
    """

    exact: Callable[[Reals], Reals]
    inside: tuple[float, float] = (-8, 8)
    outside: tuple[float, float] = (-1, 1)
    attributes: Mapping[str, Any] = field(default_factory=dict)


def _softmax(values: Reals) -> Reals:
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _layer_norm(values: Reals) -> Reals:
    centred = values - values.mean(axis=-1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5))


_FUNCTIONS: Mapping[str, _Function] = {
    "Sigmoid": _Function(exact=lambda x: 1 / (1 + np.exp(-x)), outside=(0, 1)),
    "Tanh": _Function(exact=np.tanh),
    "Gelu": _Function(
        exact=lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))), outside=(-0.25, 8)
    ),
    "HardSwish": _Function(exact=lambda x: x * np.clip(x / 6 + 0.5, 0, 1), outside=(-0.5, 8)),
    "HardSigmoid": _Function(exact=lambda x: np.clip(0.2 * x + 0.5, 0, 1), outside=(0, 1)),
    "Elu": _Function(exact=lambda x: np.where(x < 0, np.expm1(x), x), outside=(-1, 8)),
    "Exp": _Function(exact=np.exp, inside=(-6, 2), outside=(0, 8)),
    "Log": _Function(exact=np.log, inside=(0.25, 8), outside=(-2, 2)),
    "Sqrt": _Function(exact=np.sqrt, inside=(0, 16), outside=(0, 4)),
    "Reciprocal": _Function(exact=lambda x: 1 / x, inside=(0.5, 8), outside=(0, 2)),
    "Sin": _Function(exact=np.sin, inside=(-3, 3)),
    "Cos": _Function(exact=np.cos, inside=(-3, 3)),
    "Abs": _Function(exact=np.abs, outside=(0, 64)),
    "Neg": _Function(exact=np.negative, outside=(-32, 32)),
    "Relu": _Function(exact=lambda x: np.maximum(x, 0), outside=(0, 64)),
    "LeakyRelu": _Function(
        exact=lambda x: np.where(x < 0, _LEAKY * x, x), outside=(-4, 12), attributes={"alpha": _LEAKY}
    ),
    "Softmax": _Function(exact=_softmax, outside=(0, 1), attributes={"axis": -1}),
    "LayerNormalization": _Function(exact=_layer_norm, outside=(-4, 4), attributes={"axis": -1}),
    "ReduceMean": _Function(
        exact=lambda x: x.mean(axis=-1, keepdims=True), outside=(-8, 8), attributes={"keepdims": 1}
    ),
    "ReduceSum": _Function(
        exact=lambda x: x.sum(axis=-1, keepdims=True), outside=(-64, 64), attributes={"keepdims": 1}
    ),
}
_ROW_OPS = ("Softmax", "LayerNormalization", "ReduceMean", "ReduceSum")


def function_probes() -> Iterator[Probe]:
    """Ask whether each function gives its correctly rounded table."""
    for dtype in ("uint8", "uint16"):
        for op, function in _FUNCTIONS.items():
            yield _probe(op, function, dtype)


def _grid(ends: tuple[float, float], dtype: str) -> Grid:
    """Return the grid whose codes reach from end to end: as float32 steps, with zero on a code."""
    codes = np.iinfo(dtype).max
    scale = float(np.float32((max(ends[1], 0) - min(ends[0], 0)) / codes))
    return Grid(scale=scale, zero=round(-min(ends[0], 0) / scale), dtype=dtype)


def _rows(codes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return rows of 16 codes `[1, n, 16]` with gaps of every size."""
    index = np.arange(len(codes) // 16 * 16)
    rows: npt.NDArray[Any] = codes[index * index * 7 % len(codes)].reshape(1, -1, 16)
    return rows


def _probe(op: str, function: _Function, dtype: str) -> Probe:
    grid, to = _grid(function.inside, dtype), _grid(function.outside, dtype)
    codes = grid.all_codes()
    codes = codes[codes >= round(function.inside[0] / grid.scale) + grid.zero]
    rows = _rows(codes) if op in _ROW_OPS else codes[None]
    values = grid.counts(rows).astype(np.float64) * float(grid.step)
    sketch = Sketch(f"table_{op.lower()}_{dtype}")
    more = []
    if op == "LayerNormalization":
        unit = Grid(scale=1 / 255, zero=0, dtype="uint8")
        more = [sketch.quantized_constant(np.full(rows.shape[-1], 255), unit)]
    if op.startswith("Reduce"):
        more = [sketch.constant(np.array([-1], np.int64))]
    x = sketch.quantized_input(np.ascontiguousarray(rows), grid)
    result = function.exact(values)
    return sketch.probe(
        sketch.quantize(sketch.node(op, x, *more, **function.attributes), to),
        op=op,
        dtype=dtype,
        output_dtype=dtype,
        shape=result.shape,
        question="is every entry the exact value, rounded once, and how?",
        candidates=function_of(result, to),
    )
