"""float16 as it would be computed in other ways: any rounding, inf or clamp, denormals kept or flushed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_devicelab.audit.fingerprint.rounding import in_units, round_multiple

Halves = npt.NDArray[np.float16]
Reals = npt.NDArray[np.float64]

_LARGEST = 65504.0
_SMALLEST_NORMAL = 2.0**-14


def to_half(
    values: npt.ArrayLike, *, rounding: str = "half even", clamp: bool = False, flush: bool = False
) -> Halves:
    """Round reals to float16.

    Args:
        values: float64, any shape; NaN and infinities stay what they are.
        rounding: a key of `ROUNDINGS`, applied to multiples of the last place.
        clamp: overflow gives the largest finite value, where IEEE 754 gives infinity.
        flush: results below the smallest normal become zero of their sign.
    """
    real = np.asarray(values, dtype=np.float64)
    finite = np.where(np.isfinite(real), real, 0.0)
    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log2(np.abs(finite), where=finite != 0, out=np.full(real.shape, -14.0)))
    place = 2.0 ** (np.clip(exponent, -14, 15) - 10)
    counts, unit = in_units(finite / place, bits=46)
    rounded = round_multiple(counts, unit, rounding).astype(np.float64) * place
    rounded = np.where(np.isfinite(real), rounded, real)
    limit = _LARGEST if clamp else np.inf
    over = np.abs(rounded) > _LARGEST
    rounded = np.where(over & ~np.isnan(rounded), np.copysign(limit, rounded), rounded)
    if flush:
        rounded = np.where(np.abs(rounded) < _SMALLEST_NORMAL, 0.0, rounded)
    return np.copysign(rounded, real).astype(np.float16)


def past_infinity(values: npt.ArrayLike) -> Halves:
    """Round reals to a float16 without infinities: exponent 31 is one more power of two, up to 131,008.

    Bits of it look like infinity and NaN to everybody else.
    """
    real = np.asarray(values, dtype=np.float64)
    halved = np.clip(np.abs(real) / 2, 0, _LARGEST)
    # Half the value has the next smaller exponent: one is added to the exponent's bits again.
    high = (to_half(halved).view(np.uint16) + np.uint16(1 << 10)).view(np.float16)
    low = to_half(np.minimum(np.abs(real), _LARGEST)).view(np.uint16)
    bits = np.where(np.abs(real) > _LARGEST, high.view(np.uint16), low)
    return (bits | np.where(np.signbit(real), np.uint16(0x8000), np.uint16(0))).view(np.float16)


def flushed(values: npt.NDArray[Any]) -> Reals:
    """Return values with every float16 denormal taken for zero, as hardware that reads none does."""
    real = values.astype(np.float64)
    return np.where(np.abs(real) < _SMALLEST_NORMAL, np.copysign(0.0, real), real)
