"""The float model as a reference: its tensors, matched to the quantized model's layers by the names both have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx

from pytest_devicelab.audit.graph import Graph, parse_graph, read_model
from pytest_devicelab.audit.layers import code_range
from pytest_devicelab.audit.taps import Tap, tap_model
from pytest_devicelab.audit.walk import Walk

Array = npt.NDArray[np.generic]

# A quantizer's preparation folds these into the node in front of them, whose output then is the folded one's.
_FOLDED = ("BatchNormalization", "Relu", "Clip")


def match_float(taps: Sequence[Tap], quantized: Graph, reference: Graph) -> Mapping[str, str]:
    """Say which tensor of the float model holds what a tapped tensor of the quantized one stands for.

    A tensor is found under its own name, under the name of what its QuantizeLinear takes, or as the output of the
    node of the same name and type. Where the float model then has a node that was folded into the one in front
    of it, such as a BatchNormalization, the tensor behind that node is taken; and behind a Relu where the
    quantization's first code stands for 0, because then rounding to codes does what the Relu does.

    Args:
        taps: of the quantized model.
        quantized: the quantized model.
        reference: the float model it was made from.

    Returns:
        Tapped tensor -> float tensor. A tap that matches nothing is absent, and never guessed at.
    """
    names = {node.name for node in quantized.model.graph.node if node.name}
    shared = any(node.name in names for node in reference.model.graph.node)
    found = {}
    for tap in taps:
        tensor = _same_name(tap, quantized, reference)
        if tensor is not None:
            # Where the two models have no names in common, an absent name says nothing.
            kept = names if shared else None
            found[tap.tensor] = _behind_folded(tensor, kept, reference, rectified=_rectifies(tap))
    return found


def _same_name(tap: Tap, quantized: Graph, reference: Graph) -> str | None:
    node = quantized.producers[tap.tensor]
    candidates = [tap.tensor]
    source: onnx.NodeProto | None = node
    if node.op_type == "QuantizeLinear":
        candidates.append(node.input[0])
        source = quantized.producer(node)
    inputs = {info.name for info in reference.model.graph.input}
    for name in candidates:
        if name in reference.producers or name in inputs:
            return name
    if source is None or not source.name:
        return None
    same = (each for each in reference.model.graph.node if each.name == source.name)
    return next((each.output[0] for each in same if each.op_type == source.op_type), None)


def _rectifies(tap: Tap) -> bool:
    how = tap.quantization
    return how is not None and how.zero_point == code_range(how.dtype)[0]


def _behind_folded(tensor: str, kept: set[str] | None, reference: Graph, *, rectified: bool) -> str:
    """Follow a float tensor over nodes whose work the quantized model does in the node in front of them.

    Args:
        tensor: of the float model.
        kept: names of the quantized model's nodes; None where they say nothing.
        reference: the float model.
        rectified: whether the codes cannot stand for anything below 0.
    """
    outputs = {info.name for info in reference.model.graph.output}
    while tensor not in outputs:
        users = [node for node in reference.model.graph.node if tensor in node.input]
        if len(users) != 1:
            break
        gone = kept is not None and users[0].name and users[0].name not in kept
        if not (gone and users[0].op_type in _FOLDED) and not (rectified and users[0].op_type == "Relu"):
            break
        tensor = users[0].output[0]
    return tensor


class FloatReference:
    """The float model on the host's CPU, tapped where it has the tensors of the quantized one.

    Args:
        walk: through the quantized model, whose spec names a reference.
    """

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        path = walk.model.reference
        self._bytes = read_model(path) if path else b""
        self._graph = parse_graph(self._bytes) if path else None
        self._names = match_float(walk.taps, walk.graph, self._graph) if self._graph else {}

    def unmatched(self) -> tuple[str, ...]:
        """Return the layers the float model has no tensor for; all of them where there is no float model."""
        return tuple(tap.tensor for tap in self._walk.taps if tap.tensor not in self._names)

    def tensors(self, taps: Sequence[Tap]) -> Mapping[str, Array]:
        """Return what the float model has for some layers, by the layer's tensor, `[N, ...]`."""
        names = {tap.tensor: self._names[tap.tensor] for tap in taps if tap.tensor in self._names}
        if not names or self._graph is None:
            return {}
        wanted = [
            Tap(node="", op="", tensor=name, depth=depth)
            for depth, name in enumerate(dict.fromkeys(names.values()), start=1)
            if name in self._graph.producers
        ]
        name = f"{self._walk.model.id}.float{taps[0].depth}-{taps[-1].depth}.onnx"
        path = self._walk.session.keep_model(name, tap_model(self._bytes, wanted).model)
        found = {**self._walk.inputs, **self._walk.session.on_host(path, self._walk.inputs)}
        return {tensor: found[name] for tensor, name in names.items()}
