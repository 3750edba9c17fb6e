"""Verdict: pass, fail, flaky or inconclusive, with a reason and the evidence it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["pass", "fail", "flaky", "inconclusive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one check says of one model on one or more devices.

    Attributes:
        check: `placement`, `determinism`, `accuracy`, `agreement`.
        outcome: `inconclusive` when the evidence is missing or does not count; `flaky` when it came out differently
            when it was tried again. Neither is green.
        reason: one or two sentences a person understands, with the figures.
        evidence: paths in the session folder the verdict rests on, such as `runs/<id>/record.json`.
        details: the figures behind the reason; plain JSON data.
    """

    check: str
    model: str
    devices: tuple[str, ...]
    outcome: Outcome
    reason: str
    evidence: tuple[str, ...] = ()
    details: Mapping[str, object] = field(default_factory=dict, hash=False)
