"""Probes of operators on two tensors, element by element: sums, differences, products, quotients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_devicelab.audit.fingerprint.expect import function_of, overflowing, rounded, scaled
from pytest_devicelab.audit.fingerprint.probe import Candidate, Probe
from pytest_devicelab.audit.fingerprint.rounding import Whole
from pytest_devicelab.audit.fingerprint.sketch import Grid, Sketch

_Expect = Callable[[Whole, Fraction, Grid], tuple[Candidate, ...]]

_DTYPES = (("uint8", 128), ("uint16", 32768))
# label, operator, scale of the other input (the first has 1), output scale, what is asked, what to expect
_CASES: tuple[tuple[str, str, float, float, str, _Expect], ...] = (
    ("add_ties", "Add", 1, 4, "how does a sum round ties?", rounded),
    ("add_unequal", "Add", 0.25, 2, "how does a sum of unequal grids round?", rounded),
    ("add_scale", "Add", 0.3, 1.7, "how exact are the multipliers of a sum?", rounded),
    ("add_overflow", "Add", 1, 0.25, "does a sum outside the grid saturate or wrap?", overflowing),
    ("sub_ties", "Sub", 1, 4, "how does a difference round ties?", rounded),
    ("mul_ties", "Mul", 1, 16, "how does a product round ties?", rounded),
    ("mul_scale", "Mul", 1, 55.5, "how exact is the multiplier of a product?", scaled),
    ("mul_overflow", "Mul", 1, 1, "does a product outside the grid saturate or wrap?", overflowing),
    ("max_ties", "Max", 1, 4, "how does a maximum round to a coarser grid?", rounded),
)


def elementwise_probes() -> Iterator[Probe]:
    """Ask how operators on two tensors round, scale and overflow."""
    for dtype, zero in _DTYPES:
        for case in _CASES:
            yield _probe(dtype, zero, *case)
        yield _quotient(dtype, zero)


def _codes(grid: Grid) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return two rows of codes that pair every residue with every other."""
    index = np.arange(1024)
    first = (index % 64 - 32) + grid.zero
    second = (index // 64 * 3 - 24) + grid.zero
    return first.astype(grid.dtype)[None], second.astype(grid.dtype)[None]


def _exact(op: str, first: Whole, second: Whole, ratio: Fraction) -> tuple[Whole, Fraction]:
    """Return the result of two counts, one of 1 and one of `ratio`, as counts of a unit."""
    if op == "Mul":
        return first * second, ratio
    unit = Fraction(1, ratio.denominator)
    left, right = first * ratio.denominator, second * ratio.numerator
    if op == "Max":
        return np.maximum(left, right), unit
    return (left - right if op == "Sub" else left + right), unit


def _probe(
    dtype: str, zero: int, label: str, op: str, scale: float, to_scale: float, question: str, expect: _Expect
) -> Probe:
    grid, other = Grid(scale=1, zero=zero, dtype=dtype), Grid(scale=scale, zero=zero, dtype=dtype)
    if expect is overflowing and dtype == "uint16":
        to_scale /= 256
    to = Grid(scale=to_scale, zero=zero, dtype=dtype)
    first, second = _codes(grid)
    counts, unit = _exact(op, grid.counts(first), other.counts(second), other.step)
    sketch = Sketch(f"{label}_{dtype}")
    result = sketch.node(op, sketch.quantized_input(first, grid), sketch.quantized_input(second, other))
    return sketch.probe(
        sketch.quantize(result, to),
        op=op,
        dtype=dtype,
        output_dtype=dtype,
        shape=first.shape,
        question=question,
        candidates=expect(counts, unit / to.step, to),
    )


def _quotient(dtype: str, zero: int) -> Probe:
    grid, to = Grid(scale=1, zero=zero, dtype=dtype), Grid(scale=0.25, zero=zero, dtype=dtype)
    first, _ = _codes(grid)
    second = (np.arange(first.size) // 64 % 15 + 1 + zero).astype(dtype)[None]
    values = grid.counts(first).astype(np.float64) / grid.counts(second).astype(np.float64)
    sketch = Sketch(f"div_ties_{dtype}")
    result = sketch.node("Div", sketch.quantized_input(first, grid), sketch.quantized_input(second, grid))
    return sketch.probe(
        sketch.quantize(result, to),
        op="Div",
        dtype=dtype,
        output_dtype=dtype,
        shape=first.shape,
        question="how does a quotient round?",
        candidates=function_of(values, to),
    )
