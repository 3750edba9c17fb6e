"""What the runtimes need to know of an ONNX model: names, edges, quantization, files beside it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_devicelab.errors import ModelError
from pytest_devicelab.evidence.record import Quantization
from pytest_devicelab.virtual.context_binary import GraphInfo, TensorInfo

if TYPE_CHECKING:
    import onnx

MOVES_ONLY = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice")
"""Operators that move values and compute none."""


def load_model(path: Path) -> onnx.ModelProto:
    """Load an ONNX model without the weights it keeps in other files.

    Raises:
        ModelError: it cannot be read, is not ONNX, or names weight files outside its own folder.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read", why=str(error)) from error
    except DecodeError as error:
        raise ModelError(f"{path}: not an ONNX model", why=f"not a protobuf file: {error}") from error
    # Random bytes can parse as an empty protobuf.
    if not model.graph.node or not model.opset_import:
        raise ModelError(
            f"{path}: not an ONNX model", why="it holds no graph", fix="export the model to ONNX again"
        )
    external_files(model, path.parent)
    return model


def external_files(model: onnx.ModelProto, folder: Path) -> tuple[Path, ...]:
    """Return the files beside the model that hold its weights, sorted.

    Raises:
        ModelError: one is missing or lies outside `folder`.
    """
    home = folder.resolve()
    names = {
        entry.value
        for tensor in _tensors(model.graph)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = tuple(sorted((home / name).resolve() for name in names))
    for file in files:
        if not file.is_relative_to(home) or not file.is_file():
            raise ModelError(
                f"the model's weight file {file} cannot be used",
                why="it must exist, in the model's own folder",
                fix="save the model again, with its weights inside or beside it",
            )
    return files


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from [attribute.t] if attribute.HasField("t") else []
            yield from attribute.tensors
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _tensors(inner)


def op_types(model: onnx.ModelProto) -> Mapping[str, str]:
    """Return the operator type of every named node."""
    return {node.name: node.op_type for node in model.graph.node if node.name}


def signature(model: onnx.ModelProto) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Return a model's inputs and outputs; a dimension it leaves open counts as 1.

    Raises:
        ModelError: an input or output is not a tensor of numbers.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_info(value) for value in model.graph.input if value.name not in constants)
    return inputs, tuple(_info(value) for value in model.graph.output)


def open_inputs(model: onnx.ModelProto) -> tuple[str, ...]:
    """Name the inputs that leave a dimension open, with their shapes: `image [?, 1, 8, 8]`."""
    constants = {tensor.name for tensor in model.graph.initializer}
    shapes = {
        value.name: [
            str(size.dim_value) if size.dim_value > 0 else "?" for size in value.type.tensor_type.shape.dim
        ]
        for value in model.graph.input
        if value.name not in constants
    }
    return tuple(f"{name} [{', '.join(shape)}]" for name, shape in shapes.items() if "?" in shape)


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    import numpy as np
    from onnx import helper

    tensor = value.type.tensor_type
    try:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except (KeyError, TypeError) as error:
        raise ModelError(f"{value.name} is not a tensor of a known type", why=repr(error)) from error
    if dtype.kind not in "biuf":
        raise ModelError(f"{value.name} is not a tensor of numbers", why=f"its type is {dtype}")
    return TensorInfo(
        name=value.name, dtype=dtype.name, shape=tuple(size.dim_value or 1 for size in tensor.shape.dim)
    )


def edge_conversions(model: onnx.ModelProto) -> frozenset[str]:
    """Name the nodes that only quantize a graph input or dequantize a graph output.

    Left to the CPU they change where the rounding of the edge happens, not where the model runs.
    """
    inputs = {value.name for value in model.graph.input}
    outputs = {value.name for value in model.graph.output}
    return frozenset(
        node.name
        for node in model.graph.node
        if (node.op_type == "QuantizeLinear" and node.input[0] in inputs)
        or (node.op_type == "DequantizeLinear" and node.output[0] in outputs)
    )


