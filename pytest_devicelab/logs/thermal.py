"""Heat: where Android, its vendors' daemons and its services say the device was slowed down."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pytest_devicelab.evidence.events import Event
from pytest_devicelab.logs.dialect import LineReader, Trigger, make_event
from pytest_devicelab.logs.framing import LogLineRecord

_DAEMON = re.compile(r"thermal[-_ ]?(?:engine|daemon)", re.IGNORECASE)
_ALARM = re.compile(
    r"Sensor '(?P<sensor>[^']{1,64})' - alarm (?P<what>raised|cleared) .{0,8}at (?P<temp>[0-9.]{1,8})"
)
_ACTION = re.compile(r"\bACTION: (?P<action>.{1,200})$")
# Source: Android's EventLogTags, 2737 thermal_changed (name, type, temperature, sensor status, system status).
_CHANGED = re.compile(
    r"\[(?P<sensor>[^,\]]{1,64}),(?P<type>\d{1,3}),(?P<temp>[-\d.NaE]{1,24}),(?P<status>\d),\d\]"
)
_TEMPERATURE = re.compile(
    r"Temperature\{mValue=(?P<temp>[-\d.NaE]{1,24}), mType=(?P<type>-?\d{1,3}), mName=(?P<sensor>[^,}]{1,64}), "
    r"mStatus=(?P<status>\d)\}"
)
_STATUS = re.compile(r"^\s{0,8}Thermal Status: (?P<status>[1-6])\s{0,4}$")
_KERNEL = re.compile(
    r"thermal (?P<sensor>thermal_zone[0-9]{1,4}): (?P<reason>.{0,64}critical temperature reached.{0,128})"
)
_NOT_DEGREES = frozenset({"6", "7", "8"})  # battery current and the like


class ThermalDialect:
    """Reads the event log, thermal daemons, `dumpsys thermalservice` and the kernel."""

    name = "thermal"
    triggers = tuple(
        Trigger(literal=literal)
        for literal in (
            b" - alarm ",
            b"ACTION: ",
            b"thermal_changed",
            b"mStatus=",
            b"Thermal Status: ",
            b"ached temperatures:",
            b"temperatures from HAL:",
            b"critical temperature reached",
        )
    )

    def reader(self, *, source: str) -> LineReader:
        """Start on a log."""
        return _ThermalReader(source)


class _ThermalReader:
    def __init__(self, source: str) -> None:
        self._source = source
        self._cached = False
        self._cooling: dict[int | None, bool] = {}

    def read(self, record: LogLineRecord) -> Iterator[Event]:
        fields = self._daemon(record) or self._system(record)
        if fields is not None:
            temp = fields.pop("temp", "")
            if temp and fields.get("type") not in _NOT_DEGREES:
                fields["temp_c"] = temp
            yield make_event(
                "throttling", record, dialect=ThermalDialect.name, source=self._source, fields=fields
            )

    def finish(self) -> Iterable[Event]:
        return ()

    def _daemon(self, record: LogLineRecord) -> dict[str, str] | None:
        """A daemon raises an alarm and acts on it; what it does after clearing one is no slowing down."""
        if _DAEMON.search(record.tag or record.message) is None:
            return None
        alarm = _ALARM.search(record.message)
        if alarm is not None:
            self._cooling[record.pid] = alarm["what"] == "cleared"
            if self._cooling[record.pid]:
                return None
            return {"reason": "alarm raised", "sensor": alarm["sensor"], "temp": alarm["temp"]}
        action = _ACTION.search(record.message)
        if action is None or self._cooling.get(record.pid, False):
            return None
        return {"reason": action["action"].strip()}

    def _system(self, record: LogLineRecord) -> dict[str, str] | None:
        text = record.message
        if "temperatures:" in text or "temperatures from HAL:" in text:
            # The cache holds what was true some time ago; dumpsys prints both, first the cache.
            self._cached = "ached temperatures:" in text
            return None
        critical = _KERNEL.search(text)
        if critical is not None:
            return {"reason": critical["reason"].strip(), "sensor": critical["sensor"]}
        changed = _CHANGED.search(text) if "thermal_changed" in (record.tag or text) else None
        found = changed or (None if self._cached else _TEMPERATURE.search(text)) or _STATUS.search(text)
        if found is None or found["status"] == "0":
            return None
        return {"reason": "thermal status above 0"} | {
            name: value for name, value in found.groupdict().items() if value is not None
        }
