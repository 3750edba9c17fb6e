"""Faults of the state a device is in: its log, its clock, its heat, its battery, what it says it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

from pytest_devicelab.virtual import properties
from pytest_devicelab.virtual.faults.fault import Subject
from pytest_devicelab.virtual.tools import trouble, vitals
from pytest_devicelab.virtual.tools.logclient import LogRecord

_STEP_S = 0.2
_SYSTEM_PID = 1000
_LINE = "wifi scan result: " + "x" * 3900
_SOC_PROPERTY = "ro.soc.model"
# Android's thermal status by the skin's temperature. Source: `vitals.default_thermal`, thresholds of `skin`.
_STATUS_C = (39.0, 41.0, 43.0, 45.0, 46.5, 55.0)
CLOCK_FILE = "dev/devicelab/clock_offset_s"


class LogOverflow:
    """Some other program floods the log with `mib` at once, more than its buffer holds.

    On a phone: `logcat: Unexpected EOF!` to whoever reads along, and the lines of the run are gone. Once.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._lines = int(values["mib"]) * (1 << 20) // len(_LINE)

    def begin(self, device: Subject) -> None:
        """Write it, in one go: a reader that kept up would lose nothing."""
        now_ns = time.time_ns()
        for _ in range(self._lines):
            device.log.append(
                LogRecord("main", "I", "WifiService", _LINE, _SYSTEM_PID, _SYSTEM_PID, 1000, now_ns)
            )

    def end(self, device: Subject) -> None:
        """Nothing: what was dropped is gone."""


class ClockJump:
    """The device's clock jumps by `seconds`, as when a phone without a SIM first hears a time server.

    On a phone: the time of log lines and of `date` jumps, backwards where it is negative.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._seconds = int(values["seconds"])

    def begin(self, device: Subject) -> None:
        """Jump."""
        device.log.clock_offset_ns = self._seconds * 10**9
        (device.root / CLOCK_FILE).write_text(f"{self._seconds}\n", encoding="ascii")

    def end(self, device: Subject) -> None:
        """Jump back."""
        device.log.clock_offset_ns = 0
        (device.root / CLOCK_FILE).unlink(missing_ok=True)


class Throttle:
    """The skin warms up to `peak_c` within `over_s`; models then take `slowdown` times as long.

    On a phone: `dumpsys thermalservice` shows the temperature, the status and the cooling devices go up, the
    event log has `thermal_changed`, and latencies are no longer those of the chip.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._peak_c, self._over_s = float(values["peak_c"]), float(values["over_s"])
        self._slowdown = float(values["slowdown"])
        self._task: asyncio.Task[None] | None = None

    def begin(self, device: Subject) -> None:
        """Warm up along a straight line."""
        self._task = device.later(self._warm_up(device))

    def end(self, device: Subject) -> None:
        """Be cool at once."""
        if self._task is not None:
            self._task.cancel()
        trouble.write(str(device.root), "throttle", None)
        state = vitals.read(str(device.root), "thermal")
        has_npu = any(item["type"] == vitals.NPU for item in state["temperatures"])
        vitals.write(str(device.root), "thermal", vitals.default_thermal(has_npu=has_npu))

    async def _warm_up(self, device: Subject) -> None:
        began, start_c, status = time.monotonic(), _skin_c(device.root), -1
        while True:
            share = min(1.0, (time.monotonic() - began) / self._over_s) if self._over_s else 1.0
            skin_c = round(start_c + (self._peak_c - start_c) * share, 1)
            before, status = status, sum(skin_c >= limit for limit in _STATUS_C)
            _heat(device.root, skin_c, status)
            if status and status != before:
                trouble.write(str(device.root), "throttle", {"slowdown": self._slowdown})
                text = f"[skin,{vitals.SKIN},{skin_c},{status},{status}]"
                pid, now_ns = _SYSTEM_PID, time.time_ns()
                device.log.append(LogRecord("events", "I", "thermal_changed", text, pid, pid, 1000, now_ns))
            if share >= 1:
                return
            await asyncio.sleep(_STEP_S)


def _skin_c(root: Path) -> float:
    items = vitals.read(str(root), "thermal")["temperatures"]
    return float(next(item["value_c"] for item in items if item["type"] == vitals.SKIN))


def _heat(root: Path, skin_c: float, status: int) -> None:
    state = vitals.read(str(root), "thermal")
    for item in state["temperatures"]:
        if item["type"] == vitals.SKIN:
            item["value_c"], item["status"] = skin_c, status
    for item in state["cooling"]:
        item["value"] = status
    vitals.write(str(root), "thermal", state | {"status": status})


class BatteryDrain:
    """The charger is gone and the battery loses `percent_per_s`; at 0 % the device switches itself off.

    On a phone: `dumpsys battery` shows it, and then the device is gone until somebody charges it.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._percent_per_s = float(values["percent_per_s"])
        self._task: asyncio.Task[None] | None = None

    def begin(self, device: Subject) -> None:
        """Unplug it."""
        self._task = device.later(self._drain(device))

    def end(self, device: Subject) -> None:
        """Plug it in, charged."""
        if self._task is not None:
            self._task.cancel()
        vitals.write(str(device.root), "battery", vitals.default_battery())
        device.later(device.online())

    async def _drain(self, device: Subject) -> None:
        began, full = time.monotonic(), vitals.read(str(device.root), "battery")
        level = int(full["level"])
        while level > 0:
            level = max(0, int(full["level"] - self._percent_per_s * (time.monotonic() - began)))
            unplugged = {name: False for name in full if name.endswith("_powered")}
            # 3 is discharging. Source: AOSP BatteryManager.
            vitals.write(str(device.root), "battery", full | unplugged | {"level": level, "status": 3})
            await asyncio.sleep(_STEP_S)
        await device.offline()


class WrongSoc:
    """The device says that its chip is `soc`, as after a swap of phones or on a firmware with wrong properties.

    On a phone: `getprop ro.soc.model` names another chip than the matrix, while its NPU stays what it is.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._soc = values["soc"]
        self._before = ""

    def begin(self, device: Subject) -> None:
        """Say so."""
        self._before = properties.get(device.root, _SOC_PROPERTY)
        _force(device.root, self._soc)

    def end(self, device: Subject) -> None:
        """Say what it was."""
        _force(device.root, self._before)


def _force(root: Path, soc: str) -> None:
    # Past `properties.set`, which as on Android changes no read-only property.
    (properties.store(root) / _SOC_PROPERTY).write_bytes(properties.check(_SOC_PROPERTY, soc))
