"""Number formats: what the bits of an element mean, for every fixed-size dtype a model can output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from pytest_devicelab.errors import TensorMismatch

Array = npt.NDArray[np.generic]
Codes = npt.NDArray[np.unsignedinteger]
Floats = npt.NDArray[np.float64]
Ordinals = npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One number format; its elements are held as codes, unsigned integers of at least 8 bits.

    Attributes:
        name: as numpy and ml_dtypes name it: `float16`, `bfloat16`, `int4`.
        bits: of one element; a bool is a byte.
        mantissa_bits: stored mantissa bits of a float, 0 for the others.
    """

    name: str
    kind: Literal["bool", "int", "uint", "float"]
    bits: int
    mantissa_bits: int = 0

    @property
    def storage(self) -> np.dtype[np.unsignedinteger]:
        """The dtype of the codes."""
        return np.dtype(f"u{max(self.bits, 8) // 8}")

    @property
    def sign(self) -> int:
        """The sign bit of a float."""
        return 1 << (self.bits - 1)

    @property
    def infinity(self) -> int:
        """The code of infinity of a float: all exponent bits; larger magnitudes are NaNs."""
        return self.sign - (1 << self.mantissa_bits)

    def size_bytes(self, elements: int) -> int:
        """Return the bytes of that many elements in a file; two 4-bit elements share a byte."""
        return (elements * self.bits + 7) // 8


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        each.name: each
        for each in (
            Format(name="bool", kind="bool", bits=8),
            *(Format(name=f"int{bits}", kind="int", bits=bits) for bits in (4, 8, 16, 32, 64)),
            *(Format(name=f"uint{bits}", kind="uint", bits=bits) for bits in (4, 8, 16, 32, 64)),
            Format(name="float16", kind="float", bits=16, mantissa_bits=10),
            Format(name="bfloat16", kind="float", bits=16, mantissa_bits=7),
            Format(name="float32", kind="float", bits=32, mantissa_bits=23),
            Format(name="float64", kind="float", bits=64, mantissa_bits=52),
        )
    }
)


def format_named(name: str) -> Format:
    """Return the format of a name such as `bfloat16`.

    Raises:
        TensorMismatch: there is none.
    """
    found = FORMATS.get(name)
    if found is None:
        raise TensorMismatch(
            f"{name} is no format of numbers that can be compared",
            why=f"only these are known: {', '.join(FORMATS)}",
            fix="convert the tensor to one of them, or name the format its bytes are in",
            found=name,
        )
    return found


def format_of(dtype: np.dtype[np.generic]) -> Format:
    """Return the format of a numpy or ml_dtypes dtype; byte order does not count.

    Raises:
        TensorMismatch: its elements are no numbers of a known fixed size: objects, text, records, complex.
    """
    return format_named(dtype.name)


def codes_of(array: Array) -> Codes:
    """Return the codes of an array in C order, `[elements]`, without a copy where the memory allows.

    Raises:
        TensorMismatch: the dtype is unknown.
    """
    number = format_of(array.dtype)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    codes: Codes = np.ascontiguousarray(array).reshape(-1).view(number.storage)
    # ml_dtypes keeps a 4-bit element in a byte, and what its upper half holds means nothing.
    return codes & np.uint8(0x0F) if number.bits == 4 else codes


def unpack_nibbles(packed: npt.NDArray[np.uint8], elements: int) -> Codes:
    """Return the codes of packed 4-bit elements, `[elements]`.

    Args:
        packed: two elements a byte, the first in the low half; an odd last upper half is padding.
        elements: at most twice the bytes.

    Source: ONNX documentation, "4 bit integer types", packing and unpacking.
    """
    codes = np.empty(2 * packed.size, np.uint8)
    codes[0::2] = packed & 0x0F
    codes[1::2] = packed >> 4
    return codes[:elements]


def values_of(codes: Codes, number: Format) -> Floats:
    """Return the numbers as float64, exact but for 64-bit integers beyond 2**53."""
    if number.kind != "float":
        return ordinals_of(codes, number).astype(np.float64)
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one, which is no news
        if number.name == "bfloat16":
            return (codes.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
        return codes.view(number.name).astype(np.float64)


def ordinals_of(codes: Codes, number: Format) -> Ordinals:
    """Return each element's place on the number line: the neighbour of a number is one step away.

    Both zeros are at 0, infinity is one step beyond the largest number; a NaN has no place, and what is
    returned for it means nothing.

    Returns:
        int64 `[elements]`; uint64 for uint64.
    """
    if number.kind == "bool":
        bools: Ordinals = (codes != 0).astype(np.int64)
        return bools
    if number.kind == "uint":
        unsigned: Ordinals = codes.astype(np.uint64 if number.bits == 64 else np.int64)
        return unsigned
    if number.kind == "int":
        signed: Ordinals = codes.view(f"i{codes.itemsize}")
        return (signed << 4 >> 4 if number.bits == 4 else signed).astype(np.int64)
    places: npt.NDArray[np.int64] = (codes & codes.dtype.type(number.sign - 1)).astype(np.int64)
    np.negative(places, out=places, where=codes >= codes.dtype.type(number.sign))
    return places


def is_nan(codes: Codes, number: Format) -> npt.NDArray[np.bool_]:
    """Say which elements of a float format are NaN."""
    magnitude = codes & codes.dtype.type(number.sign - 1)
    return magnitude > codes.dtype.type(number.infinity)


def steps_between(reference: Ordinals, observed: Ordinals) -> npt.NDArray[np.uint64]:
    """Return how many representable numbers apart two ordinals are, exact up to 2**64 - 1."""
    # The distance of two 64-bit integers needs 64 bits without a sign; modulo 2**64 it comes out exact.
    above, below = np.maximum(reference, observed), np.minimum(reference, observed)
    gap: npt.NDArray[np.uint64] = above.view(np.uint64) - below.view(np.uint64)
    return gap


def distances_of(reference: Codes, observed: Codes, number: Format) -> Floats:
    """Return `|observed - reference|` of each pair as float64, integers subtracted without wrapping.

    Two NaNs are at distance 0; when only one value is NaN or infinite, the distance is inf.
    """
    if number.kind != "float":
        return steps_between(ordinals_of(reference, number), ordinals_of(observed, number)).astype(np.float64)
    left, right = values_of(reference, number), values_of(observed, number)
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.subtract(right, left)
        np.abs(distance, out=distance)
    odd = np.isnan(distance)
    if odd.any():
        alike = (left == right) | (np.isnan(left) & np.isnan(right))
        distance[odd] = np.where(alike[odd], 0.0, np.inf)
    return distance


def relative_distances(distances: Floats, reference: Floats) -> Floats:
    """Return `distance / |reference|`: 0 where the distance is, inf from a reference of zero or NaN."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        relative = distances / np.abs(reference)
    relative[np.isnan(relative)] = np.inf
    relative[distances == 0.0] = 0.0
    return relative
