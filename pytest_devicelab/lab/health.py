"""Health: what is wrong with a device, by its vitals and the limits of the lab."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pytest_devicelab.devices.vitals import THERMAL_STATUS, Vitals
from pytest_devicelab.matrix.specs import HealthSpec
from pytest_devicelab.matrix.suggest import show

Kind = Literal["battery", "heat", "room", "clock", "runner", "property", "adb", "reach"]

THROTTLED = THERMAL_STATUS.index("moderate")
"""The status from which Android slows a device down so that it shows. Source: AOSP, THROTTLING_MODERATE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something wrong with a device.

    Attributes:
        passes: whether it goes away by waiting.
        harmless: whether a run may go on; it is only written down.
    """

    kind: Kind
    text: str
    fix: str
    passes: bool = False
    harmless: bool = False


def problems(vitals: Vitals, limits: HealthSpec) -> tuple[Problem, ...]:
    """Return what is wrong with a device; what it did not say is not held against it."""
    found = (_battery(vitals, limits), _heat(vitals, limits), _room(vitals, limits), _clock(vitals, limits))
    return (*(problem for problem in found if problem is not None), *_runners(vitals))


def left_set(before: Vitals, after: Vitals) -> Mapping[str, str]:
    """Return the properties that are otherwise than they were, with their values before; empty for unset.

    What this project set is not among them: whoever holds the device next puts it back, when a run could not.
    """
    was, now = before.properties, after.properties
    if was is None or now is None:
        return {}
    names = {*was, *now} - before.toggled - after.toggled
    return {name: was.get(name, "") for name in sorted(names) if was.get(name, "") != now.get(name, "")}


def changes(before: Vitals, after: Vitals) -> tuple[Problem, ...]:
    """Return what is neither good nor bad, and has to be as it was found: properties, and the adb server."""
    found = [
        Problem(
            kind="property",
            text=f"property {name} is {show((after.properties or {}).get(name, ''))}; it was {show(value)}",
            fix="put back what a test changes",
        )
        for name, value in left_set(before, after).items()
    ]
    if None not in (before.adb_version, after.adb_version) and before.adb_version != after.adb_version:
        text = f"the adb server is {after.adb_version}; it was {before.adb_version}"
        found.append(
            Problem(kind="adb", text=text, fix="use one adb on this host: each ends the others' server")
        )
    return tuple(found)


def throttled(before: Vitals, after: Vitals) -> str:
    """Say how a run was slowed down by heat, or nothing when it was not, by the status around it and in between.

    A device that said its status before and not after is one of which nobody knows: that counts as slowed down.
    """
    if before.thermal_status is not None and after.thermal_status is None:
        return "it said its thermal status before, and not after"
    status = max(before.thermal_status or 0, after.thermal_status or 0)
    if status < THROTTLED <= (after.peak_status or 0):
        return f"thermal status {THERMAL_STATUS[after.peak_status or 0]} in between; it is cool again"
    if status < THROTTLED:
        return ""
    warm = f", skin {after.skin_c:g} °C" if after.skin_c is not None else ""
    return f"thermal status {THERMAL_STATUS[status]}{warm}"


def _battery(vitals: Vitals, limits: HealthSpec) -> Problem | None:
    percent = vitals.battery_percent
    if percent is None or percent >= limits.min_battery:
        return None
    if vitals.charging:
        return Problem(
            kind="battery",
            text=f"battery at {percent} %, charging; the least is {limits.min_battery} %",
            fix="wait, or set lab.health.min_battery",
            passes=True,
        )
    return Problem(
        kind="battery",
        text=f"battery at {percent} % and not charging; the least is {limits.min_battery} %",
        fix="plug it in, or set lab.health.min_battery",
    )


def _heat(vitals: Vitals, limits: HealthSpec) -> Problem | None:
    most = THERMAL_STATUS.index(limits.max_status)
    if vitals.thermal_status is not None and vitals.thermal_status > most:
        text = f"thermal status {THERMAL_STATUS[vitals.thermal_status]}, more than {limits.max_status}"
    elif vitals.skin_c is not None and vitals.skin_c > limits.max_skin_c:
        text = f"skin at {vitals.skin_c:g} °C, more than {limits.max_skin_c:g}"
    elif vitals.battery_c is not None and vitals.battery_c > limits.max_battery_c:
        text = f"battery at {vitals.battery_c:g} °C, more than {limits.max_battery_c:g}"
    else:
        return None
    return Problem(
        kind="heat",
        text=text,
        fix="cool it, or set the limits of lab.health; a phone that charges under load in a closed rack stays hot",
        passes=True,
    )


def _room(vitals: Vitals, limits: HealthSpec) -> Problem | None:
    if vitals.free_kib is None or vitals.free_kib >= limits.min_free_mib * 1024:
        return None
    return Problem(
        kind="room",
        text=f"{vitals.free_kib / 1024:.0f} MiB free in /data/local/tmp; the least is {limits.min_free_mib}",
        fix="remove what is not needed; /data/local/tmp/devicelab/slots may go",
    )


def _clock(vitals: Vitals, limits: HealthSpec) -> Problem | None:
    skew = vitals.clock_skew_s
    if skew is None or abs(skew) <= limits.max_clock_skew_s:
        return None
    return Problem(
        kind="clock",
        text=f"clock {abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's",
        fix="let it set its clock from the network; times in its logs are its own",
        harmless=True,
    )


def _runners(vitals: Vitals) -> tuple[Problem, ...]:
    if not vitals.runners:
        return ()
    pids = ", ".join(map(str, vitals.runners))
    return (
        Problem(
            kind="runner", text=f"a runner of an earlier run is still alive (process {pids})", fix="kill it"
        ),
    )
