"""Blame: what was fine before a run or a test, was not fine after it, and who that was."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """A device that was left in another state than it was found in.

    Attributes:
        device: its id in the matrix; `serial` of the unit.
        by: run id, or node id of the test, that had the device in between.
        kind: what it is about, `battery`, `heat`, `room`, `clock`, `runner`, `property`, `adb`, or `reach` where it no
            longer answers.
        text: what is wrong, with figures.
        at: UTC, ISO 8601.
    """

    device: str
    serial: str
    by: str
    kind: str
    text: str
    at: str
