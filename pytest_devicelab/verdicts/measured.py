"""Whether what the matrix wants measured was measured."""

from __future__ import annotations

from pytest_devicelab.evidence.measurements import Figure, Measurements
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.verdicts.evidence import evidence_of, why_not_ok
from pytest_devicelab.verdicts.verdict import Outcome, Verdict

CHECK = "measurements"


def judge_measured(record: RunRecord) -> Verdict:
    """Say whether a latency was measured; how large it is, is not judged.

    Memory and energy are no condition: few devices show the latter. What is missing is in the details, with its reason.
    """
    found = record.measured
    details: dict[str, object] = {}
    if found is None:
        outcome: Outcome = "inconclusive"
        why = why_not_ok(record) if record.status != "ok" else "the run brought no figures"
        reason = f"nothing was measured: {why}"
    elif found.latency.mean_us is None:
        outcome, reason = "inconclusive", f"no latency: {found.latency.why}"
    else:
        outcome, reason = "pass", _said(found)
    if found is not None:
        details = {"simulated": found.simulated, "absent": _absent(found)}
    return Verdict(
        check=CHECK,
        model=record.model.id,
        devices=(record.device.id,),
        outcome=outcome,
        reason=reason,
        evidence=evidence_of(record),
        details=details,
    )


def _said(found: Measurements) -> str:
    latency = found.latency
    typical = latency.mean_us if latency.median_us is None else latency.median_us
    word = "mean" if latency.median_us is None else "median"
    whose = "the simulator's time on this host, not the chip's: " if found.simulated else ""
    return f"{whose}{word} {typical:,.0f} us of {latency.inferences:,} inferences ({latency.source})"


def _absent(found: Measurements) -> dict[str, str]:
    figures: dict[str, Figure] = {
        "load_us": found.load_us,
        "peak_rss_kib": found.peak_rss_kib,
        "peak_pss_kib": found.peak_pss_kib,
        "energy_mj": found.energy_mj,
    }
    return {name: figure.why for name, figure in figures.items() if figure.value is None}
