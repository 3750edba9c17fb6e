"""Where a session put each node, in the words of the records."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pytest_devicelab.evidence.record import NodePlacement
from pytest_devicelab.virtual.runtime_log import RefusedOp, onnx_name
from pytest_devicelab.virtual.simulator import EP_NAME

_UNITS = {EP_NAME: "htp", "CPUExecutionProvider": "cpu"}
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


def node_placements(session: Any, ops: Mapping[str, str]) -> tuple[NodePlacement, ...]:
    """Return where each node went, as the session recorded it.

    Nodes of the model carry the model's own names; nodes the runtime put in keep the names it gave them.

    Args:
        session: an `onnxruntime.InferenceSession` that records its graph assignment.
        ops: operator type of every named node of the model.
    """
    placed = []
    for subgraph in session.get_provider_graph_assignment_info():
        for node in subgraph.get_nodes():
            own = onnx_name(node.name)
            name = own if own in ops else node.name
            unit = _UNITS.get(subgraph.ep_name, subgraph.ep_name)
            placed.append(NodePlacement(node=name, op=node.op_type, unit=unit))
    return tuple(placed)


def partition_count(session: Any) -> int:
    """Return how many subgraphs the NPU runs."""
    return sum(subgraph.ep_name == EP_NAME for subgraph in session.get_provider_graph_assignment_info())


def left_to_cpu(
    placement: Collection[NodePlacement],
    refused: Collection[RefusedOp],
    *,
    ops: Collection[str],
    edges: Collection[str],
) -> tuple[RefusedOp, ...]:
    """Name the operators that keep a model from running whole on the NPU, each with a reason.

    Converting the graph's own inputs and outputs on the CPU is no such thing; the layout transformer may have
    replaced those nodes with its own. The (de)quantizers around a refused operator follow it to the CPU, so
    they are named only when there is nothing else to name.

    Args:
        placement: where each node went.
        refused: what the log says of refused operators.
        ops: names of the model's nodes.
        edges: names of the model's nodes that only convert an input or output of the graph.
    """
    reasons = {op.node: op.reason for op in refused}

    def benign(node: NodePlacement) -> bool:
        return node.node in edges or (node.op in _CONVERSIONS and node.node not in ops)

    stray = [node for node in placement if node.unit == "cpu" and not benign(node)]
    culprits = [node for node in stray if node.op not in _CONVERSIONS or node.node in reasons] or stray
    return tuple(
        RefusedOp(
            op=node.op,
            node=node.node,
            reason=reasons.get(node.node, "ONNX Runtime assigned it to the CPU and gave no reason"),
        )
        for node in culprits
    )
