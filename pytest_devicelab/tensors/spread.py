"""How distances and values are spread: percentiles, Kullback-Leibler divergence, Wasserstein distance.

A weighted sample stands for both forms a tensor comes in here: each element once, or the bins of a histogram
with their counts. So one piece of code answers for both, and only the bins bring an error, which is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_devicelab.tensors.formats import (
    Codes,
    Floats,
    Format,
    distances_of,
    relative_distances,
    values_of,
)

Counts = npt.NDArray[np.integer]

KL_BINS = 128
# Of a float64: sign, exponent and this many bits of mantissa tell values, and distances, apart.
VALUE_BITS, DISTANCE_BITS = 10, 8
VALUE_SHIFT, DISTANCE_SHIFT = 52 - VALUE_BITS, 52 - DISTANCE_BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """The smallest distance that this share of all elements does not exceed: 50, 90, 99 and 99.9 percent."""

    p50: float
    p90: float
    p99: float
    p999: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How the differences, and the values, of a pair are spread.

    Attributes:
        absolute: percentiles of `|observed - reference|`.
        relative: percentiles of `|observed - reference| / |reference|`.
        percentile_error: how much too large a percentile may be, as a share of it; 0 when exact.
        kl: Kullback-Leibler divergence of the observed values' histogram from the reference's, in nats; None
            when either tensor has no finite value.
        wasserstein: Wasserstein-1 distance between the distributions of finite values, in their unit; None as
            above.
        wasserstein_error: how far off it may be; 0 when exact, None when there is no distance.
    """

    absolute: Percentiles
    relative: Percentiles
    percentile_error: float
    kl: float | None
    wasserstein: float | None
    wasserstein_error: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Numbers and how often each occurs; `half_widths` is how far a number may be from the one it stands for.

    Attributes:
        numbers: `[n]`, finite.
        counts: `[n]`; None for once each.
        half_widths: `[n]`; None for exact numbers.
    """

    numbers: Floats
    counts: Counts | None = None
    half_widths: Floats | None = None

    @property
    def total(self) -> int:
        """How many elements there are."""
        return self.numbers.size if self.counts is None else int(self.counts.sum())


def exact_spread(
    reference: Codes, observed: Codes, number: Format, weights: npt.NDArray[np.int64] | None = None
) -> Spread:
    """Return the spread of a whole pair, codes `[elements]`, each pair occurring `weights` times."""
    left, right = values_of(reference, number), values_of(observed, number)
    distances = distances_of(reference, observed, number)
    relative = relative_distances(distances, left)
    samples = (_finite_sample(left, weights), _finite_sample(right, weights))
    return Spread(
        absolute=percentiles(distances, weights),
        relative=percentiles(relative, weights),
        percentile_error=0.0,
        kl=kl_divergence(*samples),
        wasserstein=wasserstein(*samples),
        wasserstein_error=wasserstein_error(*samples),
    )


def percentiles(numbers: Floats, counts: Counts | None = None) -> Percentiles:
    """Return the percentiles of numbers `[n]`, which may be infinite, each occurring `counts` times.

    Source: R. J. Hyndman and Y. Fan, "Sample Quantiles in Statistical Packages" (1996), definition 1, the
    inverse of the distribution function: it always answers with a distance that occurs.
    """
    order = np.argsort(numbers) if counts is not None else None
    ranked = np.sort(numbers) if order is None else numbers[order]
    ends = None if order is None or counts is None else np.cumsum(counts[order])
    total = ranked.size if ends is None else int(ends[-1])
    found = []
    for per_mille in (500, 900, 990, 999):
        rank = -(-total * per_mille // 1000)  # rounded up in integers: 0.9 * 10 must not become rank 10
        index = rank - 1 if ends is None else int(np.searchsorted(ends, rank))
        found.append(float(ranked[index]))
    return Percentiles(p50=found[0], p90=found[1], p99=found[2], p999=found[3])


def kl_divergence(reference: Sample, observed: Sample) -> float | None:
    """Return the Kullback-Leibler divergence D(reference || observed) of two histograms, in nats.

    The histograms have 128 bins of equal width over the range of both; values are first cut to sign, exponent
    and ten bits of mantissa, so that the elements and their fine bins give the same histogram. Half a count
    is added to each bin, which keeps the divergence finite where `observed` has none.

    Returns:
        0.0 or more; None when one of them is empty.

    Source: S. Kullback and R. A. Leibler, "On Information and Sufficiency" (1951); the half count: R. E.
    Krichevsky and V. K. Trofimov, "The Performance of Universal Encoding" (1981).
    """
    if not (reference.total and observed.total):
        return None
    cut = [_cut(sample.numbers) for sample in (reference, observed)]
    low = min(float(each.min()) for each in cut)
    high = max(float(each.max()) for each in cut)
    shares = []
    for numbers, sample in zip(cut, (reference, observed), strict=True):
        # Halves, because the width of a range of float64 values may not fit a float64.
        width = high / 2 - low / 2
        place = (numbers / 2 - low / 2) / width * KL_BINS if width > 0.0 else np.zeros_like(numbers)
        bins = np.minimum(place.astype(np.intp), KL_BINS - 1)
        counts = np.bincount(bins, sample.counts, minlength=KL_BINS) + 0.5
        shares.append(counts / counts.sum())
    return max(0.0, float(np.sum(shares[0] * np.log(shares[0] / shares[1]))))


def wasserstein(reference: Sample, observed: Sample) -> float | None:
    """Return the Wasserstein-1 distance: how far, on average, values must move to make both samples alike.

    Returns:
        The area between the two distribution functions, in the unit of the values; None when one is empty.

    Source: S. S. Vallender, "Calculation of the Wasserstein Distance Between Probability Distributions on the
    Line" (1974).
    """
    if not (reference.total and observed.total):
        return None
    plain = reference.counts is None and observed.counts is None
    with np.errstate(over="ignore", invalid="ignore"):
        if plain and reference.numbers.size == observed.numbers.size:
            return float(np.mean(np.abs(np.sort(reference.numbers) - np.sort(observed.numbers))))
        numbers = np.concatenate([reference.numbers, observed.numbers])
        order = np.argsort(numbers, kind="stable")
        gap = np.zeros(numbers.size)
        for sample, start in ((reference, 0), (observed, reference.numbers.size)):
            counts = np.zeros(numbers.size, np.int64)
            ours = slice(start, start + sample.numbers.size)
            counts[ours] = 1 if sample.counts is None else sample.counts
            gap += (1 if start == 0 else -1) * (np.cumsum(counts[order]) / sample.total)
        return float(np.sum(np.abs(gap[:-1]) * np.diff(numbers[order])))


def wasserstein_error(reference: Sample, observed: Sample) -> float | None:
    """Return how far off the Wasserstein distance may be: no value moved by more than its bin's half width."""
    if not (reference.total and observed.total):
        return None
    error = 0.0
    for sample in (reference, observed):
        if sample.half_widths is not None and sample.counts is not None:
            error += float(np.sum(sample.half_widths * (sample.counts / sample.total)))
    return error


def _finite_sample(values: Floats, weights: npt.NDArray[np.int64] | None) -> Sample:
    finite = np.isfinite(values)
    if finite.all():
        return Sample(numbers=values, counts=weights)
    return Sample(numbers=values[finite], counts=None if weights is None else weights[finite])


def _cut(values: Floats) -> Floats:
    """Return the values with sign, exponent and ten bits of mantissa kept, towards zero."""
    kept = (1 << 64) - (1 << VALUE_SHIFT)
    cut: Floats = (values.view(np.uint64) & np.uint64(kept)).view(np.float64)
    return cut
