"""What verdicts say of the records they rest on."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pytest_devicelab.evidence.record import RunRecord


def evidence_of(*records: RunRecord) -> tuple[str, ...]:
    """Return the paths in the session folder at which the records lie."""
    return tuple(f"runs/{record.id}/record.json" for record in records)


def why_not_ok(record: RunRecord) -> str:
    """Say in one line why a run that is not `ok` has nothing to judge."""
    happened = "was refused by the runtime" if record.status == "refused" else "failed"
    what, _, rest = record.error.partition("\n")
    # Of a long cause, such as a traceback, the last line says it.
    why = rest.partition("\n  fix: ")[0].strip().removeprefix("why: ").rpartition("\n")[2].strip()
    return f"the run on {record.device.id} {happened}: {what or 'no error was recorded'}{f' ({why})' if why else ''}"


def advice_of(records: Iterable[RunRecord]) -> tuple[str, ...]:
    """Return what the runs that are not `ok` say can be done about it, each advice once."""
    found = (record.error.partition("\n  fix: ")[2] for record in records if record.status != "ok")
    return tuple(dict.fromkeys(" ".join(advice.split()) for advice in found if advice.strip()))


def finite(value: float | None) -> float | None:
    """Return `value` for use in JSON, which has no NaN and no infinity: those become None."""
    return value if value is not None and math.isfinite(value) else None
