"""Probes of a graph's edges: float32 in, codes out, and back."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pytest_devicelab.audit.fingerprint.expect import joined, rounded
from pytest_devicelab.audit.fingerprint.probe import Candidate, Probe
from pytest_devicelab.audit.fingerprint.rounding import in_units
from pytest_devicelab.audit.fingerprint.sketch import Grid, Sketch

Floats = npt.NDArray[np.float32]

_GRIDS = (
    ("uint8", Grid(scale=1, zero=128, dtype="uint8")),
    ("uint8_fine", Grid(scale=0.0625, zero=3, dtype="uint8")),
    ("int8", Grid(scale=1, zero=0, dtype="int8")),
    ("uint16", Grid(scale=1, zero=32768, dtype="uint16")),
    ("uint16_fine", Grid(scale=0.00390625, zero=77, dtype="uint16")),
)
_DECIMAL = (
    ("uint8", Grid(scale=0.1, zero=128, dtype="uint8")),
    ("int8", Grid(scale=0.1, zero=0, dtype="int8")),
    ("uint16", Grid(scale=0.1, zero=32768, dtype="uint16")),
    ("uint16_fine", Grid(scale=0.0003, zero=32768, dtype="uint16")),
)


def edge_probes() -> Iterator[Probe]:
    """Ask how floats become codes at the edge of a graph, in what precision, and how codes become floats."""
    for name, grid in _GRIDS:
        yield _ties(name, grid)
        yield _precision(name, grid)
        if not name.endswith("fine"):
            yield _special(name, grid, "infinity", np.array([np.inf, -np.inf], np.float32))
            yield _special(name, grid, "nan", np.array([np.nan, -np.nan], np.float32))
    for name, grid in _DECIMAL:
        yield _dequantize(name, grid)


def _counts(grid: Grid) -> npt.NDArray[np.float64]:
    """Return 256 whole steps the grid has, around zero as far as it goes."""
    limits = np.iinfo(grid.dtype)
    low = max(int(limits.min) - grid.zero, -128)
    return np.arange(low, low + 256, dtype=np.float64).clip(low, int(limits.max) - grid.zero)


def _quantized(name: str, values: Floats, grid: Grid, question: str, expect: tuple[Candidate, ...]) -> Probe:
    """Values quantized, moved, and given back as codes: a QuantizeLinear on its own would stay on the CPU."""
    sketch = Sketch(name)
    turned = sketch.node("Transpose", _through(sketch, sketch.input(values), grid), perm=[1, 0])
    return sketch.probe(
        sketch.quantize(turned, grid),
        op="QuantizeLinear",
        dtype=grid.dtype,
        output_dtype=grid.dtype,
        shape=values.T.shape,
        question=question,
        candidates=expect,
    )


def _through(sketch: Sketch, tensor: str, grid: Grid) -> str:
    return sketch.dequantize(sketch.quantize(tensor, grid), grid)


def _ties(name: str, grid: Grid) -> Probe:
    between = _counts(grid)[:-1]
    between += np.array([0.5, 0.25, 0.75])[np.arange(len(between)) % 3]
    values = (between * float(grid.step)).astype(np.float32)[None]
    counts, unit = in_units(values.T.astype(np.float64))
    question = "how does a float exactly between two codes round?"
    expect = rounded(counts, unit / grid.step, grid)
    return _quantized(f"quantize_ties_{name}", values, grid, question, expect)


def _precision(name: str, grid: Grid) -> Probe:
    """Floats just beside a tie, which float16 cannot tell from it, and some that are far from one."""
    base = (np.arange(256) * (2 if grid.dtype.endswith("8") and grid.zero else 1))[:250] % 120
    beside = 0.5 + np.where(np.arange(250) % 2 < 1, 1, -1) * 2.0**-12 * (1 + base)
    beside[::5] = 0.25
    values = ((base + beside) * float(grid.step)).astype(np.float32)[None]
    parts = []
    for precision, seen in (("float32", values), ("float16", values.astype(np.float16).astype(np.float32))):
        counts, unit = in_units(seen.T.astype(np.float64))
        parts.append(({"precision": precision}, rounded(counts, unit / grid.step, grid)))
    question = "in what precision is a float read before it is rounded?"
    return _quantized(f"quantize_precision_{name}", values, grid, question, joined(parts))


def _special(name: str, grid: Grid, kind: str, values: Floats) -> Probe:
    limits = np.iinfo(grid.dtype)
    named = {"lowest code": limits.min, "highest code": limits.max, "zero": grid.zero}
    batch = np.tile(values, 16)[None]
    edges = np.where(np.signbit(batch.T), limits.min, limits.max).astype(grid.dtype)
    candidates = [
        Candidate(facts={kind: said}, expected=np.full(batch.T.shape, code, grid.dtype))
        for said, code in named.items()
    ]
    candidates.append(Candidate(facts={kind: "saturates by its sign"}, expected=edges))
    question = f"what becomes of {'NaN' if kind == 'nan' else 'values far outside the grid'}?"
    return _quantized(f"quantize_{kind}_{name}", batch, grid, question, tuple(candidates))


def _dequantize(name: str, grid: Grid) -> Probe:
    codes = grid.all_codes()[None]
    exact = (codes.T.astype(np.float64) - grid.zero) * float(grid.step)
    half = (codes.T.astype(np.float16) - np.float16(grid.zero)) * np.float16(grid.scale)
    sketch = Sketch(f"dequantize_{name}")
    turned = sketch.node("Transpose", sketch.quantized_input(codes, grid), perm=[1, 0])
    output = _through(sketch, turned, grid)
    return sketch.probe(
        output,
        op="DequantizeLinear",
        dtype=grid.dtype,
        output_dtype="float32",
        shape=exact.shape,
        question="in what precision does a code become a float?",
        candidates=(
            Candidate(facts={"precision": "float32"}, expected=exact.astype(np.float32)),
            Candidate(
                facts={"precision": "float16, rounded once"},
                expected=exact.astype(np.float16).astype(np.float32),
            ),
            Candidate(facts={"precision": "float16 throughout"}, expected=half.astype(np.float32)),
        ),
    )
