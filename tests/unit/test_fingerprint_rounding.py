from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.audit.fingerprint.halves import flushed, past_infinity, to_half
from pytest_devicelab.audit.fingerprint.rounding import (
    ROUNDINGS,
    round_multiple,
    shortened,
    store,
    whole,
)

# What each mode makes of -2.5 -1.5 -0.5 0.5 1.5 2.5 and of -1.25 1.25 -1.75 1.75; written down by hand.
BY_HAND = {
    "half even": ([-2, -2, 0, 0, 2, 2], [-1, 1, -2, 2]),
    "half away from zero": ([-3, -2, -1, 1, 2, 3], [-1, 1, -2, 2]),
    "half toward zero": ([-2, -1, 0, 0, 1, 2], [-1, 1, -2, 2]),
    "half up": ([-2, -1, 0, 1, 2, 3], [-1, 1, -2, 2]),
    "half down": ([-3, -2, -1, 0, 1, 2], [-1, 1, -2, 2]),
    "floor": ([-3, -2, -1, 0, 1, 2], [-2, 1, -2, 1]),
    "ceil": ([-2, -1, 0, 1, 2, 3], [-1, 2, -1, 2]),
    "truncate": ([-2, -1, 0, 0, 1, 2], [-1, 1, -1, 1]),
}


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_modes_by_hand(mode: str) -> None:
    ties, others = BY_HAND[mode]
    assert round_multiple(whole([-5, -3, -1, 1, 3, 5]), Fraction(1, 2), mode).tolist() == ties
    assert round_multiple(whole([-5, 5, -7, 7]), Fraction(1, 4), mode).tolist() == others


@given(st.integers(-(10**15), 10**15), st.fractions(min_value=Fraction(1, 10**9), max_value=10**6))
def test_rounding_is_exact_however_long_the_numbers(count: int, unit: Fraction) -> None:
    counts = np.array([count], dtype=object)
    exact = count * unit
    assert round_multiple(counts, unit, "half even")[0] == round(exact)
    assert round_multiple(counts, unit, "floor")[0] == math.floor(exact)
    assert round_multiple(counts, unit, "ceil")[0] == math.ceil(exact)
    assert round_multiple(counts, unit, "truncate")[0] == math.trunc(exact)
    assert round_multiple(counts, unit, "half up")[0] == math.floor(exact + Fraction(1, 2))


def test_codes_saturate_or_wrap() -> None:
    values = whole([-1, 0, 255, 256, 300])
    assert store(values, "uint8").tolist() == [0, 0, 255, 255, 255]
    assert store(values, "uint8", overflow="wrap").tolist() == [255, 0, 255, 0, 44]
    assert store(whole([-129, 128]), "int8", overflow="wrap").tolist() == [127, -128]


@given(st.fractions(min_value=Fraction(1, 10**6), max_value=10**6), st.integers(2, 31))
def test_a_shortened_multiplier_has_that_many_bits_and_is_close(unit: Fraction, bits: int) -> None:
    short = shortened(unit, bits)
    mantissa = short.numerator
    while mantissa % 2 == 0:
        mantissa //= 2
    assert mantissa.bit_length() <= bits
    assert abs(short - unit) / unit <= Fraction(1, 2**bits)


@given(st.floats(min_value=-65519, max_value=65519))
def test_half_even_is_numpy_s(value: float) -> None:
    assert to_half([value]).view(np.uint16) == np.array([value]).astype(np.float16).view(np.uint16)


def test_half_overflow_and_denormals() -> None:
    assert to_half([65520.0, -1e9]).tolist() == [math.inf, -math.inf]
    assert to_half([65520.0, -1e9], clamp=True).tolist() == [65504, -65504]
    assert to_half([2.0**-24, 2.0**-14], flush=True).tolist() == [0, 2.0**-14]
    assert math.copysign(1, to_half([-(2.0**-24)], flush=True)[0]) == -1
    assert to_half([1 + 2.0**-11], rounding="half up")[0] == 1 + 2.0**-10
    assert to_half([math.nan])[0] != to_half([math.nan])[0]
    assert flushed(np.array([2.0**-15, 1], np.float16)).tolist() == [0, 1]


def test_float16_without_infinity_uses_its_exponent_for_numbers() -> None:
    # 120000 = 1.8310546875 * 2**16: exponent bits 31, mantissa round(0.8310546875 * 1024) = 851 = 0x353.
    assert past_infinity([120000.0]).view(np.uint16).tolist() == [0x7C00 | 0x353]
    assert past_infinity([-120000.0]).view(np.uint16).tolist() == [0xFC00 | 0x353]
    assert past_infinity([65536.0]).view(np.uint16).tolist() == [0x7C00]
    assert past_infinity([1e9]).view(np.uint16).tolist() == [0x7FFF]
    assert past_infinity([1.5]).tolist() == [1.5]
