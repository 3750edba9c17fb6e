"""Probes of pooling and resizing: sums of neighbours, divided."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_devicelab.audit.fingerprint.expect import function_of
from pytest_devicelab.audit.fingerprint.probe import Probe
from pytest_devicelab.audit.fingerprint.sketch import Grid, Sketch

Reals = npt.NDArray[np.float64]

_SIDE = 12
_CHANNELS = 8
_POOLS = (("1x2", (1, 2)), ("2x2", (2, 2)), ("4x2", (4, 2)), ("3x3", (3, 3)), ("all", (_SIDE, _SIDE)))
_RESIZES = (
    ("half_pixel", {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}),
    ("asymmetric", {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}),
    ("align_corners", {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
)
_GRIDS = (Grid(scale=1, zero=128, dtype="uint8"), Grid(scale=1, zero=32768, dtype="uint16"))


def resampling_probes() -> Iterator[Probe]:
    """Ask how means and interpolations round."""
    for grid in _GRIDS:
        for label, kernel in _POOLS:
            yield _pool(label, kernel, grid)
        for label, attributes in _RESIZES:
            yield _resize(label, attributes, grid)


def _pixels(grid: Grid) -> npt.NDArray[Any]:
    """Return codes `[1, C, H, W]` within 64 of zero, whose sums meet every remainder."""
    index = np.arange(_CHANNELS * _SIDE * _SIDE)
    return (index * 37 % 129 - 64 + grid.zero).astype(grid.dtype).reshape(1, _CHANNELS, _SIDE, _SIDE)


def _pool(label: str, kernel: tuple[int, int], grid: Grid) -> Probe:
    codes = _pixels(grid)
    high, wide = kernel
    blocks = grid.counts(codes).reshape(1, _CHANNELS, _SIDE // high, high, _SIDE // wide, wide)
    sketch = Sketch(f"average_{label}_{grid.dtype}")
    x = sketch.quantized_input(codes, grid)
    result = (
        sketch.node("GlobalAveragePool", x)
        if label == "all"
        else sketch.node("AveragePool", x, kernel_shape=kernel, strides=kernel)
    )
    mean = blocks.sum(axis=(3, 5)).astype(np.float64) / (high * wide)
    return _finish(sketch, result, "AveragePool", mean, grid, "how does a mean round?")


def _resize(label: str, attributes: dict[str, str], grid: Grid) -> Probe:
    codes = _pixels(grid)
    sketch = Sketch(f"resize_{label}_{grid.dtype}")
    scales = sketch.constant(np.array([1, 1, 2, 2], np.float32))
    result = sketch.node("Resize", sketch.quantized_input(codes, grid), "", scales, **attributes)
    weights = _weights(label)
    values = grid.counts(codes).astype(np.float64)
    between = np.einsum("oh,nchw,pw->ncop", weights, values, weights)
    return _finish(sketch, result, "Resize", between, grid, "how does an interpolation round?")


def _weights(label: str) -> Reals:
    """Return what each of the doubled pixels of a line takes from each pixel, `[2 * SIDE, SIDE]`."""
    out = np.arange(2 * _SIDE, dtype=np.float64)
    if label == "half_pixel":
        place = (out + 0.5) / 2 - 0.5
    elif label == "align_corners":
        place = out * (_SIDE - 1) / (2 * _SIDE - 1)
    else:
        place = out / 2
    place = np.clip(place, 0, _SIDE - 1)
    shares: Reals = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(_SIDE)[None]))
    return shares


def _finish(sketch: Sketch, result: str, op: str, values: Reals, grid: Grid, question: str) -> Probe:
    return sketch.probe(
        sketch.quantize(result, grid),
        op=op,
        dtype=grid.dtype,
        output_dtype=grid.dtype,
        shape=values.shape,
        question=question,
        candidates=function_of(values, grid),
    )
