"""One layer held against another run of it: how far apart, in every unit an engineer asks for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_devicelab.audit.taps import Tap
from pytest_devicelab.errors import TensorMismatch
from pytest_devicelab.evidence.record import Quantization
from pytest_devicelab.tensors.accumulator import DiffAccumulator
from pytest_devicelab.tensors.diff import TensorDiff, diff_bitwise
from pytest_devicelab.tensors.formats import codes_of, format_of

Array = npt.NDArray[np.generic]

_BLOCK = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDiff:
    """How far one layer of an observed run is from the same layer of a reference.

    Attributes:
        node: the node that computes it; `op` is its type, `tensor` what was looked at.
        depth: 1-based position of the layer among all that were looked at.
        elements: compared elements over all samples.
        elements_different: elements that differ in any bit; `bits_different` counts the bits. None against float.
        max_abs: largest distance between two real values.
        max_lsb: the same in steps of the layer's own quantization; None when it has none.
        sqnr_db: signal to noise ratio of the real values; None when no value differs.
        kl: Kullback-Leibler divergence of the observed values' distribution from the reference's, in nats.
        wasserstein: Wasserstein-1 distance of the two distributions, in the layer's real units.
        saturation_reference: share of the reference's codes at the first or last code; None where it has no codes.
        saturation_observed: the same of the observed run.
        clipping: share of the float reference's values outside what the codes can say; None between devices.
    """

    node: str
    op: str
    tensor: str
    depth: int
    elements: int
    elements_different: int | None
    bits_different: int | None
    max_abs: float
    max_lsb: float | None
    sqnr_db: float | None
    kl: float | None
    wasserstein: float | None
    saturation_reference: float | None
    saturation_observed: float | None
    clipping: float | None

    @property
    def parts(self) -> bool:
        """Whether any bit differs; never known against float, whose bits are others by nature."""
        return bool(self.elements_different)


def compare_layer(tap: Tap, reference: Array, observed: Array) -> LayerDiff:
    """Hold a layer of one device against the same layer of another.

    Args:
        tap: the layer.
        reference: its tensor on the device taken as reference, `[N, ...]`, codes or floats.
        observed: its tensor on the other device, of the same shape and dtype.

    Raises:
        TensorMismatch: shapes or dtypes differ, or there is nothing to compare.
    """
    diff = diff_bitwise(reference, observed, lsb=lsb_of(tap, reference))
    scale = tap.quantization.scale if tap.quantization and reference.dtype.kind != "f" else 1.0
    # Not of the codes: their zero point would count as signal.
    real = _diff_values(tap, reference, observed)
    return LayerDiff(
        node=tap.node,
        op=tap.op,
        tensor=tap.tensor,
        depth=tap.depth,
        elements=diff.elements,
        elements_different=diff.elements_different,
        bits_different=diff.bits_different,
        max_abs=diff.max_abs * scale,
        max_lsb=diff.max_lsb,
        sqnr_db=real.sqnr_db,
        kl=real.spread.kl if real.spread else None,
        wasserstein=real.spread.wasserstein if real.spread else None,
        saturation_reference=saturation(tap.quantization, reference),
        saturation_observed=saturation(tap.quantization, observed),
        clipping=None,
    )


def compare_with_float(tap: Tap, reference: Array, observed: Array) -> LayerDiff:
    """Hold a layer of a device against the float model's.

    Args:
        tap: the layer.
        reference: the float model's tensor, `[N, ...]`.
        observed: the device's tensor of as many elements, codes or floats; the shapes may differ in dimensions of 1.

    Raises:
        TensorMismatch: they differ in the number of elements, or there are none.
    """
    diff = _diff_values(tap, reference, observed)
    return LayerDiff(
        node=tap.node,
        op=tap.op,
        tensor=tap.tensor,
        depth=tap.depth,
        elements=diff.elements,
        elements_different=None,
        bits_different=None,
        max_abs=diff.max_abs,
        max_lsb=diff.max_lsb,
        sqnr_db=diff.sqnr_db,
        kl=diff.spread.kl if diff.spread else None,
        wasserstein=diff.spread.wasserstein if diff.spread else None,
        saturation_reference=None,
        saturation_observed=saturation(tap.quantization, observed),
        clipping=clipping(tap.quantization, reference),
    )


def real_values(tap: Tap, array: Array) -> Array:
    """Return what a tapped tensor stands for: its codes dequantized, or its floats as they are."""
    how = tap.quantization
    if how is None or array.dtype.kind == "f":
        return array
    return ((array.astype(np.float64) - how.zero_point) * how.scale).astype(np.float32)


def _diff_values(tap: Tap, reference: Array, observed: Array) -> TensorDiff:
    """Compare what two tensors stand for, as float32, a block at a time: real values of a layer may not fit."""
    if reference.size != observed.size:
        raise TensorMismatch(
            f"layer {tap.depth}, {tap.tensor}, cannot be compared: {reference.size} and {observed.size} elements",
            why=f"shapes {list(reference.shape)} and {list(observed.shape)}",
            fix="compare the same layer of the same model, on as many samples",
        )
    number = format_of(np.dtype(np.float32))
    step = tap.quantization.scale if tap.quantization else None
    accumulator = DiffAccumulator(number, (reference.size,), lsb=step)
    for left, right in zip(_blocks(reference), _blocks(observed), strict=True):
        accumulator.feed(*(codes_of(real_values(tap, each).astype(np.float32)) for each in (left, right)))
    return accumulator.finish()


def _blocks(array: Array) -> Iterator[Array]:
    flat = array.reshape(-1)
    yield from (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))


def lsb_of(tap: Tap, array: Array) -> float | None:
    """Return one step of a tapped tensor: 1 where it holds the quantized integers, else their scale."""
    if tap.quantization is None:
        return None
    return tap.quantization.scale if array.dtype.kind == "f" else 1.0


def saturation(how: Quantization | None, array: Array) -> float | None:
    """Return the share of codes that are the first or the last their dtype has; None for floats."""
    if how is None or array.dtype.kind not in "iu":
        return None
    first, last = code_range(how.dtype)
    return float(np.mean((array == first) | (array == last)))


def clipping(how: Quantization | None, floats: Array) -> float | None:
    """Return the share of float values that lie more than half a step outside what the codes can say.

    Args:
        how: the quantization of the layer; None for a layer without one, which clips nothing.
        floats: the float model's values, any shape.
    """
    if how is None:
        return None
    low, high = (how.scale * (code - how.zero_point) for code in code_range(how.dtype))
    half = how.scale / 2
    outside = 0
    for block in _blocks(floats):
        values = block.astype(np.float64)
        outside += int(np.count_nonzero((values < low - half) | (values > high + half)))
    return outside / floats.size


def code_range(dtype: str) -> tuple[int, int]:
    """Return the first and last code of an integer dtype, such as `uint8` or `int4`, which numpy does not know."""
    signed, bits = dtype.startswith("int"), int(dtype.lstrip("uint"))
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
