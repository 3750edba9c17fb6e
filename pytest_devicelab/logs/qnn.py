"""What QNN itself says: rejected ops, failures by error code, and an NPU that went down."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pytest_devicelab.evidence.events import Event, EventKind
from pytest_devicelab.logs.dialect import LineReader, Trigger, make_event
from pytest_devicelab.logs.framing import LogLineRecord

# `QnnDsp <E> text`, `QnnDsp : <E> text`, ` <E> text`, and any of them behind another logger's header:
# ONNX Runtime forwards all of them at VERBOSE, so only the innermost marker tells the level.
_LEVEL = re.compile(r"(?:^|[\s\]:])<([VDIWEF])>\s?(.*)")
_TOOL_LEVEL = re.compile(r"(?:^|\s)\[ {0,2}(ERROR|WARNING|INFO|VERBOSE|DEBUG) {0,2}\] ?(.*)")
_CODE = re.compile(
    r"(?<![a-z])(?:error|err|code|status|failed|symbols|lib)[\s:=,(]{1,4}"
    r"(-?0x[0-9a-f]{1,8}|-?[0-9]{3,10})(?!\w)(?!\.[0-9])",
    re.IGNORECASE,
)
_CRASH = re.compile(r"CDSP crashed|SSR Detected")
_NODE = re.compile(r"\b(?:op|node) ['\"`]?([^\s'\"`]{1,1024})['\"`]? (?:with|failed|of type)")
_OP_TYPE = re.compile(r"\bof type ['\"`]?([\w.]{1,256})")

# `validateNativeOps master op validator node:package:type failed 3110`, between the reason and the outcome.
_VALIDATOR = re.compile(r"op validator [^\s:]{1,1024}:[^\s:]{1,256}:(\w{1,256})")

_REJECTED = 3110
_MAX_HINTS = 3
# Source: QNN's public error codes, by the step in which phones report them.
_STAGES = (
    (frozenset({1002}), "finalize"),
    (frozenset({5003, 5005}), "load"),
    (frozenset({14001}), "device"),
    (frozenset({4000, 0x80000406}), "skel"),
    (frozenset({6001, 6031, 1100}), "execute"),
)

_Thread = tuple[int | None, int | None, str]


@dataclass(slots=True, kw_only=True)
class _Rejection:
    """One rejected op, of which the name was not yet said."""

    record: LogLineRecord
    text: str
    reason: str
    op: str


class QnnDialect:
    """Reads the lines QNN's backends log, through whichever runtime they come."""

    name = "qnn"
    triggers = tuple(
        Trigger(literal=literal)
        for literal in (
            b"<E>",
            b"<F>",
            b"[ERROR",
            b"[ ERROR",
            b"[  ERROR",
            b"QNN",
            b"Qnn",
            b"qnn",
            b"CDSP crashed",
            b"SSR Detected",
        )
    )

    def reader(self, *, source: str) -> LineReader:
        """Start on a log."""
        return _QnnReader(source)


class _QnnReader:
    """Puts together what QNN says of one rejected op in up to five lines.

    First come one or two that say why, then up to two that validation failed, then the one that names the
    op: it becomes the event, with the first lines as its reason.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._hints: dict[_Thread, list[str]] = {}
        self._unnamed: dict[_Thread, _Rejection] = {}

    def read(self, record: LogLineRecord) -> Iterator[Event]:
        thread = (record.pid, record.tid, record.tag)
        if _CRASH.search(record.message) and _is_qnns(record):
            self._hints.pop(thread, None)
            fields = {"unit": "cdsp", "reason": _without_level(record.message)}
            yield self._event("npu_crash", record, fields)
            return
        text = _error_text(record)
        if text is None:
            return
        code, stage = _known_code(text)
        if code is None:
            hints = self._hints.setdefault(thread, [])
            hints.append(text)
            del hints[:-_MAX_HINTS]
        elif code == _REJECTED:
            yield from self._reject(record, text, thread)
        else:
            self._hints.pop(thread, None)
            shown = str(code) if code < 0x80000000 else hex(code)
            yield self._event("load_error", record, {"stage": stage, "code": shown, "reason": text})

    def finish(self) -> Iterable[Event]:
        return [self._rejected(rejection) for rejection in self._unnamed.values()]

    def _reject(self, record: LogLineRecord, text: str, thread: _Thread) -> Iterator[Event]:
        earlier = self._unnamed.pop(thread, None)
        hints = self._hints.pop(thread, [])
        named = _NODE.search(text) is not None
        # A new reason begins the next op, and so does an outcome after an outcome.
        if earlier is not None and (hints or not (named or earlier.op)):
            yield self._rejected(earlier)
            earlier = None
        validator, op = _VALIDATOR.search(text), _OP_TYPE.search(text)
        said = op or validator
        rejection = _Rejection(
            record=record,
            text=text,
            reason="; ".join(hints) or (earlier.reason if earlier is not None else text),
            op=said[1] if said is not None else "" if earlier is None else earlier.op,
        )
        if named:
            yield self._rejected(rejection)
        else:
            self._unnamed[thread] = rejection

    def _rejected(self, rejection: _Rejection) -> Event:
        node = _NODE.search(rejection.text)
        fields = {
            "op": rejection.op,
            "node": node[1] if node else "",
            "reason": rejection.reason,
            "code": str(_REJECTED),
        }
        return self._event("op_rejected", rejection.record, fields)

    def _event(self, kind: EventKind, record: LogLineRecord, fields: dict[str, str]) -> Event:
        return make_event(kind, record, dialect=QnnDialect.name, source=self._source, fields=fields)


def is_qnn_line(record: LogLineRecord) -> bool:
    """Whether QNN's backend wrote a line, under its own tag or handed on by another logger."""
    return record.tag.lower().startswith("qnn") or _LEVEL.search(record.message) is not None


def _is_qnns(record: LogLineRecord) -> bool:
    """Whether a line is QNN's or FastRPC's own; other programs have an SSR too, of quite another kind."""
    return not record.tag or is_qnn_line(record) or "rpc" in record.tag.lower()


def _error_text(record: LogLineRecord) -> str | None:
    """Return what a line says if it is QNN's and an error, else None."""
    inner = _LEVEL.search(record.message)
    if inner is not None:
        return inner[2].strip() if inner[1] in "EF" else None
    if record.tag and not record.tag.lower().startswith("qnn"):
        return None
    tool = _TOOL_LEVEL.search(record.message)
    if tool is not None:
        return tool[2].strip() if tool[1] == "ERROR" else None
    return record.message.strip() if record.priority in ("E", "F") else None


def _without_level(message: str) -> str:
    inner = _LEVEL.search(message)
    return (message if inner is None else inner[2]).strip()


def _known_code(text: str) -> tuple[int | None, str]:
    """Return the first error code in a line that we know, unsigned, and the step it belongs to."""
    for match in _CODE.finditer(text):
        code = int(match[1], 0 if "x" in match[1].lower() else 10) & 0xFFFFFFFF
        if code == _REJECTED:
            return code, "validate"
        for codes, stage in _STAGES:
            if code in codes:
                return code, stage
    return None, ""
