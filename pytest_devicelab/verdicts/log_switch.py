"""Did switching the log on work? Only then does a log that says nothing mean anything."""

from __future__ import annotations

from typing import Literal

from pytest_devicelab.evidence.record import LogCapture

LogSwitch = Literal["worked", "no effect", "not shown", "not asked"]

# Which priorities a level adds to the one before it, chattiest last.
_ADDED = {"error": "EF", "warn": "W", "info": "I", "verbose": "VD"}


def judge_switch(capture: LogCapture) -> LogSwitch:
    """Say whether lines were seen that only come at the level that was asked for.

    Returns:
        `worked`: the runner logged at that level, or at a chattier one. `no effect`: at `info` or `verbose` a
        runtime always has something to say, and nothing came. `not shown`: at `warn` and `error` a sound run
        says nothing, so its silence shows neither. `not asked`: logging was off.
    """
    if capture.level not in _ADDED:
        return "not asked"
    levels = list(_ADDED)
    telling = "".join(_ADDED[level] for level in levels[levels.index(capture.level) :])
    if any(capture.heard.get(priority) for priority in telling):
        return "worked"
    return "no effect" if capture.level in ("info", "verbose") else "not shown"


def explain_silence(capture: LogCapture) -> str:
    """Return a sentence on why logs that say nothing of placement mean nothing; empty where none is known."""
    if capture.lost:
        return f"Log lines are missing: {capture.lost}{_too_small(capture)}."
    match judge_switch(capture):
        case "not asked":
            return "The logs are silent because logging is off." if capture.level == "off" else ""
        case "no effect":
            return f"The logs were asked for {capture.level}, and not one such line came: their silence means nothing."
        case _:
            return ""


def _too_small(capture: LogCapture) -> str:
    """Name the buffers that the device did not make as large as was asked for."""
    short = [
        f"{name} holds {size:,}" for name, size in capture.buffers.items() if size < capture.buffer_bytes
    ]
    return f" ({', '.join(short)} bytes; {capture.buffer_bytes:,} were asked for)" if short else ""
