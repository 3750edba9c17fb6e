"""One way to compare a pair of tensors, in memory or in files: feed chunks, then finish."""

from __future__ import annotations

import math

import numpy as np

from pytest_devicelab.errors import TensorMismatch
from pytest_devicelab.tensors.compiled import load_fast, load_fast_for
from pytest_devicelab.tensors.formats import Codes, Format
from pytest_devicelab.tensors.ranking import RankAgreement, has_classes
from pytest_devicelab.tensors.result import TensorDiff, conclude
from pytest_devicelab.tensors.spread import exact_spread
from pytest_devicelab.tensors.streams import BlockStream, PairStream, Stream

# Up to here a pair is kept whole and its spread is exact; 8-bit formats are exact at any size.
EXACT_ELEMENTS = 1 << 20
# Below this numpy is done with a pair before the histogram of its codes is read.
_PAIRS_FROM = 1 << 16


class DiffAccumulator:
    """Compares two tensors of one format and shape, some elements at a time, in bounded memory.

    Args:
        number: the format of both.
        shape: of both, `[]` for a single number.
        lsb: one quantization step in the values' unit; None when unknown.
        spread: whether percentiles, divergence, Wasserstein distance and top-k agreement are wanted too.
        fast: whether to use the compiled kernels; None for when they are installed and worth loading.

    Raises:
        TensorMismatch: there are no elements, or the LSB is no step.
    """

    def __init__(
        self,
        number: Format,
        shape: tuple[int, ...],
        *,
        lsb: float | None = None,
        spread: bool = True,
        fast: bool | None = None,
    ) -> None:
        self._number, self._shape, self._lsb = number, shape, lsb
        self._elements, self._fed = math.prod(shape), 0
        self._check()
        self._granule = shape[1] if spread and has_classes(shape) else 1
        self._ranks = RankAgreement(number, shape[1]) if self._granule > 1 else None
        compiled = load_fast_for(self._elements) if fast is None else load_fast() if fast else None
        if fast and compiled is None:
            raise TensorMismatch(
                "the compiled kernels need numba", fix="pip install 'pytest-devicelab[fast]'"
            )
        pairs = number.bits <= 8 and self._elements >= _PAIRS_FROM
        exact = spread and not pairs and self._elements <= EXACT_ELEMENTS
        # The whole pair, `[2, elements]`, where it is small enough to keep.
        self._kept = np.empty((2, self._elements), number.storage) if exact else None
        kind = PairStream if pairs else BlockStream
        self._stream: Stream = kind(number, spread=spread and not exact, fast=compiled)

    @property
    def granule(self) -> int:
        """How many elements may not be torn apart: each chunk is a multiple of it."""
        return self._granule

    def feed(self, reference: Codes, observed: Codes) -> None:
        """Take the next elements, in C order.

        Args:
            reference: codes `[n]`, n a multiple of `granule`; the array may be used again after the call.
            observed: as many.

        Raises:
            TensorMismatch: the chunks are of unequal length, or more than the shape has room for.
        """
        start, end = self._fed, self._fed + reference.size
        if reference.size != observed.size or end > self._elements or reference.size % self._granule:
            raise self._mismatch("a chunk does not fit", f"chunks of {reference.size} and {observed.size}")
        if reference.size == 0:
            return
        self._fed = end
        self._stream.add(reference, observed)
        if self._kept is not None:
            self._kept[0, start:end], self._kept[1, start:end] = reference, observed
        if self._ranks is not None:
            self._ranks.add(reference, observed)

    def finish(self) -> TensorDiff:
        """Return the difference of all that was fed.

        Raises:
            TensorMismatch: elements are missing.
        """
        if self._fed != self._elements:
            raise self._mismatch("elements are missing", f"{self._fed} elements")
        moments, spread = self._stream.finish()
        if self._kept is not None:
            spread = exact_spread(self._kept[0], self._kept[1], self._number)
        top_k = () if self._ranks is None else self._ranks.finish()
        return conclude(moments, lsb=self._lsb, spread=spread, top_k=top_k)

    def _check(self) -> None:
        if self._elements == 0:
            raise self._mismatch("comparing nothing is never equal", "no element")
        if self._lsb is not None and not (math.isfinite(self._lsb) and self._lsb > 0):
            raise TensorMismatch(
                f"an LSB of {self._lsb} is no unit to measure in",
                why="a quantization step is a finite number above zero",
                fix="pass the output's own scale, or None when it is unknown",
                lsb=self._lsb,
            )

    def _mismatch(self, why: str, found: str) -> TensorMismatch:
        expected = f"{self._number.name} {list(self._shape)}"
        return TensorMismatch(
            f"tensors cannot be compared: expected {expected}, found {found}",
            why=why,
            fix="compare the same output of the same model, with at least one sample",
            expected=expected,
            found=found,
        )
