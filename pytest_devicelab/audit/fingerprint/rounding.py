"""Exact arithmetic on quantized codes: every rounding mode an NPU might have, decided in integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

# Arrays of Python integers: products of three float32 scales do not fit 64 bits.
Whole = npt.NDArray[np.object_]
Codes = npt.NDArray[np.generic]


def _nearest(on_tie: Callable[[Whole, Any], Whole]) -> Callable[[Whole, Whole, int], Whole]:
    """Return a rounding to the nearest integer; `on_tie(floor, is_negative)` says True where a tie goes up."""

    def rounded(floor: Whole, rest: Whole, denominator: int) -> Whole:
        twice = rest * 2
        up = (twice > denominator) | ((twice == denominator) & on_tie(floor, floor < 0))
        higher: Whole = floor + up.astype(int).astype(object)
        return higher

    return rounded


def _always(up: bool) -> Callable[[Whole, Any], Whole]:
    return lambda floor, negative: np.full(floor.shape, up, dtype=object)


ROUNDINGS: Mapping[str, Callable[[Whole, Whole, int], Whole]] = MappingProxyType(
    {
        "half even": _nearest(lambda floor, negative: floor % 2 == 1),
        "half away from zero": _nearest(lambda floor, negative: ~negative.astype(bool)),
        "half toward zero": _nearest(lambda floor, negative: negative.astype(bool)),
        "half up": _nearest(_always(True)),
        "half down": _nearest(_always(False)),
        "floor": lambda floor, rest, denominator: floor,
        "ceil": lambda floor, rest, denominator: floor + (rest > 0).astype(int).astype(object),
        "truncate": lambda floor, rest, denominator: (
            floor + ((rest > 0) & (floor < 0)).astype(int).astype(object)
        ),
    }
)
"""Rounding modes by name: floor of a quotient, its remainder and denominator -> the rounded quotient."""

NEAREST = tuple(name for name in ROUNDINGS if name.startswith("half"))


def whole(values: npt.ArrayLike) -> Whole:
    """Return integers as an array of Python integers, which do not overflow."""
    return np.asarray(values).astype(np.int64).astype(object)


def in_units(values: npt.NDArray[np.floating[Any]], bits: int = 44) -> tuple[Whole, Fraction]:
    """Return real numbers as whole multiples of a unit `2**-bits`: a function's values, where ties are exact."""
    scaled = np.rint(np.asarray(values, dtype=np.longdouble) * np.longdouble(2.0**bits))
    return np.vectorize(int, otypes=[object])(scaled), Fraction(1, 2**bits)


def round_multiple(counts: Whole, unit: Fraction, rounding: str) -> Whole:
    """Round `counts * unit`, exactly, to integers.

    Args:
        counts: integers, any shape.
        unit: what one count is worth, in steps of the output.
        rounding: a key of `ROUNDINGS`.
    """
    scaled = counts * unit.numerator
    floor = scaled // unit.denominator
    return ROUNDINGS[rounding](floor, scaled - floor * unit.denominator, unit.denominator)


def store(integers: Whole, dtype: str, *, overflow: str = "saturate") -> Codes:
    """Put integers into a code's dtype: what does not fit stops at the edge (`saturate`) or goes round (`wrap`)."""
    limits = np.iinfo(dtype)
    if overflow == "wrap":
        span = int(limits.max) - int(limits.min) + 1
        kept = (integers - int(limits.min)) % span + int(limits.min)
    else:
        kept = np.minimum(np.maximum(integers, int(limits.min)), int(limits.max))
    codes: Codes = kept.astype(np.int64).astype(dtype)
    return codes


def shortened(unit: Fraction, bits: int) -> Fraction:
    """Return the nearest multiplier with a mantissa of so many bits, as fixed-point hardware holds it."""
    exponent = 0
    while unit * Fraction(2) ** exponent < 2 ** (bits - 1):
        exponent += 1
    while unit * Fraction(2) ** exponent >= 2**bits:
        exponent -= 1
    scale = Fraction(2) ** exponent
    return Fraction(int(unit * scale + Fraction(1, 2))) / scale
