from __future__ import annotations

import math
import struct

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pytest_devicelab.errors import TensorMismatch
from pytest_devicelab.tensors.diff import diff_bitwise

Array = npt.NDArray[np.generic]

DTYPES = [
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
]


@st.composite
def tensor_pairs(draw: st.DrawFn) -> tuple[Array, Array]:
    """Two tensors of one dtype and shape that share some of their elements."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=4))
    reference = draw(hnp.arrays(dtype, shape))
    other = draw(hnp.arrays(dtype, shape))
    keep = draw(hnp.arrays(np.bool_, shape))
    return reference, np.where(keep, reference, other).astype(dtype)


def slow_distance(left: object, right: object) -> float:
    if isinstance(left, float) and isinstance(right, float):
        if left == right or (math.isnan(left) and math.isnan(right)):
            return 0.0
        distance = abs(right - left)
        return math.inf if math.isnan(distance) else distance
    assert isinstance(left, int)
    assert isinstance(right, int)
    return float(abs(int(right) - int(left)))


@settings(max_examples=300, deadline=None)
@given(tensor_pairs())
def test_agrees_with_an_element_by_element_reference(pair: tuple[Array, Array]) -> None:
    reference, observed = pair
    width = reference.dtype.itemsize
    left, right = reference.tobytes(), observed.tobytes()
    xors = [
        int.from_bytes(left[at : at + width], "little") ^ int.from_bytes(right[at : at + width], "little")
        for at in range(0, len(left), width)
    ]
    distances = [
        slow_distance(a, b)
        for a, b in zip(reference.reshape(-1).tolist(), observed.reshape(-1).tolist(), strict=True)
    ]

    diff = diff_bitwise(reference, observed)

    assert diff.elements == len(xors)
    assert diff.elements_different == sum(1 for xor in xors if xor)
    assert diff.bits_different == sum(xor.bit_count() for xor in xors)
    assert diff.max_abs == max(distances)
    assert bool(diff) == (left == right)
    assert (diff.sqnr_db is None) == (max(distances) == 0.0)


@given(tensor_pairs())
@settings(max_examples=100, deadline=None)
def test_is_symmetric_in_all_that_has_no_direction(pair: tuple[Array, Array]) -> None:
    reference, observed = pair
    forth, back = diff_bitwise(reference, observed), diff_bitwise(observed, reference)
    assert (forth.elements_different, forth.bits_different) == (back.elements_different, back.bits_different)
    assert forth.max_abs == back.max_abs
    assert forth.cosine == back.cosine


def test_worked_by_hand() -> None:
    reference = np.array([3.0, 4.0, 0.0], np.float32)
    observed = np.array([3.0, 4.0, 0.5], np.float32)

    diff = diff_bitwise(reference, observed, lsb=0.25)

    assert (diff.elements, diff.elements_different) == (3, 1)
    assert diff.bits_different == bin(0x3F000000).count("1")  # 0.5 against all zeros
    assert diff.max_abs == 0.5
    assert diff.max_lsb == 2.0
    assert diff.sqnr_db == pytest.approx(20.0)  # |signal| 5, |noise| 0.5
    assert diff.cosine == pytest.approx(25 / (5 * math.sqrt(25.25)))


def test_nan_payloads_and_signed_zeros_differ_in_bits_and_not_in_value() -> None:
    quiet, other = (struct.unpack("<f", struct.pack("<I", bits))[0] for bits in (0x7FC00000, 0x7FC00001))
    diff = diff_bitwise(np.array([0.0, 1.0], np.float32), np.array([-0.0, 1.0], np.float32))
    assert (bool(diff), diff.bits_different, diff.max_abs, diff.sqnr_db) == (False, 1, 0.0, None)

    left = np.frombuffer(struct.pack("<II", 0x7FC00000, 0), np.float32)
    right = np.frombuffer(struct.pack("<II", 0x7FC00001, 0), np.float32)
    diff = diff_bitwise(left, right)
    assert math.isnan(quiet)
    assert math.isnan(other)
    assert (diff.elements_different, diff.bits_different, diff.max_abs) == (1, 1, 0.0)
    assert diff.cosine is None


def test_identical_nans_and_infinities_are_identical() -> None:
    values = np.array([math.nan, math.inf, -math.inf, 1.0])
    assert diff_bitwise(values, values.copy())


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_value_that_stops_being_finite_is_infinitely_far(wrong: float) -> None:
    diff = diff_bitwise(np.array([1.0, 2.0]), np.array([1.0, wrong]), lsb=0.5)
    assert (diff.max_abs, diff.max_lsb, diff.sqnr_db) == (math.inf, math.inf, -math.inf)


def test_integers_do_not_wrap() -> None:
    assert diff_bitwise(np.array([0], np.uint8), np.array([255], np.uint8), lsb=1).max_lsb == 255
    assert diff_bitwise(np.array([-128], np.int8), np.array([127], np.int8)).max_abs == 255
    wide = np.iinfo(np.int64)
    assert diff_bitwise(np.array([wide.min]), np.array([wide.max])).max_abs == float(2**64 - 1)
    big = np.array([2**64 - 1], np.uint64)
    assert diff_bitwise(big, np.zeros(1, np.uint64)).max_abs == float(2**64 - 1)


def test_neighbouring_large_integers_are_noise() -> None:
    diff = diff_bitwise(np.array([2**60]), np.array([2**60 + 1]))
    assert diff.max_abs == 1.0
    assert diff.sqnr_db is not None


def test_a_single_number_can_be_compared() -> None:
    assert diff_bitwise(np.array(1.5), np.array(1.5)).elements == 1
    assert not diff_bitwise(np.array(1.5), np.array(2.5))


def test_byte_order_and_memory_layout_do_not_count() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert diff_bitwise(values, values.astype(">f4"))
    assert diff_bitwise(values, np.asfortranarray(values))


@pytest.mark.parametrize(
    ("reference", "observed"),
    [
        (np.zeros(3), np.zeros(4)),
        (np.zeros((2, 2)), np.zeros(4)),
        (np.zeros(3, np.float32), np.zeros(3, np.float64)),
        (np.zeros(3, np.int8), np.zeros(3, np.uint8)),
    ],
)
def test_mismatch_names_expected_and_found(reference: Array, observed: Array) -> None:
    with pytest.raises(TensorMismatch) as caught:
        diff_bitwise(reference, observed)
    assert caught.value.evidence == {
        "expected": f"{reference.dtype} {list(reference.shape)}",
        "found": f"{observed.dtype} {list(observed.shape)}",
    }
    assert f"expected {reference.dtype} {list(reference.shape)}" in str(caught.value)


@pytest.mark.parametrize(
    "nothing",
    [
        np.zeros(0),
        np.zeros((3, 0), np.int8),
        np.array([object()]),
        np.array(["text"]),
        np.zeros(1, np.complex64),
        np.zeros(1, np.longdouble),
    ],
)
def test_what_has_no_bits_to_compare_is_refused(nothing: Array) -> None:
    with pytest.raises(TensorMismatch, match="cannot be compared"):
        diff_bitwise(nothing, nothing)


@pytest.mark.parametrize("lsb", [0.0, -1.0, math.nan, math.inf])
def test_an_lsb_must_be_a_step(lsb: float) -> None:
    with pytest.raises(TensorMismatch, match="no unit"):
        diff_bitwise(np.ones(1), np.zeros(1), lsb=lsb)
