"""Fallbacks as a table, operator by chip: which chips leave an operator to the CPU, and which do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pytest_devicelab.report.session import DeviceEntry, Session

Otherwise = Literal["no", "CPU", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackCell:
    """One operator of one model on one device.

    Attributes:
        declared: nodes on the CPU that the matrix declares; `undeclared`: all others.
        otherwise: what is known where there are none: `no` fallback; `CPU`, where the whole model was to run
            there; `unknown` without evidence.
    """

    declared: int
    undeclared: int
    otherwise: Otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackRow:
    """One operator of one model, its cells in the order of the session's devices."""

    op: str
    model: str
    cells: tuple[FallbackCell, ...]


def fallback_rows(session: Session) -> tuple[FallbackRow, ...]:
    """Return a row for each operator and model that fell back on any device, in the order they were met."""
    met = dict.fromkeys((found.op, found.model) for found in session.fallbacks)
    return tuple(
        FallbackRow(
            op=op, model=model, cells=tuple(_cell(session, op, model, device) for device in session.devices)
        )
        for op, model in met
    )


def _cell(session: Session, op: str, model: str, device: DeviceEntry) -> FallbackCell:
    found = [
        fallback
        for fallback in session.fallbacks
        if (fallback.op, fallback.model, fallback.device) == (op, model, device.id)
    ]
    declared = sum(fallback.expected for fallback in found)
    return FallbackCell(
        declared=declared,
        undeclared=len(found) - declared,
        otherwise=_otherwise(session, model, device.id),
    )


def _otherwise(session: Session, model: str, device: str) -> Otherwise:
    judged = [
        verdict
        for verdict in session.verdicts
        if (verdict.check, verdict.model, verdict.devices) == ("placement", model, (device,))
    ]
    if any(verdict.verdict == "inconclusive" for verdict in judged):
        return "unknown"
    grades = {verdict.details.get("grade") for verdict in judged}
    if grades & {"assignment", "profile"}:
        return "no"
    # A green verdict that rests on no evidence of placement is that of a CPU that was asked for.
    return "CPU" if judged and all(verdict.verdict == "pass" for verdict in judged) else "unknown"
