"""Every way to compute the difference, held against a slow one in plain Python."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_devicelab.tensors.accumulator import DiffAccumulator
from pytest_devicelab.tensors.compiled import load_fast
from pytest_devicelab.tensors.formats import FORMATS, Codes, Format
from pytest_devicelab.tensors.result import TensorDiff, conclude
from pytest_devicelab.tensors.spread import Percentiles
from pytest_devicelab.tensors.streams import BlockStream, PairStream
from tests.unit.slow_tensors import SlowDiff, decode, slow_diff

Way = str
WAYS = ["whole", "blocks", "compiled", "pairs", "compiled pairs"]
PER_MILLE = (500, 900, 990, 999)


def codes_strategy(number: Format) -> st.SearchStrategy[int]:
    """Any code, with those that are odd more often than chance has them."""
    top = (1 << number.bits) - 1
    odd = [0, 1, top, top >> 1, (top >> 1) + 1, 2]
    if number.kind == "float":
        odd += [
            number.infinity,
            number.infinity + 1,
            number.sign | number.infinity,
            number.sign,
            number.sign | 1,
        ]
    return st.one_of(st.integers(0, 1 if number.kind == "bool" else top), st.sampled_from(odd))


@st.composite
def code_pairs(draw: st.DrawFn) -> tuple[list[int], list[int], Format]:
    number = draw(st.sampled_from(list(FORMATS.values())))
    codes = codes_strategy(number)
    if draw(st.booleans()) and number.kind == "float":  # plain blocks take another way than odd ones
        codes = st.integers(number.infinity // 3, number.infinity // 2)
    near = st.tuples(codes, st.integers(0, 3)).map(lambda pair: (pair[0], pair[0] ^ pair[1]))
    pairs = draw(st.lists(st.one_of(st.tuples(codes, codes), near), min_size=1, max_size=40))
    return [left for left, _ in pairs], [right for _, right in pairs], number


def diff_by(way: Way, reference: Codes, observed: Codes, number: Format) -> TensorDiff:
    if way == "whole":
        accumulator = DiffAccumulator(number, reference.shape)
        accumulator.feed(reference, observed)
        return accumulator.finish()
    fast = load_fast() if way.startswith("compiled") else None
    kind = PairStream if way.endswith("pairs") else BlockStream
    stream = kind(number, spread=True, fast=fast)
    middle = reference.size // 2  # two blocks, so that sums are merged
    for part in (slice(0, middle), slice(middle, None)):
        if reference[part].size:
            stream.add(reference[part], observed[part])
    moments, spread = stream.finish()
    return conclude(moments, lsb=None, spread=spread)


def assert_percentiles(found: Percentiles, slow: SlowDiff, distances: list[float], error: float) -> None:
    for value, per_mille in zip((found.p50, found.p90, found.p99, found.p999), PER_MILLE, strict=True):
        exact = slow.percentile(distances, per_mille)
        if exact < 2.0**-1021:  # such distances have no full mantissa, and no relative error
            assert value < 2.0**-1020
        else:
            assert exact <= value <= exact * (1 + error)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=80, deadline=None)
@given(code_pairs())
def test_all_agree_with_plain_python(way: Way, pair: tuple[list[int], list[int], Format]) -> None:
    left, right, number = pair
    if way.endswith("pairs") and number.bits > 8:
        return
    slow = slow_diff(left, right, number)

    diff = diff_by(way, np.array(left, number.storage), np.array(right, number.storage), number)

    assert diff.elements == len(left)
    assert diff.elements_different == slow.different
    assert diff.bit_histogram == slow.bit_histogram
    assert diff.bits_different == sum(slow.bit_histogram)
    assert (diff.lone_nans, diff.max_ulp) == (slow.lone_nans, slow.max_ulp)
    assert diff.max_abs == max(slow.distances)
    assert diff.mean_abs == pytest.approx(_mean(slow.distances), rel=1e-9)
    assert diff.max_rel == max(slow.relative)
    bounded = [each for each in slow.relative if each != math.inf]
    assert diff.mean_rel == (pytest.approx(_mean(bounded), rel=1e-9) if bounded else None)
    assert diff.sqnr_db == pytest.approx(slow.sqnr_db(), abs=1e-6)
    assert diff.psnr_db == pytest.approx(slow.psnr_db(), abs=1e-6)
    if any(abs(each) > 2**53 for each in (*slow.lefts, *slow.rights)):
        assert (diff.cosine is None) == (slow.cosine() is None)
    else:
        assert diff.cosine == pytest.approx(slow.cosine(), abs=1e-9)
    assert diff.spread is not None
    assert_percentiles(diff.spread.absolute, slow, slow.distances, diff.spread.percentile_error)
    assert_percentiles(diff.spread.relative, slow, slow.relative, diff.spread.percentile_error)


@settings(max_examples=100, deadline=None)
@given(code_pairs())
def test_histograms_keep_what_they_promise(pair: tuple[list[int], list[int], Format]) -> None:
    left, right, number = pair
    codes = np.array(left, number.storage), np.array(right, number.storage)
    exact, binned = (diff_by(way, *codes, number).spread for way in ("whole", "blocks"))
    assert exact is not None
    assert binned is not None
    assert binned.kl == exact.kl
    assert exact.wasserstein_error == (None if exact.wasserstein is None else 0.0)
    if exact.wasserstein is not None:
        assert binned.wasserstein is not None
        assert binned.wasserstein_error is not None
        off = abs(binned.wasserstein - exact.wasserstein)
        assert off <= binned.wasserstein_error + 1e-9 * exact.wasserstein or math.isinf(exact.wasserstein)
        if number.bits == 16:
            assert binned.wasserstein_error == 0.0


@settings(max_examples=100, deadline=None)
@given(code_pairs(), st.sampled_from([None, 0.1, 1.0, 0.25, 3e-5]))
def test_the_stated_tolerance_passes_and_a_smaller_one_does_not(
    pair: tuple[list[int], list[int], Format], lsb: float | None
) -> None:
    left, right, number = pair
    accumulator = DiffAccumulator(number, (len(left),), lsb=lsb, spread=False)
    accumulator.feed(np.array(left, number.storage), np.array(right, number.storage))
    tolerance = accumulator.finish().tolerance
    slow = slow_diff(left, right, number)
    sizes = [abs(float(decode(code, number))) for code in left]

    def passes(absolute: float, relative: float) -> bool:
        """Judge in fractions, because a product near the smallest float64 is rounded."""
        return all(
            each == 0.0 or Fraction(each) <= Fraction(absolute) + Fraction(relative) * Fraction(size)
            for each, size in zip(slow.distances, sizes, strict=True)
        )

    if tolerance.absolute is None:
        assert max(slow.distances) == math.inf
    else:
        assert passes(tolerance.absolute, 0.0)
        assert tolerance.absolute == 0.0 or not passes(math.nextafter(tolerance.absolute, 0.0), 0.0)
    if tolerance.relative is not None:
        assert passes(0.0, tolerance.relative)
        assert tolerance.relative < 1e-300 or not passes(0.0, tolerance.relative * (1 - 1e-12))
    if lsb is not None and tolerance.lsb is not None:
        assert tolerance.lsb * lsb >= max(slow.distances)
        assert tolerance.lsb * lsb <= max(slow.distances) * (1 + 1e-12) + 5e-324


def _mean(numbers: list[float]) -> float:
    return math.inf if math.inf in numbers else math.fsum(each / len(numbers) for each in numbers)
