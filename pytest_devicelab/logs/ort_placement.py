"""Which nodes ONNX Runtime left to the CPU, why, and which of them are a loss."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pytest_devicelab.logs.framing import LogLineRecord

_LAYOUT_COPY = re.compile(r"_token_[0-9]{1,9}$")
# At the graph's edge, with offload_graph_io_quantization=1: the caller's choice, not a loss.
_EDGE = re.compile(
    r"configured to not take (?:Q|DQ) nodes that (?:consume a graph input|generate a graph output)"
)
_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
_CPU_PROVIDERS = frozenset({"CPUExecutionProvider", "XnnpackExecutionProvider"})

NodeKey = tuple[str, str]


def model_name(op: str, node: str) -> str:
    """Return the name a node has in the model, without what ONNX Runtime's layout step appended.

    A node that step inserted is called after its op, and keeps the whole name.
    """
    name = _LAYOUT_COPY.sub("", node)
    return node if name == op else name


def node_key(op: str, node: str) -> NodeKey:
    """Return what tells nodes apart: the name, and the op only where there is none.

    Not both: one message gives the ONNX op of a node (LeakyRelu), another QNN's (Prelu).
    """
    return (model_name(op, node), "") if node else ("", op)


@dataclass(slots=True, kw_only=True)
class Unit:
    """A node unit that passed or failed validation: its target op with the Q and DQ nodes around it."""

    record: LogLineRecord
    op: str
    passed: bool
    nodes: list[tuple[str, str]] = field(default_factory=list)

    def target(self) -> tuple[str, str]:
        """Return `(op, node)` of the node the unit is about."""
        named = [node for node in self.nodes if node[0] == self.op]
        others = [node for node in self.nodes if node[0] not in _QDQ]
        return next(iter(named or others or self.nodes), (self.op, ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """One node QNN would not take, and the reason where one was given."""

    record: LogLineRecord
    op: str
    node: str
    reason: str = ""
    code: str = ""

    @property
    def key(self) -> NodeKey:
        """What tells it from other rejections of the session."""
        return node_key(self.op, self.node)

    @property
    def benign(self) -> bool:
        """Whether the caller asked for it: (de)quantization of the graph's inputs and outputs."""
        return self.op in _QDQ and _EDGE.search(self.reason) is not None

    def fields(self) -> dict[str, str]:
        """Return the fields of its `op_rejected` event."""
        fields = {"op": self.op, "node": model_name(self.op, self.node), "reason": self.reason}
        if self.code:
            fields["code"] = self.code
        if self.benign:
            fields["benign"] = "graph_edge"
        return fields


@dataclass(slots=True, kw_only=True)
class Listing:
    """`Node(s) placed on [X]. Number of nodes: n` and the lines that name them.

    Attributes:
        whole_graph: it said `All nodes`; then they are not named.
        function: the function that printed it, where the line has ONNX Runtime's header.
    """

    record: LogLineRecord
    provider: str
    count: int
    whole_graph: bool
    function: str
    nodes: list[tuple[LogLineRecord, str, str]] = field(default_factory=list)

    @property
    def on_cpu(self) -> bool:
        """Whether the provider computes on the CPU."""
        return self.provider in _CPU_PROVIDERS

    @property
    def missing(self) -> int:
        """How many nodes should have been named and were not."""
        return 0 if self.whole_graph else max(0, self.count - len(self.nodes))

    def fields(self, backend: str) -> dict[str, str]:
        """Return the fields of its `placement` event; `backend` is the QNN backend, if known."""
        unit = self.provider.removesuffix("ExecutionProvider").lower()
        if self.on_cpu:
            unit = "cpu"
        elif unit == "qnn":
            unit = backend or unit
        return {
            "unit": unit,
            "provider": self.provider,
            "count": str(self.count),
            "nodes": "\n".join(f"{op}:{node}" for _, op, node in self.nodes),
        }


def find_fallbacks(
    listing: Listing, rejected: Mapping[NodeKey, Rejection], *, uses_qnn: bool
) -> Iterator[tuple[LogLineRecord, dict[str, str]]]:
    """Return each node on the CPU that was meant for the NPU, with the fields of its `cpu_fallback`.

    A Q or DQ node is one only if it was rejected itself: the others stand at the graph's edge or
    around an op that fell back, and go where that op goes. In a session without QNN nothing fell.

    Args:
        listing: nodes on the CPU.
        rejected: what QNN would not take, by node.
        uses_qnn: whether the session tried QNN at all.
    """
    if listing.whole_graph:
        causes = [rejection for rejection in rejected.values() if not rejection.benign]
        for rejection in causes:
            yield listing.record, _fallback(rejection.op, rejection.node, rejection.reason)
        # An accepted fallback of one op must not cover for a graph that never reached the NPU.
        if uses_qnn and listing.count > len(causes):
            reason = f"whole graph placed on {listing.provider}, nodes: {listing.count}"
            yield listing.record, _fallback("", "", reason)
        return
    for record, op, node in listing.nodes:
        cause = rejected.get(node_key(op, node))
        if op in _QDQ and (cause is None or cause.benign or cause.op not in _QDQ):
            continue
        yield record, _fallback(op, node, cause.reason if cause else "")


def _fallback(op: str, node: str, reason: str) -> dict[str, str]:
    return {"op": op, "node": model_name(op, node), "reason": reason, "runtime": "ort"}
