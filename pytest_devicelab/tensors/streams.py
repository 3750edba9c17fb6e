"""Tensor pairs of any size, block by block: what is kept is sums and histograms, never the tensors."""

from __future__ import annotations

from types import ModuleType
from typing import Protocol

import numpy as np

from pytest_devicelab.tensors.bins import Bins
from pytest_devicelab.tensors.equality import count_different
from pytest_devicelab.tensors.formats import Codes, Format
from pytest_devicelab.tensors.moments import Moments, equal_moments, moments_of
from pytest_devicelab.tensors.spread import Spread, exact_spread

# Temporaries of numpy's way stay below the size for which the C library maps, and clears, new pages.
_NUMPY_BLOCK = 1 << 13
_FAST_BLOCK = 1 << 16
_PAIRS_BLOCK = 1 << 18


class Stream(Protocol):
    """Takes a pair of code arrays block by block."""

    def add(self, reference: Codes, observed: Codes) -> None:
        """Take the next elements, `[n]` with n above zero."""

    def finish(self) -> tuple[Moments, Spread | None]:
        """Return what all elements add up to, and their spread where it was asked for."""


class PairStream:
    """For formats of at most 8 bits: how often each of the 65,536 pairs of codes occurs says everything."""

    def __init__(self, number: Format, *, spread: bool, fast: ModuleType | None) -> None:
        self._number, self._spread, self._fast = number, spread, fast
        self._pairs = np.zeros(1 << 16, np.int64)

    def add(self, reference: Codes, observed: Codes) -> None:
        """Count the pairs."""
        if self._fast is not None:
            self._fast.fast_pairs(reference, observed, self._pairs)
            return
        for start in range(0, reference.size, _PAIRS_BLOCK):
            left, right = (
                each[start : start + _PAIRS_BLOCK].astype(np.intp) for each in (reference, observed)
            )
            self._pairs += np.bincount(left << 8 | right, minlength=self._pairs.size)

    def finish(self) -> tuple[Moments, Spread | None]:
        """Weigh each pair by its count; exact at any size."""
        found = np.flatnonzero(self._pairs)
        weights = self._pairs[found]
        codes = (found >> 8).astype(np.uint8), (found & 0xFF).astype(np.uint8)
        spread = exact_spread(*codes, self._number, weights) if self._spread else None
        return moments_of(*codes, self._number, weights), spread


class BlockStream:
    """For every format: moments of each block, and its histograms where a spread is asked for."""

    def __init__(self, number: Format, *, spread: bool, fast: ModuleType | None) -> None:
        self._number, self._fast = number, fast
        self._bins = Bins(number) if spread else None
        self._moments: Moments | None = None

    def add(self, reference: Codes, observed: Codes) -> None:
        """Add up blocks of a size that stays in the processor's cache."""
        size = _NUMPY_BLOCK if self._fast is None else _FAST_BLOCK
        for start in range(0, reference.size, size):
            moments = self._block(reference[start : start + size], observed[start : start + size])
            self._moments = moments if self._moments is None else self._moments + moments

    def finish(self) -> tuple[Moments, Spread | None]:
        """Return the sums, and the spread of the histograms."""
        moments = self._moments
        if moments is None:
            raise ValueError("no element was added")
        if self._bins is None:
            return moments, None
        return moments, self._bins.spread(max_abs=moments.max_abs, max_rel=moments.max_rel)

    def _block(self, reference: Codes, observed: Codes) -> Moments:
        moments: Moments
        equal = count_different(reference, observed, fast=self._fast) == 0  # most blocks of most pairs
        if self._fast is not None:
            if equal:
                moments = self._fast.fast_equal_block(reference, self._number, self._bins)
            else:
                moments = self._fast.fast_block(reference, observed, self._number, self._bins)
            return moments
        if equal:
            if self._bins is not None:
                self._bins.count_equal(reference)
            return equal_moments(reference, self._number)
        if self._bins is not None:
            self._bins.count(reference, observed)
        return moments_of(reference, observed, self._number)
