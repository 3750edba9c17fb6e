"""Bit-for-bit difference of two tensors, with the size of that difference in the units engineers use."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_devicelab.errors import TensorMismatch
from pytest_devicelab.tensors.metrics import cosine_similarity, distances, sqnr_db

Array = npt.NDArray[np.generic]

_KINDS = "biuf"
_WIDEST_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDiff:
    """How far one tensor is from another; falsy when any bit differs.

    Attributes:
        elements: compared elements.
        elements_different: elements of which at least one bit differs.
        bits_different: differing bits over all elements.
        max_abs: largest distance between two values; inf when only one of them is NaN or infinite. Two NaNs
            are at distance 0, as are 0.0 and -0.0: such differences show in the bits.
        max_lsb: `max_abs` in steps of the tensor's own quantization; None when that step is unknown.
        sqnr_db: signal to quantization-noise ratio; None when no value differs.
        cosine: cosine similarity; None when a tensor is all zeros or not finite.
    """

    elements: int
    elements_different: int
    bits_different: int
    max_abs: float
    max_lsb: float | None
    sqnr_db: float | None
    cosine: float | None

    def __bool__(self) -> bool:
        return self.elements_different == 0


def diff_bitwise(reference: Array, observed: Array, *, lsb: float | None = None) -> TensorDiff:
    """Compare two tensors bit for bit.

    Args:
        reference: golden output, any shape including 0-d; bool, integer or float of at most 64 bits.
        observed: device output, same shape and dtype as `reference`; byte order does not count.
        lsb: one quantization step in the tensor's own units: the scale of a dequantized float tensor,
            1 for raw quantized integers; None when unknown.

    Returns:
        A `TensorDiff`; falsy when any bit differs. NaNs compare by payload, -0.0 differs from 0.0.

    Raises:
        TensorMismatch: shapes or dtypes differ, the dtype has no such bits, or there is nothing to compare.

    Source: IEEE 754-2019 section 6.2 (NaN payloads) and section 6.3 (the sign bit of zero).
    """
    _check_comparable(reference, observed)
    if lsb is not None and not (math.isfinite(lsb) and lsb > 0):
        raise TensorMismatch(
            f"an LSB of {lsb} is no unit to measure in",
            why="a quantization step is a finite number above zero",
            fix="pass the output's own scale, or None when it is unknown",
            lsb=lsb,
        )
    left, right = _flat(reference), _flat(observed)
    changed = _bits(left) ^ _bits(right)
    max_abs = float(distances(left, right).max())
    return TensorDiff(
        elements=left.size,
        elements_different=int(np.count_nonzero(changed)),
        bits_different=int(np.count_nonzero(np.unpackbits(changed[changed != 0].view(np.uint8)))),
        max_abs=max_abs,
        max_lsb=None if lsb is None else max_abs / lsb,
        sqnr_db=sqnr_db(left, right),
        cosine=cosine_similarity(left, right),
    )


def _check_comparable(reference: Array, observed: Array) -> None:
    """Refuse pairs for which "equal" would have no meaning."""
    expected, found = (f"{array.dtype} {list(array.shape)}" for array in (reference, observed))
    problem = ""
    if (
        reference.dtype.newbyteorder("=") != observed.dtype.newbyteorder("=")
        or reference.shape != observed.shape
    ):
        problem = "dtype or shape differ"
    elif reference.dtype.kind not in _KINDS or reference.dtype.itemsize > _WIDEST_BYTES:
        problem = f"{reference.dtype} is not a bool, integer or float of at most 64 bits"
    elif reference.size == 0:
        problem = "there are no elements, and comparing nothing is never equal"
    if problem:
        raise TensorMismatch(
            f"tensors cannot be compared: expected {expected}, found {found}",
            why=problem,
            fix="compare the same output of the same model, with at least one sample",
            expected=expected,
            found=found,
        )


def _flat(array: Array) -> Array:
    """Return the elements in C order, native byte order, `[elements]`."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).reshape(-1)


def _bits(flat: Array) -> npt.NDArray[np.unsignedinteger]:
    return flat.view(f"u{flat.dtype.itemsize}")
