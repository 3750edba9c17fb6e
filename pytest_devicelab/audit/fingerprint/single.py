"""Probes of float32 models on an NPU that has float16: what is left of float32, and do these models finalize?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_devicelab.audit.fingerprint.halves import Reals, to_half
from pytest_devicelab.audit.fingerprint.probe import Candidate, Probe
from pytest_devicelab.audit.fingerprint.sketch import Sketch

_OPTIONS = (("enable_htp_fp16_precision", "1"),)
_FUNCTIONS: Mapping[str, Callable[[Reals], Reals]] = {
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Tanh": np.tanh,
    "Gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "Exp": np.exp,
}
_EPSILON = 1e-5


def single_probes() -> Iterator[Probe]:
    """Ask of float32 models in which precision they run."""
    for op, function in _FUNCTIONS.items():
        values = _spread((1, 1024))
        sketch = Sketch(f"single_{op.lower()}")
        yield _finish(sketch, sketch.node(op, sketch.input(values)), op, function(_seen(values)))
    yield _softmax()
    yield from _norms()
    for op in ("MatMul", "Conv"):
        yield _product(op)


def _spread(shape: tuple[int, ...], step: int = 37, size: int = 257) -> npt.NDArray[np.float32]:
    """Return thirds between -2 and 2: no float16 holds them."""
    index = np.arange(math.prod(shape))
    return ((index * step % size - size // 2) / 192).astype(np.float32).reshape(shape)


def _seen(values: npt.NDArray[np.float32]) -> Reals:
    """Return values as float16 has them."""
    return values.astype(np.float16).astype(np.float64)


def _finish(sketch: Sketch, result: str, op: str, of_halves: Reals) -> Probe:
    candidate = Candidate(
        facts={"precision": "float16, rounded once"}, expected=to_half(of_halves).astype(np.float32)
    )
    return sketch.probe(
        result,
        op=op,
        dtype="float32",
        output_dtype="float32",
        shape=of_halves.shape,
        question="is a float32 model computed on float16 inputs, exactly, and rounded to float16 once?",
        candidates=(candidate,),
        options=_OPTIONS,
    )


def _softmax() -> Probe:
    values = _spread((1, 64, 16))
    powers = np.exp(_seen(values))
    sketch = Sketch("single_softmax")
    result = sketch.node("Softmax", sketch.input(values), axis=-1)
    return _finish(sketch, result, "Softmax", powers / powers.sum(axis=-1, keepdims=True))


def _norms() -> Iterator[Probe]:
    values = _spread((1, 16, 8, 8))
    ones, zeros = np.ones(16, np.float32), np.zeros(16, np.float32)
    for op, axes in (("LayerNormalization", (-1,)), ("InstanceNormalization", (2, 3))):
        sketch = Sketch(f"single_{op.lower()}")
        x = sketch.input(values)
        constants = (
            [sketch.constant(ones[:8])] if len(axes) == 1 else [sketch.constant(ones), sketch.constant(zeros)]
        )
        more: dict[str, Any] = {"axis": -1} if len(axes) == 1 else {}
        result = sketch.node(op, x, *constants, **more)
        seen = _seen(values)
        centred = seen - seen.mean(axis=axes, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=axes, keepdims=True) + _EPSILON)
        yield _finish(sketch, result, op, centred / spread)


def _product(op: str) -> Probe:
    values, weights = _spread((1, 16, 64)), _spread((64, 64), 29, 127)
    sketch = Sketch(f"single_{op.lower()}")
    exact = _seen(values) @ _seen(weights)
    if op == "MatMul":
        return _finish(sketch, sketch.node(op, sketch.input(values), sketch.constant(weights)), op, exact)
    pixels = np.ascontiguousarray(values.transpose(0, 2, 1).reshape(1, 64, 4, 4))
    result = sketch.node(op, sketch.input(pixels), sketch.constant(weights.T[:, :, None, None].copy()))
    return _finish(sketch, result, op, exact.transpose(0, 2, 1).reshape(1, 64, 4, 4))
