"""Histograms that stand for tensors too large to keep: fine bins of fixed edges, filled block by block."""

from __future__ import annotations

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
from pytest_devicelab.tensors.spread import (
    DISTANCE_BITS,
    DISTANCE_SHIFT,
    VALUE_BITS,
    VALUE_SHIFT,
    Percentiles,
    Sample,
    Spread,
    kl_divergence,
    percentiles,
    wasserstein,
    wasserstein_error,
)

Counts = npt.NDArray[np.int64]

_EXPONENT_BITS = 11


class Bins:
    """Counts of the distances and the values of a pair.

    Bins are the leading bits of a float64, so their edges are known before the first value is, and a bin is
    never wider than a fixed share of its value. Values of 16-bit formats have a bin each and stay exact. An
    array is some megabytes of address space, of which only the bins in use become memory.

    Attributes:
        absolute: counts of distances, by exponent and eight bits of mantissa; `relative` the same.
        reference: counts of values, by code for 16-bit formats, else by sign, exponent and ten bits of
            mantissa; `observed` the same.
        equal: counts of values in pairs of which neither bit differs; they belong to both tensors.
    """

    def __init__(self, number: Format) -> None:
        self.number = number
        distances = 1 << (_EXPONENT_BITS + DISTANCE_BITS)
        values = 1 << (16 if number.bits == 16 else 1 + _EXPONENT_BITS + VALUE_BITS)
        self.absolute, self.relative = np.zeros(distances, np.int64), np.zeros(distances, np.int64)
        self.reference, self.observed = np.zeros(values, np.int64), np.zeros(values, np.int64)
        self.equal = np.zeros(values, np.int64)

    def count(self, reference: Codes, observed: Codes) -> None:
        """Count one block of codes `[elements]`."""
        left, right = values_of(reference, self.number), values_of(observed, self.number)
        distances = distances_of(reference, observed, self.number)
        relative = relative_distances(distances, left)
        for counts, numbers in ((self.absolute, distances), (self.relative, relative)):
            _add(counts, numbers.view(np.uint64) >> np.uint64(DISTANCE_SHIFT))
        _add(self.reference, self._value_keys(reference, left))
        _add(self.observed, self._value_keys(observed, right))

    def count_equal(self, both: Codes) -> None:
        """Count one block in which no bit differs."""
        for counts in (self.absolute, self.relative):
            counts[0] += both.size
        _add(self.equal, self._value_keys(both, values_of(both, self.number)))

    def spread(self, *, max_abs: float, max_rel: float) -> Spread:
        """Return the spread of all that was counted; the maxima bound the uppermost percentiles."""
        samples = self._sample(self.reference), self._sample(self.observed)
        return Spread(
            absolute=_percentiles(self.absolute, max_abs, whole=self.number.kind != "float"),
            relative=_percentiles(self.relative, max_rel, whole=False),
            percentile_error=2.0**-DISTANCE_BITS,
            kl=kl_divergence(*samples),
            wasserstein=wasserstein(*samples),
            wasserstein_error=wasserstein_error(*samples),
        )

    def _value_keys(self, codes: Codes, values: Floats) -> npt.NDArray[np.unsignedinteger]:
        return codes if self.number.bits == 16 else values.view(np.uint64) >> np.uint64(VALUE_SHIFT)

    def _sample(self, counts: Counts) -> Sample:
        """Return the finite values that were counted; a bin of many values is told by its middle."""
        used = np.union1d(np.flatnonzero(counts), np.flatnonzero(self.equal))
        total = counts[used] + self.equal[used]
        if self.number.bits == 16:
            values = values_of(used.astype(np.uint16), self.number)
            finite = np.isfinite(values)
            return Sample(numbers=values[finite], counts=total[finite])
        near, far = _edges(used, VALUE_SHIFT), _edges(used + 1, VALUE_SHIFT)
        finite = np.isfinite(near)
        near, far = near[finite], far[finite]
        # Beyond the uppermost finite bin there is infinity, whose middle would be infinite too.
        largest = np.copysign(np.finfo(np.float64).max, near)
        half = np.where(np.isfinite(far), far, largest) / 2 - near / 2
        return Sample(numbers=near + half, counts=total[finite], half_widths=np.abs(half))


def _edges(keys: npt.NDArray[np.intp], shift: int) -> Floats:
    """Return the end nearer to zero of each bin."""
    return (keys.astype(np.uint64) << np.uint64(shift)).view(np.float64)


def _add(counts: Counts, keys: npt.NDArray[np.unsignedinteger]) -> None:
    # `bincount` would allocate and add all bins at every block.
    np.add.at(counts, keys.astype(np.intp), 1)


def _percentiles(counts: Counts, largest: float, *, whole: bool) -> Percentiles:
    """Return percentiles that are never too small: the largest distance, or whole number, in their bins."""
    used = np.flatnonzero(counts)
    upper = _edges(used + 1, DISTANCE_SHIFT)
    if whole:
        upper = np.ceil(upper) - 1.0
    upper[used == 0] = 0.0  # nothing but zeros, or distances below 2**-1030
    upper[~np.isfinite(upper)] = np.inf
    return percentiles(np.minimum(upper, largest), counts[used])
