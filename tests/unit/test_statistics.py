from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest

from pytest_devicelab.verdicts.ledger import LEAST_SAMPLES
from pytest_devicelab.verdicts.statistics import (
    ALPHA,
    Estimate,
    detectable,
    exact_sign_p,
    holm,
    interval,
    paired_share,
    resample_sums,
    samples_to_settle,
    sign_flip_p,
    spread_p,
    standardized,
)

Floats = npt.NDArray[np.float64]

TRIALS = 400


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def error_powers(seed: int, samples: int, runs: int, *, excess_db: float = 0.0) -> Floats:
    """Error powers `[N, runs]` of runs that err alike but for the last; hard samples are hard for all."""
    draw = rng(seed)
    hardness = draw.gamma(2.0, 1.0, size=(samples, 1))
    powers: Floats = hardness * draw.chisquare(10, size=(samples, runs)) / 10
    powers[:, -1] *= 10 ** (excess_db / 10)
    return powers


def decibel_interval(powers: Floats, seed: int) -> Estimate:
    sums = resample_sums(powers, rng(seed), draws=1000)
    total = powers.sum(axis=0)
    return interval(10 * math.log10(total[1] / total[0]), 10 * np.log10(sums[:, 1] / sums[:, 0]), 1)


def share_of(hits: int) -> tuple[float, float]:
    """The share of TRIALS, and three standard errors of it at ALPHA."""
    return hits / TRIALS, 3 * math.sqrt(ALPHA * (1 - ALPHA) / TRIALS)


def test_resampling_draws_whole_samples_and_repeats_by_seed() -> None:
    columns = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    sums = resample_sums(columns, rng(), draws=50)
    assert sums.shape == (50, 2)
    np.testing.assert_array_equal(sums[:, 1], 10 * sums[:, 0])
    assert sums[:, 0].min() >= 3.0
    assert sums[:, 0].max() <= 12.0
    np.testing.assert_array_equal(sums, resample_sums(columns, rng(), draws=50))


def test_resampling_in_chunks_is_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_devicelab.verdicts.statistics._CHUNK", 7)
    sums = resample_sums(np.arange(5.0)[:, None], rng(), draws=3001)
    assert sums.shape == (3001, 1)
    # The sum of 5 draws from 0..4: mean 10, variance 5 * 2.
    assert sums.mean() == pytest.approx(10, abs=4 * math.sqrt(10 / 3001))
    assert sums.var() == pytest.approx(10, rel=0.15)


@pytest.mark.parametrize("samples", [LEAST_SAMPLES, 100])
def test_two_runs_alike_are_told_apart_as_rarely_as_alpha_says(samples: int) -> None:
    false, missed = 0, 0
    for seed in range(TRIALS):
        powers = error_powers(seed, samples, 2)
        false += sign_flip_p(powers[:, 1] - powers[:, 0], rng(seed), draws=400) < ALPHA
        found = decibel_interval(powers, seed)
        missed += not found.low <= 0.0 <= found.high
    rate, slack = share_of(false)
    assert rate <= ALPHA + slack
    assert rate >= ALPHA - slack, "a test that never speaks would pass the line above"
    rate, slack = share_of(missed)
    # Few samples make a percentile interval somewhat too narrow; below LEAST_SAMPLES nothing is decided by one.
    assert rate <= ALPHA + slack + 0.5 / samples


def test_an_interval_of_too_few_samples_is_too_narrow_which_is_why_there_is_a_least_count() -> None:
    missed = 0
    for seed in range(TRIALS):
        found = decibel_interval(error_powers(seed, 6, 2), seed)
        missed += not found.low <= 0.0 <= found.high
    assert missed / TRIALS > 2 * ALPHA


def test_an_effect_of_the_detectable_size_is_seen_four_times_in_five() -> None:
    samples = 150
    errors = [decibel_interval(error_powers(seed, samples, 2), seed).standard_error for seed in range(30)]
    effect = detectable(float(np.mean(errors)), family=1)
    seen = 0
    for seed in range(TRIALS):
        powers = error_powers(10_000 + seed, samples, 2, excess_db=effect)
        seen += sign_flip_p(powers[:, 1] - powers[:, 0], rng(seed), draws=400) < ALPHA
    assert 0.7 < seen / TRIALS < 0.9


def test_a_planted_effect_is_measured_without_bias() -> None:
    found = [decibel_interval(error_powers(seed, 200, 2, excess_db=2.0), seed) for seed in range(100)]
    assert np.mean([each.value for each in found]) == pytest.approx(2.0, abs=0.1)
    assert sum(each.low <= 2.0 <= each.high for each in found) >= 87