def conversions_around(model: onnx.ModelProto, nodes: Collection[str]) -> frozenset[str]:
    """Name the nodes that quantize or dequantize right before or after one of these nodes."""
    inside = [node for node in model.graph.node if node.name in nodes]
    read = {name for node in inside for name in node.input}
    written = {name for node in inside for name in node.output}
    return frozenset(
        node.name
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        and (read.intersection(node.output) or written.intersection(node.input))
    )


def output_quantization(model: onnx.ModelProto) -> Mapping[str, Quantization]:
    """Return how the model itself quantizes its outputs, one step of which is one LSB.

    Covers integer outputs made by a QuantizeLinear and float outputs made by a DequantizeLinear, with
    constant per-tensor parameters, also through nodes that only move values; other outputs are absent.
    """
    constants = constant_tensors(model)
    made_by = {name: node for node in model.graph.node for name in node.output if name}
    found = {}
    for value in model.graph.output:
        node = made_by.get(value.name)
        for _ in model.graph.node:  # no more steps than nodes, so that a cycle, which ONNX forbids, ends
            if node is None or node.op_type not in MOVES_ONLY or not node.input:
                break
            node = made_by.get(node.input[0])
        quantization = node_quantization(node, constants) if node is not None else None
        if quantization is not None:
            found[value.name] = quantization
    return found


def constant_tensors(model: onnx.ModelProto) -> Mapping[str, onnx.TensorProto]:
    """Return the constants whose values are in the model's own bytes, by the tensor that holds them."""
    import onnx

    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found.update((node.output[0], each.t) for each in node.attribute if each.name == "value")
    # onnx would open any path that a tensor names.
    return {name: each for name, each in found.items() if each.data_location != onnx.TensorProto.EXTERNAL}


def node_quantization(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> Quantization | None:
    """Return the quantization a Q or DQ node applies; None for other nodes, or if not constant per tensor.

    Args:
        node: any node.
        constants: of its model, from `constant_tensors`.
    """
    import numpy as np
    from onnx import numpy_helper

    if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 2:
        return None
    names = [name for name in node.input[1:3] if name]
    if any(name not in constants for name in names):
        return None
    scale, *zero_points = (numpy_helper.to_array(constants[name]) for name in names)
    zero_point = zero_points[0] if zero_points else np.zeros((), np.uint8)
    if scale.size != 1 or zero_point.size != 1:
        return None
    step = float(scale.reshape(-1).astype(np.float64)[0])
    if not (math.isfinite(step) and step > 0.0):
        return None
    return Quantization(
        scale=step, zero_point=int(zero_point.reshape(-1).astype(np.int64)[0]), dtype=zero_point.dtype.name
    )


def wrap_context(binary: bytes, graph: GraphInfo) -> bytes:
    """Return an ONNX model of one node that runs a graph of a QNN context binary.

    The binary is embedded, because ONNX Runtime looks for a file only beside a model it read from disk.

    Source: ONNX Runtime documentation, "EP context design", operator com.microsoft.EPContext.
    """
    import numpy as np
    from onnx import helper

    values = {
        tensor.name: helper.make_tensor_value_info(
            tensor.name, helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), tensor.shape
        )
        for tensor in (*graph.inputs, *graph.outputs)
    }
    inputs = [tensor.name for tensor in graph.inputs]
    outputs = [tensor.name for tensor in graph.outputs]
    node = helper.make_node(
        "EPContext",
        inputs,
        outputs,
        name=graph.name,
        domain="com.microsoft",
        main_context=1,
        embed_mode=1,
        ep_cache_context=binary,
        partition_name=graph.name,
        source="QNNExecutionProvider",
    )
    model = helper.make_model(
        helper.make_graph(
            [node], graph.name, [values[name] for name in inputs], [values[name] for name in outputs]
        ),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
        ir_version=9,
    )
    return bytes(model.SerializeToString())
