"""dumpsys: what a virtual device says of its battery, heat, load, memory, packages and power state."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from pytest_devicelab.virtual.tools import host_figures, packages, vitals
from pytest_devicelab.virtual.tools.device_path import device_root


def battery(root: str) -> str:
    """Return `dumpsys battery`: the layout of Android 14; temperature is in tenths of a degree."""
    state = vitals.read(root, "battery")

    def flag(name: str) -> str:
        return "true" if state[name] else "false"

    stopped = "  (UPDATES STOPPED -- use 'reset' to restart)\n" if state["updates_stopped"] else ""
    return (
        f"Current Battery Service state:\n{stopped}"
        f"  AC powered: {flag('ac_powered')}\n"
        f"  USB powered: {flag('usb_powered')}\n"
        f"  Wireless powered: {flag('wireless_powered')}\n"
        f"  Dock powered: {flag('dock_powered')}\n"
        "  Max charging current: 500000\n"
        "  Max charging voltage: 5000000\n"
        f"  Charge counter: {state['charge_counter_uah']}\n"
        f"  status: {state['status']}\n"
        f"  health: {state['health']}\n"
        f"  present: {flag('present')}\n"
        f"  level: {state['level']}\n"
        "  scale: 100\n"
        f"  voltage: {state['voltage_mv']}\n"
        f"  temperature: {state['temperature_decidegrees']}\n"
        "  technology: Li-ion\n"
    )


def thermalservice(root: str) -> str:
    """Return `dumpsys thermalservice`: the layout of Android 14.

    The cached list holds what was last broadcast: like a phone's it lacks sensors nobody was told of.
    """
    state = vitals.read(root, "thermal")
    override = state["override_status"]
    temperatures = state["temperatures"]
    cached = [item for item in temperatures if item["type"] in (vitals.SKIN, vitals.BATTERY)]
    listeners = "\tcallbacks: 1\n\tkilled: false\n\tbroadcasts count: -1\n"
    return "".join(
        [
            f"IsStatusOverride: {'false' if override is None else 'true'}\n",
            f"ThermalEventListeners:\n{listeners}ThermalStatusListeners:\n{listeners}",
            f"Thermal Status: {state['status'] if override is None else override}\n",
            "Cached temperatures:\n",
            *map(_temperature, cached),
            "HAL Ready: true\nHAL connection:\n\tThermalHAL AIDL 1  connected: yes\n",
            "Current temperatures from HAL:\n",
            *map(_temperature, temperatures),
            "Current cooling devices from HAL:\n",
            *map(_cooling, state["cooling"]),
            "Temperature static thresholds from HAL:\n",
            *map(_threshold, state["thresholds"]),
        ]
    )


def _temperature(item: dict[str, Any]) -> str:
    return (
        f"\tTemperature{{mValue={float(item['value_c'])}, mType={item['type']},"
        f" mName={item['name']}, mStatus={item['status']}}}\n"
    )


def _cooling(item: dict[str, Any]) -> str:
    return f"\tCoolingDevice{{mValue={item['value']}, mType={item['type']}, mName={item['name']}}}\n"


def _threshold(item: dict[str, Any]) -> str:
    hot = ", ".join("NaN" if value is None else str(float(value)) for value in item["hot"])
    cold = ", ".join(["NaN"] * len(item["hot"]))
    return (
        f"\tTemperatureThreshold{{type: {item['type']}, name: {item['name']},"
        f" hotThrottlingThresholds: [{hot}], coldThrottlingThresholds: [{cold}]}}\n"
    )


def cpuinfo(_root: str) -> str:
    """Return `dumpsys cpuinfo`: load and CPU time, both the host's."""
    load = " / ".join(f"{value:.2f}" for value in host_figures.load_average())
    user, kernel, idle = host_figures.cpu_ticks()
    total = max(user + kernel + idle, 1)
    busy, of_user, of_kernel = ((100 * part / total) for part in (user + kernel, user, kernel))
    lasted_ms = int(host_figures.host_uptime_s() * 1000)
    return (
        f"Load: {load}\nCPU usage from {lasted_ms}ms to 0ms ago:\n"
        f"{busy:.1f}% TOTAL: {of_user:.1f}% user + {of_kernel:.1f}% kernel\n"
    )


def meminfo(root: str) -> str:
    """Return `dumpsys meminfo`: the totals, which are the host's."""
    memory = host_figures.memory_kib()
    uptime_ms = int(host_figures.uptime_s(root) * 1000)
    used = memory["MemTotal"] - memory["MemAvailable"]
    return (
        "Applications Memory Usage (in Kilobytes):\n"
        f"Uptime: {uptime_ms} Realtime: {uptime_ms}\n\n"
        f"Total RAM: {memory['MemTotal']:,}K (status normal)\n"
        f" Free RAM: {memory['MemAvailable']:,}K\n"
        f" Used RAM: {used:,}K\n"
    )


def package(root: str) -> str:
    """Return `dumpsys package`: the packages that were installed."""
    lines = [f"  Package [{name}]:\n    codePath={path}\n" for name, path in packages.installed(root)]
    return "".join(["Packages:\n", *lines])


def power(_root: str) -> str:
    """Return `dumpsys power`: the state a phone on a rack's cable is in."""
    return "POWER MANAGER (dumpsys power)\n\nPower Manager State:\n  mDirty=0x0\n  mWakefulness=Awake\n"


SERVICES: dict[str, Callable[[str], str]] = {
    "battery": battery,
    "cpuinfo": cpuinfo,
    "meminfo": meminfo,
    "package": package,
    "power": power,
    "thermalservice": thermalservice,
}


def main(argv: list[str]) -> int:
    """Run dumpsys with its command line; returns the exit status."""
    words, root = argv[1:], device_root()
    if words[:1] == ["-l"]:
        sys.stdout.write("Currently running services:\n" + "".join(f"  {name}\n" for name in SERVICES))
        return 0
    if not words:
        for name, report in SERVICES.items():
            sys.stdout.write(f"{'-' * 79}\nDUMP OF SERVICE {name}:\n{report(root)}")
        return 0
    name, *rest = words
    if name not in SERVICES:
        sys.stderr.write(f"Can't find service: {name}\n")
        return 0  # as on a phone
    if name == "battery" and rest:
        if vitals.set_battery(root, [word for word in rest if word != "-f"]):
            return 0
        sys.stderr.write("usage: dumpsys battery [set NAME VALUE | unplug | reset]\n")
        return 255
    sys.stdout.write(SERVICES[name](root))
    return 0
