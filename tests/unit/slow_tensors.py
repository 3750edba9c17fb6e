"""The metrics of a tensor pair, element by element in plain Python: slow, and free of numpy's ways."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from pytest_devicelab.tensors.formats import Format

Number = int | float


def decode(code: int, number: Format) -> Number:
    if number.kind == "bool":
        return int(code != 0)
    if number.kind == "uint":
        return code
    if number.kind == "int":
        return code - (1 << number.bits) if code >> (number.bits - 1) else code
    if number.name == "bfloat16":
        return float(struct.unpack("<f", struct.pack("<I", code << 16))[0])
    letters = {16: ("<e", "<H"), 32: ("<f", "<I"), 64: ("<d", "<Q")}[number.bits]
    return float(struct.unpack(letters[0], struct.pack(letters[1], code))[0])


def distance(left: Number, right: Number) -> float:
    if left == right or (math.isnan(left) and math.isnan(right)):
        return 0.0
    if isinstance(left, int) and isinstance(right, int):
        return float(abs(right - left))
    apart = abs(right - left)
    return math.inf if math.isnan(apart) else float(apart)


def steps(left: int, right: int, number: Format) -> int:
    """Count the representable numbers from one to the other; the signed zeros are one number."""
    if number.kind != "float":
        return abs(int(decode(left, number)) - int(decode(right, number)))
    half = 1 << (number.bits - 1)
    places = [code if code < half else half - code for code in (left, right)]
    return abs(places[0] - places[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowDiff:
    different: int
    bit_histogram: tuple[int, ...]
    lone_nans: int
    max_ulp: int | None
    distances: list[float]
    relative: list[float]
    lefts: list[Number]
    rights: list[Number]

    def percentile(self, distances: Sequence[float], per_mille: int) -> float:
        rank = math.ceil(Fraction(per_mille * len(distances), 1000))
        return sorted(distances)[rank - 1]

    def sqnr_db(self) -> float | None:
        return self._decibel(sum(_square(each) for each in self.lefts if math.isfinite(each)))

    def psnr_db(self) -> float | None:
        finite = [_square(each) for each in self.lefts if math.isfinite(each)]
        return self._decibel(max(finite, default=Fraction(0)) * len(self.lefts))

    def _decibel(self, signal: Fraction | int) -> float | None:
        if max(self.distances) == 0.0:
            return None
        if math.inf in self.distances or signal == 0:
            return -math.inf
        noise = sum(_square(each) for each in self.distances)
        return 10 * (_log10(Fraction(signal)) - _log10(Fraction(noise)))

    def cosine(self) -> float | None:
        if not all(math.isfinite(each) for each in (*self.lefts, *self.rights)):
            return None
        left, right = (sum(_square(each) for each in side) for side in (self.lefts, self.rights))
        if not (left and right):
            return None
        dot = sum(Fraction(a) * Fraction(b) for a, b in zip(self.lefts, self.rights, strict=True))
        if dot == 0:
            return 0.0
        size = 10 ** (_log10(abs(Fraction(dot))) - (_log10(Fraction(left)) + _log10(Fraction(right))) / 2)
        return math.copysign(min(1.0, size), dot)


def slow_diff(reference: Sequence[int], observed: Sequence[int], number: Format) -> SlowDiff:
    pairs = list(zip(reference, observed, strict=True))
    lefts, rights = ([decode(each, number) for each in side] for side in (reference, observed))
    values = list(zip(lefts, rights, strict=True))
    distances = [distance(left, right) for left, right in values]
    lone_nans = sum(math.isnan(left) != math.isnan(right) for left, right in values)
    numbered = [
        steps(*pair, number)
        for pair, (left, right) in zip(pairs, values, strict=True)
        if not (math.isnan(left) or math.isnan(right))
    ]
    return SlowDiff(
        different=sum(left != right for left, right in pairs),
        bit_histogram=tuple(
            sum((left ^ right) >> bit & 1 for left, right in pairs) for bit in range(number.bits)
        ),
        lone_nans=lone_nans,
        max_ulp=None if lone_nans else max(numbered, default=0),
        distances=distances,
        relative=[_relative(each, left) for each, left in zip(distances, lefts, strict=True)],
        lefts=lefts,
        rights=rights,
    )


def _relative(apart: float, left: Number) -> float:
    if apart == 0.0:
        return 0.0
    if left == 0 or not math.isfinite(left) or apart == math.inf:
        return math.inf
    try:
        return apart / abs(float(left))
    except OverflowError:
        return math.inf


def _square(value: Number) -> Fraction:
    return Fraction(value) ** 2


def _log10(value: Fraction) -> float:
    return math.log10(value.numerator) - math.log10(value.denominator)
