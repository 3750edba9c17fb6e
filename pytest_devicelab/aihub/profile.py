"""AI Hub's profile as evidence: rows of the NPU, and a claim for every layer that ran elsewhere.

It is of the grade of an op profile, not of a graph assignment: it says what was measured where, and nobody vouches
for its listing every node. So a layer on the CPU or GPU becomes a `cpu_fallback` event, and no `NodePlacement`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pytest_devicelab.aihub.messages import Layer, Profile
from pytest_devicelab.evidence.events import Event, EventKind
from pytest_devicelab.evidence.measurements import (
    Figure,
    Latency,
    Measurements,
    absent,
    duration,
    summarize_times,
)
from pytest_devicelab.evidence.record import OpRow

SOURCE = "aihub profile"
JOB = "AI Hub profile job"
# 4 TiB: more memory no phone has.
_MOST_BYTES = 1 << 42


def npu_rows(profile: Profile, ops: Mapping[str, str]) -> tuple[OpRow, ...]:
    """Return the layers that ran on the NPU; one without cycles has 0, as if it were fused.

    `ops` has the operator type of each named node of the model.
    """
    return tuple(
        OpRow(
            name=layer.name,
            cycles=max(0, layer.cycles or 0),
            sources=(f"{ops[layer.name]}:{layer.name}",) if layer.name in ops else (),
        )
        for layer in profile.layers
        if layer.unit == "NPU"
    )


def unit_events(profile: Profile) -> tuple[Event, ...]:
    """Return a fallback for each layer off the NPU, and a sign of execution for NPU layers that only have a time."""
    return tuple(
        event for line, layer in enumerate(profile.layers, 1) if (event := _event(line, layer)) is not None
    )


def measured(profile: Profile, *, simulated: bool) -> Measurements:
    """Return what AI Hub's profile tells of time and memory. It warms up by itself, and does not say how often."""
    return Measurements(
        simulated=simulated,
        latency=_latency(profile),
        load_us=duration(profile.load_us, f"{JOB}, first load", f"{JOB} has no time of the first load"),
        peak_rss_kib=_memory(profile.peak_bytes),
        peak_pss_kib=absent(f"{JOB} does not tell a proportional share"),
        energy_mj=absent(f"{JOB} does not tell energy"),
    )


def _latency(profile: Profile) -> Latency:
    times = [float(time) for time in profile.times_us]
    if times:
        found = summarize_times(times, warm_up=0, expected=len(times), source=f"{JOB}, all inference times")
        return replace(found, warm_up=None)
    if not 0 < profile.inference_us <= 10**11:
        return Latency(why=f"{JOB} has no time of an inference")
    estimate = float(profile.inference_us)
    return Latency(inferences=1, mean_us=estimate, source=f"{JOB}, its estimate of one inference")


def _memory(size_bytes: int | None) -> Figure:
    if size_bytes is None or not 0 < size_bytes < _MOST_BYTES:
        return absent(f"{JOB} has no peak memory")
    return Figure(value=size_bytes / 1024, source=f"{JOB}, upper end of the peak memory of an inference")


def _event(line: int, layer: Layer) -> Event | None:
    kind: EventKind
    if layer.unit in ("CPU", "GPU"):
        kind, told = "cpu_fallback", {"reason": f"AI Hub's profile shows it on the {layer.unit}"}
    elif layer.unit == "NPU" and layer.cycles is None and layer.time_us:
        kind, told = "op_time", {"time_us": str(layer.time_us)}
    else:
        return None
    return Event(
        kind=kind,
        dialect="aihub",
        source=SOURCE,
        line=line,
        offset=0,
        raw=f"{layer.name} {layer.op} {layer.unit}",
        fields={"op": layer.op, "node": layer.name, **told},
    )
