"""Recovery: what was tried to get devices back in a session, and which were left alone in the end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pytest_devicelab.evidence.record import RecoveryStep, RunRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryEntry:
    """One step of the recovery ladder, with the device it was for.

    Attributes:
        serial: which unit of the device; empty when none was held.
        runs: whose records have it. A quarantine is in that of each run it kept from being made.
        rung, why, started, duration_s, helped, said: as in `RecoveryStep`.
    """

    device: str
    serial: str
    runs: tuple[str, ...]
    rung: str
    why: str
    started: str
    duration_s: float
    helped: bool
    said: str


def find_recoveries(records: Iterable[RunRecord]) -> tuple[RecoveryEntry, ...]:
    """Return all steps that the records of a session tell of, in the order of time.

    A step that several records tell of is one step: the same quarantine refused all of those runs.
    """
    found: dict[tuple[str, RecoveryStep], tuple[str, list[str]]] = {}
    for record in records:
        for step in record.recovery:
            # The run that led to a quarantine says after which attempt; those it refused never had one.
            key = record.device.id, replace(step, attempt=0) if step.rung == "quarantine" else step
            found.setdefault(key, (record.device.serial, []))[1].append(record.id)
    entries = (
        RecoveryEntry(
            device=device,
            serial=serial,
            runs=tuple(runs),
            rung=step.rung,
            why=step.why,
            started=step.started,
            duration_s=step.duration_s,
            helped=step.helped,
            said=step.said,
        )
        for (device, step), (serial, runs) in found.items()
    )
    # A quarantine bears the time of its first cause, which may be days ago, and comes after what led to it.
    return tuple(sorted(entries, key=lambda entry: (entry.rung == "quarantine", entry.started)))
