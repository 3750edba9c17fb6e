"""The way to the NPU: FastRPC's errors, and the kernel's word that the NPU's processor went down."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator

from pytest_devicelab.evidence.events import Event
from pytest_devicelab.logs.dialect import LineReader, Trigger, make_event
from pytest_devicelab.logs.framing import LogLineRecord

# cdsp1 is the second NPU of automotive chips; adsp, modem and the like are other processors.
_NPU = r"(?P<unit>cdsp[0-9]?)\b"
_CRASH = re.compile(rf"crash detected in {_NPU}:?(?: type)? ?(?P<type>.{{0,200}})")
_OLD_CRASH = re.compile(rf"Fatal error on (?:the )?{_NPU}", re.IGNORECASE)
_OLD_REASON = re.compile(rf"{_NPU} subsystem failure reason: (?P<reason>.{{0,512}})", re.IGNORECASE)
_RESTART = re.compile(rf"Restart sequence requested for {_NPU}", re.IGNORECASE)
_FATAL = re.compile(r"\.remoteproc: fatal error received: ?(?P<reason>.{0,512})")

_RPC = re.compile(
    r"\bError (?P<code>0x[0-9a-fA-F]{1,8}): (?P<reason>(?P<call>\w{1,64}(?: \(-?[0-9]{1,9}\))?) failed\b.{0,512})"
)
_CDSP = re.compile(r"\bdomain 3\b|_dom=cdsp\b|/cdsp\b")
# AEE_EUNSUPPORTED: an older DSP does not know a method the library tries first, and goes on without it.
_BENIGN_CODES = frozenset({0x80000414, 0x14})


class KernelDialect:
    """Reads FastRPC's lines, under whichever process they come, and the kernel's of remoteproc and subsystem restart."""

    name = "kernel"
    triggers = (
        Trigger(literal=b"crash detected in "),
        Trigger(literal=b"rror on "),
        Trigger(literal=b"subsystem failure reason"),
        Trigger(literal=b"Restart sequence requested"),
        Trigger(literal=b"fatal error received"),
        Trigger(literal=b"fastrpc"),
    )

    def reader(self, *, source: str) -> LineReader:
        """Start on a log."""
        return _KernelReader(source)


class _KernelReader:
    """Counts a crash once, however many lines the kernel spends on it."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._fatal: deque[str] = deque(maxlen=2)
        self._crash: dict[str, tuple[LogLineRecord, str]] = {}

    def read(self, record: LogLineRecord) -> Iterator[Event]:
        text = record.message
        crash = _CRASH.search(text)
        fatal, old, reason, restart = (
            pattern.search(text) for pattern in (_FATAL, _OLD_CRASH, _OLD_REASON, _RESTART)
        )
        if crash is not None:
            # Which processor a fatal error was in, its line does not say: only one candidate is no guess.
            why = self._fatal[0] if len(self._fatal) == 1 else crash["type"]
            self._fatal.clear()
            yield self._crashed(record, crash["unit"], why.strip())
        elif fatal is not None:
            self._fatal.append(fatal["reason"])
        elif old is not None:
            yield from self._close(old["unit"].lower())
            self._crash[old["unit"].lower()] = record, ""
        elif reason is not None:
            unit = reason["unit"].lower()
            first, _ = self._crash.get(unit, (record, ""))
            self._crash[unit] = first, reason["reason"].strip()
        elif restart is not None:
            self._crash.setdefault(restart["unit"].lower(), (record, ""))
            yield from self._close(restart["unit"].lower())
        else:
            yield from self._rpc(record)

    def finish(self) -> Iterable[Event]:
        return [event for unit in tuple(self._crash) for event in self._close(unit)]

    def _close(self, unit: str) -> Iterator[Event]:
        if unit in self._crash:
            record, reason = self._crash.pop(unit)
            yield self._crashed(record, unit, reason)

    def _crashed(self, record: LogLineRecord, unit: str, reason: str) -> Event:
        fields = {"unit": unit, "reason": reason or record.message.strip()}
        return make_event("npu_crash", record, dialect=KernelDialect.name, source=self._source, fields=fields)

    def _rpc(self, record: LogLineRecord) -> Iterator[Event]:
        found = _RPC.search(record.message)
        if found is None or _CDSP.search(record.message) is None or int(found["code"], 16) in _BENIGN_CODES:
            return
        call = found["call"]
        stage = (
            "skel"
            if "_open" in call and "skel" in found["reason"].lower()
            else "execute"
            if "_invoke" in call
            else "device"
        )
        fields = {"stage": stage, "code": found["code"].lower(), "reason": found["reason"].strip()}
        yield make_event("load_error", record, dialect=KernelDialect.name, source=self._source, fields=fields)
