"""Probes of float16 sums: how wide the accumulator is, whether products are rounded first, and the order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_devicelab.audit.fingerprint.halves import Halves, Reals, to_half
from pytest_devicelab.audit.fingerprint.probe import Candidate, Probe
from pytest_devicelab.audit.fingerprint.sketch import Sketch

_OPTIONS = (("enable_htp_fp16_precision", "1"),)
_TERMS = 64
_FINE = 1 + 2.0**-10

# Terms as (left factor, right factor), 64 of them; the sum shows what was lost on the way.
_SUMS: Mapping[str, tuple[str, Reals]] = {
    "ones": ("does a float16 sum stop growing at 2048?", np.array([[2048.0, 1]] + [[1.0, 1]] * 63)),
    "small": (
        "what is left of 1 between 2**24 and -2**24?",
        np.array([[4096.0, 4096], [1, 1], [-4096, 4096]] + [[0.0, 0]] * 61),
    ),
    "large": (
        "may a sum pass 65504 on its way?",
        np.array([[256.0, 250], [256, 250], [-256, 250], [-256, 240]] + [[0.0, 0]] * 60),
    ),
    "products": (
        "are products rounded before they are added?",
        np.array([[_FINE, _FINE], [-_FINE - 2.0**-10, 1]] + [[0.0, 0]] * 62),
    ),
}
_REDUCTIONS = ("ReduceSum", "ReduceMean", "GlobalAveragePool")


def half_sum_probes() -> Iterator[Probe]:
    """Ask how float16 adds up, in products and in reductions."""
    for name, (question, terms) in _SUMS.items():
        for op in ("MatMul", "Conv"):
            yield _product(op, name, question, terms)
    for op in _REDUCTIONS:
        for name in ("ones", "large"):
            question, terms = _SUMS[name]
            yield _reduction(op, name, question, terms.prod(axis=1))
    yield _multiply_add()


def _totals(products: Reals) -> Mapping[str, float]:
    """Return the sum of exact products as each kind of accumulator has it."""
    rounded = to_half(products)
    return {
        "exact": float(products.sum()),
        "float32, in order": _running(products, np.float32),
        "float32, in pairs": _pairs(products.astype(np.float32)),
        "float16, in order": _running(products, np.float16),
        "float16, in pairs": _pairs(rounded),
        "float32, of rounded products": _running(rounded.astype(np.float64), np.float32),
        "float16, of rounded products": _running(rounded.astype(np.float64), np.float16),
    }


def _running(products: Reals, dtype: type[np.floating[Any]]) -> float:
    total = dtype(0)
    with np.errstate(over="ignore", invalid="ignore"):
        for product in products:
            total = dtype(float(total) + product)
    return float(total)


def _pairs(values: npt.NDArray[Any]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        while len(values) > 1:
            values = values[0::2] + values[1::2]
    return float(values[0])


def _candidates(totals: Mapping[str, float], shape: tuple[int, ...]) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(facts={"accumulator": name}, expected=np.broadcast_to(to_half([total]), shape))
        for name, total in totals.items()
    )


def _finish(sketch: Sketch, result: str, op: str, question: str, candidates: tuple[Candidate, ...]) -> Probe:
    return sketch.probe(
        result,
        op=op,
        dtype="float16",
        output_dtype="float16",
        shape=candidates[0].expected.shape,
        question=question,
        candidates=candidates,
        options=_OPTIONS,
    )


def _product(op: str, name: str, question: str, terms: Reals) -> Probe:
    left, right = terms[:, 0].astype(np.float16), terms[:, 1].astype(np.float16)
    columns: Halves = np.repeat(right[:, None], 32, axis=1)
    sketch = Sketch(f"half_{op.lower()}_{name}")
    if op == "Conv":
        x, w = np.tile(left[None, :, None, None], (1, 1, 4, 4)), columns.T[:, :, None, None]
        shape: tuple[int, ...] = (1, 32, 4, 4)
    else:
        x, w, shape = np.tile(left[None, None], (1, 4, 1)), columns, (1, 4, 32)
    result = sketch.node(op, sketch.input(x), sketch.constant(np.ascontiguousarray(w)))
    return _finish(sketch, result, op, question, _candidates(_totals(terms.prod(axis=1)), shape))


def _reduction(op: str, name: str, question: str, values: Reals) -> Probe:
    sketch = Sketch(f"half_{op.lower()}_{name}")
    halves = np.tile(values.astype(np.float16)[None, None], (1, 16, 1))
    divisor = 1 if op == "ReduceSum" else _TERMS
    totals = {label: total / divisor for label, total in _totals(values).items()}
    if op == "GlobalAveragePool":
        result = sketch.node(op, sketch.input(halves.reshape(1, 16, 8, 8)))
        shape: tuple[int, ...] = (1, 16, 1, 1)
    else:
        axes = sketch.constant(np.array([-1], np.int64))
        result, shape = sketch.node(op, sketch.input(halves), axes, keepdims=1), (1, 16, 1)
    return _finish(sketch, result, op, question, _candidates(totals, shape))


def _multiply_add() -> Probe:
    size = 32
    fine = np.full((1, size), _FINE, np.float16)
    minus = np.full((1, size), -(1 + 2.0**-9), np.float16)
    sketch = Sketch("half_multiply_add")
    product = sketch.node("Mul", sketch.input(fine), sketch.input(fine))
    result = sketch.node("Add", product, sketch.input(minus))
    wide = np.full((1, size), _FINE**2 - (1 + 2.0**-9))
    candidates = (
        Candidate(facts={"rounding of Mul and Add": "separate"}, expected=np.zeros((1, size), np.float16)),
        Candidate(facts={"rounding of Mul and Add": "fused"}, expected=wide.astype(np.float16)),
    )
    return _finish(sketch, result, "Mul+Add", "is a product rounded before it is added to?", candidates)
