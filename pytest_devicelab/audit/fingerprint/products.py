"""Probes of sums of products: Conv, ConvTranspose, Gemm and MatMul, and the accumulator inside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_devicelab.audit.fingerprint.expect import codes_of, joined, rounded, scaled
from pytest_devicelab.audit.fingerprint.probe import Candidate, Probe
from pytest_devicelab.audit.fingerprint.rounding import Whole, round_multiple, store, whole
from pytest_devicelab.audit.fingerprint.sketch import Grid, Sketch

Ints = npt.NDArray[np.int64]

OPS = ("conv", "depthwise", "conv_transpose", "gemm", "matmul", "matmul_dynamic")
_ONNX = {
    "conv": "Conv",
    "depthwise": "Conv",
    "conv_transpose": "ConvTranspose",
    "gemm": "Gemm",
    "matmul": "MatMul",
    "matmul_dynamic": "MatMul",
}
_ACTIVATIONS = (Grid(scale=1, zero=128, dtype="uint8"), Grid(scale=1, zero=32768, dtype="uint16"))
_WEIGHTS = Grid(scale=1, zero=0, dtype="int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A product `rows @ weights + bias`, whichever operator carries it out.

    Attributes:
        op: one of `OPS`. `depthwise` takes a diagonal `weights` only.
        rows: codes `[M, K]`, M a square number for the convolutions, whose pixels they are.
        grid: of the rows.
        weights: codes `[K, N]`, int8.
        bias: `[N]`, in units of one product of codes; None for none.
    """

    op: str
    rows: npt.NDArray[Any]
    grid: Grid
    weights: Ints
    bias: Ints | None = None

    @property
    def sums(self) -> Whole:
        """The exact accumulators, `[M, N]`."""
        total: Whole = self.grid.counts(self.rows) @ whole(self.weights)
        if self.bias is not None:
            total = total + whole(self.bias)
        return total

    def lay_out(self, result: Whole | npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return `[M, N]` results in the shape the operator gives them."""
        if self.op in ("conv", "depthwise", "conv_transpose"):
            side = int(np.sqrt(len(self.rows)))
            return result.T.reshape(1, -1, side, side)
        return result[None] if self.op.startswith("matmul") else result.reshape(1, -1)

    def draw(self, sketch: Sketch) -> str:
        """Add the operator to a sketch and return the name of its float result."""
        bias_grid = Grid(scale=self.grid.scale * _WEIGHTS.scale, zero=0, dtype="int32")
        x = sketch.quantized_input(np.ascontiguousarray(self.lay_out(self.rows)), self.grid)
        weights, attributes = self._weights()
        if self.op == "matmul_dynamic":
            grid = Grid(scale=_WEIGHTS.scale, zero=128, dtype="uint8")
            w = sketch.quantized_input((weights + 128).astype("uint8")[None], grid)
        else:
            w = sketch.quantized_constant(weights, _WEIGHTS)
        more = [] if self.bias is None else [sketch.quantized_constant(self.bias, bias_grid)]
        return sketch.node(_ONNX[self.op], x, w, *more, **attributes)

    def _weights(self) -> tuple[Ints, dict[str, Any]]:
        if self.op == "conv":
            return self.weights.T[:, :, None, None], {}
        if self.op == "depthwise":
            return np.diag(self.weights)[:, None, None, None], {"group": len(self.weights)}
        if self.op == "conv_transpose":
            return self.weights[:, :, None, None], {}
        return self.weights, {}


def product_probes() -> Iterator[Probe]:
    """Ask how products round, how exact their multipliers are, when a bias joins, how wide they add up."""
    for grid in _ACTIVATIONS:
        for op in OPS:
            for scale in (4, 8) if grid.dtype == "uint8" else (16, 32):
                yield _ties(op, grid, scale)
        for op in ("conv", "depthwise", "gemm"):
            yield _bias(op, grid)
        for op in ("conv", "gemm", "matmul"):
            for label, ratio in (("777p7", 777.7), ("1234p5", 1234.5)):
                yield _multiplier(op, grid, label, ratio)
            yield _accumulator(op, grid)


def _rows(grid: Grid, op: str) -> npt.NDArray[Any]:
    """Return 256 neighbouring codes around zero as `[16, 16]`; Gemm gets one long row."""
    codes = (np.arange(-128, 128) + grid.zero).astype(grid.dtype)
    return codes.reshape(1, -1) if op == "gemm" else codes.reshape(16, 16)


def _ties(op: str, grid: Grid, scale: int) -> Probe:
    rows, factor = _rows(grid, op), _factor(op)
    product = Product(op=op, rows=rows, grid=grid, weights=factor * np.eye(rows.shape[1], dtype=np.int64))
    to = Grid(scale=factor * scale, zero=grid.zero, dtype=grid.dtype)
    question = "how does a sum of products round ties?"
    return _probe(f"{op}_ties_{grid.dtype}_by{scale}", product, to, question, rounded)


def _factor(op: str) -> int:
    """Return the factor on the identity: 64 shows what an accumulator drops.

    Depthwise gets 1: multipliers near 1/256 were seen to make its output nothing but zero on V68, and in 16 bits
    everywhere, and that is another question than how it rounds.
    """
    return 1 if op == "depthwise" else 64


def _spread(rows: int, columns: int, low: int, high: int, step: int) -> Ints:
    """Return integers spread over `[low, high]` by a fixed stride: every run of any numpy gets the same ones."""
    return (np.arange(rows * columns, dtype=np.int64) * step % (high - low + 1) + low).reshape(rows, columns)


def _multiplier(op: str, grid: Grid, label: str, scale: float) -> Probe:
    limits = np.iinfo(grid.dtype)
    rows = _spread(1 if op == "gemm" else 16, 64, 0, int(limits.max), 10007 if grid.dtype == "uint16" else 97)
    weights = _spread(64, 256 if op == "gemm" else 16, -127, 127, 37)
    product = Product(op=op, rows=rows.astype(grid.dtype), grid=grid, weights=weights)
    to = Grid(scale=scale, zero=grid.zero, dtype=grid.dtype)
    question = "how exact is the multiplier that scales an accumulator down?"
    return _probe(f"{op}_scale_{grid.dtype}_by{label}", product, to, question, scaled)


def _probe(
    name: str, product: Product, to: Grid, question: str, expect: Callable[..., tuple[Candidate, ...]]
) -> Probe:
    unit = product.grid.step * _WEIGHTS.step / to.step
    counts = product.lay_out(product.sums)
    candidates = joined(
        ({"accumulator": name}, expect(kept, unit * worth, to))
        for name, kept, worth in _kept(counts, product)
    )
    return _finish(name, product, to, question, candidates)


def _kept(counts: Whole, product: Product) -> Iterator[tuple[str, Whole, int]]:
    """Yield what may be left of an accumulator; with 16-bit activations its low byte may be missing."""
    yield "exact", counts, 1
    if product.grid.dtype == "uint16":
        yield "low 8 bits dropped", counts // 256, 256


def _finish(name: str, product: Product, to: Grid, question: str, candidates: tuple[Candidate, ...]) -> Probe:
    sketch = Sketch(name)
    return sketch.probe(
        sketch.quantize(product.draw(sketch), to),
        op=_ONNX[product.op],
        dtype=product.grid.dtype,
        output_dtype=to.dtype,
        shape=candidates[0].expected.shape,
        question=question,
        candidates=candidates,
    )


def _bias(op: str, grid: Grid) -> Probe:
    """A bias below one step: added before the rounding, or rounded on its own?"""
    rows, factor = _rows(grid, op), _factor(op)
    size = rows.shape[1]
    weights = factor * np.eye(size, dtype=np.int64)
    bias = factor * (np.arange(size, dtype=np.int64) % 7 - 3)
    product = Product(op=op, rows=rows, grid=grid, weights=weights, bias=bias)
    without = replace(product, bias=None)
    to, unit = Grid(scale=4 * factor, zero=grid.zero, dtype=grid.dtype), Fraction(1, 4 * factor)
    parts = []
    for name, kept, worth in _kept(product.lay_out(product.sums), product):
        facts = {"bias": "in the accumulator", "accumulator": name}
        parts.append((facts, rounded(kept, unit * worth, to)))
    for name, kept, worth in _kept(without.lay_out(without.sums), product):
        facts = {"bias": "rounded on its own", "accumulator": name}
        apart = tuple(
            Candidate(facts=candidate.facts, expected=_add_codes(candidate, product, bias, unit))
            for candidate in rounded(kept, unit * worth, to)
        )
        parts.append((facts, apart))
    question = "does the bias join the accumulator before it is rounded?"
    return _finish(f"{op}_bias_{grid.dtype}", product, to, question, joined(parts))


def _add_codes(candidate: Candidate, product: Product, bias: Ints, unit: Fraction) -> npt.NDArray[Any]:
    steps = round_multiple(whole(bias), unit, candidate.facts["rounding"])
    across = product.lay_out(np.broadcast_to(steps, (len(product.rows), len(steps))))
    return store(whole(candidate.expected) + across, product.grid.dtype)


def _accumulator(op: str, grid: Grid) -> Probe:
    """Large terms, small ones, and the large ones again with the other sign: only the small ones are left."""
    grid = replace(grid, zero=0)
    large, small = 2000, 16
    row = np.concatenate(
        [np.full(large, np.iinfo(grid.dtype).max), np.arange(small), np.full(large, np.iinfo(grid.dtype).max)]
    )
    weights = np.repeat([127, 0, -127], [large, small, large])[:, None] * np.ones(small, dtype=np.int64)
    weights[large : large + small] = 64 * np.eye(small, dtype=np.int64)
    rows = np.broadcast_to(row, (1 if op == "gemm" else 4, len(row))).astype(grid.dtype)
    product = Product(op=op, rows=rows, grid=grid, weights=weights)
    to = Grid(scale=64, zero=0, dtype=grid.dtype)
    terms = (grid.counts(rows[0])[:, None] * whole(weights)).astype(np.float64)
    totals = {
        "exact, or wide enough": terms.sum(axis=0),
        "low 8 bits dropped": terms.sum(axis=0) // 256 * 256,
        "float32, in order": np.cumsum(terms.astype(np.float32), axis=0, dtype=np.float32)[-1],
        **{f"int{bits}, saturates": _saturating(terms, 2.0 ** (bits - 1)) for bits in (16, 24, 32)},
    }
    candidates = tuple(
        Candidate(
            facts={"accumulator": name},
            expected=codes_of(
                product.lay_out(np.broadcast_to(whole(total), (len(rows), small))),
                Fraction(1, 64),
                to,
                "half up",
            ),
        )
        for name, total in totals.items()
    )
    question = "what is left of small terms between large ones that cancel?"
    return _finish(f"{op}_accumulator_{grid.dtype}", product, to, question, candidates)


def _saturating(terms: npt.NDArray[np.float64], limit: float) -> npt.NDArray[np.float64]:
    total = np.zeros(terms.shape[1])
    for term in terms:
        total = np.clip(total + term, -limit, limit - 1)
    return total
