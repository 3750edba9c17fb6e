"""Probes of float16 arithmetic: rounding, overflow, denormals, and how wide and in which order it adds up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from pytest_devicelab.audit.fingerprint.halves import Halves, Reals, flushed, past_infinity, to_half
from pytest_devicelab.audit.fingerprint.probe import Candidate, Probe
from pytest_devicelab.audit.fingerprint.rounding import ROUNDINGS
from pytest_devicelab.audit.fingerprint.sketch import Sketch

_OPTIONS = (("enable_htp_fp16_precision", "1"),)
_BINARY: Mapping[str, Callable[[Reals, Reals], Reals]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
}
_UNARY: Mapping[str, tuple[Callable[[Reals], Reals], float, float]] = {
    "Sigmoid": (lambda x: 1 / (1 + np.exp(-x)), -8, 8),
    "Tanh": (np.tanh, -4, 4),
    "Gelu": (lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))), -4, 4),
    "HardSwish": (lambda x: x * np.clip(x / 6 + 0.5, 0, 1), -4, 4),
    "Elu": (lambda x: np.where(x < 0, np.expm1(x), x), -4, 4),
    "Exp": (np.exp, -8, 8),
    "Log": (np.log, 0.01, 16),
    "Sqrt": (np.sqrt, 0, 16),
    "Sin": (np.sin, -3, 3),
    "Cos": (np.cos, -3, 3),
}


def half_probes() -> Iterator[Probe]:
    """Ask a chip's float16 everything of the above."""
    for op in _BINARY:
        yield _ties(op)
        yield _overflow(op)
        yield _denormal_results(op)
    yield from _special_values()
    for op in _UNARY:
        yield _table(op)
    yield _softmax()


def _half(values: npt.ArrayLike) -> Halves:
    """Return values as one row `[1, n]` of float16."""
    return np.asarray(values, dtype=np.float64).astype(np.float16).reshape(1, -1)


def _finish(
    sketch: Sketch, result: str, op: str, question: str, key: str, expected: Mapping[str, Halves]
) -> Probe:
    candidates = tuple(Candidate(facts={key: name}, expected=array) for name, array in expected.items())
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


def _two(
    name: str, op: str, first: Halves, second: Halves, question: str, key: str, expected: Mapping[str, Halves]
) -> Probe:
    sketch = Sketch(f"half_{op.lower()}_{name}")
    result = sketch.node(op, sketch.input(first), sketch.input(second))
    return _finish(sketch, result, op, question, key, expected)


