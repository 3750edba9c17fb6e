from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.aihub.messages import Profile
from pytest_devicelab.aihub.profile import measured as measured_by_hub
from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.evidence import codec
from pytest_devicelab.evidence.measurements import (
    Figure,
    Latency,
    Measurements,
    absent,
    duration,
    summarize_times,
)
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.lab.session import LabSession
from pytest_devicelab.matrix.specs import DeviceSpec, ModelSpec, Source
from tests.unit.session_builders import record


def measured(**changes: object) -> Measurements:
    fields: dict[str, object] = {
        "simulated": False,
        "latency": summarize_times([9.0, 1.0, 2.0, 3.0], warm_up=1, expected=4, source="a clock"),
        "load_us": Figure(value=4200.0, source="a clock"),
        "peak_rss_kib": absent("the runner ended before anybody looked"),
        "peak_pss_kib": absent("the runner ended before anybody looked"),
        "energy_mj": absent("the device has no fuel gauge"),
    }
    return Measurements(**(fields | changes))  # type: ignore[arg-type]


def test_the_warm_up_does_not_count() -> None:
    found = summarize_times([900.0, 30.0, 10.0, 20.0], warm_up=1, expected=4, source="x")
    assert (found.inferences, found.warm_up) == (3, 1)
    assert (found.min_us, found.median_us, found.max_us, found.mean_us) == (10.0, 20.0, 30.0, 20.0)


@pytest.mark.parametrize(("count", "p90", "p99"), [(9, None, None), (10, 9.0, None), (100, 90.0, 99.0)])
def test_a_quantile_needs_enough_inferences(count: int, p90: float | None, p99: float | None) -> None:
    times = [float(value) for value in range(count, 0, -1)]
    found = summarize_times(times, warm_up=0, expected=count, source="x")
    assert (found.p90_us, found.p99_us) == (p90, p99)


@pytest.mark.parametrize(
    ("times", "why"),
    [
        ([], "0 inferences where 4"),
        ([1.0, 2.0, 3.0], "3 inferences where 4"),
        ([1.0] * 5, "5 inferences where 4"),
        ([1.0, 0.0, 1.0, 1.0], "0 us is no time"),
        ([-1.0, 1.0, 1.0, 1.0], "-1 us is no time"),
        ([1.0, math.nan, 1.0, 1.0], "nan us is no time"),
        ([1.0, math.inf, 1.0, 1.0], "inf us is no time"),
        ([1.0, 1e18, 1.0, 1.0], "1e+18 us is no time"),
    ],
)
def test_nonsense_gives_no_figure(times: list[float], why: str) -> None:
    found = summarize_times(times, warm_up=1, expected=4, source="the clock")
    assert found == Latency(why=found.why)
    assert why in found.why


def test_only_warm_up_is_no_latency() -> None:
    assert "beyond the warm-up" in summarize_times([1.0], warm_up=1, expected=1, source="x").why


@given(st.lists(st.floats(), max_size=30), st.integers(0, 40), st.integers(0, 40))
def test_whatever_the_times_are_a_figure_is_between_the_fastest_and_the_slowest(
    times: list[float], warm_up: int, expected: int
) -> None:
    found = summarize_times(times, warm_up=warm_up, expected=expected, source="x")
    if found.mean_us is None:
        assert found.why
        return
    counted = times[warm_up:]
    assert found.inferences == len(counted) == expected - warm_up
    for value in (found.median_us, found.p90_us, found.p99_us):
        assert value is None or value in counted
    assert min(counted) == found.min_us
    assert found.mean_us == pytest.approx(math.fsum(counted) / len(counted))


@pytest.mark.parametrize("value", [0.0, -3.0, math.nan, math.inf, 1e30])
def test_a_time_that_cannot_be_is_absent(value: float) -> None:
    assert duration(value, "x", "no clock").value is None
    assert duration(None, "x", "no clock") == absent("no clock")


@pytest.mark.parametrize(
    "fields",
    [
        {"value": 0.0, "source": "x"},
        {"value": math.nan, "source": "x"},
        {"value": 1.0},
        {"value": 1.0, "source": "x", "why": "y"},
        {},
        {"source": "x", "why": "y"},
    ],
)
def test_a_figure_has_a_source_or_a_reason(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="figure"):
        Figure(**fields)  # type: ignore[arg-type]