def test_sign_flips_by_hand() -> None:
    # Of the 8 ways to sign 1, 2, 3 two reach 6: all plus and all minus.
    assert sign_flip_p(np.array([1.0, 2.0, 3.0]), rng(), draws=20_000) == pytest.approx(0.25, abs=0.02)
    assert sign_flip_p(np.zeros(9), rng()) == 1.0
    assert sign_flip_p(np.ones(60), rng(), draws=999) == 0.001


def test_sign_flips_do_not_ask_which_run_is_the_better_one() -> None:
    differences = rng(3).normal(0.3, 1.0, size=50)
    assert sign_flip_p(differences, rng(1)) == sign_flip_p(-differences, rng(1))


def test_chips_alike_are_called_different_as_rarely_as_alpha_says() -> None:
    false = sum(spread_p(error_powers(seed, 40, 4), rng(seed), draws=300) < ALPHA for seed in range(TRIALS))
    rate, slack = share_of(false)
    assert ALPHA - slack <= rate <= ALPHA + slack


def test_one_chip_that_differs_is_seen() -> None:
    assert spread_p(error_powers(1, 100, 4, excess_db=2.0), rng(1)) < 0.001
    assert spread_p(np.ones((30, 3)), rng()) == 1.0


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.4: times 4, 3, 2, 1, and never below the one before.
    assert holm([0.02, 0.4, 0.01, 0.03]) == pytest.approx((0.06, 0.4, 0.04, 0.06))
    assert holm([0.7, 0.6]) == (1.0, 1.0)
    assert holm([]) == ()


def test_seven_chips_alike_raise_an_alarm_as_rarely_as_one() -> None:
    false = 0
    for seed in range(TRIALS):
        powers = error_powers(seed, 40, 8)
        raw = [sign_flip_p(powers[:, chip] - powers[:, 0], rng(seed), draws=400) for chip in range(1, 8)]
        false += min(holm(raw)) < ALPHA
    rate, slack = share_of(false)
    assert rate <= ALPHA + slack


def test_a_paired_share_by_hand() -> None:
    # n = 100, 10 lost and 4 won: (10 - 4) / 102 +- 1.96 sqrt(15 - 36 / 102) / 102 (Agresti and Min 2005).
    found = paired_share(10, 4, 100, family=1)
    assert found.value == pytest.approx(0.06)
    assert found.low == pytest.approx(6 / 102 - 1.959964 * math.sqrt(15 - 36 / 102) / 102)
    assert found.high == pytest.approx(6 / 102 + 1.959964 * math.sqrt(15 - 36 / 102) / 102)


def test_no_flip_among_few_samples_is_not_certainty() -> None:
    assert paired_share(0, 0, 20, family=1).high > 0.05
    assert paired_share(0, 0, 2000, family=1).high < 0.002
    assert paired_share(0, 0, 20, family=8).high > paired_share(0, 0, 20, family=1).high


def test_intervals_of_a_family_are_wider() -> None:
    draws = rng().normal(size=4000)
    one, eight = interval(0.0, draws, 1), interval(0.0, draws, 8)
    assert one.low == pytest.approx(-1.96, abs=0.1)
    assert eight.low < one.low < one.high < eight.high


def test_the_effect_size_by_hand() -> None:
    assert standardized(np.array([1.0, 2.0, 3.0])) == pytest.approx(2.0)
    assert standardized(np.ones(5)) is None
    assert standardized(np.ones(1)) is None


def test_four_times_the_samples_halve_an_interval() -> None:
    found = Estimate(value=0.5, low=-0.5, high=1.5, standard_error=0.5)
    assert samples_to_settle(found, 1.0, 100) == 400
    near = Estimate(value=0.99, low=0.0, high=2.0, standard_error=0.5)
    assert samples_to_settle(near, 1.0, 100) == math.ceil(100 * (1.01 / 0.25) ** 2)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (3, 0), (5, 2), (2, 5), (8, 8), (12, 1)])
def test_the_exact_test_counts_every_way_to_split(wins: int, losses: int) -> None:
    ways = [sum(split) for split in itertools.product((0, 1), repeat=wins + losses)]
    middle = (wins + losses) / 2
    beyond = sum(abs(way - middle) >= abs(wins - middle) for way in ways)
    assert exact_sign_p(wins, losses) == pytest.approx(beyond / len(ways))


def test_the_approximation_goes_on_where_the_exact_test_ends() -> None:
    assert exact_sign_p(540, 462) == pytest.approx(exact_sign_p(539, 461), rel=0.02)
    assert exact_sign_p(600, 600) == 1.0
