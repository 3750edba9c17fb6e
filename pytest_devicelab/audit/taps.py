"""Taps: a model's intermediate tensors as extra outputs, so that runs can be compared layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from pytest_devicelab.audit.graph import FLOATS, Graph, parse_graph
from pytest_devicelab.errors import ModelError, UserError
from pytest_devicelab.evidence.record import Quantization
from pytest_devicelab.virtual.onnx_model import MOVES_ONLY

# Behind one of these, bits that differ were made in front of it.
_PASSIVE = (*MOVES_ONLY, "Relu", "Clip", "MaxPool")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """One tensor to look at.

    Attributes:
        node: the node that computes it, and `op`, its type: for the output of a QuantizeLinear, and of a
            DequantizeLinear whose codes are not tapped, the computing node in front of it.
        tensor: name of the tensor, and of the output that carries it.
        depth: 1-based position among the taps of the model, in topological order.
        quantization: of the integers it holds, or of the floats dequantized from them; None if it has none.
    """

    node: str
    op: str
    tensor: str
    depth: int
    quantization: Quantization | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TappedModel:
    """A model with taps.

    Attributes:
        model: ONNX bytes; its first outputs are the original ones, unchanged.
        taps: in topological order.
    """

    model: bytes
    taps: tuple[Tap, ...]


def find_taps(model: bytes, *, offloaded_io: bool = True, movers: bool = False) -> tuple[Tap, ...]:
    """List the tensors at which two runs of a model can be compared, in topological order.

    Args:
        model: ONNX model.
        offloaded_io: whether the outputs are dequantized on the CPU, as with `offload_graph_io_quantization=1`,
            the default of the QNN execution provider. The integers in front of that already are outputs of the
            NPU's graph, and its compiler refuses to have them twice, so that they are not tapped.
        movers: whether to tap behind nodes that only move values as well: an experiment on fusion, and no way to
            find where runs part.

    Returns:
        In a QDQ model the output of each QuantizeLinear on an activation: a tap there leaves the groups that an
        NPU compiler fuses as they are, while one between a Conv and its QuantizeLinear would break them. In a
        model without any, the float outputs of every node. Nodes that only move values are passed over: they
        cannot part, and a tap behind a Transpose was seen to push the MatMul behind it off an NPU. The model's
        own outputs are always among the taps.

    Raises:
        ModelError: these bytes are not an ONNX model.
    """
    return _find_taps(parse_graph(model), offloaded_io, movers)


def tap_model(model: bytes, taps: Sequence[Tap] | None = None, *, offloaded_io: bool = True) -> TappedModel:
    """Add intermediate tensors to a model's outputs.

    Args:
        model: ONNX model.
        taps: some of `find_taps(model)`, to tap a deep model in chunks; None for all.
        offloaded_io: as for `find_taps`, which it is passed to when `taps` is None.

    Returns:
        The model with the taps' tensors as further outputs. Whether that left the numbers alone is for the
        run to show: see `first_divergence`.

    Raises:
        ModelError: these bytes are not an ONNX model, or a tap names a tensor it does not have.
    """
    graph = parse_graph(model)
    chosen = _find_taps(graph, offloaded_io, movers=False) if taps is None else tuple(taps)
    unknown = [tap.tensor for tap in chosen if tap.tensor not in graph.producers]
    if unknown:
        raise ModelError(
            f"the model has no tensor {unknown[0]!r} to tap",
            why=f"{len(unknown)} of {len(chosen)} taps name tensors no node makes",
            fix="take taps from find_taps() of the same model",
        )
    tapped = onnx.ModelProto()
    tapped.CopyFrom(graph.model)
    present = {output.name for output in tapped.graph.output}
    for tap in chosen:
        if tap.tensor not in present:
            # Without a known type the name alone will do: ONNX Runtime infers the rest.
            info = graph.infos.get(tap.tensor, onnx.ValueInfoProto(name=tap.tensor))
            tapped.graph.output.append(info)
            present.add(tap.tensor)
    return TappedModel(model=tapped.SerializeToString(), taps=chosen)


def chunk_taps(
    graph: Graph, taps: Sequence[Tap], *, samples: int, memory_bytes: int
) -> tuple[tuple[Tap, ...], ...]:
    """Cut taps into chunks whose tensors fit into memory together, over all samples.

    Args:
        graph: the model the taps are of.
        taps: in topological order, which the chunks keep.
        samples: how many samples are run at once.
        memory_bytes: the cap. A tensor whose size is not known has a chunk of its own.

    Raises:
        UserError: one tensor alone does not fit.
    """
    chunks: list[list[Tap]] = []
    room = 0
    for tap in taps:
        size = graph.size_bytes(tap.tensor) * samples or memory_bytes
        if size > memory_bytes:
            raise UserError(
                f"layer {tap.depth}, {tap.tensor}, does not fit into {memory_bytes:,} bytes",
                why=f"{samples} samples of it take {size:,} bytes",
                fix=f"run at most {max(1, memory_bytes * samples // size)} samples, or allow more memory",
            )
        if size > room:
            chunks.append([])
            room = memory_bytes
        chunks[-1].append(tap)
        room -= size
    return tuple(tuple(chunk) for chunk in chunks)


def _find_taps(graph: Graph, offloaded_io: bool, movers: bool) -> tuple[Tap, ...]:
    nodes = graph.model.graph.node
    outputs = {output.name for output in graph.model.graph.output}
    quantized = {
        node.output[0]
        for node in nodes
        if node.op_type == "QuantizeLinear" and node.output[0] not in graph.constants
    }
    dequantized = (node for node in nodes if node.op_type == "DequantizeLinear" and node.output[0] in outputs)
    twice = {node.input[0] for node in dequantized} if offloaded_io else set()
    types = {name: info.type.tensor_type.elem_type for name, info in graph.infos.items()}
    taps: list[Tap] = []
    for node in nodes:
        behind = graph.producer(node) if twice.intersection(node.input) else None
        source = _computing_node(graph, behind or node)
        for tensor in node.output:
            inner = tensor in quantized if quantized else types.get(tensor, TensorProto.FLOAT) in FLOATS
            inner &= movers or source.op_type not in MOVES_ONLY
            inner &= tensor not in graph.constants | twice
            if tensor in outputs or (tensor and inner):
                tap = Tap(
                    node=source.name or source.output[0],
                    op=source.op_type,
                    tensor=tensor,
                    depth=len(taps) + 1,
                    quantization=graph.quantization(node),
                )
                taps.append(tap)
    return tuple(taps)


def _computing_node(graph: Graph, node: onnx.NodeProto) -> onnx.NodeProto:
    """Return the node whose arithmetic made the output of `node`.

    Walks back over a QuantizeLinear and then over ops that only pass values on. Where that leads to an input
    of the graph, or at once to a DequantizeLinear, the QuantizeLinear itself is the node: it rounds.
    """
    if node.op_type != "QuantizeLinear":
        return node
    found, back = node, graph.producer(node)
    while back is not None and back.op_type != "DequantizeLinear":
        found = back
        if found.op_type not in _PASSIVE:
            return found
        back = graph.producer(found)
    return node if back is None else found
