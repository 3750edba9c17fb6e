"""Probes of requantization: codes of one grid to codes of another, with nothing computed in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pytest_devicelab.audit.fingerprint.expect import overflowing, rounded, scaled
from pytest_devicelab.audit.fingerprint.probe import Candidate, Probe
from pytest_devicelab.audit.fingerprint.sketch import Grid, Sketch

# name, input grid as (dtype, zero), output grid as (dtype, zero), output scale for an input scale of 1
_Change = tuple[str, tuple[str, int], tuple[str, int], float]

_TIES: tuple[_Change, ...] = (
    *(
        (
            f"{dtype}_zero{zero:+d}_by{scale}".replace("+", "").replace("-", "m"),
            (dtype, zero),
            (dtype, zero),
            scale,
        )
        for dtype, zeros, scales in (
            ("uint8", (128,), (2, 4, 8)),
            ("uint8", (0, 127), (4,)),
            ("int8", (0, -3), (4,)),
            ("uint16", (0, 32768), (4, 256)),
            ("int16", (0,), (4,)),
        )
        for zero in zeros
        for scale in scales
    ),
    ("uint8_to_uint16_by4", ("uint8", 128), ("uint16", 32768), 4),
    ("uint16_to_uint8_by512", ("uint16", 32768), ("uint8", 128), 512),
    ("int8_to_uint8_by4", ("int8", 0), ("uint8", 128), 4),
    ("uint8_to_int8_by4", ("uint8", 128), ("int8", 0), 4),
)
_MULTIPLIERS: tuple[_Change, ...] = (
    *(
        (f"{dtype}_by{label}", (dtype, zero), (dtype, zero), scale)
        for dtype, zero in (("uint8", 128), ("int8", 0), ("uint16", 32768))
        for label, scale in (("3", 3.0), ("1p7", 1.7), ("1p1", 1.1), ("0p7", 0.7))
    ),
    ("uint16_to_uint8_by300", ("uint16", 32768), ("uint8", 128), 300.0),
)
_OVERFLOWS: tuple[_Change, ...] = tuple(
    (f"{dtype}_by_quarter", (dtype, zero), (dtype, zero), 0.25)
    for dtype, zero in (("uint8", 128), ("int8", 0), ("uint16", 32768), ("int16", 0))
)


def requantize_probes() -> Iterator[Probe]:
    """Ask how a requantization rounds ties, how exact its multiplier is, and what it does with overflow."""
    for change in _TIES:
        yield _probe("ties", change, "how are ties rounded, also below zero?", rounded)
    for change in _MULTIPLIERS:
        yield _probe("scale", change, "how exact is a multiplier that is no power of two?", scaled)
    for change in _OVERFLOWS:
        yield _probe("overflow", change, "does a value outside the grid saturate or wrap?", overflowing)


def _probe(kind: str, change: _Change, question: str, expect: Callable[..., tuple[Candidate, ...]]) -> Probe:
    name, (dtype, zero), (to_dtype, to_zero), scale = change
    grid, to = Grid(scale=1, zero=zero, dtype=dtype), Grid(scale=scale, zero=to_zero, dtype=to_dtype)
    codes = grid.all_codes()[None]
    sketch = Sketch(f"requantize_{kind}_{name}")
    output = sketch.quantize(sketch.quantized_input(codes, grid), to)
    return sketch.probe(
        output,
        op="Requantize",
        dtype=dtype,
        output_dtype=to_dtype,
        shape=codes.shape,
        question=question,
        candidates=expect(grid.counts(codes), grid.step / to.step, to),
    )
