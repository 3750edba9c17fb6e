"""Reading an ONNX graph: who makes which tensor, and how a tensor is quantized."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from pytest_devicelab.errors import ModelError
from pytest_devicelab.evidence.record import Quantization

Array = npt.NDArray[np.generic]

MOVES_ONLY = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice")
"""Ops that move values and compute none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The main graph of a model, indexed.

    Attributes:
        model: as parsed; treat as read-only.
        producers: tensor -> the node that makes it.
        constants: names of tensors that do not depend on the graph's inputs.
    """

    model: onnx.ModelProto
    producers: Mapping[str, onnx.NodeProto]
    constants: frozenset[str]


def parse_graph(model: bytes) -> Graph:
    """Parse an ONNX model.

    Raises:
        ModelError: these bytes are not an ONNX model with a graph.
    """
    try:
        parsed = onnx.load_model_from_string(model)
    except DecodeError as error:
        raise ModelError(
            f"{len(model):,} bytes are not an ONNX model",
            why=str(error),
            fix="give the path of an .onnx file",
        ) from error
    if not parsed.graph.node or not parsed.graph.output:
        raise ModelError("the ONNX model has no nodes or no outputs", fix="export it again, with its graph")
    constants = {tensor.name for tensor in parsed.graph.initializer}
    producers: dict[str, onnx.NodeProto] = {}
    for node in parsed.graph.node:
        producers.update((name, node) for name in node.output if name)
        if all(name in constants for name in node.input if name):
            constants.update(name for name in node.output if name)
    return Graph(model=parsed, producers=producers, constants=frozenset(constants))


def output_quantization(model: bytes) -> dict[str, Quantization]:
    """Say how the outputs of a QDQ model are quantized.

    Args:
        model: ONNX model.

    Returns:
        The quantization of each output that a per-tensor DequantizeLinear or QuantizeLinear makes, also
        through nodes that only move values; outputs of any other kind are absent.

    Raises:
        ModelError: these bytes are not an ONNX model.
    """
    graph = parse_graph(model)
    found = {}
    for output in graph.model.graph.output:
        node = graph.producers.get(output.name)
        while node is not None and node.op_type in MOVES_ONLY:
            node = graph.producers.get(node.input[0])
        quantization = node_quantization(graph, node) if node is not None else None
        if quantization is not None:
            found[output.name] = quantization
    return found


def output_lsb(model: bytes) -> dict[str, float]:
    """Return one quantization step of each output, in the output's own units.

    That is the scale of an output that is dequantized, and 1 for one that holds the quantized integers;
    outputs of which neither is known are absent.
    """
    kinds = {
        output.name: output.type.tensor_type.elem_type for output in parse_graph(model).model.graph.output
    }
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    return {
        name: quantization.scale if kinds[name] in floats else 1.0
        for name, quantization in output_quantization(model).items()
    }


def node_quantization(graph: Graph, node: onnx.NodeProto) -> Quantization | None:
    """Return the quantization a Q or DQ node applies; None for other nodes, or if not constant per tensor."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 2:
        return None
    scale = _constant(graph, node.input[1])
    named = len(node.input) > 2 and node.input[2]
    zero_point: Array | None = _constant(graph, node.input[2]) if named else np.zeros((), np.uint8)
    if scale is None or zero_point is None or scale.size != 1 or zero_point.size != 1:
        return None
    step = float(scale.reshape(-1).astype(np.float64)[0])
    if not (math.isfinite(step) and step > 0.0):
        return None
    return Quantization(
        scale=step, zero_point=int(zero_point.reshape(-1).astype(np.int64)[0]), dtype=zero_point.dtype.name
    )


def _constant(graph: Graph, name: str) -> Array | None:
    """Return a constant's value; None for one that is computed, or kept outside the model's own bytes."""
    for tensor in graph.model.graph.initializer:
        if tensor.name == name:
            # onnx would open any path the model names.
            external = tensor.data_location == onnx.TensorProto.EXTERNAL
            return None if external else numpy_helper.to_array(tensor)
    node = graph.producers.get(name)
    if node is not None and node.op_type == "Constant":
        for attribute in node.attribute:
            if attribute.name == "value" and attribute.t.data_location != onnx.TensorProto.EXTERNAL:
                return numpy_helper.to_array(attribute.t)
    return None
