"""uptime and free, in toybox's layout."""

from __future__ import annotations

import sys
import time

from pytest_devicelab.virtual.tools import host_figures
from pytest_devicelab.virtual.tools.device_path import device_root

_UNITS = {"-b": 1, "-k": 1 << 10, "-m": 1 << 20, "-g": 1 << 30}


def uptime() -> str:
    """Return the line of uptime: since the device was started; the load is the host's."""
    minutes = int(host_figures.uptime_s(device_root()) // 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    up = (f"{days} day{'s' * (days != 1)}, " if days else "") + (
        f"{hours}:{minutes:02d}" if hours else f"{minutes} min"
    )
    load = ", ".join(f"{value:.2f}" for value in host_figures.load_average())
    return f" {time.strftime('%H:%M:%S')} up {up},  0 users,  load average: {load}\n"


def free(unit: int) -> str:
    """Return the table of free, in multiples of `unit` bytes."""
    memory = host_figures.memory_kib()

    def row(label: str, *names_kib: int) -> str:
        return f"{label:<8}" + "".join(f"{value * 1024 // unit:>14}" for value in names_kib) + "\n"

    total, unused, buffers = memory["MemTotal"], memory["MemFree"], memory["Buffers"]
    swap, swap_free = memory["SwapTotal"], memory["SwapFree"]
    heads = "".join(f"{head:>14}" for head in ("total", "used", "free", "shared", "buffers"))
    return (
        f"{'':8}{heads}\n"
        + row("Mem:", total, total - unused, unused, memory["Shmem"], buffers)
        + row("-/+ buf:", total - unused - buffers, unused + buffers)
        + row("Swap:", swap, swap - swap_free, swap_free)
    )


def main(argv: list[str]) -> int:
    """Run uptime or free, whichever `argv[0]` says; returns the exit status."""
    if argv[0] == "uptime" and not argv[1:]:
        sys.stdout.write(uptime())
        return 0
    if argv[0] == "free" and len(argv) <= 2 and argv[-1] in {"free", *_UNITS}:
        sys.stdout.write(free(_UNITS.get(argv[-1], 1)))
        return 0
    sys.stderr.write("usage: uptime\n" if argv[0] == "uptime" else "usage: free [-b|-k|-m|-g]\n")
    return 1
