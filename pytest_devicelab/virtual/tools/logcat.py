"""logcat: print, follow, clear and size the log buffers of a virtual device."""

# Programs on the device start without pathlib, which alone takes some milliseconds.
# ruff: noqa: PTH123

from __future__ import annotations

import os
import re
import sys
from typing import IO, Any

from pytest_devicelab.virtual.tools.device_path import device_root, host_path, read_boot_ns
from pytest_devicelab.virtual.tools.logcat_format import (
    LineFormat,
    add_option,
    encode_binary,
    format_record,
)
from pytest_devicelab.virtual.tools.logcat_options import (
    LEVELS,
    Command,
    UsageError,
    buffers_of,
    decode_size,
    decode_start,
    filters_of,
    parse_command,
)
from pytest_devicelab.virtual.tools.logclient import (
    MAX_ENTRY_BYTES,
    MAX_PAYLOAD_BYTES,
    LogInterrupted,
    LogRecord,
    ask,
    read_batches,
)

USAGE = """Usage: logcat [options] [filterspecs]

  -b, --buffer=<buffer>  main, system, crash, radio, events, kernel, default or all; may be repeated
  -c, --clear            clear the buffers and exit
  -d                     dump the log and exit
  -t <count>|<time>      print the newest lines, or those since a time, and exit
  -T <count>|<time>      the same, but keep on printing new ones
  -v, --format=<format>  brief process tag thread raw time threadtime long
                         color epoch monotonic nsec uid usec year zone UTC
  -B, --binary           print records as they are stored
  -D, --dividers         print a divider at every change of buffer
  -e, --regex=<expr>     only print messages that match
  -m, --max-count=<n>    stop after that many
  --print                print all messages even if they do not match
  --pid=<pid>            only print records of that process
  -f, --file=<file>      write to a file
  -g, --buffer-size      print the sizes of the buffers
  -G <size>              set the sizes of the buffers: 64K to 256M
  -s                     print nothing but what a filterspec names

A filterspec is tag[:priority] with priority V D I W E F S; * stands for every tag.
"""


def describe_size(size_bytes: int) -> str:
    """Return a size as logcat prints it: the largest unit that leaves no fraction hidden behind 1024."""
    for unit in ("", "Ki", "Mi"):
        if size_bytes < 1024:
            return f"{size_bytes} {unit}B"
        size_bytes //= 1024
    return f"{size_bytes} GiB"


class Printer:
    """Print the records that pass the filters, with dividers where a buffer begins."""

    def __init__(self, command: Command, line_format: LineFormat, out: IO[bytes]) -> None:
        self._levels = filters_of(command, os.environ.get("ANDROID_LOG_TAGS", ""))
        pattern = command.last("e")
        self._pattern = None if pattern is None else re.compile(pattern)
        self._format = line_format
        self._out = out
        self._flags = command.flags
        self._left = int(command.last("m") or 0) or None
        self._begun: set[str] = set()
        self._last = ""

    def show(self, records: list[LogRecord]) -> bool:
        """Print what passes; returns whether more is wanted."""
        for record in records:
            self._divide(record.buffer)
            if LEVELS.index(record.priority) < LEVELS.index(self._level(record.tag)):
                continue
            matches = self._pattern is None or self._pattern.search(record.message) is not None
            if matches or "print" in self._flags:
                binary = "B" in self._flags
                self._out.write(encode_binary(record) if binary else format_record(self._format, record))
            if matches and self._left is not None:
                self._left -= 1
                if self._left == 0:
                    break
        self._out.flush()
        return self._left != 0

    def _level(self, tag: str) -> str:
        return self._levels.get(tag, self._levels["*"])

    def _divide(self, buffer: str) -> None:
        if buffer == self._last or "B" in self._flags:
            return
        if buffer not in self._begun or "D" in self._flags:
            what = "switch to" if buffer in self._begun else "beginning of"
            self._out.write(f"--------- {what} {buffer}\n".encode("ascii"))
        self._begun.add(buffer)
        self._last = buffer


def print_log(command: Command, root: str, out: IO[bytes]) -> None:
    """Print the log as the command line asks for it, until its end or for ever."""
    line_format = LineFormat(boot_ns=read_boot_ns(root))
    for option in command.all("v"):
        line_format = add_option(line_format, option)
    request: dict[str, Any] = {"op": "read", "buffers": buffers_of(command)}
    request["follow"] = "d" not in command.flags and command.last("t") is None
    start = command.last("t", "T")
    if start is not None:
        request.update(decode_start(start))
    pid = command.last("pid")
    if pid is not None:
        request["pid"] = int(pid)
    printer = Printer(command, line_format, out)
    for batch in read_batches(root, request):
        if not printer.show(batch):
            return


def run(command: Command, root: str) -> int:
    """Carry out a command line and return the exit status."""
    if "h" in command.flags:
        sys.stdout.write(USAGE)
        return 0
    buffers = buffers_of(command)
    size = command.last("G")
    if "c" in command.flags:
        ask(root, {"op": "clear", "buffers": buffers})
    elif size is not None:
        ask(root, {"op": "resize", "buffers": buffers, "limit": decode_size(size)})
    elif "g" in command.flags:
        for name, sizes in ask(root, {"op": "size", "buffers": buffers}).items():
            limit, used = describe_size(sizes["limit"]), describe_size(sizes["used"])
            sys.stdout.write(
                f"{name}: ring buffer is {limit} ({used} consumed, {used} readable),"
                f" max entry is {MAX_ENTRY_BYTES} B, max payload is {MAX_PAYLOAD_BYTES} B\n"
            )
    elif (file := command.last("f")) is not None:
        with open(host_path(file), "ab") as out:
            print_log(command, root, out)
    else:
        print_log(command, root, sys.stdout.buffer)
    return 0


def main(argv: list[str]) -> int:
    """Run logcat with its command line, `argv[0]` being its name; returns the exit status."""
    try:
        return run(parse_command(argv[1:]), device_root())
    except (UsageError, ValueError, re.error) as error:
        sys.stderr.write(f"logcat: {error}\n")
    except LogInterrupted:
        sys.stderr.write("\nlogcat: Unexpected EOF!\n\n")
        sys.stderr.write("The device shut down, or lines came faster than they were read; see -G.\n")
    except OSError as error:
        sys.stderr.write(f"Logcat read failure: {error.strerror or error}\n")
    return 1
