"""Cut a sub-model out of a model: the nodes between some tensors and another."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from pytest_devicelab.audit.graph import Graph
from pytest_devicelab.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class SubModel:
    """A part of a model that runs by itself.

    Attributes:
        model: ONNX bytes.
        inputs: tensors of the whole model it has to be fed with, in the order of its inputs.
        outputs: what it computes.
        nodes: names of its nodes, in topological order.
    """

    model: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]


def cut_model(graph: Graph, known: Collection[str], outputs: Sequence[str]) -> SubModel:
    """Cut out the nodes that make some tensors from others.

    Args:
        graph: the whole model.
        known: tensors whose values are at hand. The cut goes through those nearest in front of `outputs`; where
            there is none on the way, it reaches back to the inputs of the model.
        outputs: tensors to compute; one of them may also be known.

    Returns:
        The sub-model. Tensors and nodes keep their names, so that it can be held against the whole.

    Raises:
        ModelError: no node makes an output, the form of an edge is unknown, or weights are kept in other files.
    """
    missing = [name for name in outputs if name not in graph.producers]
    if missing:
        raise ModelError(
            f"the model has no tensor {missing[0]!r} to cut behind",
            why="no node makes it",
            fix="take tensors from find_taps() of the same model",
        )
    needed, edges = _walk_back(graph, known, outputs)
    nodes = [node for node in graph.model.graph.node if any(name in needed for name in node.output)]
    used = {name for node in nodes for name in _inputs_of(node)}
    constants = [tensor for tensor in graph.model.graph.initializer if tensor.name in used]
    outside = [tensor.name for tensor in constants if tensor.data_location == TensorProto.EXTERNAL]
    if outside:
        raise ModelError(
            f"{outside[0]!r} is kept outside the model's own bytes",
            why="a part of the model would lose it",
            fix="read the model with read_model(), which takes weights in",
        )
    part = onnx.ModelProto()
    part.CopyFrom(graph.model)
    # What exporters note there, such as paths of source files, is not part of what is computed, and may be private.
    for remark in ("graph", "doc_string", "metadata_props"):
        part.ClearField(remark)
    part.graph.name = "part"
    part.graph.node.extend(nodes)
    for node in part.graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    part.graph.initializer.extend(constants)
    inputs = tuple(name for name in _in_order(graph) if name in edges)
    part.graph.input.extend(_info(graph, name) for name in inputs)
    part.graph.output.extend(_info(graph, name) for name in outputs)
    inner = [info for name, info in graph.infos.items() if name in needed and name not in {*inputs, *outputs}]
    part.graph.value_info.extend(inner)
    names = tuple(node.name or node.output[0] for node in nodes)
    return SubModel(model=bytes(part.SerializeToString()), inputs=inputs, outputs=tuple(outputs), nodes=names)


def _walk_back(graph: Graph, known: Collection[str], outputs: Sequence[str]) -> tuple[set[str], set[str]]:
    """Return the tensors that must be computed, and those the cut goes through."""
    constant_inputs = {tensor.name for tensor in graph.model.graph.initializer}
    needed: set[str] = set()
    edges: set[str] = set()
    open_ends = list(outputs)
    while open_ends:
        tensor = open_ends.pop()
        if tensor in needed:
            continue
        needed.add(tensor)
        for name in _inputs_of(graph.producers[tensor]):
            if name in constant_inputs:
                continue
            if name not in graph.producers or name in known:
                edges.add(name)
            else:
                open_ends.append(name)
    return needed, edges


def _inputs_of(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node takes, also from inside the graphs it carries (the branches of an If, a loop's body)."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            own = {each.name for each in (*inner.input, *inner.initializer)}
            own |= {name for each in inner.node for name in each.output}
            yield from (name for each in inner.node for name in _inputs_of(each) if name not in own)
            yield from (each.name for each in inner.output if each.name not in own)


def _in_order(graph: Graph) -> Iterator[str]:
    """Yield tensors in the order in which they are known: the model's inputs, then what its nodes make."""
    yield from (info.name for info in graph.model.graph.input)
    for node in graph.model.graph.node:
        yield from node.output


def _info(graph: Graph, tensor: str) -> onnx.ValueInfoProto:
    info = graph.infos.get(tensor)
    if info is None or not info.type.tensor_type.elem_type:
        raise ModelError(
            f"the type of tensor {tensor!r} is unknown, so the model cannot be cut there",
            why="ONNX shape inference does not find it",
            fix="run onnx.shape_inference, or give the tensor a value_info with type and shape",
        )
    return info
