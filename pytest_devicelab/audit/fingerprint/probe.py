"""Probe: one small model, the inputs that decide a question, and what each possible answer would compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """One way a chip might compute a probe.

    Attributes:
        facts: what is true of a chip that computes so: property -> value, such as `rounding` -> `half up`.
        expected: the output's bits in that case.
    """

    facts: Mapping[str, str]
    expected: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probe:
    """One question to a chip.

    Attributes:
        name: `[a-z0-9_]+`, unique in the catalogue.
        op: the operator it is about.
        dtype: of its activations: `uint8`, `float16`.
        question: what the answer tells, in words.
        nodes, constants: its part of an ONNX graph; every name in it begins with the probe's own.
        output: name of the tensor to look at, and `output_dtype`, `output_shape` (batch of 1 included).
        inputs: arrays by input name, batch of 1 included.
        computes: the nodes that must have run on the NPU before the output says anything about it.
        candidates: empty where nobody knows what to expect: then only the bits count.
        options: of the QNN execution provider, sorted pairs; probes with the same options share a model.
    """

    name: str
    op: str
    dtype: str
    question: str
    nodes: tuple[onnx.NodeProto, ...]
    constants: tuple[onnx.TensorProto, ...]
    inputs: Mapping[str, Array]
    output: str
    output_dtype: str
    output_shape: tuple[int, ...]
    computes: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    options: tuple[tuple[str, str], ...] = ()
