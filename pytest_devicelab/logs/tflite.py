"""TensorFlow Lite and LiteRT: which delegate took how many nodes, and which it gave back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pytest_devicelab.evidence.events import Event, EventKind
from pytest_devicelab.logs.dialect import LineReader, Trigger, make_event
from pytest_devicelab.logs.framing import LogLineRecord

_N = r"[0-9]{1,9}"
_REPLACING = re.compile(
    rf"Replacing (?P<supported>{_N})(?: out of (?P<total>{_N}))? node\(s\) with delegate \((?P<delegate>[^)]{{1,128}})\)"
    rf" ?(?:node)?(?:, yielding (?P<partitions>{_N}) partitions)?"
    rf"(?: for (?:the whole graph|subgraph (?P<subgraph>{_N})))?"
)
_DELEGATED = re.compile(
    rf"(?<!\w)(?P<delegate>\w{{1,128}}+) delegate: (?P<supported>{_N}) nodes delegated out of (?P<total>{_N}) nodes"
    rf"(?: with (?P<partitions>{_N}) partitions)?"
)
_SPLIT = re.compile(
    rf"(?P<supported>{_N}) operations will run on the (?P<delegate>\w{{1,16}}), and the remaining (?P<rest>{_N})"
)
_COMPILED = re.compile(
    rf"Partitioned subgraph<(?P<subgraph>{_N})>, selected (?P<supported>{_N}) ops, from a total of (?P<total>{_N}) ops"
    rf"(?:\. resulted in (?P<partitions>{_N}) partitions)?"
)
_UNSUPPORTED = re.compile(r"Following operations are not supported by .{1,64}:\s{0,4}$")
_OP = re.compile(r"\s{0,16}(?P<op>[A-Z][A-Z0-9_]{1,63}): ?(?P<reason>.{0,512})$")
_NOT_APPLIED = re.compile(
    r"Though (?P<delegate>.{1,64}) delegate is explicitly applied, the model graph will not be executed"
)
_VOIDED = "Restored original execution plan after delegate application failure"
_CONTEXT = re.compile(r"(?P<reason>Failed to create QNN context: (?P<code>[0-9]{1,10}))")
_TIMING = re.compile(r"Inference timings in us: .{0,256}Inference \(avg\): (?P<time_us>[0-9.e+]{1,32})")

_COMPILER = "compiler plugin"
# Where a delegate computes; one that is not here is named, and its unit left empty.
_UNITS = (
    (re.compile(r"xnnpack|ynnpack|flex|^cpu$", re.IGNORECASE), "cpu"),
    (re.compile(r"gpu|litert_cl|opencl|opengl|webgpu|metal", re.IGNORECASE), "gpu"),
    (re.compile(r"qnn|hexagon|dispatch|npu|htp|edgetpu|neuron|compiler plugin", re.IGNORECASE), "npu"),
)


def unit_of(delegate: str) -> str:
    """Return `cpu`, `gpu` or `npu`; empty where a delegate's name does not say, as NNAPI's does not."""
    return next((unit for pattern, unit in _UNITS if pattern.search(delegate)), "")


@dataclass(slots=True, kw_only=True)
class _Partition:
    """What one delegate took of one graph, as one or more lines tell it."""

    record: LogLineRecord
    form: str
    delegate: str
    supported: int
    total: int | None
    partitions: str
    subgraph: str
    told: set[str] = field(default_factory=set)

    def same_as(self, other: _Partition) -> bool:
        """Whether another line, of another form, tells the same."""
        named = unit_of(self.delegate) if "split" in (self.form, other.form) else self.delegate
        others = unit_of(other.delegate) if "split" in (self.form, other.form) else other.delegate
        return (
            other.form not in self.told
            and named == others
            and self.supported == other.supported
            and (self.total == other.total or None in (self.total, other.total))
        )

    def fields(self) -> dict[str, str]:
        """Return the fields of its `partition` event."""
        return {
            "supported": str(self.supported),
            "total": "" if self.total is None else str(self.total),
            "partitions": self.partitions,
            "delegate": self.delegate,
            "on": unit_of(self.delegate),
            "subgraph": self.subgraph,
        }


class TfliteDialect:
    """Reads the lines of interpreters, delegates and LiteRT's compiler plugins, on a phone or a host."""

    name = "tflite"
    triggers = (
        Trigger(literal=b"node(s) with delegate ("),
        Trigger(literal=b"nodes delegated out of"),
        Trigger(literal=b"operations are not supported by", following=256),
        Trigger(literal=b"operations will run on the"),
        Trigger(literal=b"Partitioned subgraph<"),
        Trigger(literal=b"Restored original execution plan"),
        Trigger(literal=b"graph will not be executed"),
        Trigger(literal=b"Failed to create QNN context"),
        Trigger(literal=b"Inference timings in us"),
    )

    def reader(self, *, source: str) -> LineReader:
        """Start on a log."""
        return _TfliteReader(source)


