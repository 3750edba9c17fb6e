"""What a finite set of samples can and cannot tell: paired resampling, and how much more would settle it.

Everything is paired by sample: the same sample went through every run, so that what makes a sample hard cancels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

ALPHA = 0.05
"""Chance of a false alarm over a whole family of statements."""

POWER = 0.8
"""Chance with which an effect of the detectable size is seen."""

DRAWS = 4000
_CHUNK = 1 << 22  # random numbers held at once, so that many samples do not take much memory
_ROUNDING = 1e-9
_EXACT = 1000  # differing samples up to which the binomial is summed; beyond, floats could not hold its terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure with its confidence interval and standard error, all in its own unit."""

    value: float
    low: float
    high: float
    standard_error: float


def resample_sums(columns: Floats, rng: np.random.Generator, draws: int = DRAWS) -> Floats:
    """Draw samples with replacement, whole rows at a time, and sum each column: the paired bootstrap.

    Args:
        columns: one figure a sample and run, `[N, runs]`.
        rng: the caller's generator, so that a verdict can be repeated.
        draws: how many data sets to draw.

    Returns:
        The sums over N drawn samples, `[draws, runs]`.

    Source: B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7 (1979).
    """
    samples = len(columns)
    sums = []
    for rows in _chunks(draws, samples):
        drawn = rng.integers(0, samples, size=(rows, samples)) + np.arange(rows)[:, None] * samples
        counts = np.bincount(drawn.reshape(-1), minlength=rows * samples).reshape(rows, samples)
        sums.append(counts @ columns)
    return np.concatenate(sums)


def interval(value: float, draws: Floats, family: int) -> Estimate:
    """Return a figure with the interval its bootstrap draws `[draws]` give.

    Args:
        value: as estimated from all samples.
        draws: the same figure in each data set drawn.
        family: how many intervals are to hold at once with probability `1 - ALPHA` (Bonferroni).
    """
    tail = ALPHA / family / 2
    low, high = np.quantile(draws, (tail, 1 - tail))
    return Estimate(
        value=value, low=float(low), high=float(high), standard_error=float(np.std(draws, ddof=1))
    )


def paired_share(wins: int, losses: int, samples: int, family: int) -> Estimate:
    """Return the difference of two shares measured on the same samples, `(wins - losses) / samples`.

    Half a sample is added to each of the four cells of the paired table: without it, no difference among few samples
    would look like certainty.

    Args:
        wins: samples only the first run gets right.
        losses: samples only the second does.
        samples: all of them.
        family: how many intervals are to hold at once.

    Source: A. Agresti and Y. Min, Statistics in Medicine 24 (2005), 729-740.
    """
    padded = samples + 2
    center = (wins - losses) / padded
    error = math.sqrt((wins + losses + 1) - (wins - losses) ** 2 / padded) / padded
    reach = _z(1 - ALPHA / family / 2) * error
    return Estimate(
        value=(wins - losses) / samples, low=center - reach, high=center + reach, standard_error=error
    )


def exact_sign_p(wins: int, losses: int) -> float:
    """Say how likely so uneven a split of the samples two runs judge differently is if both are as often right.

    Args:
        wins: samples only the first run gets right.
        losses: samples only the second does.

    Returns:
        The two-sided p value of McNemar's exact test: a binomial with probability one half; 1.0 when none differs.
        Beyond 1,000 differing samples its normal approximation.

    Source: Q. McNemar, Psychometrika 12 (1947), 153-157; exact form: A. Agresti, "Categorical Data Analysis".
    """
    differing = wins + losses
    if differing > _EXACT:
        return _normal_sign_p(wins, losses)
    tail: int = sum(math.comb(differing, k) for k in range(min(wins, losses) + 1))
    return float(min(1.0, 2 * tail / 2**differing))


