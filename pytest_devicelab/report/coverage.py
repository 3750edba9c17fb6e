"""Coverage holes: chips that no healthy unit was left for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_devicelab.evidence.record import RunRecord

# Why a device could not even be begun with; that somebody else held it for too long is not among them.
_OUT_OF_REACH = frozenset({"lost", "absent", "adb", "deadline", "quarantined"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageHole:
    """A chip for which runs were asked for that no unit could carry out, because none was left that is healthy.

    Attributes:
        chip: part number, else Hexagon version, else the device's id.
        devices: all units of it in this session.
        runs: how many runs there are none of.
        reason: the first cause, as the first of them says it.
    """

    chip: str
    devices: tuple[str, ...]
    runs: int
    reason: str


def find_holes(units: Mapping[str, Sequence[str]], records: Sequence[RunRecord]) -> tuple[CoverageHole, ...]:
    """Return the chips of which every unit that was asked for anything is out of reach, or not fit to be used.

    Args:
        units: ids of the devices of each chip, in matrix order.
        records: its runs.
    """
    holes = []
    for chip, ids in units.items():
        asked = [record for record in records if record.device.id in ids]
        out = [record for record in asked if _not_to_be_had(record)]
        if out and {record.device.id for record in out} == {record.device.id for record in asked}:
            first = next((record for record in out if record.attempts[-1].failure != "quarantined"), out[0])
            reason = " ".join(first.error.partition("\n  fix:")[0].split())
            holes.append(CoverageHole(chip=chip, devices=tuple(ids), runs=len(out), reason=reason))
    return tuple(holes)


def _not_to_be_had(record: RunRecord) -> bool:
    """Say whether a run came to nothing because its device was out of reach, not recovered, or hot, empty or full."""
    if record.status != "failed" or not record.attempts:
        return False
    last = record.attempts[-1]
    never_begun = not last.started and last.failure in _OUT_OF_REACH
    return never_begun or last.failure == "unfit" or bool(record.recovery and not record.recovery[-1].helped)