class _TfliteReader:
    """Holds what delegates took until the end of the log: a later line may take it back."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._taken: dict[int | None, list[_Partition]] = {}
        self._block: set[tuple[int | None, int | None, str]] = set()

    def read(self, record: LogLineRecord) -> Iterator[Event]:
        text = record.message
        thread = (record.pid, record.tid, record.tag)
        partition = _partition(record)
        if partition is not None:
            self._block.discard(thread)
            self._take(partition)
        elif _UNSUPPORTED.search(text):
            self._block.add(thread)
        elif _VOIDED in text:
            yield from self._void(record)
        elif (missed := _NOT_APPLIED.search(text)) is not None:
            reason = f"no node executed by {missed['delegate']}"
            yield self._event("cpu_fallback", record, _fallback(reason))
        elif (failed := _CONTEXT.search(text)) is not None:
            yield self._event("load_error", record, {"stage": "load"} | failed.groupdict())
        elif (timing := _TIMING.search(text)) is not None:
            yield self._event("op_time", record, {"op": "inference", "node": ""} | timing.groupdict())
        elif thread in self._block:
            op = _OP.match(text)
            if op is None:
                self._block.discard(thread)
            else:
                yield self._event("op_rejected", record, {"node": ""} | op.groupdict())

    def finish(self) -> Iterable[Event]:
        for partitions in self._taken.values():
            compiled = any(partition.delegate == _COMPILER for partition in partitions)
            for partition in partitions:
                yield self._event("partition", partition.record, partition.fields())
                # What the compiler left out is told in ops of the model; the dispatch delegate tells the
                # same once more, in nodes of what the compiler made of it.
                again = compiled and partition.delegate == "DispatchDelegate"
                left = 0 if partition.total is None else partition.total - partition.supported
                if left > 0 and unit_of(partition.delegate) != "cpu" and not again:
                    reason = f"{left} of {partition.total} nodes not taken by {partition.delegate}"
                    yield self._event("cpu_fallback", partition.record, _fallback(reason))

    def _take(self, partition: _Partition) -> None:
        known = self._taken.setdefault(partition.record.pid, [])
        same = next((other for other in known if other.same_as(partition)), None)
        if same is None:
            partition.told.add(partition.form)
            known.append(partition)
            return
        same.told.add(partition.form)
        same.partitions = same.partitions or partition.partitions
        same.subgraph = same.subgraph or partition.subgraph
        same.total = partition.total if same.total is None else same.total
        if same.form == "split":  # it says only `GPU`
            same.delegate = partition.delegate

    def _void(self, record: LogLineRecord) -> Iterator[Event]:
        """The plan before any delegate is back: nothing that was taken is executed there."""
        given_up = [
            partition for partition in self._taken.pop(record.pid, []) if partition.form != "compiled"
        ]
        names = sorted({one.delegate for one in given_up if unit_of(one.delegate) != "cpu"})
        reason = f"{', '.join(names) or 'a delegate'} failed to apply, the original plan was restored"
        yield self._event("cpu_fallback", record, _fallback(reason))

    def _event(self, kind: EventKind, record: LogLineRecord, fields: dict[str, str]) -> Event:
        return make_event(kind, record, dialect=TfliteDialect.name, source=self._source, fields=fields)


def _partition(record: LogLineRecord) -> _Partition | None:
    for form, pattern in (
        ("replacing", _REPLACING),
        ("delegated", _DELEGATED),
        ("split", _SPLIT),
        ("compiled", _COMPILED),
    ):
        found = pattern.search(record.message)
        if found is None:
            continue
        said = found.groupdict()
        supported, total = int(said["supported"]), said.get("total")
        if said.get("rest") is not None:
            total = str(supported + int(said["rest"]))
        return _Partition(
            record=record,
            form=form,
            delegate=said.get("delegate") or _COMPILER,
            supported=supported,
            total=None if total is None else int(total),
            partitions=said.get("partitions") or "",
            subgraph=said.get("subgraph") or "",
        )
    return None


def _fallback(reason: str) -> dict[str, str]:
    return {"op": "", "node": "", "reason": reason, "runtime": "tflite"}
