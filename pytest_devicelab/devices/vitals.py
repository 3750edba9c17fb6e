"""Vitals: battery, heat, room, clock and leftovers, read in one round trip to a device and one to its adb server."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.slots import DEVICE_ROOT

RUNNERS = (
    "qnn-net-run",
    "ort-run",
    "litert-run",
    "benchmark_model",
    "qnn_executor_runner",
    "executor_runner",
)
"""Programs this project starts on devices."""

THERMAL_STATUS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
"""Android's thermal status by number. Source: AOSP android.os.Temperature, THROTTLING_NONE to THROTTLING_SHUTDOWN."""

_SKIN, _NPU, _CHARGING, _FULL = 3, 9, 2, 5
_TIMEOUT_S = 20.0
_PARTS = 10
# Every device has it: where it is missing, getprop said nothing of the others either.
_WITNESS = "ro.build.version.sdk"
# One script, because a round trip takes longer than what it does. What a device lacks is an empty part. A runner that
# is ours names one of our folders on its command line; anybody else's is left alone. This very script is on a command
# line, too: the brackets keep the patterns from finding it, and the folder is nowhere spelled out. pidof, which looks
# at every process, is asked only where there is something to find.
# The clock comes first: whatever is broadcast after it is after this reading, or within it.
_SCRIPT = f"""
date +%s.%N 2>/dev/null; printf '\\0'
dumpsys battery 2>/dev/null; printf '\\0'
dumpsys thermalservice 2>/dev/null; printf '\\0'
df -k /data/local/tmp 2>/dev/null; printf '\\0'
awake=$(dumpsys power 2>/dev/null | grep -m1 mWakefulness=); echo "$awake"; printf '\\0'
grep -qs '[/]{DEVICE_ROOT[1:]}' /proc/[0-9]*/cmdline && for pid in $(pidof {" ".join(RUNNERS)} 2>/dev/null); do
    grep -qs '[/]{DEVICE_ROOT[1:]}' /proc/$pid/cmdline && echo "$pid"
done; printf '\\0'
case $awake in *=Awake) ;; *) dumpsys deviceidle get deep 2>/dev/null ;; esac; printf '\\0'
getprop 2>/dev/null | grep -E '^[[](debug|(persist[.])?log[.]tag|{_WITNESS})[].]' | grep -v '^[[]debug[.]tracing[.]'
printf '\\0'
for note in {DEVICE_ROOT[:-1]}[{DEVICE_ROOT[-1]}]/restore/*; do echo "${{note##*/}}"; done; printf '\\0'
"""
# Those are what the shell user may set on a phone. Android itself keeps the screen's state and such in debug.tracing.
# Source: AOSP sepolicy, property_contexts (debug., log.tag); DisplayPowerController (debug.tracing.screen_state).
_PROPERTY = re.compile(r"^\[([A-Za-z0-9_.@:-]{1,255})\]: \[(.{0,1000})\]$", re.MULTILINE | re.ASCII)
# What the thermal service broadcast since a moment of the device's own clock.
_BROADCAST = "logcat -d -b events -T {since_s:.3f} -s thermal_changed 2>/dev/null; printf '\\0'"
# Source: AOSP EventLogTags 2737, thermal_changed (name, type, temperature, sensor status, previous system status).
_CHANGED = re.compile(r"\[[^,\]]{1,64},(\d{1,3}),[^,\]]{1,24},(\d),\d\]", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """How a device is. None where it did not say.

    Attributes:
        battery_percent: charge; `charging` whether it is being charged, or full on a charger.
        battery_c: temperature of the battery, `skin_c` of the hottest skin sensor, degrees Celsius.
        thermal_status: 0 to 6, an index of `THERMAL_STATUS`.
        free_kib: room in /data/local/tmp.
        clock_skew_s: the device's clock minus this machine's, seconds.
        wakefulness: `Awake`, `Asleep`, `Dozing`, `Dreaming`.
        doze: state of deep doze while not awake: `ACTIVE`, `INACTIVE`, `IDLE`, ...; in `IDLE` work is put off.
        clock_s: the device's own clock, seconds since the epoch; whole ones where it has no finer.
        peak_status: highest thermal status of a skin or NPU sensor since the reading before, as the event log has it.
        runners: process ids of runners of ours that are still alive.
        properties: those that a shell may set, where they are not empty; None where it listed none at all.
        toggled: properties that this project has set and not put back yet, see `toggles`.
        adb_version: of the adb server that reaches the device.
    """

    battery_percent: int | None = None
    charging: bool | None = None
    battery_c: float | None = None
    skin_c: float | None = None
    thermal_status: int | None = None
    free_kib: int | None = None
    clock_skew_s: float | None = None
    wakefulness: str | None = None
    doze: str | None = None
    clock_s: float | None = None
    peak_status: int | None = None
    runners: tuple[int, ...] = ()
    properties: Mapping[str, str] | None = field(default=None, hash=False)
    toggled: frozenset[str] = frozenset()
    adb_version: str | None = None


def read_vitals(
    device: AdbDevice, *, since: Vitals | None = None, now: Callable[[], float] = time.time
) -> Vitals:
    """Read how a device is.

    Args:
        device: which.
        since: an earlier reading: then the heat between the two is read, too.
        now: this machine's clock.

    Raises:
        InfrastructureError: the device does not answer; that it lacks a service is no error.
    """
    asked = now()
    script = _SCRIPT
    if since is not None and since.clock_s is not None:
        # Not rounded up: what was broadcast in that very millisecond counts.
        script += _BROADCAST.format(since_s=math.floor(since.clock_s * 1000) / 1000)
    text = device.script(script, timeout_s=_TIMEOUT_S).text
    return replace(parse_vitals(text, host_s=(asked + now()) / 2), adb_version=device.adb_version())


def parse_vitals(text: str, *, host_s: float) -> Vitals:
    """Read what the script printed; a part that reads otherwise than Android writes it says nothing.

    Args:
        text: parts that each end in NUL.
        host_s: this machine's clock at that time, seconds since the epoch.
    """
    parts = text.split("\0")
    padded = (*parts[:_PARTS], *[""] * (_PARTS - len(parts[:_PARTS])))
    clock, battery, thermal, room, power, runners, doze, properties, toggled, changes = padded
    tenths, clock_s = _number(battery, r"temperature: *(-?\d{1,5})"), _clock_s(clock)
    level, scale = _number(battery, r"level: *(\d{1,5})"), _number(battery, r"scale: *(\d{1,5})")
    status = _number(thermal, r"Thermal Status: *(\d)")
    return Vitals(
        battery_percent=round(100 * level / scale) if level is not None and scale else None,
        charging=_charging(battery),
        battery_c=tenths / 10 if tenths is not None else None,
        skin_c=_hottest_skin(thermal),
        thermal_status=status if status is not None and status < len(THERMAL_STATUS) else None,
        free_kib=_free_kib(room),
        # Where `date` cuts the fraction off, half a second is the best guess at it.
        clock_skew_s=clock_s + 0.5 * clock_s.is_integer() - host_s if clock_s is not None else None,
        wakefulness=found[1] if (found := re.search(r"mWakefulness=([A-Za-z]{1,20})", power)) else None,
        doze=found[0] if (found := re.fullmatch(r"[A-Z_]{1,24}", doze.strip(), re.ASCII)) else None,
        clock_s=clock_s,
        peak_status=_peak_status(changes),
        runners=tuple(int(word) for word in runners.split() if re.fullmatch(r"\d{1,10}", word)),
        properties=_settable(properties),
        toggled=frozenset(toggled.split()) - {"*"},
    )


def _settable(listed: str) -> Mapping[str, str] | None:
    found = {name: value for name, value in _PROPERTY.findall(listed) if value}
    return found if found.pop(_WITNESS, None) is not None else None


def _clock_s(date: str) -> float | None:
    found = re.match(r"\s*(\d{1,12}(\.\d{1,9})?)", date, re.ASCII)
    return float(found[1]) if found else None


def _number(text: str, pattern: str) -> int | None:
    found = re.search(rf"^ *{pattern}", text, re.MULTILINE | re.ASCII)
    return int(found[1]) if found else None


def _charging(battery: str) -> bool | None:
    status = _number(battery, r"status: *(\d)")
    powered = re.search(r"powered: *true", battery) is not None
    return None if status is None else status == _CHARGING or (powered and status == _FULL)


def _hottest_skin(thermal: str) -> float | None:
    """Return the hottest skin sensor the HAL names now; where it names none, of those last broadcast."""
    current = thermal.partition("Current temperatures from HAL")[2]
    for text in (current, thermal):
        found = re.findall(
            rf"Temperature\{{mValue=(-?\d{{1,4}}(?:\.\d{{1,9}})?), mType={_SKIN},", text, re.ASCII
        )
        if found:
            return max(map(float, found))
    return None


def _peak_status(changes: str) -> int | None:
    found = [int(status) for kind, status in _CHANGED.findall(changes) if int(kind) in (_SKIN, _NPU)]
    return max((status for status in found if status < len(THERMAL_STATUS)), default=None)


def _free_kib(df: str) -> int | None:
    """Return the fourth column of df's last line: size, used and available are numbers in a row."""
    found = re.findall(r"^\S+ +\d+ +\d+ +(\d{1,15}) +\d+%", df, re.MULTILINE | re.ASCII)
    return int(found[-1]) if found else None