def _ties(op: str) -> Probe:
    steps = np.arange(256)
    signs = np.where(steps // 2 % 2 < 1, 1.0, -1.0)
    if op in ("Add", "Sub"):  # a neighbour of one, and half and a quarter of its last place
        first, second = _half(signs * (1 + steps * 2.0**-10)), _half(2.0**-11 * (1 + steps % 3 / 2))
    elif op == "Mul":  # 11 bits times 2 bits: one or two bits too many
        first, second = _half(signs * (1 + steps * 2.0**-10)), _half(1.25 + 0.25 * (steps % 3))
    else:
        first, second = _half(signs * (1 + steps)), _half(3.0 + steps % 7)
    values = _BINARY[op](first.astype(float), second.astype(float))
    expected = {mode: to_half(values, rounding=mode) for mode in ROUNDINGS}
    question = "how does a float16 result between two values round?"
    return _two("ties", op, first, second, question, "rounding", expected)


def _overflow(op: str) -> Probe:
    first = _half([60000, -60000, 65504, -65504] * 8)
    other = {"Add": 60000.0, "Sub": -60000.0, "Mul": 2.0, "Div": 0.5}[op]
    signed = op in ("Add", "Sub")
    second = _half(np.sign(first.astype(float)) * other if signed else np.full(first.shape, other))
    values = _BINARY[op](first.astype(float), second.astype(float))
    expected = {
        "infinity": to_half(values),
        "clamps": to_half(values, clamp=True),
        "exponent 31 holds numbers": past_infinity(values),
    }
    question = "does a float16 overflow give infinity or the largest value?"
    return _two("overflow", op, first, second, question, "overflow", expected)


def _denormal_results(op: str) -> Probe:
    steps = np.arange(1, 65)
    if op in ("Add", "Sub"):  # normal minus normal: the difference is below the smallest normal
        first, second = _half(2.0**-14 * (1 + steps / 1024)), _half(np.full(64, 2.0**-14))
        second = -second if op == "Add" else second
    elif op == "Mul":
        first, second = _half(2.0**-10 * (1 + steps / 64)), _half(np.full(64, 2.0**-8))
    else:
        first, second = _half(2.0**-10 * (1 + steps / 64)), _half(np.full(64, 2.0**8))
    values = _BINARY[op](first.astype(float), second.astype(float))
    expected = {"kept": to_half(values), "flushed": to_half(values, flush=True)}
    question = "is a result below the smallest normal kept, or flushed to zero?"
    return _two("denormals", op, first, second, question, "denormals", expected)


def _special_values() -> Iterator[Probe]:
    denormal = _half(2.0**-24 * np.arange(1, 1024, 8))
    scale = _half(np.full(denormal.shape, 1024.0))
    read = {
        "kept": to_half(denormal.astype(float) * 1024),
        "flushed": to_half(flushed(denormal) * 1024),
    }
    question = "is an input below the smallest normal read, or taken for zero?"
    yield _two("denormal_inputs", "Mul", denormal, scale, question, "denormals", read)
    yield _two(
        "zero_signs",
        "Mul",
        _half([0.0, -0.0] * 16),
        _half([-1.0] * 32),
        "has zero a sign?",
        "zero",
        {"signed": _half([-0.0, 0.0] * 16), "unsigned": _half([0.0] * 32)},
    )
    nan, inf = _half([np.nan] * 32), _half([np.inf] * 32)
    meets = {"stays NaN": nan, "zero": _half([0] * 32), "infinity": inf, "clamps": _half([65504.0] * 32)}
    yield _two("infinities", "Sub", inf, inf, "what is infinity minus infinity?", "inf - inf", meets)
    yield _two("infinity", "Add", inf, _half([1] * 32), "is there an infinity?", "infinity", meets)
    yield _two("nan", "Add", nan, _half([1] * 32), "does NaN pass through a sum?", "nan", meets)
    ones = {"stays NaN": nan, "the other": _half([1] * 32)}
    for op in ("Max", "Min"):
        yield _two("nan", op, nan, _half([1] * 32), "which one is it, NaN or the other?", "nan", ones)
    sketch = Sketch("half_relu_nan")
    relu = {"stays NaN": nan, "zero": _half([0] * 32), "infinity": inf}
    yield _finish(sketch, sketch.node("Relu", sketch.input(nan)), "Relu", "does NaN pass Relu?", "nan", relu)
    yield _two(
        "by_zero",
        "Div",
        _half([1, -1] * 16),
        _half([0] * 32),
        "what is one divided by zero?",
        "division by zero",
        {"infinity": _half([np.inf, -np.inf] * 16), "clamps": _half([65504, -65504] * 16)},
    )


def _table(op: str) -> Probe:
    function, low, high = _UNARY[op]
    values = _half(np.linspace(low, high, 2048))
    exact = function(values.astype(np.float64))
    sketch = Sketch(f"half_table_{op.lower()}")
    expected = {mode: to_half(exact, rounding=mode) for mode in ROUNDINGS}
    result = sketch.node(op, sketch.input(values))
    question = "is every entry the exact value, rounded once, and how?"
    return _finish(sketch, result, op, question, "rounding", expected)


def _softmax() -> Probe:
    values = _half(np.arange(1024) * 37 % 1024 / 128).reshape(1, 64, 16)
    powers = np.exp(values.astype(np.float64))
    exact = powers / powers.sum(axis=-1, keepdims=True)
    sketch = Sketch("half_table_softmax")
    result = sketch.node("Softmax", sketch.input(values), axis=-1)
    expected = {mode: to_half(exact, rounding=mode) for mode in ROUNDINGS}
    question = "is every entry the exact value, rounded once, and how?"
    return _finish(sketch, result, "Softmax", question, "rounding", expected)
