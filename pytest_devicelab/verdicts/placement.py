"""Placement: did the model really run on the NPU, and what fell back to the CPU?"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from pytest_devicelab.evidence.events import Event
from pytest_devicelab.evidence.record import OpRow, RunRecord
from pytest_devicelab.matrix.specs import ExpectedFallback, ModelSpec
from pytest_devicelab.verdicts.evidence import evidence_of, why_not_ok
from pytest_devicelab.verdicts.verdict import Outcome, Verdict

_ASSIGNMENT, _PROFILE = "graph assignment", "op profile"
_BOUNDARY_OPS = ("QuantizeLinear", "DequantizeLinear")
_SIGNS_OF_EXECUTION = ("placement", "partition", "fusion", "quant_params", "op_time")
_NAMED = 3  # how many fallbacks a reason names before it counts the rest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fallback:
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
class _Finding:
    """All that the sources of one run say of placement, the strongest first."""

    grade: str
    npu_nodes: int
    cpu_nodes: int
    boundary_nodes: tuple[str, ...]
    fallbacks: tuple[_Fallback, ...]
    agreeing: tuple[str, ...]
    silent: tuple[str, ...]
    disagreeing: tuple[str, ...]


def judge_placement(record: RunRecord, model: ModelSpec) -> Verdict:
    """Say whether a model ran where it was asked to run.

    Evidence has grades: the runtime's own graph assignment, then its op profile, then its log. A stronger
    source wins, and the silent and disagreeing ones are named in the details. Only what accounts for the
    whole graph can make a pass: the graph assignment, or, under `qnn`, which runs whole graphs or nothing,
    any sign of execution.

    Args:
        record: the run.
        model: for the fallbacks its matrix entry declares.
    """
    if record.status == "failed":
        return _verdict(record, "inconclusive", why_not_ok(record))
    if record.status == "refused":
        return _verdict(record, "fail", _refusal(record))
    if record.backend == "cpu":
        return _verdict(record, "pass", "runs on the CPU, as the matrix asks for this device")
    finding = _read(record, model)
    outcome, reason = _judge(record, model, finding)
    if finding.disagreeing:
        reason += f" Disagreeing: {', '.join(finding.disagreeing)}."
    return _verdict(record, outcome, reason, finding)


def _refusal(record: RunRecord) -> str:
    if not record.refused_ops:
        return why_not_ok(record)
    return f"{why_not_ok(record)}; refused: " + _listed(
        f"{op} ({node}): {reason}" for op, node, reason in record.refused_ops
    )


def _judge(record: RunRecord, model: ModelSpec, finding: _Finding) -> tuple[Outcome, str]:
    undeclared = [fallback for fallback in finding.fallbacks if fallback.expected is None]
    if undeclared:
        lines = _listed(_declaration(fallback) for fallback in undeclared)
        return "fail", (
            f"{len(undeclared)} undeclared fallback(s) to the CPU: {_listed(map(str, undeclared))}. "
            f"If that is acceptable, declare it under the model: expect: {{fallbacks: [{lines}]}}."
        )
    if finding.grade == "none":
        return (
            "inconclusive",
            "no evidence: no graph assignment, no op profile and no log event says where it ran.",
        )
    if finding.grade != "assignment" and record.runtime != "qnn":
        return "inconclusive", (
            f"the {finding.grade} names no undeclared fallback, but it does not account for every node; "
            f"{record.runtime} gave no graph assignment."
        )
    if finding.grade == "assignment" and finding.npu_nodes == 0:
        return "fail", f"not one node ran on the NPU; {finding.cpu_nodes} ran on the CPU."
    stale = [
        entry for entry in _applying(record, model) if not any(f.expected is entry for f in finding.fallbacks)
    ]
    if stale:
        named = _listed(f"{entry.op}{f' ({entry.node})' if entry.node else ''}" for entry in stale)
        return "fail", (
            f"stale expectation: {named} is declared as a fallback and did not fall back here. "
            "Remove the entry, or name the devices it happens on: devices: [...]."
        )
    return "pass", _all_well(finding)


def _all_well(finding: _Finding) -> str:
    evidence = {
        "assignment": f"{finding.npu_nodes} nodes on the NPU",
        "profile": f"{finding.npu_nodes} op rows",
    }
    text = f"ran on the NPU ({evidence.get(finding.grade, 'by its log')})"
    if finding.fallbacks:
        declared = (
            f"{each}, declared: {each.expected.reason}" for each in finding.fallbacks if each.expected
        )
        text += f"; expected on the CPU: {_listed(declared)}"
    if finding.boundary_nodes:
        count = len(finding.boundary_nodes)
        text += f"; {count} nodes that only quantize or dequantize at an edge of it are on the CPU, benign"
    return text + "."


def _read(record: RunRecord, model: ModelSpec) -> _Finding:
    """Lay the sources of a run side by side."""
    claims = [event for event in record.events if event.kind == "cpu_fallback"]
    off_npu = [placed for placed in record.placement if placed.unit != "htp"]
    boundary = [placed.node for placed in off_npu if placed.op in _BOUNDARY_OPS]
    if record.placement:
        grade = "assignment"
        nodes = [(placed.op, placed.node) for placed in off_npu if placed.op not in _BOUNDARY_OPS]
        if not nodes and record.options.get("offload_graph_io_quantization") == "0":
            # The edge was to run on the NPU too, and no other op explains why it did not.
            nodes, boundary = [(placed.op, placed.node) for placed in off_npu], []
    else:
        spoke = any(event.kind in _SIGNS_OF_EXECUTION for event in record.events)
        grade = "profile" if _busy(record.ops) else "log" if spoke or claims else "none"
        # A claim without a name stands beside named ones: it says that more than those is on the CPU.
        nodes = [_named(event) for event in claims if not _runs(record.ops, *_named(event))]
    nodes = list(dict.fromkeys(nodes))
    spoken = {event.source for event in record.events}
    agreeing: list[str] = []
    disagreeing: list[str] = []
    if record.placement:
        agreeing.append(_ASSIGNMENT)
    if record.ops:
        denied = any(_runs(record.ops, op, node) for op, node in nodes)
        (disagreeing if denied else agreeing).append(_PROFILE)
    for source in sorted(spoken):
        denied = any(event.source == source and not _among(nodes, event) for event in claims)
        (disagreeing if denied else agreeing).append(source)
    silent = [_ASSIGNMENT] * (not record.placement) + [_PROFILE] * (not record.ops)
    return _Finding(
        grade=grade,
        npu_nodes=len(record.placement) - len(off_npu) if record.placement else len(_busy(record.ops)),
        cpu_nodes=len(off_npu) if record.placement else len(nodes),
        boundary_nodes=tuple(boundary),
        fallbacks=tuple(_fallback(record, model, op, node) for op, node in nodes),
        agreeing=tuple(agreeing),
        silent=(*silent, *sorted(record.log_sources.keys() - spoken)),
        disagreeing=tuple(disagreeing),
    )


def _fallback(record: RunRecord, model: ModelSpec, op: str, node: str) -> _Fallback:
    about = [
        e for e in record.events if e.kind in ("cpu_fallback", "op_rejected") and _among([(op, node)], e)
    ]
    sources = [_ASSIGNMENT] if record.placement else []
    return _Fallback(
        op=op,
        node=node,
        reason=next((event.fields["reason"] for event in about if event.fields.get("reason")), ""),
        sources=tuple(dict.fromkeys([*sources, *(event.source for event in about)])),
        expected=next((e for e in _applying(record, model) if e.op == op and e.node in (None, node)), None),
    )


def _applying(record: RunRecord, model: ModelSpec) -> list[ExpectedFallback]:
    return [e for e in model.expected_fallbacks if not e.devices or record.device.id in e.devices]


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
    return bool(node) and any(f"{op}:{node}" in row.sources or node in row.sources for row in _busy(ops))


def _declaration(fallback: _Fallback) -> str:
    """Return the matrix entry that declares a fallback; JSON strings are YAML, whatever a name holds."""
    node = f"node: {json.dumps(fallback.node)}, " if fallback.node else ""
    return f'{{op: {json.dumps(fallback.op)}, {node}reason: "..."}}'


def _listed(items: Iterable[str]) -> str:
    texts = list(items)
    more = f", and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return ", ".join(texts[:_NAMED]) + more


def _verdict(record: RunRecord, outcome: Outcome, reason: str, finding: _Finding | None = None) -> Verdict:
    none = _Finding(
        grade="none",
        npu_nodes=0,
        cpu_nodes=0,
        boundary_nodes=(),
        fallbacks=(),
        agreeing=(),
        silent=(),
        disagreeing=(),
    )
    found = finding or none
    return Verdict(
        check="placement",
        model=record.model.id,
        devices=(record.device.id,),
        outcome=outcome,
        reason=reason,
        evidence=evidence_of(record),
        details={
            "nodes": {"htp": found.npu_nodes, "cpu": found.cpu_nodes},
            "fallbacks": [
                {
                    "op": each.op,
                    "node": each.node,
                    "reason": each.reason,
                    "expected": each.expected is not None,
                    "expected_reason": each.expected.reason if each.expected else "",
                    "sources": list(each.sources),
                }
                for each in found.fallbacks
            ],
            "grade": found.grade,
            "agreeing": list(found.agreeing),
            "silent": list(found.silent),
            "disagreeing": list(found.disagreeing),
            "boundary": list(found.boundary_nodes),
        },
    )
