"""Placement: did the model really run on the NPU, and what fell back to the CPU?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.matrix.specs import ModelSpec
from pytest_devicelab.verdicts.evidence import evidence_of, why_not_ok
from pytest_devicelab.verdicts.log_switch import explain_silence, judge_switch
from pytest_devicelab.verdicts.placement_evidence import (
    Fallback,
    PlacementEvidence,
    applying,
    read_placement,
)
from pytest_devicelab.verdicts.verdict import Outcome, Verdict

_NAMED = 3  # how many fallbacks a reason names before it counts the rest


def judge_placement(record: RunRecord, model: ModelSpec) -> Verdict:
    """Say whether a model ran where it was asked to run.

    Evidence has grades: the runtime's own graph assignment, then its op profile, then what it printed, then
    logcat. A stronger source wins, and the silent and disagreeing ones are named in the details. Only what
    accounts for the whole graph can make a pass: the graph assignment, or, under `qnn`, which runs whole graphs
    or nothing, any sign of execution.

    Args:
        record: the run.
        model: for the fallbacks its matrix entry declares.
    """
    if record.status == "failed":
        return _verdict(record, "inconclusive", why_not_ok(record))
    if record.status == "refused":
        return _verdict(record, "fail", _refusal(record))
    if record.backend == "cpu":
        return _on_cpu(record)
    finding = read_placement(record, model)
    outcome, reason = _judge(record, model, finding)
    if finding.disagreeing:
        reason += f" Disagreeing: {', '.join(finding.disagreeing)}."
    if silence := _silence(record, finding):
        reason += f" {silence}"
    return _verdict(record, outcome, reason, finding)


def _on_cpu(record: RunRecord) -> Verdict:
    """Judge a run nobody asked an NPU for: of an assignment that says otherwise, one of the two is wrong."""
    elsewhere = [placed for placed in record.placement if placed.unit != "cpu"]
    if elsewhere:
        reason = f"was to run on the CPU, and {len(elsewhere)} nodes are assigned to {elsewhere[0].unit}"
        return _verdict(record, "inconclusive", reason)
    if record.runtime in ("qnn", "ort"):
        return _verdict(record, "pass", "runs on the CPU: the device has no NPU that this runtime could use")
    if not record.placement:
        return _verdict(
            record, "inconclusive", f"no evidence: {record.runtime} does not say where the nodes ran"
        )
    reason = (
        f"runs on the CPU, as {record.runtime} was asked to: {len(record.placement)} nodes, none elsewhere"
    )
    return _verdict(record, "pass", reason)


def _silence(record: RunRecord, finding: PlacementEvidence) -> str:
    """Return what is to be said of logs that say nothing, or may have said more than what is left of them."""
    spoke = record.log_sources.keys() - set(finding.silent)
    return explain_silence(record.capture) if record.capture.lost or not spoke else ""


def _refusal(record: RunRecord) -> str:
    if not record.refused_ops:
        return why_not_ok(record)
    return f"{why_not_ok(record)}; refused: " + _listed(
        f"{op} ({node}): {reason}" for op, node, reason in record.refused_ops
    )


def _judge(record: RunRecord, model: ModelSpec, finding: PlacementEvidence) -> tuple[Outcome, str]:
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
        entry for entry in applying(record, model) if not any(f.expected is entry for f in finding.fallbacks)
    ]
    if stale:
        named = _listed(f"{entry.op}{f' ({entry.node})' if entry.node else ''}" for entry in stale)
        return "fail", (
            f"stale expectation: {named} is declared as a fallback and did not fall back here. "
            "Remove the entry, or name the devices it happens on: devices: [...]."
        )
    return "pass", _all_well(finding)


def _all_well(finding: PlacementEvidence) -> str:
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
        if finding.shares.macs:
            text += f"; {finding.shares.macs.get('htp', 0):.1%} of the multiply-accumulates are on the NPU"
    if finding.boundary_nodes:
        count = len(finding.boundary_nodes)
        text += f"; {count} nodes that only quantize or dequantize at an edge of it are on the CPU, benign"
    return text + "."


def _declaration(fallback: Fallback) -> str:
    """Return the matrix entry that declares a fallback; JSON strings are YAML, whatever a name holds."""
    node = f"node: {json.dumps(fallback.node)}, " if fallback.node else ""
    return f'{{op: {json.dumps(fallback.op)}, {node}reason: "..."}}'


def _listed(items: Iterable[str]) -> str:
    texts = list(items)
    more = f", and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return ", ".join(texts[:_NAMED]) + more


def _verdict(
    record: RunRecord, outcome: Outcome, reason: str, finding: PlacementEvidence | None = None
) -> Verdict:
    found = finding or PlacementEvidence()
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
            "shares": {
                "nodes": _plain(found.shares.nodes),
                "macs": _plain(found.shares.macs),
                "time": _plain(found.shares.time),
            },
            "log_switch": judge_switch(record.capture),
            "log_lines": dict(record.capture.heard),
            "log_lost": record.capture.lost,
        },
    )


def _plain(shares: Mapping[str, float] | None) -> dict[str, float] | None:
    return None if shares is None else dict(shares)
