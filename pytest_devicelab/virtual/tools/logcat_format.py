"""Log records as the lines logcat prints.

Source: AOSP liblog, `android_log_formatLogLine`: widths count bytes, every line of a message repeats the
prefix, an empty message prints nothing except in `long`.
"""

from __future__ import annotations

import struct
import time
from typing import NamedTuple

from pytest_devicelab.virtual.tools.logclient import BUFFERS, LogRecord, encode_text

STYLES = ("brief", "process", "tag", "thread", "raw", "time", "threadtime", "long")
MODIFIERS = ("color", "epoch", "monotonic", "nsec", "uid", "usec", "year", "zone", "UTC")
_COLORS = {b"V": 39, b"D": 34, b"I": 32, b"W": 33, b"E": 31, b"F": 31}
# liblog writes a user's name only where it is short enough for the column.
_USERS = {0: b" root", 2000: b"shell"}
_PRIORITY_CODES = {"V": 2, "D": 3, "I": 4, "W": 5, "E": 6, "F": 7}


class LineFormat(NamedTuple):
    """What `-v` asked for.

    Attributes:
        boot_ns: when the device was started, nanoseconds since 1970; the zero of `monotonic`.
    """

    style: str = "threadtime"
    modifiers: frozenset[str] = frozenset()
    boot_ns: int = 0


def add_option(line_format: LineFormat, option: str) -> LineFormat:
    """Return the format with one word of `-v` applied: a style or a modifier.

    Raises:
        ValueError: logcat has no such format.
    """
    if option in STYLES:
        return line_format._replace(style=option)
    modifier = {"colour": "color"}.get(option, option)
    if modifier not in MODIFIERS:
        raise ValueError(f"Invalid parameter '{option}' to -v")
    return line_format._replace(modifiers=line_format.modifiers | {modifier})


def format_time(line_format: LineFormat, time_ns: int) -> bytes:
    """Return a record's time as the format's modifiers want it; by default `MM-DD hh:mm:ss.mmm`."""
    modifiers = line_format.modifiers
    moment = None
    if "monotonic" in modifiers:
        time_ns = max(time_ns - line_format.boot_ns, 0)
        text = f"{time_ns // 10**9:6d}"
    elif "epoch" in modifiers:
        text = f"{time_ns // 10**9:19d}"
    else:
        seconds = time_ns // 10**9
        moment = time.gmtime(seconds) if "UTC" in modifiers else time.localtime(seconds)
        text = time.strftime("%Y-%m-%d %H:%M:%S" if "year" in modifiers else "%m-%d %H:%M:%S", moment)
    digits = 9 if "nsec" in modifiers else 6 if "usec" in modifiers else 3
    text += f".{time_ns % 10**9 // 10 ** (9 - digits):0{digits}d}"
    if "zone" in modifiers and moment is not None:
        text += time.strftime(" %z", moment)
    return text.encode("ascii")


def format_record(line_format: LineFormat, record: LogRecord) -> bytes:
    """Return the lines logcat prints for a record, each with its newline."""
    message = encode_text(record.message)
    prefix, suffix = _frame(line_format, record)
    if "color" in line_format.modifiers:
        color = b"\x1b[%dm" % _COLORS[record.priority.encode("ascii")]
        prefix, suffix = color + prefix, b"\x1b[0m" + suffix
    if line_format.style == "long":
        return prefix + message + suffix
    lines = message.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    return b"".join(prefix + line + suffix for line in lines)


def _frame(line_format: LineFormat, record: LogRecord) -> tuple[bytes, bytes]:
    style, pid, tid = line_format.style, record.pid, record.tid
    priority, tag = record.priority.encode("ascii"), encode_text(record.tag)
    uid = b""
    if "uid" in line_format.modifiers:
        uid = _USERS.get(record.uid, b"%5d" % record.uid) + b":"
    if style == "raw":
        return b"", b"\n"
    if style == "tag":
        return b"%b/%-8b: " % (priority, tag), b"\n"
    if style == "process":
        return b"%b(%b%5d) " % (priority, uid, pid), b"  (%b)\n" % tag
    if style == "thread":
        return b"%b(%b%5d:%5d) " % (priority, uid, pid, tid), b"\n"
    if style == "brief":
        return b"%b/%-8b(%b%5d): " % (priority, tag, uid, pid), b"\n"
    stamp = format_time(line_format, record.time_ns)
    if style == "time":
        return b"%b %b/%-8b(%b%5d): " % (stamp, priority, tag, uid, pid), b"\n"
    if style == "long":
        return b"[ %b %b%5d:%5d %b/%-8b ]\n" % (stamp, uid, pid, tid, priority, tag), b"\n\n"
    uid = uid.replace(b":", b" ")
    return b"%b %b%5d %5d %b %-8b: " % (stamp, uid, pid, tid, priority, tag), b"\n"


def encode_binary(record: LogRecord) -> bytes:
    """Return a record as `logcat -B` writes it: a 28-byte little-endian header, then the payload.

    Source: AOSP `struct logger_entry` (log/log_read.h).
    """
    payload = bytes([_PRIORITY_CODES[record.priority]]) + encode_text(record.tag) + b"\0"
    payload += encode_text(record.message) + b"\0"
    header = struct.pack(
        "<HHiIIIII",
        len(payload),
        28,
        record.pid,
        record.tid,
        record.time_ns // 10**9,
        record.time_ns % 10**9,
        BUFFERS[record.buffer],
        record.uid,
    )
    return header + payload
