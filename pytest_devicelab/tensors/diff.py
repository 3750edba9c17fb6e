"""Differences of two tensors in memory, bit for bit, with their size in the units engineers use."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pytest_devicelab.errors import TensorMismatch
from pytest_devicelab.tensors.accumulator import DiffAccumulator
from pytest_devicelab.tensors.formats import codes_of, format_of
from pytest_devicelab.tensors.result import TensorDiff, Tolerance

__all__ = ["TensorDiff", "Tolerance", "diff_bitwise", "diff_tensors"]

Array = npt.NDArray[np.generic]


def diff_bitwise(reference: Array, observed: Array, *, lsb: float | None = None) -> TensorDiff:
    """Compare two tensors bit for bit.

    Args:
        reference: golden output, any shape including 0-d; bool, integer or float of at most 64 bits, or
            `bfloat16`, `int4`, `uint4` of ml_dtypes.
        observed: device output, same shape and dtype as `reference`; byte order does not count.
        lsb: one quantization step in the tensor's own units: the scale of a dequantized float tensor,
            1 for raw quantized integers; None when unknown.

    Returns:
        A `TensorDiff` without spread and top-k; falsy when any bit differs. NaNs compare by payload, -0.0
        differs from 0.0.

    Raises:
        TensorMismatch: shapes or dtypes differ, the dtype has no such bits, or there is nothing to compare.

    Source: IEEE 754-2019 section 6.2 (NaN payloads) and section 6.3 (the sign bit of zero).
    """
    return _diff(reference, observed, lsb, spread=False)


def diff_tensors(reference: Array, observed: Array, *, lsb: float | None = None) -> TensorDiff:
    """Compare two tensors as `diff_bitwise` does, with percentiles, KL, Wasserstein-1 and top-k agreement."""
    return _diff(reference, observed, lsb, spread=True)


def _diff(reference: Array, observed: Array, lsb: float | None, *, spread: bool) -> TensorDiff:
    _check_comparable(reference, observed)
    number = format_of(reference.dtype)
    accumulator = DiffAccumulator(number, reference.shape, lsb=lsb, spread=spread)
    accumulator.feed(codes_of(reference), codes_of(observed))
    return accumulator.finish()


def _check_comparable(reference: Array, observed: Array) -> None:
    """Refuse pairs for which "equal" would have no meaning."""
    expected, found = (f"{array.dtype} {list(array.shape)}" for array in (reference, observed))
    problem = ""
    if (
        reference.dtype.newbyteorder("=") != observed.dtype.newbyteorder("=")
        or reference.shape != observed.shape
    ):
        problem = "dtype or shape differ"
    elif reference.size == 0:
        problem = "there are no elements, and comparing nothing is never equal"
    else:
        try:
            format_of(reference.dtype)
        except TensorMismatch as error:
            problem = error.what
    if problem:
        raise TensorMismatch(
            f"tensors cannot be compared: expected {expected}, found {found}",
            why=problem,
            fix="compare the same output of the same model, with at least one sample",
            expected=expected,
            found=found,
        )
