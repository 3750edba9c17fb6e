from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.tensors.metrics import (
    cosine_similarity,
    is_classification,
    sqnr_db,
    top1_accuracy,
    top1_flips,
    top_k,
    top_k_agreement,
)

LOGITS = np.array([[0.1, 0.7, 0.2], [5.0, 5.0, 1.0], [-1.0, -2.0, -0.5]], np.float32)


@pytest.mark.parametrize(("noise", "decibel"), [(1.0, 20.0), (0.1, 40.0), (10.0, 0.0), (100.0, -20.0)])
def test_sqnr_by_hand(noise: float, decibel: float) -> None:
    signal = np.array([6.0, 8.0])  # norm 10
    assert sqnr_db(signal, signal + np.array([noise, 0.0])) == pytest.approx(decibel)


def test_sqnr_without_noise_signal_or_finite_values() -> None:
    ones, zeros = np.ones(3), np.zeros(3)
    assert sqnr_db(ones, ones) is None
    assert sqnr_db(zeros, ones) == -math.inf
    assert sqnr_db(ones, np.array([1.0, 1.0, math.nan])) == -math.inf


@given(st.integers(min_value=-300, max_value=300))
def test_sqnr_does_not_depend_on_the_unit(exponent: int) -> None:
    signal = np.array([6.0, 8.0]) * 10.0**exponent
    assert sqnr_db(signal, signal * 1.1) == pytest.approx(20.0)


def test_cosine_by_hand() -> None:
    right, up = np.array([1.0, 0.0]), np.array([0.0, 3.0])
    assert cosine_similarity(right, up) == 0.0
    assert cosine_similarity(right, -right) == -1.0
    assert cosine_similarity(right, right + up / 3) == pytest.approx(math.sqrt(0.5))
    assert cosine_similarity(np.array([1, 2], np.int8), np.array([100, 200], np.uint8)) == pytest.approx(1.0)


@pytest.mark.parametrize("odd", [np.zeros(2), np.array([1.0, math.inf]), np.array([math.nan, 1.0])])
def test_cosine_needs_a_direction(odd: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
    assert cosine_similarity(odd, np.ones(2)) is None
    assert cosine_similarity(np.ones(2), odd) is None


def test_top_k_takes_the_lower_index_of_equals() -> None:
    assert top_k(LOGITS, 2).tolist() == [[1, 2], [0, 1], [2, 0]]


def test_top_k_ranks_nan_last() -> None:
    assert top_k(np.array([[math.nan, -5.0]]), 1).tolist() == [[1]]


@pytest.mark.parametrize(("shape", "k"), [((3,), 1), ((3, 2, 2), 1), ((3, 2), 0), ((3, 2), 3)])
def test_top_k_needs_class_scores(shape: tuple[int, ...], k: int) -> None:
    with pytest.raises(ValueError, match="needs logits"):
        top_k(np.zeros(shape), k)


def test_flips_agreement_and_accuracy() -> None:
    observed = LOGITS.copy()
    observed[0] = [0.7, 0.1, 0.2]
    assert top1_flips(LOGITS, observed) == 1
    assert top1_flips(LOGITS, LOGITS) == 0
    assert top_k_agreement(LOGITS, observed, 1) == pytest.approx(2 / 3)
    assert top_k_agreement(LOGITS, observed, 3) == 1.0
    assert top1_accuracy(LOGITS, np.array([1, 1, 2])) == pytest.approx(2 / 3)


def test_class_scores_are_two_dimensional() -> None:
    assert is_classification(LOGITS)
    assert not is_classification(np.zeros((3, 1)))
    assert not is_classification(np.zeros((3, 2, 2)))
