"""Sketch: write down the small graph of one probe."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pytest_devicelab.audit.fingerprint.probe import Array, Candidate, Probe
from pytest_devicelab.audit.fingerprint.rounding import Whole, whole

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Per-tensor quantization of a tensor: `real = scale * (code - zero)`, scale as float32 holds it."""

    scale: float
    zero: int
    dtype: str

    @property
    def step(self) -> Fraction:
        """The scale, exactly."""
        return Fraction(float(np.float32(self.scale)))

    def counts(self, codes: npt.ArrayLike) -> Whole:
        """Return codes as whole steps from zero."""
        steps: Whole = whole(codes) - self.zero
        return steps

    def all_codes(self) -> npt.NDArray[Any]:
        """Return every code of an 8-bit grid; of a 16-bit one 2,048 around zero and 2,048 from end to end."""
        low, high = int(np.iinfo(self.dtype).min), int(np.iinfo(self.dtype).max)
        if high - low < 256:
            return np.arange(low, high + 1).astype(self.dtype)
        around = np.clip(np.arange(self.zero - 1024, self.zero + 1024), low, high)
        return np.concatenate([around, np.arange(low, high + 1, 32)]).astype(self.dtype)


class Sketch:
    """The nodes, constants and inputs of one probe, each named after it.

    Args:
        name: the probe's.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: dict[str, Array] = {}

    def input(self, array: Array) -> str:
        """Add an input, batch of 1 included, and return its name."""
        name = f"{self._name}_in{len(self._inputs)}"
        self._inputs[name] = array
        return name

    def constant(self, array: npt.ArrayLike) -> str:
        """Add a constant and return its name."""
        from onnx import numpy_helper

        name = f"{self._name}_c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output and return that output's name, which is the node's name too."""
        from onnx import helper

        name = f"{self._name}_n{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def dequantize(self, tensor: str, grid: Grid) -> str:
        """Add a DequantizeLinear."""
        return self.node("DequantizeLinear", tensor, *self._parameters(grid))

    def quantize(self, tensor: str, grid: Grid) -> str:
        """Add a QuantizeLinear."""
        return self.node("QuantizeLinear", tensor, *self._parameters(grid))

    def quantized_input(self, codes: Array, grid: Grid) -> str:
        """Add an input of codes and dequantize it."""
        return self.dequantize(self.input(codes), grid)

    def quantized_constant(self, codes: npt.ArrayLike, grid: Grid) -> str:
        """Add a constant of codes and dequantize it."""
        return self.dequantize(self.constant(np.asarray(codes, dtype=grid.dtype)), grid)

    def probe(
        self,
        output: str,
        *,
        op: str,
        dtype: str,
        output_dtype: str,
        shape: tuple[int, ...],
        question: str,
        candidates: tuple[Candidate, ...],
        options: tuple[tuple[str, str], ...] = (),
    ) -> Probe:
        """Return the finished probe; all of its nodes have to run on the NPU."""
        return Probe(
            name=self._name,
            op=op,
            dtype=dtype,
            question=question,
            nodes=tuple(self._nodes),
            constants=tuple(self._constants),
            inputs=dict(self._inputs),
            output=output,
            output_dtype=output_dtype,
            output_shape=shape,
            computes=tuple(node.name for node in self._nodes),
            candidates=candidates,
            options=options,
        )

    def _parameters(self, grid: Grid) -> tuple[str, str]:
        return self.constant(np.float32(grid.scale)), self.constant(np.dtype(grid.dtype).type(grid.zero))
