"""Sums, counts and extremes of a tensor pair, block by block: what most metrics are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_devicelab.tensors.formats import (
    Codes,
    Floats,
    Format,
    distances_of,
    is_nan,
    ordinals_of,
    relative_distances,
    steps_between,
    values_of,
)

Weights = npt.NDArray[np.int64]

# Outside of these, squares of float64 values could overflow or vanish; 1e100 squared 1e108 times still fits.
PLAIN = (1e-100, 1e100)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledSum:
    """A sum of products, `value * 2**exponent`: squares of huge or tiny numbers stay in range."""

    value: float = 0.0
    exponent: int = 0

    def __add__(self, other: ScaledSum) -> ScaledSum:
        if self.exponent == other.exponent:
            return ScaledSum(value=self.value + other.value, exponent=self.exponent)
        if not (self.value and other.value):
            return self if self.value else other
        exponent = max(self.exponent, other.exponent)
        value = sum(math.ldexp(each.value, each.exponent - exponent) for each in (self, other))
        return ScaledSum(value=value, exponent=exponent)

    def mean(self, count: int) -> float:
        """Return the sum over that many elements."""
        return math.ldexp(self.value / count, self.exponent)

    def log10(self) -> float:
        """Return the logarithm of a sum above zero."""
        return math.log10(self.value) + self.exponent * math.log10(2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """What one block of a pair adds up to; two blocks are one with `+`.

    Attributes:
        elements: compared elements.
        different: elements of which at least one bit differs.
        bit_counts: at each bit position, lowest first, in how many elements it differs; int64.
        lone_nans: pairs of which only one is NaN.
        max_ulp: most representable numbers between two values, over pairs without a NaN.
        abs_sum: of all distances; inf when one is.
        rel_sum: of all finite relative distances.
        rel_finite: how many of these there are.
        peak: largest finite magnitude in the reference.
        all_finite: neither tensor holds a NaN or an infinity.
        signal: sum of squares of the finite reference values; `energy` the same of the observed.
        dot: sum of products of finite values.
        noise: sum of squares of the finite distances.
    """

    elements: int
    different: int
    bit_counts: npt.NDArray[np.int64]
    lone_nans: int
    max_ulp: int
    max_abs: float
    abs_sum: ScaledSum
    max_rel: float
    rel_sum: ScaledSum
    rel_finite: int
    peak: float
    all_finite: bool
    signal: ScaledSum
    energy: ScaledSum
    dot: ScaledSum
    noise: ScaledSum

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            elements=self.elements + other.elements,
            different=self.different + other.different,
            bit_counts=self.bit_counts + other.bit_counts,
            lone_nans=self.lone_nans + other.lone_nans,
            max_ulp=max(self.max_ulp, other.max_ulp),
            max_abs=max(self.max_abs, other.max_abs),
            abs_sum=self.abs_sum + other.abs_sum,
            max_rel=max(self.max_rel, other.max_rel),
            rel_sum=self.rel_sum + other.rel_sum,
            rel_finite=self.rel_finite + other.rel_finite,
            peak=max(self.peak, other.peak),
            all_finite=self.all_finite and other.all_finite,
            signal=self.signal + other.signal,
            energy=self.energy + other.energy,
            dot=self.dot + other.dot,
            noise=self.noise + other.noise,
        )


def moments_of(reference: Codes, observed: Codes, number: Format, weights: Weights | None = None) -> Moments:
    """Return the moments of one block.

    Args:
        reference: codes `[elements]`, at least one.
        observed: as many.
        number: the format of both.
        weights: how often each pair occurs, `[elements]`; None for once.
    """
    changed = reference ^ observed
    left, right = values_of(reference, number), values_of(observed, number)
    distances = distances_of(reference, observed, number)
    relative = relative_distances(distances, left)
    gap = steps_between(ordinals_of(reference, number), ordinals_of(observed, number))
    lone_nans = 0
    if number.kind == "float":
        nans = is_nan(reference, number), is_nan(observed, number)
        lone_nans = _count(nans[0] ^ nans[1], weights)
        gap[nans[0] | nans[1]] = 0
    finite_left, finite_right, near = _finite(left), _finite(right), _finite(distances)
    return Moments(
        elements=left.size if weights is None else int(weights.sum()),
        different=_count(changed != 0, weights),
        bit_counts=_bit_counts(changed, number.bits, weights),
        lone_nans=lone_nans,
        max_ulp=int(gap.max()),
        max_abs=float(distances.max()),
        abs_sum=_scaled_sum(distances, weights),
        max_rel=float(relative.max()),
        rel_sum=_scaled_sum(_finite(relative), weights),
        rel_finite=_count(np.isfinite(relative), weights),
        peak=float(np.abs(finite_left).max()),
        all_finite=finite_left is left and finite_right is right,
        signal=_products(finite_left, finite_left, weights),
        energy=_products(finite_right, finite_right, weights),
        dot=_products(finite_left, finite_right, weights),
        noise=_products(near, near, weights),
    )


def equal_moments(both: Codes, number: Format) -> Moments:
    """Return the moments of a block of codes `[elements]` with itself, with less work."""
    values = values_of(both, number)
    finite = _finite(values)
    signal = _products(finite, finite, None)
    return Moments(
        elements=both.size,
        different=0,
        bit_counts=np.zeros(number.bits, np.int64),
        lone_nans=0,
        max_ulp=0,
        max_abs=0.0,
        abs_sum=ScaledSum(),
        max_rel=0.0,
        rel_sum=ScaledSum(),
        rel_finite=both.size,
        peak=float(np.abs(finite).max()),
        all_finite=finite is values,
        signal=signal,
        energy=signal,
        dot=signal,
        noise=ScaledSum(),
    )


def _finite(values: Floats) -> Floats:
    """Return the values with zero for what is not finite: the same array when all are."""
    finite = np.isfinite(values)
    return values if finite.all() else np.where(finite, values, 0.0)


def _count(mask: npt.NDArray[np.bool_], weights: Weights | None) -> int:
    return int(np.count_nonzero(mask) if weights is None else weights[mask].sum())


def _sum(values: Floats, weights: Weights | None) -> float:
    with np.errstate(over="ignore"):  # an infinite distance is not scaled, and the sum is infinite anyway
        return float(values.sum() if weights is None else (values * weights).sum())


def _scaled_sum(values: Floats, weights: Weights | None) -> ScaledSum:
    scaled, exponent = _in_range(values)
    return ScaledSum(value=_sum(scaled, weights), exponent=exponent)


def _products(left: Floats, right: Floats, weights: Weights | None) -> ScaledSum:
    left, up = _in_range(left)
    right, down = _in_range(right)
    return ScaledSum(value=_sum(left * right, weights), exponent=up + down)


def _in_range(values: Floats) -> tuple[Floats, int]:
    """Return `values / 2**exponent` and that exponent, such that they can be squared."""
    largest = float(np.abs(values).max())
    if largest == 0.0 or PLAIN[0] <= largest <= PLAIN[1]:
        return values, 0
    exponent = math.frexp(largest)[1]
    return np.ldexp(values, -exponent), exponent


def _bit_counts(changed: Codes, bits: int, weights: Weights | None) -> npt.NDArray[np.int64]:
    """Count, for each bit position, the elements in which it is set: over a histogram of each byte."""
    where = np.flatnonzero(changed)
    changed = changed[where]
    weights = None if weights is None else weights[where]
    of_byte = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    counts = np.zeros(8 * changed.itemsize, np.int64)
    for byte in range(changed.itemsize if where.size else 0):
        values = (changed >> changed.dtype.type(8 * byte)).astype(np.uint8)
        histogram = np.bincount(values, weights, minlength=256)
        counts[8 * byte : 8 * byte + 8] = histogram.astype(np.int64) @ of_byte
    return counts[:bits]
