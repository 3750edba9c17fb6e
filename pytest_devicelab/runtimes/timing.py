"""Times of inferences, as the runners of the runtimes tell them."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from pytest_devicelab.errors import TransferError
from pytest_devicelab.evidence.events import Event
from pytest_devicelab.evidence.measurements import Figure, Latency, absent, duration, summarize_times
from pytest_devicelab.matrix.specs import MeasureSpec
from pytest_devicelab.runtimes.runner_files import load_json
from pytest_devicelab.runtimes.runtime import Job, Prepared
from pytest_devicelab.virtual.profile import profile_events

TIMING = "timing.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What a runner tells of the time it took. `load_us`: until the model could run."""

    latency: Latency
    load_us: Figure


@runtime_checkable
class Measures(Protocol):
    """A runtime whose runner can be timed; one without these methods is never asked for times."""

    timing_files: tuple[str, ...]
    """Files below the output folder that tell the times."""

    def timed_command(self, prepared: Prepared, job: Job, plan: MeasureSpec) -> tuple[str, ...]:
        """Return the command line that runs the first sample again and again, with nothing logged or profiled."""

    def read_timing(
        self, prepared: Prepared, folder: Path, events: Iterable[Event], plan: MeasureSpec
    ) -> Timing:
        """Return the times, from pulled files or from what was logged; absent where they make no sense."""


def no_timing(why: str) -> Timing:
    """Return the times of a runner that tells none."""
    return Timing(latency=Latency(why=why), load_us=absent(why))


def read_timing_json(path: Path, plan: MeasureSpec, program: str) -> Timing:
    """Read `{"load_us": 1.0, "inference_us": [1.0, ...]}`, as docs/reference/ort-run.md has it; warm-up comes first."""
    if not path.exists():
        return no_timing(f"{program} left no {TIMING}: it is older than that part of its contract")
    try:
        told = load_json(path, dict)
    except TransferError as error:
        return no_timing(f"{program}: {error.what.rpartition('/')[2]}")
    times = told.get("inference_us")
    if not isinstance(times, list) or None in (numbers := [_real(value) for value in times]):
        return no_timing(f"{program}: {TIMING} holds no list of numbers as inference_us")
    source = f"{TIMING} of {program}"
    return Timing(
        latency=_summary([value for value in numbers if value is not None], plan, source),
        load_us=duration(_real(told.get("load_us")), source, f"{source} has no load_us"),
    )


def read_profile_times(table: bytes, plan: MeasureSpec) -> Timing:
    """Read a profile of qnn-net-run, one EXECUTE row an inference.

    qnn-net-run's own time (NETRUN) includes the way to the NPU and back, as an app meets it; where the profile has
    none, as the simulator's, the backend's `QNN (execute) time` takes its place.
    """
    try:
        rows = [
            (row["Message"], row["Timing Source"], row["Event Identifier"], float(row["Time"]))
            for row in profile_events(table)
            if row["Message"] in ("INIT", "EXECUTE")
            and row["Unit of Measurement"] == "US"
            and row["Event Level"] == "ROOT"
        ]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        return no_timing(f"the profile of qnn-net-run is no table of events ({type(error).__name__})")
    netrun = [time for message, who, _, time in rows if (message, who) == ("EXECUTE", "NETRUN")]
    backend = [
        time for message, _, what, time in rows if (message, what) == ("EXECUTE", "QNN (execute) time")
    ]
    init = [time for message, who, _, time in rows if (message, who) == ("INIT", "NETRUN")]
    loaded = [
        time for message, _, what, time in rows if (message, what) == ("INIT", "QNN (load binary) time")
    ]
    whose = "NetRun" if netrun else "QNN (execute) time"
    load_source = f"profile of qnn-net-run, {'INIT of NetRun' if init else 'QNN (load binary) time'}"
    return Timing(
        latency=_summary(netrun or backend, plan, f"profile of qnn-net-run, {whose}"),
        load_us=duration(
            next(iter(init or loaded), None), load_source, "the profile of qnn-net-run has no time of loading"
        ),
    )


def read_average(events: Iterable[Event], plan: MeasureSpec, program: str) -> Latency:
    """Read `N inference took X ms, avg Y ms`, all that ExecuTorch's runner says of time.

    It says so of each sample, of which there is one here, and at last once more of all samples as if they were the
    inferences: the average of that line is the time of a whole round.
    """
    told = [event for event in events if (event.kind, event.dialect) == ("op_time", "executorch")]
    if not told:
        return Latency(why=f"{program} logged no time")
    try:
        runs, mean_us = int(told[0].fields["runs"]), 1000 * float(told[0].fields["time_ms"])
    except (KeyError, ValueError):
        return Latency(why=f"{program} logged a time that is no number")
    source = f"average logged by {program}"
    if runs != plan.inferences:
        return Latency(why=f"{source}: {runs:,} inferences where {plan.inferences:,} were asked for")
    mean = duration(mean_us, source, "")
    if mean.value is None:
        return Latency(why=mean.why)
    return Latency(inferences=runs, warm_up=plan.warm_up, mean_us=mean.value, source=source)


def _summary(times_us: list[float], plan: MeasureSpec, source: str) -> Latency:
    return summarize_times(
        times_us, warm_up=plan.warm_up, expected=plan.warm_up + plan.inferences, source=source
    )


def _real(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return float("inf")
