from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from pytest_devicelab.errors import TensorMismatch
from pytest_devicelab.tensors.diff import diff_bitwise, diff_tensors
from pytest_devicelab.tensors.formats import (
    FORMATS,
    codes_of,
    format_named,
    format_of,
    is_nan,
    ordinals_of,
    unpack_nibbles,
    values_of,
)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_a_dtype_of_numpy_or_ml_dtypes(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    number = format_of(dtype)
    ones = np.ones(3, dtype)
    assert (number.name, number.storage.itemsize) == (name, dtype.itemsize)
    assert values_of(codes_of(ones), number).tolist() == [1.0, 1.0, 1.0]
    assert diff_tensors(ones, ones)
    assert diff_tensors(ones, np.zeros(3, dtype)).max_abs == 1.0


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_floats_are_read_as_numpy_and_ml_dtypes_read_them(name: str) -> None:
    codes = np.arange(1 << 16).astype(np.uint16)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        expected = codes.view(getattr(ml_dtypes, name, name)).astype(np.float64)
    np.testing.assert_array_equal(values_of(codes, FORMATS[name]), expected)
    np.testing.assert_array_equal(is_nan(codes, FORMATS[name]), np.isnan(expected))


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_ordinals_are_the_ranks_of_the_values(name: str) -> None:
    codes = np.arange(1 << 16).astype(np.uint16)
    codes = codes[~is_nan(codes, FORMATS[name])]
    values = values_of(codes, FORMATS[name])
    ranks = np.searchsorted(np.unique(values), values)  # np.unique holds 0.0 once, as the number line does
    np.testing.assert_array_equal(ordinals_of(codes, FORMATS[name]), ranks - ranks[codes == 0])


def test_ulp_by_hand() -> None:
    def ulp(left: float, right: float, dtype: str) -> int | None:
        return diff_bitwise(np.array(left, dtype), np.array(right, dtype)).max_ulp

    above = np.nextafter(np.float32(1), np.float32(2))
    assert ulp(1.0, float(above), "float32") == 1
    assert ulp(1.0, 2.0, "float32") == 2**23
    assert ulp(-0.0, 0.0, "float64") == 0
    assert ulp(-5e-324, 5e-324, "float64") == 2
    assert ulp(float(np.finfo(np.float32).max), math.inf, "float32") == 1
    assert ulp(-math.inf, math.inf, "float16") == 2 * 0x7C00
    assert ulp(-math.inf, math.inf, "float64") == 2 * 0x7FF0000000000000
    assert ulp(math.nan, 1.0, "float32") is None
    assert ulp(math.nan, math.nan, "float32") == 0
    assert ulp(-128, 127, "int8") == 255
    assert ulp(-(2**63), 2**63 - 1, "int64") == 2**64 - 1


def test_denormals_are_numbers() -> None:
    diff = diff_tensors(np.array([1e-45, 0.0], np.float32), np.array([0.0, 0.0], np.float32))
    assert (diff.elements_different, diff.bits_different, diff.max_ulp) == (1, 1, 1)
    assert diff.max_abs == float(np.float32(1e-45))
    assert diff.sqnr_db == 0.0
    assert diff.cosine is None


def test_packed_nibbles_come_low_half_first() -> None:
    packed = np.array([0x21, 0xF3], np.uint8)
    assert unpack_nibbles(packed, 4).tolist() == [1, 2, 3, 15]
    assert unpack_nibbles(packed, 3).tolist() == [1, 2, 3]  # the last half is padding
    assert values_of(unpack_nibbles(packed, 4), FORMATS["int4"]).tolist() == [1, 2, 3, -1]
    assert values_of(unpack_nibbles(packed, 4), FORMATS["uint4"]).tolist() == [1, 2, 3, 15]


def test_int4_differs_in_four_bits_at_most() -> None:
    left, right = (np.array([value], ml_dtypes.int4) for value in (-8, 7))
    diff = diff_tensors(left, right, lsb=0.5)
    assert (diff.bits_different, diff.bit_histogram, diff.max_abs, diff.max_lsb) == (
        4,
        (1, 1, 1, 1),
        15.0,
        30.0,
    )


def test_bit_histogram_by_hand() -> None:
    diff = diff_bitwise(np.array([0, 0, 0], np.uint16), np.array([1, 0x8001, 0], np.uint16))
    assert diff.bit_histogram == (2, *[0] * 14, 1)
    assert diff.bits_different == 3


@pytest.mark.parametrize("name", ["complex64", "float128", "object", "float8_e4m3fn", "int2"])
def test_other_formats_are_refused_by_name(name: str) -> None:
    with pytest.raises(TensorMismatch, match=f"{name} is no format") as caught:
        format_named(name)
    assert caught.value.evidence["found"] == name
