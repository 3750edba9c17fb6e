"""What QNN itself says: rejected ops, failures by error code, and an NPU that went down."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_devicelab.evidence.events import Event
from pytest_devicelab.logs.dialect import make_event
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
_CRASH = re.compile(r"CDSP crashed|SSR Detected|crash detected in cdsp")
_NODE = re.compile(r"\b(?:op|node) ['\"`]?([^\s'\"`]{1,1024})['\"`]? (?:with|failed|of type)")
_OP_TYPE = re.compile(r"\bof type ['\"`]?([\w.]{1,256})")

_REJECTED = 3110
# Source: QNN's public error codes, by the step in which phones report them.
_STAGES = (
    (frozenset({1002}), "finalize"),
    (frozenset({5003, 5005}), "load"),
    (frozenset({14001}), "device"),
    (frozenset({4000, 0x80000406}), "skel"),
    (frozenset({6001, 6031, 1100}), "execute"),
)

_Thread = tuple[int | None, int | None, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rejection:
    record: LogLineRecord
    text: str
    reason: str


class QnnDialect:
    """Reads the lines QNN's backends log, through whichever runtime they come."""

    name = "qnn"
    candidates = (b"<E>", b"<F>", b"ERROR", b"Qnn", b"QNN", b"qnn", b"CDSP", b"SSR Detected", b"in cdsp")

    def parse(self, lines: Sequence[LogLineRecord], *, source: str) -> Iterator[Event]:
        """Return `op_rejected`, `load_error` and `npu_crash` events.

        QNN reports one rejected op in up to three lines: why, that validation failed, and which op; the
        line that names the op becomes the event, with the first line as its reason.
        """
        hints: dict[_Thread, str] = {}
        unnamed: dict[_Thread, _Rejection] = {}
        for record in lines:
            thread = (record.pid, record.tid, record.tag)
            if _CRASH.search(record.message):
                hints.pop(thread, None)
                fields = {"reason": _without_level(record.message)}
                yield make_event("npu_crash", record, dialect=self.name, source=source, fields=fields)
                continue
            text = _error_text(record)
            if text is None:
                continue
            code, stage = _known_code(text)
            if code is None:
                hints[thread] = text
            elif code == _REJECTED:
                earlier = unnamed.pop(thread, None)
                reason = hints.pop(thread, earlier.reason if earlier is not None else text)
                rejection = _Rejection(record=record, text=text, reason=reason)
                if _NODE.search(text):
                    yield self._rejected(rejection, source)
                    continue
                if earlier is not None:
                    yield self._rejected(earlier, source)
                unnamed[thread] = rejection
            else:
                hints.pop(thread, None)
                shown = str(code) if code < 0x80000000 else hex(code)
                fields = {"stage": stage, "code": shown, "reason": text}
                yield make_event("load_error", record, dialect=self.name, source=source, fields=fields)
        for rejection in unnamed.values():
            yield self._rejected(rejection, source)

    def _rejected(self, rejection: _Rejection, source: str) -> Event:
        node = _NODE.search(rejection.text)
        op = _OP_TYPE.search(rejection.text)
        fields = {
            "op": op[1] if op else "",
            "node": node[1] if node else "",
            "reason": rejection.reason,
            "code": str(_REJECTED),
        }
        return make_event("op_rejected", rejection.record, dialect=self.name, source=source, fields=fields)


def is_qnn_line(record: LogLineRecord) -> bool:
    """Whether QNN's backend wrote a line, under its own tag or handed on by another logger."""
    return record.tag.lower().startswith("qnn") or _LEVEL.search(record.message) is not None


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
