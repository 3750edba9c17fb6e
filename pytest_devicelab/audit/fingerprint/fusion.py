"""Probes of chains: is a result rounded between two operators, or once at the end?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_devicelab.audit.fingerprint.expect import codes_of, joined, rounded
from pytest_devicelab.audit.fingerprint.probe import Candidate, Probe
from pytest_devicelab.audit.fingerprint.products import Product
from pytest_devicelab.audit.fingerprint.rounding import ROUNDINGS, Whole
from pytest_devicelab.audit.fingerprint.sketch import Grid, Sketch

# Steps of the input between the two operators. Rounded to 4 first, 6 becomes 8, which a grid of 16 puts on a tie: that
# shows a rounding to nearest in between. Cut to 4 first, 10 becomes 8, which a grid of 20 puts below its tie: that
# shows a cut, which a grid of 16 cannot.
_BETWEEN = 4
_ENDS = (16, 20)

# What draws the first operator: (sketch, codes, their grid) -> name of its float result
_First = Callable[[Sketch, npt.NDArray[Any], Grid], str]
# What draws the second, and what it computes of values in steps of the input
_Second = tuple[Callable[[Sketch, str, npt.NDArray[Any], Grid], str], Callable[[Whole, Whole], Whole]]


def fusion_probes() -> Iterator[Probe]:
    """Ask of pairs of operators whether the grid between them is there."""
    for dtype, zero in (("uint8", 128), ("int8", 0), ("uint16", 32768)):
        grid = Grid(scale=1, zero=zero, dtype=dtype)
        yield _chain("requantize_requantize", "Requantize+Requantize", grid, 16, _nothing, _pass_on())
        yield _chain("add_relu", "Add+Relu", grid, 16, _plus_zero, _relu())
        yield _chain("add_add", "Add+Add", grid, 16, _plus_zero, _plus())
        yield _chain("mul_add", "Mul+Add", grid, 16, _times_one, _plus())
        for end in _ENDS if dtype == "uint8" else ():
            for op, label in (("conv", "Conv"), ("matmul", "MatMul")):
                yield _chain(f"{op}_relu", f"{label}+Relu", grid, end, _identity(op), _relu())
                yield _chain(f"{op}_add", f"{label}+Add", grid, end, _identity(op), _plus())


def _chain(name: str, op: str, grid: Grid, last: int, first: _First, second: _Second) -> Probe:
    """Draw first operator, grid of `_BETWEEN`, second operator, grid of `last`; the first changes no value."""
    between = Grid(scale=_BETWEEN, zero=grid.zero, dtype=grid.dtype)
    end = Grid(scale=last, zero=grid.zero, dtype=grid.dtype)
    index = np.arange(256)
    square = (1, 16, 4, 4) if "conv" in name or "depthwise" in name else (1, 16, 16)
    codes = (index - 128 + grid.zero).astype(grid.dtype).reshape(square)
    other = (index * 5 % 9 - 4 + grid.zero).astype(grid.dtype).reshape(square)
    draw, compute = second
    sketch = Sketch(f"fused_{name}_{grid.dtype}_by{last}")
    middle = sketch.dequantize(sketch.quantize(first(sketch, codes, grid), between), between)
    result = sketch.quantize(draw(sketch, middle, other, between), end)
    values, others = grid.counts(codes), grid.counts(other) * _BETWEEN
    once = ({"between": "fused: not rounded"}, rounded(compute(values, others), Fraction(1, last), end))
    twice = tuple(
        Candidate(
            facts={"rounding": inner if inner == outer else f"{inner}, then {outer}"},
            expected=codes_of(compute(_steps(values, between, inner), others), Fraction(1, last), end, outer),
        )
        for inner in ROUNDINGS
        for outer in ROUNDINGS
    )
    return sketch.probe(
        result,
        op=op,
        dtype=grid.dtype,
        output_dtype=grid.dtype,
        shape=square,
        question="is the result rounded between the two operators?",
        candidates=joined([once, ({"between": "separate: rounded"}, twice)]),
    )


def _steps(values: Whole, between: Grid, mode: str) -> Whole:
    """Return values as the grid between the operators holds them, in steps of the input again."""
    held: Whole = between.counts(codes_of(values, Fraction(1, _BETWEEN), between, mode)) * _BETWEEN
    return held


def _nothing(sketch: Sketch, codes: npt.NDArray[Any], grid: Grid) -> str:
    return sketch.quantized_input(codes, grid)


def _plus_zero(sketch: Sketch, codes: npt.NDArray[Any], grid: Grid) -> str:
    zeros = np.full(codes.shape, grid.zero, dtype=grid.dtype)
    return sketch.node("Add", sketch.quantized_input(codes, grid), sketch.quantized_input(zeros, grid))


def _times_one(sketch: Sketch, codes: npt.NDArray[Any], grid: Grid) -> str:
    ones = np.full(codes.shape, grid.zero + 1, dtype=grid.dtype)
    return sketch.node("Mul", sketch.quantized_input(codes, grid), sketch.quantized_input(ones, grid))


def _identity(op: str) -> _First:
    def draw(sketch: Sketch, codes: npt.NDArray[Any], grid: Grid) -> str:
        channels_last = np.moveaxis(codes[0], 0, -1) if op != "matmul" else codes[0]
        rows = np.ascontiguousarray(channels_last).reshape(16, 16)
        return Product(op=op, rows=rows, grid=grid, weights=np.eye(16, dtype=np.int64)).draw(sketch)

    return draw


def _pass_on() -> _Second:
    return (lambda sketch, tensor, other, grid: tensor), (lambda values, others: values)


def _relu() -> _Second:
    return (
        lambda sketch, tensor, other, grid: sketch.node("Relu", tensor),
        lambda values, others: np.maximum(values, 0),
    )


def _plus() -> _Second:
    return (
        lambda sketch, tensor, other, grid: sketch.node("Add", tensor, sketch.quantized_input(other, grid)),
        lambda values, others: values + others,
    )
