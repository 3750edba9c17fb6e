"""The battery and the thermal state of a virtual device: two small JSON files the dumpsys program reads.

`dev/devicelab/battery.json` and `dev/devicelab/thermal.json` below the device's root. Whoever wants a hot
or throttled device writes them; a reboot does not cool a phone, so it leaves them as they are.
"""

# Programs on the device start without pathlib, which alone takes some milliseconds.
# ruff: noqa: PTH105, PTH118, PTH123

from __future__ import annotations

import json
import os
from typing import Any

# Android's temperature types. Source: AOSP android.hardware.thermal TemperatureType.
CPU, GPU, BATTERY, SKIN, NPU = 0, 1, 2, 3, 9
# Android's cooling types. Source: AOSP android.hardware.thermal CoolingType.
COOLING_CPU, COOLING_NPU = 2, 5
# `dumpsys battery set NAME` -> the field it sets.
BATTERY_FIELDS = {
    "ac": "ac_powered",
    "counter": "charge_counter_uah",
    "level": "level",
    "present": "present",
    "status": "status",
    "temp": "temperature_decidegrees",
    "usb": "usb_powered",
    "wireless": "wireless_powered",
}


def default_battery() -> dict[str, Any]:
    """Return a battery at 85 % and 27.0 degrees, charging over USB; 2 is charging, and good health."""
    return {
        "ac_powered": False,
        "usb_powered": True,
        "wireless_powered": False,
        "dock_powered": False,
        "charge_counter_uah": 3396000,
        "status": 2,
        "health": 2,
        "present": True,
        "level": 85,
        "voltage_mv": 4210,
        "temperature_decidegrees": 270,
        "updates_stopped": False,
    }


def default_thermal(*, has_npu: bool) -> dict[str, Any]:
    """Return a cool device: status 0 everywhere; NPU sensors and their cooling device with a Hexagon only."""
    temperatures = [
        *(_sensor(f"CPU{core}", CPU, 33.6 + core / 10) for core in range(8)),
        _sensor("GPU0", GPU, 32.1),
        _sensor("battery", BATTERY, 27.0),
        _sensor("skin", SKIN, 28.5),
    ]
    cooling = [{"name": "cpu-cluster0", "type": COOLING_CPU, "value": 0}]
    thresholds = [{"name": "skin", "type": SKIN, "hot": [None, 39.0, 41.0, 43.0, 45.0, 46.5, 55.0]}]
    if has_npu:
        temperatures += [_sensor(f"nsp{unit}", NPU, 32.8 + unit / 10) for unit in range(2)]
        cooling.append({"name": "cdsp", "type": COOLING_NPU, "value": 0})
        hot = [None, None, None, 95.0, None, 105.0, 115.0]
        thresholds += [{"name": f"nsp{unit}", "type": NPU, "hot": hot} for unit in range(2)]
    return {
        "status": 0,
        "override_status": None,
        "temperatures": temperatures,
        "cooling": cooling,
        "thresholds": thresholds,
    }


def write_defaults(root: str, *, has_npu: bool) -> None:
    """Write both files for a device that is charged and cool."""
    write(root, "battery", default_battery())
    write(root, "thermal", default_thermal(has_npu=has_npu))


def read(root: str, part: str) -> dict[str, Any]:
    """Return `battery` or `thermal` of the device in `root`."""
    with open(_path(root, part), encoding="utf-8") as file:
        state: dict[str, Any] = json.load(file)
    return state


def write(root: str, part: str, state: dict[str, Any]) -> None:
    """Replace `battery` or `thermal` in one step."""
    temporary = f"{_path(root, part)}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(state, file, indent=2)
    os.replace(temporary, _path(root, part))


def set_battery(root: str, words: list[str]) -> bool:
    """Carry out `set NAME VALUE`, `unplug` or `reset` of `dumpsys battery`; False when it is none of them."""
    state = read(root, "battery")
    match words:
        case ["reset"]:
            state = default_battery()
        case ["unplug"]:
            state |= {name: False for name in state if name.endswith("_powered")} | {"updates_stopped": True}
        case ["set", name, value] if name in BATTERY_FIELDS and value.lstrip("-").isdecimal():
            field = BATTERY_FIELDS[name]
            state[field] = int(value) != 0 if isinstance(state[field], bool) else int(value)
            state["updates_stopped"] = True
        case _:
            return False
    write(root, "battery", state)
    return True


def _sensor(name: str, kind: int, value_c: float) -> dict[str, Any]:
    return {"name": name, "type": kind, "value_c": round(value_c, 1), "status": 0}


def _path(root: str, part: str) -> str:
    return os.path.join(root, "dev", "devicelab", f"{part}.json")
