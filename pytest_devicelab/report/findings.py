"""What every report says beside the verdicts: which nodes fell back to the CPU, which ops were fused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pytest_devicelab.evidence.record import OpRow, RunRecord
from pytest_devicelab.verdicts.verdict import Verdict
from pytest_devicelab.virtual.onnx_model import MOVES_ONLY

ShownBy = Literal["sources", "zero_cycles"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """A node that ran on the CPU of a device with an NPU.

    Attributes:
        reason: the runtime's own words; empty when it gave none.
        expected: whether the matrix declares it, with `expected_reason`.
        grade: the strongest evidence of it: `assignment`, `profile`, `runtime log`, `logcat`.
        sources: the evidence that agrees.
    """

    model: str
    device: str
    op: str
    node: str
    reason: str
    expected: bool
    expected_reason: str
    grade: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """ONNX nodes that one operator of the NPU computes.

    Attributes:
        into: the NPU's operator, as the backend names it.
        sources: the nodes in it, `op type:name` where the type is known; `from` in JSON.
        shown_by: `sources` when the op trace names them all for one operator; `zero_cycles` when a row
            with no cycles stands beside a busy one, from which fusion is inferred.
    """

    model: str
    device: str
    into: str
    sources: tuple[str, ...]
    shown_by: ShownBy


def find_fallbacks(verdicts: Iterable[Verdict]) -> tuple[Fallback, ...]:
    """Collect the fallbacks that placement verdicts name, in the verdicts' order.

    Details of another form, as a user's own check may write them, are passed over: their verdict stands.
    """
    found = (
        _fallback(verdict, device, entry)
        for verdict in verdicts
        if verdict.check == "placement"
        for entry in _entries(verdict.details.get("fallbacks"))
        for device in verdict.devices
    )
    return tuple(dict.fromkeys(found))  # a test that ran twice names each twice


def find_fusions(records: Iterable[RunRecord]) -> tuple[Fusion, ...]:
    """Find fused operators in op profiles, once for each model and device.

    Only nodes of the model count, those whose type is known: a compiler adds some of its own. Quantize and
    dequantize nodes do not, being part of any quantized operator; nor does a node without cycles that only
    moves values: it may as well have become nothing. One record speaks for each model and device, the first
    with a profile, an evaluation if there is one.
    """
    chosen: dict[tuple[str, str], RunRecord] = {}
    for record in sorted(records, key=lambda record: record.purpose != "evaluate"):
        if record.ops:
            chosen.setdefault((record.model.id, record.device.id), record)
    return tuple(fusion for record in chosen.values() for fusion in _fusions(record))


def _entries(found: object) -> list[Mapping[str, object]]:
    return (
        [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, (list, tuple)) else []
    )


def _fallback(verdict: Verdict, device: str, entry: Mapping[str, object]) -> Fallback:
    sources = entry.get("sources")
    return Fallback(
        model=verdict.model,
        device=device,
        op=str(entry.get("op", "")),
        node=str(entry.get("node", "")),
        reason=str(entry.get("reason", "")),
        expected=entry.get("expected") is True,
        expected_reason=str(entry.get("expected_reason", "")),
        grade=str(verdict.details.get("grade", "none")),
        sources=tuple(map(str, sources)) if isinstance(sources, (list, tuple)) else (),
    )


def _fusions(record: RunRecord) -> Iterator[Fusion]:
    rows = _by_name(record.ops)
    # A backend may split a node over several operators; one with a busy operator is fused into no other.
    busy = {node for row in rows if row.cycles for node in _computing(row)}
    idle: dict[str, list[str]] = {}
    for index, row in enumerate(rows):
        nodes = [node for node in _computing(row) if node not in busy and not _only_moves(node)]
        if nodes and not row.cycles:
            idle.setdefault(_busy_neighbour(rows, index), []).extend(nodes)
    for row in rows:
        joined = idle.get(row.name, [])
        nodes = [*joined, *_computing(row)]
        if row.cycles and len(nodes) > 1:
            yield Fusion(
                model=record.model.id,
                device=record.device.id,
                into=row.name,
                sources=tuple(dict.fromkeys(nodes)),
                shown_by="zero_cycles" if joined else "sources",
            )


def _by_name(ops: tuple[OpRow, ...]) -> list[OpRow]:
    """Add up the rows of each operator: a profile of many inferences lists it once for each."""
    rows: dict[str, OpRow] = {}
    for op in ops:
        before = rows.get(op.name)
        cycles = op.cycles + (before.cycles if before else 0)
        rows[op.name] = OpRow(name=op.name, cycles=cycles, sources=before.sources if before else op.sources)
    return list(rows.values())


def _busy_neighbour(rows: list[OpRow], index: int) -> str:
    """Name the operator a row without cycles was fused into, or "" when none stands beside it.

    Source: measured on QAIRT 2.51: of Conv and HardSwish in one kernel, Conv shows 0 cycles and the
    HardSwish after it all of them. So the row after it is asked first.
    """
    for neighbours in (rows[index + 1 :], reversed(rows[:index])):
        busy = next((row for row in neighbours if row.cycles), None)
        if busy and _computing(busy):
            return busy.name
    return ""


def _computing(row: OpRow) -> tuple[str, ...]:
    return tuple(
        source
        for source in dict.fromkeys(row.sources)
        if ":" in source and source.partition(":")[0] not in ("QuantizeLinear", "DequantizeLinear")
    )


def _only_moves(source: str) -> bool:
    return source.partition(":")[0] in MOVES_ONLY
