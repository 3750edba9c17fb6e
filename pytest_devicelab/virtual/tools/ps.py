"""ps and pidof: the processes that really run on this device, which are those with its environment."""

# Programs on the device start without pathlib, which alone takes some milliseconds.
# ruff: noqa: PTH119, PTH123, PTH208

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

from pytest_devicelab.virtual.tools.device_path import device_root, shell_uid

# How the programs of the image are started; gives them the name they have on the device.
_OUR_PROGRAM = re.compile(r"launch\('([\w-]+)', '\w+'\)")
_OUR_RUNNER = re.compile(r"pytest_devicelab\.virtual\.tools\.(\w+)\Z")
FIELDS = ("USER", "PID", "PPID", "VSZ", "RSS", "WCHAN", "ADDR", "S", "NAME")


class Process(NamedTuple):
    """One process. Sizes in KiB; `state` is the kernel's letter."""

    pid: int
    ppid: int
    state: str
    vsz_kib: int
    rss_kib: int
    name: str
    args: str


def processes(root: str) -> Iterator[Process]:
    """Yield the processes of the device, by process id."""
    mark = b"DEVICELAB_VDEVICE=" + os.fsencode(root)
    for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdecimal()):
        try:
            if mark in _read(pid, "environ").split(b"\0"):
                yield _describe(pid)
        except (OSError, IndexError, ValueError):
            continue  # it ended meanwhile, or is not ours to look at


def name_of(words: list[str], comm: str) -> str:
    """Return the name a process has on the device, from its command line.

    Args:
        words: its arguments, the first being the program.
        comm: the kernel's name for it, used where there is no command line.
    """
    for word in words[1:6]:
        if matched := _OUR_PROGRAM.search(word):
            return matched[1]
        if matched := _OUR_RUNNER.search(word):
            return matched[1].replace("_", "-")
    return os.path.basename(words[0]) if words and words[0] else comm


def _describe(pid: int) -> Process:
    before, _, after = _read(pid, "stat").rpartition(b")")
    stat = after.split()
    words = _read(pid, "cmdline").decode("utf-8", "replace").split("\0")[:-1]
    name = name_of(words, before.partition(b"(")[2].decode("utf-8", "replace"))
    return Process(
        pid=pid,
        ppid=int(stat[1]),
        state=stat[0].decode("ascii"),
        vsz_kib=int(stat[20]) // 1024,
        rss_kib=int(stat[21]) * os.sysconf("SC_PAGE_SIZE") // 1024,
        name=name,
        args=" ".join(words) or name,
    )


def _read(pid: int, file: str) -> bytes:
    with open(f"/proc/{pid}/{file}", "rb") as stream:
        return stream.read()


def ps(root: str, *, full: bool) -> str:
    """Return the table of `ps -A`; with `full` the last column is the whole command line."""
    user = "root" if shell_uid() == 0 else "shell"
    lines = ["USER           PID  PPID     VSZ    RSS WCHAN            ADDR S " + ("CMD" if full else "NAME")]
    lines += [
        f"{user:<12} {item.pid:>5} {item.ppid:>5} {item.vsz_kib:>7} {item.rss_kib:>6} "
        f"{'0':<10} {'0':>10} {item.state} {item.args if full else item.name}"
        for item in processes(root)
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Run ps or pidof, whichever `argv[0]` says; returns the exit status."""
    program, *words = argv
    root = device_root()
    if program == "pidof":
        single = "-s" in words
        wanted = {word for word in words if word != "-s"}
        found = [str(item.pid) for item in processes(root) if item.name in wanted]
        found.reverse()
        if found:
            sys.stdout.write(" ".join(found[:1] if single else found) + "\n")
        return 0 if found else 1
    if any(word not in ("-A", "-e", "-f", "-ef", "-Af") for word in words):
        sys.stderr.write("usage: ps [-Aef]\n")
        return 1
    sys.stdout.write(ps(root, full=any("f" in word for word in words)))
    return 0
