from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity as sklearn_cosine

from pytest_devicelab.errors import TensorMismatch
from pytest_devicelab.tensors.accumulator import DiffAccumulator
from pytest_devicelab.tensors.diff import diff_bitwise, diff_tensors
from pytest_devicelab.tensors.equality import count_different
from pytest_devicelab.tensors.formats import FORMATS, codes_of
from pytest_devicelab.tensors.metrics import cosine_similarity, sqnr_db, top_k_agreement
from pytest_devicelab.tensors.ranking import TopK
from pytest_devicelab.tensors.result import TensorDiff

Array = npt.NDArray[np.generic]
RANDOM = 4


def noisy(name: str, shape: tuple[int, ...], scale: float = 30.0) -> tuple[Array, Array]:
    random = np.random.default_rng(RANDOM)
    left = random.normal(0, scale, shape)
    return left.astype(name), (left + random.normal(0, scale / 10, shape)).astype(name)


def near(left: float | None, right: float | None) -> bool:
    return left == right if left is None or right is None else left == pytest.approx(right, rel=1e-9)


def in_chunks(reference: Array, observed: Array, elements: int, **options: bool) -> TensorDiff:
    accumulator = DiffAccumulator(FORMATS[reference.dtype.name], reference.shape, **options)
    left, right = codes_of(reference), codes_of(observed)
    for start in range(0, left.size, elements):
        accumulator.feed(left[start : start + elements].copy(), right[start : start + elements].copy())
    return accumulator.finish()


@pytest.mark.parametrize("name", ["int8", "float16", "float32", "float64", "int64"])
def test_chunks_do_not_count(name: str) -> None:
    pair = noisy(name, (1000, 10))
    whole = diff_tensors(*pair)
    parts = in_chunks(*pair, 130)
    assert parts.spread == whole.spread
    assert parts.top_k == whole.top_k
    assert parts.bit_histogram == whole.bit_histogram
    assert parts.sqnr_db == pytest.approx(whole.sqnr_db, abs=1e-9)
    assert parts.cosine == pytest.approx(whole.cosine, abs=1e-12)


@pytest.mark.parametrize(
    "name", ["bool", "int8", "uint16", "float16", "float32", "float64", "int32", "uint64"]
)
@pytest.mark.parametrize("same", [True, False])
def test_compiled_kernels_say_what_numpy_says(name: str, same: bool) -> None:
    left, right = (
        noisy(name, (1 << 18,)) if name[0] != "u" else (abs(each) for each in noisy("int16", (1 << 18,)))
    )
    left, right = left.astype(name), right.astype(name)
    left[1000:1010] = 0
    if name.startswith("float"):
        right[500:502] = [math.nan, math.inf]  # one block of several is odd
    if same:
        right = left.copy()
    slow, fast = (in_chunks(left, right, 1 << 17, fast=each) for each in (False, True))
    for field in (
        "elements",
        "elements_different",
        "bit_histogram",
        "max_ulp",
        "lone_nans",
        "max_abs",
        "max_rel",
    ):
        assert getattr(slow, field) == getattr(fast, field), field
    for field in ("mean_abs", "mean_rel", "sqnr_db", "psnr_db", "cosine"):
        assert near(getattr(slow, field), getattr(fast, field)), field
    assert slow.spread == fast.spread
    assert slow.tolerance == fast.tolerance
    assert bool(slow) == same


def test_large_tensors_are_compared_in_histograms_and_small_ones_exactly() -> None:
    small, large = noisy("float32", (1 << 20,)), noisy("float32", ((1 << 20) + 1,))
    exact, binned = diff_tensors(*small).spread, diff_tensors(*large).spread
    assert exact is not None
    assert binned is not None
    assert (exact.percentile_error, exact.wasserstein_error) == (0.0, 0.0)
    assert binned.percentile_error == 2.0**-8
    assert binned.wasserstein_error is not None
    assert 0.0 < binned.wasserstein_error < 0.1


def test_8_bit_formats_are_exact_at_any_size() -> None:
    left, right = noisy("int8", (1 << 21,), 20.0)
    whole, part = diff_tensors(left, right).spread, diff_tensors(left[:50_000], right[:50_000]).spread
    assert whole is not None
    assert part is not None
    assert (whole.percentile_error, whole.wasserstein_error) == (0.0, 0.0)
    distances = np.abs(left.astype(int) - right)
    assert whole.absolute.p99 == np.percentile(distances, 99, method="inverted_cdf")
    assert whole.wasserstein == pytest.approx(np.abs(np.sort(left).astype(int) - np.sort(right)).mean())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(), st.floats()), min_size=1))
def test_sums_agree_with_the_plain_metrics(pairs: list[tuple[float, float]]) -> None:
    left, right = np.array(pairs).T
    diff = diff_bitwise(left, right)
    assert diff.sqnr_db == pytest.approx(sqnr_db(left, right), abs=1e-6)
    assert diff.cosine == pytest.approx(cosine_similarity(left, right), abs=1e-9)


def test_cosine_is_sklearns() -> None:
    left, right = noisy("float32", (5000,))
    expected = sklearn_cosine(left.astype(float)[None], right.astype(float)[None])[0, 0]
    assert diff_bitwise(left, right).cosine == pytest.approx(expected, abs=1e-12)


