"""Measurements as reports show them: never a simulator's time as a chip's, never an absent figure as 0."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pytest_devicelab.evidence.measurements import Figure, Latency
from pytest_devicelab.evidence.record import RunRecord

SIMULATED = "simulated: this host's time and memory, not the chip's"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementEntry:
    """What one model costs on one device: `Measurements`, with the run they are of."""

    model: str
    device: str
    run: str
    runtime: str
    backend: str
    simulated: bool
    latency: Latency
    load_us: Figure
    peak_rss_kib: Figure
    peak_pss_kib: Figure
    energy_mj: Figure


def find_measurements(records: Iterable[RunRecord]) -> tuple[MeasurementEntry, ...]:
    """Return what was measured, in the order of the records."""
    return tuple(
        MeasurementEntry(
            model=record.model.id,
            device=record.device.id,
            run=record.id,
            runtime=record.runtime,
            backend=record.backend,
            # Both, so that a record that forgets to say so is still labelled.
            simulated=found.simulated or record.device.simulated,
            latency=found.latency,
            load_us=found.load_us,
            peak_rss_kib=found.peak_rss_kib,
            peak_pss_kib=found.peak_pss_kib,
            energy_mj=found.energy_mj,
        )
        for record in records
        if (found := record.measured) is not None
    )


def time_text(us: float | None) -> str:
    """Return a time in the unit that suits it, `1.90 ms`; `none` where there is none."""
    if us is None:
        return "none"
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return f"{_short(us / size)} {unit}"
    return f"{_short(us)} us"


def size_text(kib: float | None) -> str:
    """Return a size in MiB; `none` where there is none."""
    return "none" if kib is None else f"{_short(kib / 1024)} MiB"


def energy_text(mj: float | None) -> str:
    """Return an energy in mJ; `none` where there is none."""
    return "none" if mj is None else f"{_short(mj)} mJ"


def latency_text(latency: Latency) -> str:
    """Return a latency with what it is of: `1.90 ms median of 20, 2.46 ms at most`."""
    if latency.mean_us is None:
        return f"no latency ({latency.why})"
    if latency.median_us is None:
        return f"{time_text(latency.mean_us)} mean of {latency.inferences:,}"
    tail = "" if latency.p99_us is None else f", {time_text(latency.p99_us)} p99"
    most = "" if latency.max_us is None else f", {time_text(latency.max_us)} at most"
    return f"{time_text(latency.median_us)} median of {latency.inferences:,}{tail}{most}"


def measured_text(entry: MeasurementEntry) -> str:
    """Return one measurement in a line."""
    parts = [
        latency_text(entry.latency),
        f"load {time_text(entry.load_us.value)}",
        f"memory {size_text(entry.peak_rss_kib.value)} RSS, {size_text(entry.peak_pss_kib.value)} PSS",
        f"energy {energy_text(entry.energy_mj.value)}",
    ]
    mark = " (sim)" if entry.simulated else ""
    return f"{entry.model} on {entry.device}{mark}, {entry.runtime} on {entry.backend}: {'; '.join(parts)}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