def _written(value: RunRecord) -> dict[str, object]:
    return json.loads(codec.dump(codec.encode(value)))  # type: ignore[no-any-return]


def test_measurements_come_back_equal() -> None:
    before = replace(record("digits_int8", "s24"), measured=measured())
    assert codec.decode(RunRecord, _written(before), file="f.json") == before


def test_a_figure_edited_to_0_is_a_damaged_record() -> None:
    data = _written(replace(record("digits_int8", "s24"), measured=measured()))
    data["measured"]["load_us"]["value"] = 0  # type: ignore[index]
    with pytest.raises(InfrastructureError, match=r"f\.json, field `measured\.load_us`"):
        codec.decode(RunRecord, data, file="f.json")


_WHOLE = st.integers(-(10**19), 10**19)


@given(
    st.builds(
        Profile,
        layers=st.just(()),
        inference_us=_WHOLE,
        times_us=st.lists(_WHOLE, max_size=5).map(tuple),
        load_us=st.none() | _WHOLE,
        peak_bytes=st.none() | _WHOLE,
    )
)
def test_whatever_a_cloud_tells_is_a_figure_above_0_or_a_reason(profile: Profile) -> None:
    found = measured_by_hub(profile, simulated=False)
    for figure in (found.load_us, found.peak_rss_kib, found.peak_pss_kib, found.energy_mj):
        assert figure.why if figure.value is None else figure.value > 0
    assert found.latency.why if found.latency.mean_us is None else found.latency.mean_us > 0


def test_ai_hubs_profile_is_named_as_the_source() -> None:
    every = Profile(layers=(), inference_us=90, times_us=(100, 110), load_us=5000, peak_bytes=2048)
    found = measured_by_hub(every, simulated=True)
    assert (found.latency.median_us, found.latency.warm_up, found.load_us.value) == (100.0, None, 5000.0)
    assert found.peak_rss_kib.value == 2.0
    assert found.latency.source.startswith("AI Hub profile job")
    only_the_estimate = measured_by_hub(Profile(layers=(), inference_us=90), simulated=True)
    assert (only_the_estimate.latency.mean_us, only_the_estimate.latency.median_us) == (90.0, None)
    assert only_the_estimate.load_us.value is None
    assert "no time" in measured_by_hub(Profile(layers=()), simulated=True).latency.why


class _Session(LabSession):
    """A session that makes no runs: what it is asked for is written down."""

    def __init__(self, evaluated: RunRecord) -> None:
        self.evaluated = evaluated
        self.asked: list[str] = []

    def evaluate(self, spec: DeviceSpec, model: ModelSpec) -> RunRecord:
        return self.evaluated

    def inputs(self, model: ModelSpec) -> Mapping[str, Any]:
        return {"x": [1, 2, 3]}

    def run(self, spec: DeviceSpec, model: ModelSpec, inputs: Any, purpose: str, **more: Any) -> RunRecord:
        self.asked.append(f"{purpose} {len(inputs['x'])}")
        return self.evaluated


@pytest.mark.parametrize(
    ("kind", "changes", "asked"),
    [
        ("virtual", {}, ["measure 1"]),
        ("adb", {}, ["measure 1"]),
        ("cluster", {}, ["measure 1"]),
        ("aihub", {}, []),  # its figures come with the evaluation, or not at all: nothing is paid twice
        ("of_another_package", {}, []),
        ("virtual", {"status": "failed"}, []),
        ("virtual", {"measured": measured()}, []),
    ],
)
def test_a_run_that_measures_is_only_made_where_it_brings_figures(
    kind: str, changes: dict[str, Any], asked: list[str]
) -> None:
    place = Source(file="m.yaml", line=1, column=1)
    session = _Session(replace(record("digits_int8", "s24"), **changes))
    model = ModelSpec(id="m", path=Path("m.onnx"), source=place)
    session.measure(DeviceSpec(id="d", kind=kind, source=place), model)
    assert session.asked == asked
