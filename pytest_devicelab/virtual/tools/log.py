"""log: write a message to the log of a virtual device."""

from __future__ import annotations

import os
import sys
import time

from pytest_devicelab.virtual.tools.device_path import device_root, shell_uid
from pytest_devicelab.virtual.tools.logclient import PRIORITIES, LogRecord, write_records

USAGE = """usage: log [-p PRI] [-t TAG] [MESSAGE...]

PRI is one of v d i w e f; without MESSAGE, lines are read from stdin.
"""


def main(argv: list[str]) -> int:
    """Run log with its command line; returns the exit status."""
    words = argv[1:]
    priority, tag = "I", "log"
    while words and words[0][:1] == "-" and words[0] != "-":
        option = words.pop(0)
        value = option[2:] or (words.pop(0) if words else "")
        if option[:2] == "-t" and value:
            tag = value
        elif option[:2] == "-p" and value[:1].upper() in PRIORITIES and value:
            priority = value[0].upper()
        else:
            sys.stderr.write(USAGE)
            return 1
    messages = [" ".join(words)] if words else _stdin_lines()
    pid, uid = os.getpid(), shell_uid()
    records = [LogRecord("main", priority, tag, text, pid, pid, uid, time.time_ns()) for text in messages]
    try:
        write_records(device_root(), records)
    except OSError as error:
        sys.stderr.write(f"log: {error.strerror or error}\n")
        return 1
    return 0


def _stdin_lines() -> list[str]:
    data = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    return data.removesuffix("\n").split("\n") if data else []
