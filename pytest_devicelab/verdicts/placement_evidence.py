"""What each source says of placement, side by side: assignment, op profile, what the runtime printed, logcat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pytest_devicelab.evidence.events import Event
from pytest_devicelab.evidence.record import NodePlacement, OpRow, RunRecord
from pytest_devicelab.matrix.specs import ExpectedFallback, ModelSpec

Grade = Literal["assignment", "profile", "runtime log", "logcat", "none"]
"""The strongest source that says where a model ran, strongest first."""

_ASSIGNMENT, _PROFILE, _LOGCAT = "graph assignment", "op profile", "logcat"
_BOUNDARY_OPS = ("QuantizeLinear", "DequantizeLinear")
_SIGNS_OF_EXECUTION = ("placement", "partition", "fusion", "quant_params", "op_time")
_CLAIMS = ("cpu_fallback", "op_rejected")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """One operator that did not run on the NPU; `op` and `node` are empty where a log does not name them."""

    op: str
    node: str
    reason: str
    sources: tuple[str, ...]
    expected: ExpectedFallback | None

    def __str__(self) -> str:
        what = f"{self.op or 'an op the log does not name'}{f' ({self.node})' if self.node else ''}"
        return f"{what}: {self.reason or 'the runtime gave no reason'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """What part of a model each unit was given, as shares of 1 by unit; None where nobody knows.

    Attributes:
        nodes: of the nodes, those included that the runtime put in.
        macs: of the multiply-accumulates, counted from the model.
        time: of the time. Op rows count cycles of the NPU alone, so where the CPU took part it is unknown.
    """

    nodes: Mapping[str, float] | None = None
    macs: Mapping[str, float] | None = None
    time: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementEvidence:
    """All that the sources of one run say of placement.

    Attributes:
        agreeing: sources that say what the strongest one says; `disagreeing`: those that contradict it.
        silent: sources that say nothing of placement.
    """

    grade: Grade = "none"
    npu_nodes: int = 0
    cpu_nodes: int = 0
    boundary_nodes: tuple[str, ...] = ()
    fallbacks: tuple[Fallback, ...] = ()
    shares: Shares = Shares()
    agreeing: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    disagreeing: tuple[str, ...] = ()


def read_placement(record: RunRecord, model: ModelSpec) -> PlacementEvidence:
    """Lay the sources of a run side by side."""
    claims = [event for event in record.events if event.kind == "cpu_fallback"]
    off_npu = [placed for placed in record.placement if placed.unit != "htp"]
    boundary = [placed.node for placed in off_npu if _at_an_edge(placed)]
    if record.placement:
        nodes = [(placed.op, placed.node) for placed in off_npu if not _at_an_edge(placed)]
        if not nodes and record.options.get("offload_graph_io_quantization") == "0":
            # The edge was to run on the NPU too, and no other op explains why it did not.
            nodes, boundary = [(placed.op, placed.node) for placed in off_npu], []
    else:
        # A claim without a name stands beside named ones: it says that more than those is on the CPU.
        nodes = [_named(event) for event in claims if not _runs(record.ops, *_named(event))]
    nodes = list(dict.fromkeys(nodes))
    spoken = {event.source for event in record.events if event.kind in (*_SIGNS_OF_EXECUTION, *_CLAIMS)}
    agreeing: list[str] = []
    disagreeing: list[str] = []
    if record.placement:
        agreeing.append(_ASSIGNMENT)
    if record.ops:
        denied = any(_runs(record.ops, op, node) for op, node in nodes)
        (disagreeing if denied else agreeing).append(_PROFILE)
    for source in _by_weight(spoken):
        denied = any(event.source == source and not _among(nodes, event) for event in claims)
        (disagreeing if denied else agreeing).append(source)
    silent = [_ASSIGNMENT] * (not record.placement) + [_PROFILE] * (not record.ops)
    return PlacementEvidence(
        grade=_grade(record),
        npu_nodes=len(record.placement) - len(off_npu) if record.placement else len(_busy(record.ops)),
        cpu_nodes=len(off_npu) if record.placement else len(nodes),
        boundary_nodes=tuple(boundary),
        fallbacks=tuple(_fallback(record, model, op, node) for op, node in nodes),
        shares=_shares(record, whole=not nodes),
        agreeing=tuple(agreeing),
        silent=(*silent, *_by_weight(record.log_sources.keys() - spoken)),
        disagreeing=tuple(disagreeing),
    )


def applying(record: RunRecord, model: ModelSpec) -> list[ExpectedFallback]:
    """Return the fallbacks the matrix declares for this device."""
    return [e for e in model.expected_fallbacks if not e.devices or record.device.id in e.devices]


def _at_an_edge(placed: NodePlacement) -> bool:
    return placed.op in _BOUNDARY_OPS and placed.boundary is not False


def _grade(record: RunRecord) -> Grade:
    if record.placement:
        return "assignment"
    if _busy(record.ops):
        return "profile"
    telling = {
        event.source for event in record.events if event.kind in (*_SIGNS_OF_EXECUTION, "cpu_fallback")
    }
    return "runtime log" if telling - {_LOGCAT} else "logcat" if telling else "none"


def _shares(record: RunRecord, *, whole: bool) -> Shares:
    if not record.placement:
        # `qnn` runs a whole graph or nothing; of anything else only the assignment accounts for every node.
        every = {"htp": 1.0} if whole and record.runtime == "qnn" and _grade(record) != "none" else None
        return Shares(nodes=every, macs=every, time=every)
    nodes: Counter[str] = Counter(placed.unit for placed in record.placement)
    macs: Counter[str] = Counter()
    for placed in record.placement:
        macs[placed.unit] += placed.macs or 0
    known = all(placed.macs is not None for placed in record.placement) and macs.total() > 0
    return Shares(
        nodes=_of_one(nodes),
        macs=_of_one(macs) if known else None,
        time=dict.fromkeys(nodes, 1.0) if len(nodes) == 1 else None,
    )


def _of_one(counts: Counter[str]) -> Mapping[str, float]:
    return {unit: round(count / counts.total(), 4) for unit, count in sorted(counts.items())}


def _fallback(record: RunRecord, model: ModelSpec, op: str, node: str) -> Fallback:
    about = [event for event in record.events if event.kind in _CLAIMS and _among([(op, node)], event)]
    stronger = [_ASSIGNMENT] * bool(record.placement) + [_PROFILE] * _left_out(record.ops, op, node)
    return Fallback(
        op=op,
        node=node,
        reason=next((event.fields["reason"] for event in about if event.fields.get("reason")), ""),
        sources=(*stronger, *_by_weight({event.source for event in about})),
        expected=next((e for e in applying(record, model) if e.op == op and e.node in (None, node)), None),
    )


def _by_weight(sources: Iterable[str]) -> list[str]:
    """Order logs by weight: what the runtime printed itself comes before logcat."""
    return sorted(sources, key=lambda source: (source == _LOGCAT, source))


def _named(event: Event) -> tuple[str, str]:
    return event.fields.get("op", ""), event.fields.get("node", "")


def _among(nodes: Iterable[tuple[str, str]], event: Event) -> bool:
    """Say if an event is about one of these: by node, else by op; one that names neither is about any."""
    op, node = _named(event)
    return any((node == name if node and name else op in ("", kind)) for kind, name in nodes)


def _busy(ops: Iterable[OpRow]) -> list[OpRow]:
    return [row for row in ops if row.cycles > 0]


def _runs(ops: Iterable[OpRow], op: str, node: str) -> bool:
    """Say whether the profile shows the NPU busy with that very node."""
    return bool(node) and any(_names(row, op, node) for row in _busy(ops))


def _left_out(ops: Iterable[OpRow], op: str, node: str) -> bool:
    """Say whether the profile accounts for nodes of the model on the NPU, and this one is in no row of it.

    A row without cycles counts: it is fused into another, and so on the NPU.
    """
    rows = list(ops)
    accounts = any(":" in source for row in _busy(rows) for source in row.sources)
    return bool(node) and accounts and not any(_names(row, op, node) for row in rows)


def _names(row: OpRow, op: str, node: str) -> bool:
    return f"{op}:{node}" in row.sources or node in row.sources
