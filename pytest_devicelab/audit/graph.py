"""Reading an ONNX graph: who makes which tensor, of what form, and how it is quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from pytest_devicelab.errors import ModelError
from pytest_devicelab.evidence.record import Quantization
from pytest_devicelab.virtual.onnx_model import constant_tensors, external_files, output_quantization
from pytest_devicelab.virtual.onnx_model import node_quantization as quantization_of

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
# File identifiers of flatbuffers, at byte 4. Source: the schemas of LiteRT and ExecuTorch.
_OTHERS = MappingProxyType({"LiteRT": b"TFL3", "ExecuTorch": b"ET12"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The main graph of a model, indexed.

    Attributes:
        model: as parsed; treat as read-only.
        producers: tensor -> the node that makes it.
        constants: names of tensors that do not depend on the graph's inputs.
        infos: type and shape of the tensors for which inference finds them.
        values: the constants whose values are at hand.
    """

    model: onnx.ModelProto
    producers: Mapping[str, onnx.NodeProto]
    constants: frozenset[str]
    infos: Mapping[str, onnx.ValueInfoProto]
    values: Mapping[str, onnx.TensorProto]

    def producer(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the node that makes the first input of a node."""
        return self.producers.get(node.input[0]) if node.input else None

    def quantization(self, node: onnx.NodeProto) -> Quantization | None:
        """Return the quantization a Q or DQ node applies; None for other nodes, or if not constant per tensor."""
        return quantization_of(node, self.values)

    def size_bytes(self, tensor: str) -> int:
        """Return the size of a tensor of one sample; 0 when its form is unknown. An open dimension counts as 1."""
        info = self.infos.get(tensor)
        if info is None or not info.type.tensor_type.elem_type:
            return 0
        form = info.type.tensor_type
        elements = int(np.prod([size.dim_value or 1 for size in form.shape.dim], dtype=np.int64))
        return elements * np.dtype(helper.tensor_dtype_to_np_dtype(form.elem_type)).itemsize


def read_model(path: Path) -> bytes:
    """Return a model as ONNX bytes that stand alone: weights it keeps in files beside it are taken in.

    Raises:
        ModelError: it cannot be read, is not ONNX, or names weight files outside its own folder.
    """
    try:
        with path.open("rb") as file:
            _refuse_others(file.read(8), path)
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except (OSError, DecodeError) as error:
        raise ModelError(
            f"{path}: not an ONNX model", why=str(error), fix="give the path of an .onnx file"
        ) from error
    if not external_files(model, path.parent):
        return path.read_bytes()
    onnx.load_external_data_for_model(model, str(path.parent))
    return bytes(model.SerializeToString())


def parse_graph(model: bytes) -> Graph:
    """Parse an ONNX model.

    Raises:
        ModelError: these bytes are not an ONNX model with a graph, or its nodes are not in order.
    """
    _refuse_others(model[:8])
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
        if any(name in producers for name in node.output if name):
            raise ModelError(f"two nodes of the ONNX model make {node.output[0]!r}", fix="export it again")
        producers.update((name, node) for name in node.output if name)
        if all(name in constants for name in node.input if name):
            constants.update(name for name in node.output if name)
    _check_order(parsed.graph, producers)
    return Graph(
        model=parsed,
        producers=producers,
        constants=frozenset(constants),
        infos=_infos(parsed),
        values=constant_tensors(parsed),
    )


def _refuse_others(head: bytes, path: Path | None = None) -> None:
    """Raise `ModelError` for the first bytes of a model for another runtime, which ONNX's parser would call damaged."""
    for name, mark in _OTHERS.items():
        if head[4:8] == mark:
            raise ModelError(
                f"{path or 'this'} is a model for {name}, and only ONNX models are taken apart",
                why="layers are tapped, cut and requantized in ONNX; of other files the outputs are compared",
                fix="give the ONNX model it was made from, under `runtime: qnn` or `runtime: ort`",
            )


def _check_order(graph: onnx.GraphProto, producers: Mapping[str, onnx.NodeProto]) -> None:
    """Refuse a graph with a cycle: whoever follows its edges would never arrive."""
    made: set[str] = set()
    for node in graph.node:
        late = [name for name in node.input if name in producers and name not in made]
        if late:
            raise ModelError(
                f"the ONNX model takes {late[0]!r} before it is made",
                why="nodes must be in topological order (ONNX IR specification, Graphs)",
                fix="sort the graph, or export it again",
            )
        made.update(node.output)


def _infos(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError:
        # A model that runs on a device need not satisfy ONNX's own checks; its names are enough.
        inferred = model
    graph = inferred.graph
    return {info.name: info for info in (*graph.value_info, *graph.input, *graph.output)}


def output_lsb(model: bytes) -> dict[str, float]:
    """Return one quantization step of each output, in the output's own units.

    That is the scale of an output that is dequantized, and 1 for one that holds the quantized integers;
    outputs of which neither is known are absent.
    """
    parsed = parse_graph(model).model
    kinds = {output.name: output.type.tensor_type.elem_type for output in parsed.graph.output}
    return {
        name: quantization.scale if kinds[name] in FLOATS else 1.0
        for name, quantization in output_quantization(parsed).items()
    }
