"""The difference of two tensors, in the units engineers use, and the smallest tolerance it would pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pytest_devicelab.tensors.moments import Moments
from pytest_devicelab.tensors.ranking import TopK
from pytest_devicelab.tensors.spread import Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """The smallest tolerances under which all elements would have passed; each would do on its own.

    Attributes:
        absolute: `|observed - reference| <= absolute`; None when no number is large enough.
        relative: `|observed - reference| <= relative * |reference|`; None as above.
        lsb: `|observed - reference| <= lsb` quantization steps; None also when the step is unknown.
        ulp: at most so many representable numbers apart; None when only one of two values is NaN.
    """

    absolute: float | None
    relative: float | None
    lsb: float | None
    ulp: int | None

    def __str__(self) -> str:
        if self.absolute is None:
            return "would not have passed with any tolerance"
        named = [f"an absolute tolerance of {self.absolute:.6g}"]
        if self.relative is not None:
            named.append(f"a relative one of {self.relative:.6g}")
        if self.lsb is not None:
            named.append(f"{self.lsb:.6g} LSB")
        if self.ulp is not None:
            named.append(f"{self.ulp:,} ULP")
        head, last = named[:-1], named[-1]
        return (
            f"would have passed with {', '.join(head)} or {last}"
            if head
            else f"would have passed with {last}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDiff:
    """How far one tensor is from another; falsy when any bit differs. docs/reference/metrics.md has the formulas.

    Attributes:
        elements: compared elements.
        elements_different: elements of which at least one bit differs.
        bits_different: differing bits over all elements.
        bit_histogram: in how many elements each bit differs, the lowest bit first.
        max_ulp: most representable numbers between two values; for integers their distance. None when only one
            of two values is NaN, from which no number of steps leads to the other.
        lone_nans: pairs of which only one value is NaN.
        max_abs: largest distance between two values; inf when only one of them is NaN or infinite. Two NaNs
            are at distance 0, as are 0.0 and -0.0: such differences show in the bits.
        mean_abs: mean distance over all elements.
        max_rel: largest distance as a share of its reference value; inf where that is zero.
        mean_rel: mean of the finite ones; None when there is none.
        max_lsb: `max_abs` in steps of the tensor's own quantization; None when that step is unknown.
        sqnr_db: signal to quantization-noise ratio; None when no value differs.
        psnr_db: the same with the largest reference magnitude as signal.
        cosine: cosine similarity; None when a tensor is all zeros or not finite.
        tolerance: the smallest tolerances that pass.
        spread: percentiles, divergence and Wasserstein distance; None when not asked for.
        top_k: top-k agreement of class scores; empty when not asked for, or when there are no classes.
    """

    elements: int
    elements_different: int
    bits_different: int
    bit_histogram: tuple[int, ...]
    max_ulp: int | None
    lone_nans: int
    max_abs: float
    mean_abs: float
    max_rel: float
    mean_rel: float | None
    max_lsb: float | None
    sqnr_db: float | None
    psnr_db: float | None
    cosine: float | None
    tolerance: Tolerance
    spread: Spread | None = None
    top_k: tuple[TopK, ...] = ()

    def __bool__(self) -> bool:
        return self.elements_different == 0


def conclude(
    moments: Moments, *, lsb: float | None, spread: Spread | None = None, top_k: tuple[TopK, ...] = ()
) -> TensorDiff:
    """Turn sums into the difference they stand for; `lsb` is one quantization step in the values' unit."""
    max_ulp = None if moments.lone_nans else moments.max_ulp
    max_lsb = None if lsb is None else moments.max_abs / lsb
    return TensorDiff(
        elements=moments.elements,
        elements_different=moments.different,
        bits_different=int(moments.bit_counts.sum()),
        bit_histogram=tuple(moments.bit_counts.tolist()),
        max_ulp=max_ulp,
        lone_nans=moments.lone_nans,
        max_abs=moments.max_abs,
        mean_abs=moments.abs_sum.mean(moments.elements),
        max_rel=moments.max_rel,
        mean_rel=moments.rel_sum.mean(moments.rel_finite) if moments.rel_finite else None,
        max_lsb=max_lsb,
        sqnr_db=_sqnr_db(moments),
        psnr_db=_psnr_db(moments),
        cosine=_cosine(moments),
        tolerance=Tolerance(
            absolute=moments.max_abs if math.isfinite(moments.max_abs) else None,
            relative=_passing(moments.max_rel),
            lsb=None if lsb is None else _steps(moments.max_abs, lsb),
            ulp=max_ulp,
        ),
        spread=spread,
        top_k=top_k,
    )


def _steps(distance: float, lsb: float) -> float | None:
    """Return how many steps cover a distance; a whole number where it is one."""
    steps = distance / lsb
    return steps if math.isfinite(steps) and steps * lsb >= distance else _passing(steps)


def _passing(ratio: float) -> float | None:
    """Return the next larger number: a rounded-down quotient would not pass where it came from."""
    if ratio == 0.0:
        return 0.0
    larger = math.nextafter(ratio, math.inf)
    return larger if math.isfinite(larger) else None


def _sqnr_db(moments: Moments) -> float | None:
    if moments.max_abs == 0.0:
        return None
    if not math.isfinite(moments.max_abs) or moments.signal.value == 0.0:
        return -math.inf
    return 10.0 * (moments.signal.log10() - moments.noise.log10())


def _psnr_db(moments: Moments) -> float | None:
    if moments.max_abs == 0.0:
        return None
    if not math.isfinite(moments.max_abs) or moments.peak == 0.0:
        return -math.inf
    mean_square = moments.noise.log10() - math.log10(moments.elements)
    return 20.0 * math.log10(moments.peak) - 10.0 * mean_square


def _cosine(moments: Moments) -> float | None:
    if not moments.all_finite or 0.0 in (moments.signal.value, moments.energy.value):
        return None
    (left, up), (right, down) = (math.frexp(each.value) for each in (moments.signal, moments.energy))
    half, odd = divmod(up + down, 2)
    # One root of the product, so that a tensor and itself give exactly 1.
    size = math.sqrt(math.ldexp(left * right, odd))
    exponent = moments.dot.exponent - half - (moments.signal.exponent + moments.energy.exponent) // 2
    return min(1.0, max(-1.0, math.ldexp(moments.dot.value / size, exponent)))
