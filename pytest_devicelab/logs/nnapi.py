"""Android's Neural Networks API: which driver it chose for each operation, and when it gave up on drivers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pytest_devicelab.evidence.events import Event, EventKind
from pytest_devicelab.logs.dialect import LineReader, Trigger, make_event
from pytest_devicelab.logs.framing import LogLineRecord

# Source: Android's neuralnetworks/runtime, VLOG lines of ExecutionPlan and ExecutionBuilder.
_BEST = re.compile(
    r"findBestDeviceForEachOperation\((?P<op>\w{1,64})(?::(?P<index>[0-9]{1,9}))?\)"
    r" = -?[0-9]{1,6} \((?P<device>[^)]{1,128})\)"
)
_ONLY = re.compile(r"partitionTheWork: only one best device: -?[0-9]{1,6} = (?P<device>\S{1,128})")
_CANNOT = re.compile(r"Device (?P<device>\S{1,128}) can't do operation (?P<op>[^\s:]{1,64})")
_FULL_CALL, _PARTIAL_CALL = "cpuFallbackFull", "cpuFallbackPartial"
_FULL = "Performing full fallback on the CPU"
_CPU = "nnapi-reference"
_MAX_NODES = 1_000
_MAX_REFUSALS = 64


@dataclass(slots=True, kw_only=True)
class _Device:
    record: LogLineRecord
    count: int = 0
    nodes: list[str] = field(default_factory=list)


class NnapiDialect:
    """Reads the lines `debug.nn.vlog` switches on."""

    name = "nnapi"
    triggers = (
        Trigger(literal=b"findBestDeviceForEachOperation("),
        Trigger(literal=b"only one best device"),
        Trigger(literal=b"can't do operation"),
        Trigger(literal=b"cpuFallback"),
        Trigger(literal=_FULL.encode()),
    )

    def reader(self, *, source: str) -> LineReader:
        """Start on a log."""
        return _NnapiReader(source)


class _NnapiReader:
    def __init__(self, source: str) -> None:
        self._source = source
        self._placed: dict[tuple[int | None, str], _Device] = {}
        self._refused: dict[int | None, dict[str, str]] = {}
        self._announced: set[int | None] = set()

    def read(self, record: LogLineRecord) -> Iterator[Event]:
        text = record.message
        best, only, cannot = _BEST.search(text), _ONLY.search(text), _CANNOT.search(text)
        if cannot is not None:
            # Another device may do it: alone this is no fallback, only the reason if one follows.
            refused = self._refused.setdefault(record.pid, {})
            if len(refused) < _MAX_REFUSALS:
                refused[cannot["op"]] = f"{cannot['device']} can't do operation {cannot['op']}"
        elif best is not None:
            node = best["index"] or ""
            self._place(record, best["device"], f"{best['op']}:{node}")
            if best["device"] == _CPU:
                reason = self._refused.get(record.pid, {}).get(best["op"], f"{_CPU} chosen")
                yield self._fallback(record, op=best["op"], node=node, reason=reason)
        elif only is not None:
            self._place(record, only["device"], "")
        elif _FULL in text:
            self._announced.add(record.pid)
            yield self._fallback(record, reason="full fallback of an execution")
        elif _FULL_CALL in text and record.pid in self._announced:
            self._announced.discard(record.pid)  # the call that was announced: the same fallback
        elif _FULL_CALL in text or _PARTIAL_CALL in text:
            what = "full" if _FULL_CALL in text else "partial"
            yield self._fallback(record, reason=f"{what} fallback of an execution")

    def finish(self) -> Iterable[Event]:
        for (_, device), placed in self._placed.items():
            fields = {
                "unit": "cpu" if device == _CPU else device,
                "provider": device,
                "count": str(placed.count) if placed.count else "",
                "nodes": "\n".join(placed.nodes),
            }
            yield self._event("placement", placed.record, fields)

    def _place(self, record: LogLineRecord, device: str, node: str) -> None:
        placed = self._placed.setdefault((record.pid, device), _Device(record=record))
        if node:
            placed.count += 1
            if len(placed.nodes) < _MAX_NODES:
                placed.nodes.append(node)

    def _fallback(self, record: LogLineRecord, *, reason: str, op: str = "", node: str = "") -> Event:
        fields = {"op": op, "node": node, "reason": reason, "runtime": "nnapi"}
        return self._event("cpu_fallback", record, fields)

    def _event(self, kind: EventKind, record: LogLineRecord, fields: dict[str, str]) -> Event:
        return make_event(kind, record, dialect=NnapiDialect.name, source=self._source, fields=fields)