def test_signal_ratios_by_hand() -> None:
    diff = diff_tensors(np.array([6.0, 8.0]), np.array([6.0, 9.0]))
    assert diff.sqnr_db == pytest.approx(20.0)  # |signal| 10, |noise| 1
    assert diff.psnr_db == pytest.approx(20 * math.log10(8 / math.sqrt(0.5)))  # peak 8, mean square 1/2
    assert (diff.mean_abs, diff.max_rel, diff.mean_rel) == (0.5, 0.125, 0.0625)


def test_a_reference_of_zero_has_no_finite_relative_distance() -> None:
    diff = diff_tensors(np.array([0.0, 2.0]), np.array([1e-9, 3.0]))
    assert (diff.max_rel, diff.mean_rel) == (math.inf, 0.5)
    assert diff.tolerance.relative is None
    assert diff.tolerance.absolute == 1.0


def test_huge_and_tiny_values_keep_their_ratios() -> None:
    for unit in (1e-310, 1e-200, 1.0, 1e200, 1e306):
        signal = np.array([6.0, 8.0, 0.0]) * unit
        diff = diff_tensors(signal, signal * 1.1)
        assert diff.sqnr_db == pytest.approx(20.0, abs=1e-3), unit
        assert diff.cosine == pytest.approx(1.0), unit
        assert math.isfinite(diff.mean_abs)
    mixed = np.concatenate([np.full(9000, 1e-200), np.full(9000, 1e200)])  # blocks of unlike scale
    assert diff_bitwise(mixed, mixed * 1.1).sqnr_db == pytest.approx(20.0)


@pytest.mark.parametrize("classes", [2, 3, 5, 6, 30])
def test_top_k_agreement_is_that_of_the_sorted_classes(classes: int) -> None:
    random = np.random.default_rng(5)
    left = random.integers(0, 6, (200, classes)).astype(np.float32)  # with many ties
    right = np.where(random.random(left.shape) < 0.1, left + 1, left).astype(np.float32)
    right[3, 1] = math.nan
    found = diff_tensors(left, right).top_k
    assert [each.k for each in found] == [k for k in (1, 5) if k < classes]
    for each in found:
        assert each == TopK(k=each.k, samples=200, agreement=top_k_agreement(left, right, each.k))


def test_top_1_agreement_is_sklearns_accuracy() -> None:
    left, right = noisy("float32", (300, 10))
    expected = top_k_accuracy_score(left.argmax(axis=1), right, k=1, labels=np.arange(10))
    assert diff_tensors(left, right).top_k[0].agreement == pytest.approx(expected)


def test_only_class_scores_have_a_top_k() -> None:
    for shape in ((10,), (), (3, 1), (2, 3, 4)):
        assert diff_tensors(np.ones(shape), np.zeros(shape)).top_k == ()


def test_0_d_tensors_have_every_metric() -> None:
    diff = diff_tensors(np.array(2.0), np.array(3.0), lsb=0.5)
    assert (diff.elements, diff.max_lsb, diff.cosine) == (1, 2.0, 1.0)
    assert diff.spread is not None
    assert diff.spread.wasserstein == 1.0


def test_missing_and_surplus_elements_are_refused() -> None:
    ones = np.ones(5, np.uint8)
    accumulator = DiffAccumulator(FORMATS["uint8"], (2, 5))
    accumulator.feed(ones, ones)
    with pytest.raises(TensorMismatch, match="found 5 elements") as caught:
        accumulator.finish()
    assert caught.value.evidence == {"expected": "uint8 [2, 5]", "found": "5 elements"}
    with pytest.raises(TensorMismatch, match="chunks of 5 and 4"):
        accumulator.feed(ones, ones[:4])
    with pytest.raises(TensorMismatch, match="chunks of 4 and 4"):
        accumulator.feed(ones[:4], ones[:4])  # not whole rows
    accumulator.feed(ones, ones)
    with pytest.raises(TensorMismatch, match="chunks of 5 and 5"):
        accumulator.feed(ones, ones)
    assert accumulator.finish()


def test_nothing_is_never_equal() -> None:
    with pytest.raises(TensorMismatch, match="found no element"):
        DiffAccumulator(FORMATS["float32"], (3, 0))


@pytest.mark.parametrize("name", ["uint8", "float16", "float32", "float64"])
def test_different_elements_are_counted_whatever_the_size(name: str) -> None:
    random = np.random.default_rng(6)
    left = random.integers(0, 100, 300_001).astype(name)
    right = left.copy()
    where = random.choice(left.size, 777, replace=False)
    right[where] += 1
    assert count_different(codes_of(left), codes_of(right)) == 777
    assert count_different(codes_of(left), codes_of(left.copy())) == 0


def test_the_tolerance_is_a_sentence() -> None:
    tolerance = diff_bitwise(np.array([2.0]), np.array([2.5]), lsb=0.25).tolerance
    assert str(tolerance).startswith(
        "would have passed with an absolute tolerance of 0.5, a relative one of 0.25, 2 LSB or "
    )
