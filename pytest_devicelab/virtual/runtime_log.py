"""What the vendor's libraries print: captured at the file descriptors, read as log lines and refusals."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pytest_devicelab.virtual.engine import LogLine

# Chattiest last; a level shows its own priority and all before it.
LEVELS = ("off", "error", "warn", "info", "verbose")
QNN_TAG = "QnnDsp"
ORT_TAG = "onnxruntime"
_SHOWN_FROM = {"F": 1, "E": 1, "W": 2, "I": 3, "D": 4, "V": 4}

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ORT = re.compile(r"^[\d-]{10} [\d:.]+ (\[([VIWEF]):[^,\]]*, [^\]]* (\w+|operator\(\))\] (.*))$")
_QNN_LEVEL = re.compile(r"^\s*<([VDIWE])>")
_TOKEN = re.compile(r"_token_\d+$")
_UNIT = re.compile(r"Validation (PASSED|FAILED) for \d+ nodes? in OrtNodeUnit \((\w+)\)")
_MEMBER = re.compile(r"^\s*Operator type: (\S+) Node name: (.*?) Node index: \d+")
_REASON = re.compile(r"^\s*REASON : (.*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedOp:
    """One operator the execution provider refused, with its own reason."""

    op: str
    node: str
    reason: str


@contextmanager
def captured(path: Path) -> Iterator[Callable[[], int]]:
    """Send what this process and its libraries print to a file.

    Works on the file descriptors, because the vendor's libraries print from C, to both of them.

    Args:
        path: file that output and errors are appended to, in the order they were written.

    Yields:
        A function that says how many bytes have been written so far.
    """

    def written() -> int:
        _flush()
        return path.stat().st_size

    _flush()
    kept = [os.dup(1), os.dup(2)]
    sink = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        yield written
    finally:
        _flush()
        for number, saved in enumerate(kept, start=1):
            os.dup2(saved, number)
            os.close(saved)
        os.close(sink)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)


def log_lines(raw: bytes, level: str) -> tuple[LogLine, ...]:
    """Turn captured output into lines for logcat, under the tags a phone uses.

    ONNX Runtime's messages keep their `[V:onnxruntime:...]` head, as on Android, under the tag
    `onnxruntime`; those it passes on for QNN become ` <V> text` under `QnnDsp`, at QNN's own priority.

    Args:
        raw: what `captured` wrote.
        level: the chattiest level wanted, one of `LEVELS`.
    """
    lines = []
    tag, priority = ORT_TAG, "V"
    for text in _COLOUR.sub("", raw.decode("utf-8", "replace")).splitlines():
        head = _ORT.match(text)
        message = text
        if head:
            whole, priority, function, body = head.groups()
            inner = _QNN_LEVEL.match(body)
            from_qnn = function == "QnnLogging"
            tag, message = (QNN_TAG, body) if from_qnn else (ORT_TAG, whole)
            priority = inner.group(1) if inner else priority
        if message.strip() and priority_shown(priority, level):
            lines.append(LogLine(tag=tag, priority=priority, message=message))
    return tuple(lines)


def priority_shown(priority: str, level: str) -> bool:
    """Say whether a level shows lines of this priority."""
    return _SHOWN_FROM[priority] <= LEVELS.index(level)


def refused_ops(raw: bytes) -> tuple[RefusedOp, ...]:
    """List the operators that stayed refused, in the order they were first met.

    A graph is validated in two passes and the later one counts, so an operator refused before the layout
    changed and accepted after it is not listed.

    Args:
        raw: what `captured` wrote while a session was opened.
    """
    verdicts: dict[tuple[str, str], str | None] = {}
    unit = ("", "")
    node: tuple[str, str] | None = None
    for text in _COLOUR.sub("", raw.decode("utf-8", "replace")).splitlines():
        if found := _UNIT.search(text):
            unit, node = (found.group(1), found.group(2)), None
        elif unit[1] and node is None and (found := _MEMBER.match(text)) and found.group(1) == unit[1]:
            node = (unit[1], onnx_name(found.group(2)))
            verdicts[node] = "" if unit[0] == "FAILED" else None
        elif node and unit[0] == "FAILED" and (found := _REASON.match(text)):
            verdicts[node] = found.group(1).strip()
    return tuple(
        RefusedOp(op=op, node=name, reason=reason or "the execution provider gave no reason")
        for (op, name), reason in verdicts.items()
        if reason is not None
    )


def onnx_name(node: str) -> str:
    """Return the name a node has in the model, without what the layout transformer appended."""
    return _TOKEN.sub("", node)


def misread_chip(raw: bytes, arch: str) -> str:
    """Say how the library understood the chip otherwise than it was asked; empty when it did not.

    The library answers an id it does not know with log lines only, and ONNX Runtime then runs on the CPU.
    It starts from V68 and logs a line only when the id it was given belongs to another Hexagon.

    Args:
        raw: what `captured` wrote while a session was opened.
        arch: the Hexagon asked for, as digits, `75`.

    Source: observed with onnxruntime-qnn 2.7.0 (QAIRT 2.51).
    """
    text = raw.decode("utf-8", "replace")
    if "Unknown config socModel" in text or "QNN SetupBackend succeed" not in text:
        return "the QNN backend could not be set up for this chip"
    overwritten = re.findall(r"will overwrite it to (\d+)", text)
    simulated = overwritten[-1] if overwritten else "68"
    return "" if simulated == arch else f"its QNN id belongs to a V{simulated}, not to a V{arch}"
