"""Event: one thing a log line says, with where it says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

EventKind = Literal[
    "cpu_fallback",
    "op_rejected",
    "partition",
    "placement",
    "fusion",
    "quant_params",
    "op_time",
    "npu_crash",
    "throttling",
    "load_error",
    "lost_records",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One finding in a log.

    Attributes:
        kind: what was found.
        fields: what it says, by the names the reference gives for this kind: `op`, `node`, `reason`, ...
        dialect: the runtime whose grammar was matched: `qnn`, `ort`, `phrases`.
        source: the log it was read from: `logcat`, `stdout`, `stderr`.
        line: 1-based line in that log.
        offset: byte offset of that line.
        time: the line's own timestamp as written, or empty.
        pid: process id of the writer, or None.
        raw: the line as it stood.
    """

    kind: EventKind
    dialect: str
    source: str
    line: int
    offset: int
    raw: str
    fields: Mapping[str, str] = field(default_factory=dict, hash=False)
    time: str = ""
    pid: int | None = None
