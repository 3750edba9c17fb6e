"""Contest: which of two forms of a network is right more often on the same samples?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_devicelab.verdicts.statistics import exact_sign_p, paired_share


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """Top-1 accuracy of two forms on the same samples.

    Attributes:
        reference_only: samples that only the first gets right; `observed_only`: that only the second does.
        loss: of the second against the first, as a share of 1, below 0 for a gain; `low` and `high` bound it with
            95 % confidence over all pairs of the network (Agresti and Min, Bonferroni).
        p_value: that both are as often right (McNemar's exact test).
    """

    reference: str
    observed: str
    samples: int
    reference_only: int
    observed_only: int
    loss: float
    low: float
    high: float
    p_value: float


def contest_of(
    reference: str, observed: str, right: Mapping[str, npt.NDArray[np.bool_]], family: int
) -> Contest:
    """Return the contest of two forms.

    Args:
        reference: the first.
        observed: the second.
        right: by form, which samples it gets right, `[N]`.
        family: how many contests are held on these samples, which all bounds hold for together.
    """
    wins = int(np.count_nonzero(right[reference] & ~right[observed]))
    losses = int(np.count_nonzero(right[observed] & ~right[reference]))
    samples = len(right[reference])
    share = paired_share(wins, losses, samples, family)
    return Contest(
        reference=reference,
        observed=observed,
        samples=samples,
        reference_only=wins,
        observed_only=losses,
        loss=share.value,
        low=share.low,
        high=share.high,
        p_value=exact_sign_p(wins, losses),
    )


def outdone(contests: Sequence[Contest], allowed: float) -> list[str]:
    """Name each form that is surely less accurate than another, with the one that shows it best."""
    shown: dict[str, tuple[float, str]] = {}
    for contest in contests:
        better, worse, low = contest.reference, contest.observed, contest.low
        if contest.loss < 0:
            better, worse, low = worse, better, -contest.high
        if low > max(allowed, shown.get(worse, (allowed, ""))[0]):
            told = (
                f"{worse} is less accurate than {better}: {abs(contest.loss):.2%} of the samples, at least {low:.2%} "
                f"with 95 % confidence, where {allowed:.2%} are allowed"
            )
            shown[worse] = low, told
    return [told for _, told in shown.values()]
