"""One ONNX Runtime session as its log tells it: lines in, events out when it has been told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from pytest_devicelab.evidence.events import Event, EventKind
from pytest_devicelab.logs.dialect import make_event
from pytest_devicelab.logs.framing import LogLineRecord
from pytest_devicelab.logs.ort_placement import Listing, NodeKey, Rejection, Unit, find_fallbacks, node_key

_VALIDATION = re.compile(
    r"Validation (?P<result>PASSED|FAILED) for (?:[0-9]{1,9} )?nodes (?:in \S{1,64} )?\((?P<op>[^)]{0,256})\)"
)
_UNIT_NODE = re.compile(r"Operator type: (\S{1,256}) Node name: (.*?)(?: Node index: [0-9]{1,12})?\s{0,2}$")
_REASON = re.compile(r"^\s{0,8}REASON : ?(.*)")
_UNSUPPORTED_NODE = re.compile(r"\{ name: ([^{]{0,1024}?), type: (\w{1,256}) \}")
_CONFIG_FAILED = re.compile(
    r"backendValidateOpConfig\(\) failed for node `([^`]{0,1024})` of type `(\w{1,256})` "
    r"with error code ([0-9]{1,10})"
)
_PLACED = re.compile(r"(All nodes|Node\(s\)) placed on \[(\w{1,128})\]\. Number of nodes: ([0-9]{1,9})")
_PLACED_NODE = re.compile(r"\s{0,16}(\S{1,256}) \((.*)\)\s{0,4}$")
_PARTITION = re.compile(
    r"Number of partitions supported by QNN EP: ([0-9]{1,9}), number of nodes in the graph: ([0-9]{1,9}), "
    r"number of nodes supported by QNN: ([0-9]{1,9})"
)
_FUSION = re.compile(r"GraphTransformer (\w{0,128}Fusion\w{0,64}) modified: 1\b")
_BACKEND = re.compile(r"backend provider name: (HTP|DSP|LPAI|GPU|CPU)_QTI_AISW")
_LOAD_ERRORS = (
    (
        "placement",
        re.compile(r"This session contains graph nodes that are assigned to the default CPU EP.{0,512}"),
    ),
    ("load", re.compile(r"Failed to load from EpContext model.{0,512}")),
    ("finalize", re.compile(r"Failed to finalize QNN graph.{0,512}")),
    ("load", re.compile(r"Failed to create context from binary.{0,512}")),
    ("execute", re.compile(r"Failed to execute QNN graph.{0,512}|QNN graph execute error.{0,512}")),
)
_ERROR_CODE = re.compile(r"\bcode: ?([0-9]{1,10})", re.IGNORECASE)
_Thread = tuple[int | None, str]


@dataclass(slots=True, kw_only=True)
class OrtSession:
    """Collects what one session of one process says.

    Attributes:
        backend: QNN backend in use, `htp`, as QNN's own provider name said; empty until it did.
    """

    backend: str = ""
    _uses_qnn: bool = False
    _units: dict[_Thread, Unit] = field(default_factory=dict)
    _listing: dict[_Thread, Listing] = field(default_factory=dict)
    _rejected: dict[NodeKey, Rejection] = field(default_factory=dict)
    _placed: list[Listing] = field(default_factory=list)
    _once: dict[tuple[str, ...], tuple[EventKind, LogLineRecord, dict[str, str]]] = field(
        default_factory=dict
    )
    _partition: tuple[LogLineRecord, re.Match[str]] | None = None
    _function: str = ""
    _unnamed_on_cpu: LogLineRecord | None = None

    def read(self, record: LogLineRecord, text: str, location: str) -> None:
        """Take in one line.

        Args:
            record: the line, for its place.
            text: its message behind ONNX Runtime's own header.
            location: `file:line function` of that header, or empty on a line that has none.
        """
        self._uses_qnn = self._uses_qnn or "QNN" in text or location.startswith("qnn_")
        thread = (record.tid, record.tag)
        if not (
            self._read_unit(record, text, thread, has_header=bool(location))
            or self._read_listing(record, text, thread, location)
            or self._read_rejections(record, text)
        ):
            self._read_rest(record, text, location)

    def _read_unit(self, record: LogLineRecord, text: str, thread: _Thread, *, has_header: bool) -> bool:
        match = _VALIDATION.search(text)
        unit = self._units.get(thread)
        if unit is not None:
            if match is None and not has_header:
                node, reason = _UNIT_NODE.search(text), _REASON.search(text)
                if node is not None:
                    unit.nodes.append((node[1], node[2]))
                elif reason is not None:
                    self._close_unit(thread, reason[1].strip())
                return node is not None or reason is not None
            self._close_unit(thread, "")
        if match is not None:
            self._units[thread] = Unit(record=record, op=match["op"], passed=match["result"] == "PASSED")
        return match is not None

    def _close_unit(self, thread: _Thread, reason: str) -> None:
        unit = self._units.pop(thread)
        op, node = unit.target()
        if unit.passed:  # validation runs in two passes, before and after the layout step: the later counts
            self._rejected.pop(node_key(op, node), None)
        else:
            self._reject(Rejection(record=unit.record, op=op, node=node, reason=reason))

    def _reject(self, rejection: Rejection) -> None:
        known = self._rejected.get(rejection.key)
        if known is None or (rejection.reason and not known.reason):
            self._rejected[rejection.key] = rejection

    def _read_listing(self, record: LogLineRecord, text: str, thread: _Thread, location: str) -> bool:
        function = location.rpartition(" ")[2]
        match = _PLACED.search(text)
        if match is not None:
            listing = Listing(
                record=record,
                provider=match[2],
                count=int(match[3]),
                whole_graph=match[1] == "All nodes",
                function=function,
            )
            self._placed.append(listing)
            self._listing[thread] = listing
            return True
        current = self._listing.get(thread)
        if current is None or not current.missing:
            return False
        node = _PLACED_NODE.match(text) if function == current.function else None
        if node is not None:
            current.nodes.append((record, node[1], node[2]))
        return node is not None

    def _read_rejections(self, record: LogLineRecord, text: str) -> bool:
        found = []
        if "Unsupported nodes in QNN EP" in text:
            found = [
                Rejection(record=record, op=match[2], node=match[1])
                for match in _UNSUPPORTED_NODE.finditer(text)
            ]
        failed = _CONFIG_FAILED.search(text)
        if failed is not None:
            reason = failed.group()
            found.append(
                Rejection(record=record, op=failed[2], node=failed[1], reason=reason, code=failed[3])
            )
        for rejection in found:
            self._reject(rejection)
        return bool(found)

    def _read_rest(self, record: LogLineRecord, text: str, location: str) -> None:
        partition, fusion, backend = _PARTITION.search(text), _FUSION.search(text), _BACKEND.search(text)
        if partition is not None:
            self._function = location.rpartition(" ")[2]
            self._partition = (record, partition)  # printed once a pass: the last one is the outcome
        elif fusion is not None:
            self._once.setdefault(("fusion", fusion[1]), ("fusion", record, _fusion_fields(fusion[1])))
        elif backend is not None:
            self.backend = backend[1].lower()
        elif "not assigned to the preferred execution providers" in text:
            self._unnamed_on_cpu = record
        else:
            self._read_load_error(record, text)

    def _read_load_error(self, record: LogLineRecord, text: str) -> None:
        for stage, pattern in _LOAD_ERRORS:
            match = pattern.search(text)
            if match is not None:
                code = _ERROR_CODE.search(match.group())
                fields = {
                    "stage": stage,
                    "code": code[1] if code else "",
                    "reason": match.group().strip(),
                }
                # Logged, then thrown, then printed by whoever caught it: one failure.
                self._once.setdefault(("load_error", stage), ("load_error", record, fields))
                return

    def events(self, *, dialect: str, source: str) -> Iterator[Event]:
        """Return what the session amounts to; call once, when its last line has been read."""
        for thread in tuple(self._units):
            self._close_unit(thread, "")
        for kind, record, fields in self._findings():
            yield make_event(kind, record, dialect=dialect, source=source, fields=fields)

    def _findings(self) -> Iterator[tuple[EventKind, LogLineRecord, dict[str, str]]]:
        for rejection in self._rejected.values():
            yield "op_rejected", rejection.record, rejection.fields()
        for listing in self._placed:
            yield "placement", listing.record, listing.fields(self.backend)
            if listing.missing:
                lost = {"count": str(listing.missing), "reason": "placement listing cut short"}
                yield "lost_records", listing.record, lost
            if listing.on_cpu:
                for record, fields in find_fallbacks(listing, self._rejected, uses_qnn=self._uses_qnn):
                    yield "cpu_fallback", record, fields
        if self._unnamed_on_cpu is not None and not self._placed:
            unnamed = {"unit": "cpu", "provider": "CPUExecutionProvider", "count": "", "nodes": ""}
            yield "placement", self._unnamed_on_cpu, unnamed
        if self._partition is not None:
            record, match = self._partition
            yield "partition", record, _partition_fields(match, self._function, self.backend)
        yield from self._once.values()


def _partition_fields(match: re.Match[str], function: str, backend: str) -> dict[str, str]:
    # onnxruntime-qnn counts node groups, each a target op with its Q and DQ; classic ONNX Runtime counts nodes.
    counts = {"GetCapabilityImpl": "groups", "GetCapability": "nodes"}.get(function, "")
    return {
        "supported": match[3],
        "total": match[2],
        "partitions": match[1],
        "delegate": "QNN",
        "on": backend or "qnn",
        "counts": counts,
    }


def _fusion_fields(transformer: str) -> dict[str, str]:
    """Return the fields of a `fusion`; ONNX Runtime names the transformer that fused, not the nodes."""
    return {"transformer": transformer, "into": "", "from": transformer.partition("Fusion")[0]}