def _normal_sign_p(wins: int, losses: int) -> float:
    """Return the same for many samples, by the normal approximation with continuity correction."""
    distance = max(0.0, abs(wins - losses) - 1) / math.sqrt(wins + losses)
    return 2 * NormalDist().cdf(-distance)


def sign_flip_p(differences: Floats, rng: np.random.Generator, draws: int = DRAWS) -> float:
    """Say how likely so large a sum of paired differences is if both runs are alike: a permutation test.

    If they are, either figure of a sample could as well be the other run's, and each difference have the other sign.

    Args:
        differences: one a sample, `[N]`.
        rng: the caller's generator.
        draws: how many ways to hand the signs out.

    Returns:
        The two-sided p value, never below `1 / (draws + 1)`; 1.0 when nothing differs.

    Source: R. A. Fisher, "The Design of Experiments" (1935), section 21.
    """
    moved = differences[differences != 0.0]
    if not len(moved):
        return 1.0
    found = abs(float(moved.sum()))
    beyond = 0
    for rows in _chunks(draws, len(moved)):
        signs = rng.integers(0, 2, size=(rows, len(moved)), dtype=np.int8)
        sums = np.abs(2.0 * (signs @ moved) - moved.sum())
        beyond += int(np.count_nonzero(sums >= found * (1 - _ROUNDING)))
    return (1 + beyond) / (1 + draws)


def spread_p(columns: Floats, rng: np.random.Generator, draws: int = DRAWS) -> float:
    """Say how likely so wide a spread between column sums is if all runs are alike: a permutation test.

    Args:
        columns: one figure a sample and run, `[N, runs >= 2]`; permuted within each sample.
        rng: the caller's generator.
        draws: how many permutations.

    Returns:
        The p value, never below `1 / (draws + 1)`; 1.0 when nothing differs.
    """
    moved = columns[np.ptp(columns, axis=1) != 0.0]
    if not len(moved):
        return 1.0
    found = float(np.ptp(moved.sum(axis=0)))
    beyond = 0
    for rows in _chunks(draws, moved.size):
        shuffled = rng.permuted(np.broadcast_to(moved, (rows, *moved.shape)), axis=2)
        beyond += int(np.count_nonzero(np.ptp(shuffled.sum(axis=1), axis=1) >= found * (1 - _ROUNDING)))
    return (1 + beyond) / (1 + draws)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjust p values so that, of all that fall below a level, any is false with no more than that probability.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979), 65-70.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return tuple(adjusted)


def standardized(differences: Floats) -> float | None:
    """Return the effect size of paired differences `[N]`: their mean in standard deviations of one.

    None when they have none: fewer than two samples, or all alike.

    Source: J. Cohen, "Statistical Power Analysis for the Behavioral Sciences" (1988), d of section 2.3.5.
    """
    deviation = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    return float(np.mean(differences)) / deviation if deviation > 0.0 else None


def detectable(standard_error: float, family: int) -> float:
    """Return the smallest true effect that is told from none with probability `POWER`, in the error's own unit."""
    return (_z(1 - ALPHA / family / 2) + _z(POWER)) * standard_error


def samples_to_settle(estimate: Estimate, margin: float, samples: int) -> int:
    """Return about how many samples bring the whole interval to one side of `margin`, should the value stay as it is.

    An interval narrows with the square root of the number of samples. A value within a quarter of the margin is taken
    for one a quarter away from it: nearer ones may take more.
    """
    reach = max(estimate.high - estimate.value, estimate.value - estimate.low)
    distance = max(abs(estimate.value - margin), margin / 4)
    return math.ceil(samples * (reach / distance) ** 2)


def _z(probability: float) -> float:
    return NormalDist().inv_cdf(probability)


def _chunks(draws: int, width: int) -> Iterator[int]:
    """Yield how many draws of `width` numbers to make at a time."""
    step = max(1, _CHUNK // max(1, width))
    for start in range(0, draws, step):
        yield min(step, draws - start)
