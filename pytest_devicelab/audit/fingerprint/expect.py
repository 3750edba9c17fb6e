"""What a quantized operator would compute, for each way a chip might round, scale or overflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_devicelab.audit.fingerprint.probe import Array, Candidate
from pytest_devicelab.audit.fingerprint.rounding import (
    ROUNDINGS,
    Whole,
    in_units,
    round_multiple,
    shortened,
    store,
)
from pytest_devicelab.audit.fingerprint.sketch import Grid

# Mantissas fixed-point and floating-point requantization is known to use; 0 stands for the exact ratio.
_MANTISSAS = (0, 8, 11, 16, 24)


def codes_of(counts: Whole, unit: Fraction, grid: Grid, rounding: str, overflow: str = "saturate") -> Array:
    """Return the codes of `counts * unit` output steps, rounded and put on the output's grid."""
    return store(round_multiple(counts, unit, rounding) + grid.zero, grid.dtype, overflow=overflow)


def rounded(counts: Whole, unit: Fraction, grid: Grid) -> tuple[Candidate, ...]:
    """Return one candidate a rounding mode, for a result that is exactly `counts * unit` output steps."""
    return tuple(
        Candidate(facts={"rounding": mode}, expected=codes_of(counts, unit, grid, mode)) for mode in ROUNDINGS
    )


def scaled(counts: Whole, unit: Fraction, grid: Grid) -> tuple[Candidate, ...]:
    """Return one candidate for each width of the multiplier that stands for `unit`, which gives no ties."""
    return tuple(
        Candidate(
            facts={"rounding": name, "multiplier": f"{bits} bit" if bits else "exact"},
            expected=codes_of(counts, shortened(unit, bits) if bits else unit, grid, mode),
        )
        for bits in _MANTISSAS
        for name, mode in (("to nearest", "half up"), ("floor", "floor"), ("truncate", "truncate"))
    )


def overflowing(counts: Whole, unit: Fraction, grid: Grid) -> tuple[Candidate, ...]:
    """Return `saturate` and `wrap`, for a result that is a whole number of steps but does not fit the grid."""
    return tuple(
        Candidate(facts={"overflow": how}, expected=codes_of(counts, unit, grid, "half up", how))
        for how in ("saturate", "wrap")
    )


def function_of(values: npt.NDArray[np.floating[Any]], grid: Grid) -> tuple[Candidate, ...]:
    """Return one candidate a rounding mode, for a function whose real values are known to 44 bits."""
    counts, unit = in_units(values)
    return rounded(counts, unit / grid.step, grid)


def joined(parts: Iterable[tuple[Mapping[str, str], Iterable[Candidate]]]) -> tuple[Candidate, ...]:
    """Return all candidates of several explanations, each with that explanation's own facts added."""
    return tuple(
        Candidate(facts={**candidate.facts, **facts}, expected=candidate.expected)
        for facts, candidates in parts
        for candidate in candidates
    )
