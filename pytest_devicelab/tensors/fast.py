"""The same sums and histograms as `moments` and `bins`, compiled; needs the `fast` extra (numba).

Only plain blocks are done here: finite, and far from the ends of float64. All others, and 64-bit integers,
are left to the numpy code, so that the rules for odd values are written once.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numba import njit

from pytest_devicelab.tensors.bins import Bins
from pytest_devicelab.tensors.formats import Codes, Format, values_of
from pytest_devicelab.tensors.moments import PLAIN, Moments, ScaledSum, equal_moments, moments_of
from pytest_devicelab.tensors.spread import DISTANCE_SHIFT, VALUE_SHIFT

Counts = npt.NDArray[np.int64]
Values = npt.NDArray[np.float32] | npt.NDArray[np.float64]

# Elements whose distances and keys stay in the first-level cache between the loops of one kernel.
_TILE = 1024
# Sums in any order, and no NaN or infinity, are what lets the compiler use vector registers.
_ANY_ORDER = ("reassoc", "nsz", "contract", "nnan", "ninf")
# Eight positions of a 64-bit word are counted at once, in its bytes, which overflow after 255 words.
_BYTES = np.uint64(0x0101010101010101)
_WORDS = 255


def fast_block(reference: Codes, observed: Codes, number: Format, bins: Bins | None) -> Moments:
    """Count a block in `bins`, unless there are none, and return its moments, whose last digits may differ."""
    left, right = _plain_values(reference, number), _plain_values(observed, number)
    if left is None or right is None:
        if bins is not None:
            bins.count(reference, observed)
        return moments_of(reference, observed, number)
    if bins is not None:
        _count_distances(left, right, bins.absolute, bins.relative)
        if number.bits == 16:
            _count_codes(reference, bins.reference)
            _count_codes(observed, bins.observed)
        else:
            _count_values(left, bins.reference)
            _count_values(right, bins.observed)
    return _moments(reference, observed, number, (left, right))


def fast_equal_block(both: Codes, number: Format, bins: Bins | None) -> Moments:
    """Do the same for a block in which no bit differs."""
    values = _plain_values(both, number)
    if values is None:
        if bins is not None:
            bins.count_equal(both)
        return equal_moments(both, number)
    if bins is not None:
        bins.absolute[0] += both.size
        bins.relative[0] += both.size
        if number.bits == 16:
            _count_codes(both, bins.equal)
        else:
            _count_values(values, bins.equal)
    return _moments(both, both, number, (values, values))


def fast_pairs(reference: Codes, observed: Codes, pairs: Counts) -> None:
    """Add one to `pairs`, `[256 * 256]`, for each pair of 8-bit codes, at `256 * reference + observed`."""
    _count_pairs(reference, observed, pairs)


def fast_different(reference: Codes, observed: Codes) -> int:
    """Return in how many elements two code arrays `[elements]` differ."""
    return int(_count_different(reference, observed))


def _moments(reference: Codes, observed: Codes, number: Format, pair: tuple[Values, Values]) -> Moments:
    sums, largest = np.empty(6), np.empty(3, np.int64)
    infinite = int(_sum(*pair, sums, largest))
    signal, energy, dot, noise, abs_sum, rel_sum = sums.tolist()
    peak, max_abs, max_rel = largest.view(np.float64).tolist()
    is_float = number.kind == "float"
    return Moments(
        elements=reference.size,
        different=int(_count_different(reference, observed)),
        bit_counts=_bit_counts(reference, observed, number.bits),
        lone_nans=0,
        max_ulp=int(_largest_gap(reference, observed, number.sign)) if is_float else int(max_abs),
        max_abs=max_abs,
        abs_sum=ScaledSum(value=abs_sum),
        max_rel=math.inf if infinite else max_rel,
        rel_sum=ScaledSum(value=rel_sum),
        rel_finite=reference.size - infinite,
        peak=peak,
        all_finite=True,
        signal=ScaledSum(value=signal),
        energy=ScaledSum(value=energy),
        dot=ScaledSum(value=dot),
        noise=ScaledSum(value=noise),
    )


def _plain_values(codes: Codes, number: Format) -> Values | None:
    """Return a block as floats that hold it exactly, or None when it is not plain."""
    if number.kind != "float":
        return None if number.bits == 64 else _exact(codes, number)
    values = _exact(codes, number)
    # A half that is no number has become 65536 or more, which no half reaches.
    highest = 65504.0 if number.name == "float16" else PLAIN[1]
    return values if _is_plain(values, PLAIN[0], highest) else None


def _exact(codes: Codes, number: Format) -> Values:
    if number.bits <= 8:
        return values_of(codes, number)
    if number.kind != "float":
        return codes.view(f"{number.kind[0]}{codes.itemsize}").astype("f4" if number.bits == 16 else "f8")
    if number.bits > 16:
        return codes.view(number.name)
    if number.name == "bfloat16":
        return (codes.astype(np.uint32) << np.uint32(16)).view(np.float32)
    # The bits of a half in those of a single are 2**112 times too small; numpy converts one at a time.
    wide = np.empty(codes.size, np.uint32)
    _widen(codes, wide)
    return wide.view(np.float32) * np.float32(2.0**112)


def _bit_counts(reference: Codes, observed: Codes, bits: int) -> npt.NDArray[np.int64]:
    words = reference.nbytes // 8 * 8 // reference.itemsize
    by_word = np.zeros(64, np.int64)
    _count_bits(reference[:words].view(np.uint64), observed[:words].view(np.uint64), by_word)
    counts: npt.NDArray[np.int64] = by_word.reshape(-1, bits).sum(axis=0)
    for rest in (reference[words:] ^ observed[words:]).tolist():
        counts += [rest >> bit & 1 for bit in range(bits)]
    return counts


@njit(cache=True, nogil=True)
def _widen(halves: Codes, singles: Codes) -> None:
    for i in range(halves.size):
        half = np.uint32(halves[i])
        singles[i] = ((half & np.uint32(0x8000)) << np.uint32(16)) | (
            (half & np.uint32(0x7FFF)) << np.uint32(13)
        )


@njit(cache=True, nogil=True)
def _is_plain(values: Values, lowest: float, highest: float) -> bool:
    odd = 0
    for i in range(values.size):
        size = abs(values[i])
        odd += not ((size == 0.0) | ((size >= lowest) & (size <= highest)))
    return odd == 0


@njit(cache=True, nogil=True)
def _count_different(reference: Codes, observed: Codes) -> int:
    different = 0
    for i in range(reference.size):
        different += reference[i] != observed[i]
    return different


@njit(cache=True, nogil=True)
def _count_bits(reference: Codes, observed: Codes, counts: Counts) -> None:
    for start in range(0, reference.size, _WORDS):
        # Slices, because an index that starts at zero needs no check for a negative one.
        lefts, rights = reference[start : start + _WORDS], observed[start : start + _WORDS]
        c0 = c1 = c2 = c3 = c4 = c5 = c6 = c7 = np.uint64(0)
        for i in range(lefts.size):
            changed = lefts[i] ^ rights[i]
            c0 += changed & _BYTES
            c1 += (changed >> np.uint64(1)) & _BYTES
            c2 += (changed >> np.uint64(2)) & _BYTES
            c3 += (changed >> np.uint64(3)) & _BYTES
            c4 += (changed >> np.uint64(4)) & _BYTES
            c5 += (changed >> np.uint64(5)) & _BYTES
            c6 += (changed >> np.uint64(6)) & _BYTES
            c7 += (changed >> np.uint64(7)) & _BYTES
        for bit, column in enumerate((c0, c1, c2, c3, c4, c5, c6, c7)):
            for byte in range(8):
                counts[8 * byte + bit] += np.int64((column >> np.uint64(8 * byte)) & np.uint64(255))


@njit(cache=True, nogil=True, error_model="numpy", fastmath=set(_ANY_ORDER))
def _sum(reference: Values, observed: Values, sums: Values, largest: Counts) -> int:
    sizes, distances, ratios = np.empty(_TILE), np.empty(_TILE), np.empty(_TILE)
    size_bits, distance_bits, ratio_bits = (
        sizes.view(np.int64),
        distances.view(np.int64),
        ratios.view(np.int64),
    )
    signal = energy = dot = noise = abs_sum = rel_sum = 0.0
    infinite = 0
    peak = max_abs = max_rel = np.int64(0)
    for start in range(0, reference.size, _TILE):
        lefts, rights = reference[start : start + _TILE], observed[start : start + _TILE]
        for i in range(lefts.size):
            left, right = np.float64(lefts[i]), np.float64(rights[i])
            size, distance = abs(left), abs(right - left)
            ratio = (distance if size > 0.0 else 0.0) / (size if size > 0.0 else 1.0)
            sizes[i], distances[i], ratios[i] = size, distance, ratio
            infinite += (size == 0.0) & (distance > 0.0)
            signal += left * left
            energy += right * right
            dot += left * right
            noise += distance * distance
            abs_sum += distance
            rel_sum += ratio
        # Floats without a sign are in the order of their bits, and a maximum of integers is vectorized.
        for i in range(lefts.size):
            peak = max(peak, size_bits[i])
            max_abs = max(max_abs, distance_bits[i])
            max_rel = max(max_rel, ratio_bits[i])
    sums[0], sums[1], sums[2], sums[3], sums[4], sums[5] = signal, energy, dot, noise, abs_sum, rel_sum
    largest[0], largest[1], largest[2] = peak, max_abs, max_rel
    return infinite


@njit(cache=True, nogil=True)
def _largest_gap(reference: Codes, observed: Codes, sign: int) -> np.uint64:
    largest = np.uint64(0)
    rest = np.uint64(sign - 1)
    for i in range(reference.size):
        left, right = np.uint64(reference[i]), np.uint64(observed[i])
        near, far = np.int64(left & rest), np.int64(right & rest)
        near = -near if left > rest else near
        far = -far if right > rest else far
        largest = max(largest, np.uint64(max(near, far)) - np.uint64(min(near, far)))
    return largest


@njit(cache=True, nogil=True, error_model="numpy")
def _count_distances(reference: Values, observed: Values, absolute: Counts, relative: Counts) -> None:
    distances, ratios = np.empty(_TILE), np.empty(_TILE)
    distance_bits, ratio_bits = distances.view(np.uint64), ratios.view(np.uint64)
    shift = np.uint64(DISTANCE_SHIFT)
    for start in range(0, reference.size, _TILE):
        left_tile, right_tile = reference[start : start + _TILE], observed[start : start + _TILE]
        for i in range(left_tile.size):
            left, right = np.float64(left_tile[i]), np.float64(right_tile[i])
            distance = abs(right - left)
            distances[i] = distance
            ratios[i] = distance / abs(left) if distance > 0.0 else 0.0
        for i in range(left_tile.size):
            absolute[distance_bits[i] >> shift] += 1
            relative[ratio_bits[i] >> shift] += 1


@njit(cache=True, nogil=True)
def _count_values(values: Values, counts: Counts) -> None:
    wide = np.empty(_TILE)
    bits = wide.view(np.uint64)
    shift = np.uint64(VALUE_SHIFT)
    for start in range(0, values.size, _TILE):
        tile = values[start : start + _TILE]
        for i in range(tile.size):
            wide[i] = tile[i]
        for i in range(tile.size):
            counts[bits[i] >> shift] += 1


@njit(cache=True, nogil=True)
def _count_codes(codes: Codes, counts: Counts) -> None:
    for i in range(codes.size):
        counts[codes[i]] += 1


@njit(cache=True, nogil=True)
def _count_pairs(reference: Codes, observed: Codes, pairs: Counts) -> None:
    for i in range(reference.size):
        pairs[(np.uint64(reference[i]) << np.uint64(8)) | np.uint64(observed[i])] += 1
