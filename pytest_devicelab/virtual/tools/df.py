"""df: the space of the device's own file systems, in toybox's layout."""

from __future__ import annotations

import os
import sys

from pytest_devicelab.virtual.tools import trouble
from pytest_devicelab.virtual.tools.device_path import device_root, host_path

# Mount point -> the name Android shows for what is mounted there.
FILE_SYSTEMS = {
    "/system": "/dev/block/dm-0",
    "/vendor": "/dev/block/dm-1",
    "/data": "/dev/block/dm-9",
    "/sdcard": "/dev/fuse",
}
_SUFFIXES = "KMGTP"


def describe_kib(kib: int) -> str:
    """Return a size as `df -h` shows it: `512K`, `1.5G`."""
    value, unit = float(kib), 0
    while value >= 1000 and unit < len(_SUFFIXES) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f}{_SUFFIXES[unit]}" if unit and value < 10 else f"{value:.0f}{_SUFFIXES[unit]}"


def mount_point(root: str, path: str) -> str:
    """Return the device's file system a path of the host belongs to; `/` where it is none of them."""
    inside = os.path.relpath(os.path.realpath(path), os.path.realpath(root))
    top = "/" + inside.split("/")[0]
    return top if top in FILE_SYSTEMS else "/"


def row(root: str, mounted_on: str, path: str, *, human: bool) -> str:
    """Return the line of one file system; raises OSError where there is none."""
    figures = os.statvfs(path)
    total = figures.f_blocks * figures.f_frsize // 1024
    available = figures.f_bavail * figures.f_frsize // 1024
    used = total - figures.f_bfree * figures.f_frsize // 1024
    if mounted_on == "/data" and (full := trouble.read(root).get("disk_full")):
        available = min(available, full["free_bytes"] // 1024)
        used = total - available
    share = -(-100 * used // max(used + available, 1))
    name = FILE_SYSTEMS.get(mounted_on, "rootfs")
    cells = [describe_kib(size) if human else str(size) for size in (total, used, available)]
    return f"{name:<20} {cells[0]:>12} {cells[1]:>12} {cells[2]:>12} {share:>3}% {mounted_on}\n"


def main(argv: list[str]) -> int:
    """Run df with its command line; returns the exit status."""
    root, human, paths = device_root(), False, []
    for word in argv[1:]:
        if word == "-h":
            human = True
        elif word.startswith("-") and word != "-k":
            sys.stderr.write("usage: df [-hk] [FILE...]\n")
            return 1
        elif word != "-k":
            paths.append(word)
    heads = ("Size", "Used", "Avail") if human else ("1K-blocks", "Used", "Available")
    sys.stdout.write(f"{'Filesystem':<20} {heads[0]:>12} {heads[1]:>12} {heads[2]:>12} Use% Mounted on\n")
    status = 0
    for path in paths or FILE_SYSTEMS:
        where = host_path(path)
        try:
            sys.stdout.write(row(root, mount_point(root, where), where, human=human))
        except OSError as error:
            sys.stderr.write(f"df: {path}: {error.strerror}\n")
            status = 1
    return status
