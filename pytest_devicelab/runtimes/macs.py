"""Multiply-accumulates of each node of an ONNX model: how much of the work a unit was given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_COUNTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Where the multiply-accumulates of a network are; what other operators compute is not counted."""


def node_macs(model: onnx.ModelProto) -> Mapping[str, int | None]:
    """Count the multiply-accumulates of one inference, by node name; a batch left open counts as 1.

    Args:
        model: the model; weights kept in other files need not be loaded, their shapes suffice.

    Returns:
        For each named Conv, ConvTranspose, Gemm and MatMul its count, or None where shapes do not tell;
        0 for every other named node.

    Source: ONNX operator specifications; a padded position counts like any other, as is customary.
    """
    shapes = _shapes(model)
    return {
        node.name: _macs(node, shapes) if node.op_type in _COUNTED else 0
        for node in model.graph.node
        if node.name
    }


def _macs(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int]]) -> int | None:
    given = [shapes.get(name) for name in node.input[:2]]
    out = shapes.get(node.output[0])
    if out is None or any(shape is None for shape in given):
        return None
    left, right = (shape or () for shape in given)
    match node.op_type:
        case "Conv":  # weight [M, C / group, k...]: one dot product of C / group * k for each output
            return math.prod(out) * math.prod(right[1:])
        case "ConvTranspose":  # weight [C, M / group, k...]: each input is spread over M / group * k
            return math.prod(left) * math.prod(right[1:])
        case "Gemm":
            return math.prod(out) * left[0 if _attribute(node, "transA") else 1]
        case _:
            return math.prod(out) * left[-1]


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)


def _shapes(model: onnx.ModelProto) -> Mapping[str, Sequence[int]]:
    """Return the shape of every tensor whose extents are all known; open ones of inputs are 1."""
    import onnx

    fixed = type(model)()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        for extent in value.type.tensor_type.shape.dim:
            if not extent.dim_value:
                extent.dim_value = 1
    # A name given to an open extent of an output would contradict what follows from the inputs.
    for value in (*fixed.graph.output, *fixed.graph.value_info):
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(fixed).graph
    except (onnx.shape_inference.InferenceError, ValueError):
        return {}  # nothing is known, and nothing is made up
    found: dict[str, Sequence[int]] = {tensor.name: tuple(tensor.dims) for tensor in fixed.graph.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = value.type.tensor_type
        extents = tuple(extent.dim_value for extent in tensor.shape.dim)
        if tensor.HasField("shape") and all(extents):
            found.setdefault(value.name, extents)
    return found
