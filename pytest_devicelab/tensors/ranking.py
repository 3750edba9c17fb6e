"""Whether two tensors of class scores rank the same classes highest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_devicelab.tensors.formats import Codes, Format, Ordinals, is_nan, ordinals_of

_RANKS = (1, 5)
# A longer axis holds no classes; and a whole one of them is kept in memory.
_MOST_CLASSES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """Top-k agreement: the share of samples whose `k` largest classes are the same set in both tensors."""

    k: int
    samples: int
    agreement: float


class RankAgreement:
    """Counts the samples whose largest classes agree, some rows at a time."""

    def __init__(self, number: Format, classes: int) -> None:
        self._number, self._classes = number, classes
        self._samples = 0
        self._agreeing = dict.fromkeys((k for k in _RANKS if k < classes), 0)

    def add(self, reference: Codes, observed: Codes) -> None:
        """Count samples: codes `[rows * classes]`, whole rows."""
        left, right = (each.reshape(-1, self._classes) for each in (reference, observed))
        changed = np.any(left != right, axis=1)
        self._samples += len(left)
        scores = [scores_of(each[changed].reshape(-1), self._number) for each in (left, right)]
        rows = [each.reshape(-1, self._classes) for each in scores]
        for k in self._agreeing:
            same = np.all(top_set(rows[0], k) == top_set(rows[1], k), axis=1)
            self._agreeing[k] += len(left) - len(same) + int(np.count_nonzero(same))

    def finish(self) -> tuple[TopK, ...]:
        """Return the agreement over all samples, for k = 1 and, where there are more classes, k = 5."""
        return tuple(
            TopK(k=k, samples=self._samples, agreement=agreeing / self._samples)
            for k, agreeing in self._agreeing.items()
        )


def has_classes(shape: tuple[int, ...]) -> bool:
    """Say whether a tensor has the shape of class scores, `[N, classes]` with more than one class."""
    return len(shape) == 2 and 1 < shape[1] <= _MOST_CLASSES


def scores_of(codes: Codes, number: Format) -> Ordinals:
    """Return what ranks the elements: their place on the number line, NaN below all others."""
    scores = ordinals_of(codes, number)
    if number.kind == "float":
        scores[is_nan(codes, number)] = np.iinfo(np.int64).min
    return scores


def top_set(scores: Ordinals, k: int) -> npt.NDArray[np.bool_]:
    """Mark the `k` largest of each row `[rows, classes]`; of equals the lower index comes first."""
    smallest = np.partition(scores, -k, axis=1)[:, -k, None]
    above, level = scores > smallest, scores == smallest
    places = k - np.count_nonzero(above, axis=1, keepdims=True)
    chosen: npt.NDArray[np.bool_] = above | (level & (np.cumsum(level, axis=1) <= places))
    return chosen
