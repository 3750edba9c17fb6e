"""Percentiles, divergence and Wasserstein distance by hand and against scipy."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import entropy, wasserstein_distance

from pytest_devicelab.tensors.compiled import load_fast
from pytest_devicelab.tensors.diff import diff_tensors
from pytest_devicelab.tensors.formats import FORMATS, codes_of
from pytest_devicelab.tensors.spread import (
    KL_BINS,
    Percentiles,
    Sample,
    Spread,
    kl_divergence,
    percentiles,
    wasserstein,
)
from pytest_devicelab.tensors.streams import BlockStream

Array = npt.NDArray[np.generic]


def spread_of(reference: Array, observed: Array) -> Spread:
    found = diff_tensors(reference, observed).spread
    assert found is not None
    return found


def test_percentiles_are_distances_that_occur() -> None:
    assert percentiles(np.arange(1.0, 11.0)) == Percentiles(p50=5.0, p90=9.0, p99=10.0, p999=10.0)
    assert percentiles(np.arange(1.0, 1001.0)) == Percentiles(p50=500.0, p90=900.0, p99=990.0, p999=999.0)
    weighed = percentiles(np.array([7.0, 0.0]), np.array([1, 999]))
    assert weighed == Percentiles(p50=0.0, p90=0.0, p99=0.0, p999=0.0)


@pytest.mark.parametrize("size", [1, 2, 7, 100, 1001])
def test_percentiles_are_numpys_inverted_distribution_function(size: int) -> None:
    numbers = np.random.default_rng(size).exponential(size=size)
    wanted = np.percentile(numbers, [50, 90, 99, 99.9], method="inverted_cdf")
    found = percentiles(numbers)
    assert [found.p50, found.p90, found.p99, found.p999] == wanted.tolist()


def test_wasserstein_by_hand() -> None:
    # The greatest values move from 1 to 2 and from 3 to 5: 1.5 on average, whatever their order.
    assert wasserstein(Sample(numbers=np.array([3.0, 1.0])), Sample(numbers=np.array([2.0, 5.0]))) == 1.5
    heavy = Sample(numbers=np.array([0.0, 10.0]), counts=np.array([9, 1]))
    assert wasserstein(heavy, Sample(numbers=np.array([0.0]))) == pytest.approx(1.0)


@pytest.mark.parametrize("sizes", [(50, 50), (50, 31), (1, 200)])
def test_wasserstein_is_scipys(sizes: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    left, right = random.normal(size=sizes[0]), random.normal(0.5, 2.0, size=sizes[1])
    expected = wasserstein_distance(left, right)
    assert wasserstein(Sample(numbers=left), Sample(numbers=right)) == pytest.approx(expected, rel=1e-12)


def test_divergence_by_hand() -> None:
    # Two bins of 128 are in use: 3 and 1 of 4 values against 1 and 3, half a value added to all bins.
    left, right = np.array([0.0, 0.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0, 1.0])
    p, q = 3.5 / 68, 1.5 / 68
    expected = p * math.log(p / q) + q * math.log(q / p)
    assert kl_divergence(Sample(numbers=left), Sample(numbers=right)) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int16"])
def test_divergence_is_scipys_entropy_of_the_histograms(dtype: str) -> None:
    random = np.random.default_rng(2)
    left, right = random.normal(0, 50, 4000), random.normal(5, 60, 4000)
    # Values of few bits are not cut, so that numpy's histogram may be used as it is.
    pair = [np.round(each).clip(-1000, 1000).astype(dtype) for each in (left, right)]
    low, high = min(float(each.min()) for each in pair), max(float(each.max()) for each in pair)
    counts = [np.histogram(each.astype(np.float64), KL_BINS, (low, high))[0] + 0.5 for each in pair]
    assert spread_of(*pair).kl == pytest.approx(entropy(*counts), rel=1e-9)


@pytest.mark.parametrize("constant", [0.0, 3.0, -1e300])
def test_constant_tensors(constant: float) -> None:
    same = np.full(100, constant)
    spread = spread_of(same, same)
    assert (spread.kl, spread.wasserstein) == (0.0, 0.0)
    other = spread_of(same, np.full(100, 7.0))
    assert other.wasserstein == pytest.approx(abs(7.0 - constant))
    assert other.kl is not None
    assert other.kl > 1.0


def test_nan_everywhere_has_no_distribution() -> None:
    nothing = np.full(10, math.nan, np.float32)
    diff = diff_tensors(nothing, nothing)
    assert diff
    assert diff.spread is not None
    assert (diff.max_abs, diff.cosine, diff.sqnr_db, diff.max_ulp) == (0.0, None, None, 0)
    assert (diff.spread.kl, diff.spread.wasserstein, diff.spread.wasserstein_error) == (None, None, None)
    against = diff_tensors(np.ones(10, np.float32), nothing)
    assert (against.lone_nans, against.max_ulp, against.max_abs) == (10, None, math.inf)
    assert against.spread is not None
    assert against.spread.absolute.p50 == math.inf
    assert str(against.tolerance) == "would not have passed with any tolerance"


def test_infinities_are_left_out_of_distributions_and_not_out_of_distances() -> None:
    left = np.array([1.0, math.inf, -math.inf, 2.0])
    spread = spread_of(left, np.array([1.0, math.inf, math.inf, 2.0]))
    assert spread.wasserstein == 0.0
    assert spread.absolute.p50 == 0.0
    assert spread.absolute.p90 == math.inf


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("name", ["float32", "float64", "int32", "float16", "int16"])
def test_histograms_stay_within_their_bounds(name: str, fast: bool) -> None:
    random = np.random.default_rng(3)
    left = random.normal(0, 100, 200_000)
    right = left + random.normal(0, 5, left.size)
    pair = [codes_of(each.astype(name)) for each in (left, right)]
    stream = BlockStream(FORMATS[name], spread=True, fast=load_fast() if fast else None)
    stream.add(*pair)
    _, binned = stream.finish()
    exact = spread_of(left.astype(name), right.astype(name))
    assert binned is not None
    assert binned.kl == exact.kl
    for ours, theirs in ((binned.absolute, exact.absolute), (binned.relative, exact.relative)):
        for share in ("p50", "p90", "p99", "p999"):
            wanted = getattr(theirs, share)
            assert wanted <= getattr(ours, share) <= wanted * (1 + 2.0**-8)
    assert binned.wasserstein is not None
    assert binned.wasserstein_error is not None
    assert exact.wasserstein is not None
    assert binned.wasserstein == pytest.approx(exact.wasserstein, abs=binned.wasserstein_error, rel=1e-9)
    assert exact.wasserstein == pytest.approx(
        wasserstein_distance(left.astype(name).astype(float), right.astype(name).astype(float)), rel=1e-6
    )
