"""Load, memory and time as programs on a virtual device show them: the host's figures, from /proc."""

# Programs on the device start without pathlib, which alone takes some milliseconds.
# ruff: noqa: PTH123

from __future__ import annotations

import os
import time

from pytest_devicelab.virtual.tools.device_path import read_boot_ns


def load_average() -> tuple[float, float, float]:
    """Return the host's load over 1, 5 and 15 minutes."""
    return os.getloadavg()


def uptime_s(root: str) -> float:
    """Return seconds since the device was started."""
    return max(time.time_ns() - read_boot_ns(root), 0) / 1e9


def host_uptime_s() -> float:
    """Return seconds since the host was started, which is what its CPU time adds up from."""
    with open("/proc/uptime", encoding="ascii") as file:
        return float(file.read().split()[0])


def memory_kib() -> dict[str, int]:
    """Return /proc/meminfo as name -> KiB."""
    found: dict[str, int] = {}
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            name, _, value = line.partition(":")
            found[name] = int(value.split()[0])
    return found


def cpu_ticks() -> tuple[int, int, int]:
    """Return the host's CPU time since its start, in ticks: user, kernel, idle."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(word) for word in file.readline().split()[1:]]
    user, nice, system, idle, iowait, *interrupts = ticks
    return user + nice, system + sum(interrupts[:2]), idle + iowait
