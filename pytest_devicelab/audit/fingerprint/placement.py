"""Whether the NPU computed a probe: without that, its output says nothing of the chip."""

from __future__ import annotations

from pytest_devicelab.audit.fingerprint.probe import Probe
from pytest_devicelab.evidence.record import RunRecord

# These move values and change none, so that it does not matter where they ran.
_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


def off_the_npu(probe: Probe, record: RunRecord) -> str:
    """Say why a probe's output does not speak for the NPU; empty when it does.

    A runtime may replace nodes at the graph's edge by its own, under names of its own; so a node that is gone counts
    as on the NPU only when nothing nameless that rounds ran on the CPU.

    Args:
        probe: what was asked.
        record: the run, of status `ok`.
    """
    if record.backend != "htp":
        return f"the runtime used {record.backend or 'an unknown backend'}"
    if record.runtime == "qnn":
        return _outside_context(probe, record)
    if not record.placement:
        return "the runtime did not say where its nodes ran"
    units = {node.node: node.unit for node in record.placement}
    for node in probe.nodes:
        if units.get(node.name, "htp") != "htp" and node.op_type not in _MOVES:
            return f"{node.op_type} ran on {units[node.name]}"
    gone = [node.op_type for node in probe.nodes if node.name not in units]
    computing = [op for op in gone if op not in _CONVERSIONS + _MOVES]
    if computing or len(gone) == len(probe.nodes):
        return f"nothing is known of where {(computing or gone)[0]} ran"
    strays = [
        node.op
        for node in record.placement
        if node.unit != "htp" and node.op not in _MOVES and not _belongs_to_a_probe(node.node)
    ]
    return f"a {strays[0]} the runtime added ran on the CPU" if gone and strays else ""


def _belongs_to_a_probe(name: str) -> bool:
    head, _, tail = name.rpartition("_n")
    return bool(head) and tail.isdigit()


def _outside_context(probe: Probe, record: RunRecord) -> str:
    """A context binary runs whole on the NPU, but its makers may have left conversions at the edges out of it."""
    inside = {source.rpartition(":")[2] for row in record.ops for source in row.sources}
    if not inside:
        return "the profile does not say which nodes the context binary holds"
    # The DequantizeLinear of an input may have been renamed; whatever rounds, and the output, must be there by name.
    outside = [
        node.op_type
        for node in probe.nodes
        if node.name not in inside
        and node.op_type not in _MOVES
        and (node.op_type != "DequantizeLinear" or node.output[0] == probe.output)
    ]
    return f"{outside[0]} is not in the context binary" if outside else ""
