"""Measurements in reports: a simulator's time is never a chip's, an absent figure is never 0."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from pytest_devicelab.evidence.measurements import Figure, Latency, Measurements, absent, summarize_times
from pytest_devicelab.report.html import render_html
from pytest_devicelab.report.measured import (
    energy_text,
    find_measurements,
    latency_text,
    measured_text,
    size_text,
    time_text,
)
from pytest_devicelab.report.session import Session, session_schema, to_json
from pytest_devicelab.report.terminal import summarize
from pytest_devicelab.verdicts.measured import judge_measured
from tests.unit.hostile_session import ATTACK
from tests.unit.session_builders import record, session

TIMES = [float(value) for value in range(1900, 1920)]
FOUND = Measurements(
    simulated=False,
    latency=summarize_times(TIMES, warm_up=0, expected=20, source="profile of qnn-net-run, NetRun"),
    load_us=Figure(value=331158.0, source="INIT of NetRun"),
    peak_rss_kib=Figure(value=51200.0, source="VmHWM"),
    peak_pss_kib=absent("the device does not show Pss of its processes"),
    energy_mj=absent("the device has power from outside"),
)


def with_measured(found: Session, *measured: Measurements) -> Session:
    records = [replace(record("digits_int8", "s24"), measured=each) for each in measured]
    return replace(found, measurements=find_measurements(records))


def test_the_terminal_says_the_figures_and_whose_they_are(tmp_path: Path) -> None:
    lines = [line.text for line in summarize(with_measured(session(tmp_path), FOUND), 200)]
    assert "Measured (sim = simulated: this host's time and memory, not the chip's)" in lines
    (line,) = [line for line in lines if line.startswith("digits_int8 on s24 (sim)")]
    assert (
        "1.91 ms median of 20, 1.92 ms at most; load 331 ms; memory 50 MiB RSS, none PSS; energy none" in line
    )


@pytest.mark.parametrize("width", [60, 80, 200])
def test_many_measurements_leave_room_on_one_screen(tmp_path: Path, width: int) -> None:
    lines = summarize(with_measured(session(tmp_path), *[FOUND] * 40), width)
    assert len(lines) <= 48
    assert all(len(line.text) <= width for line in lines)
    assert any("more measurement" in line.text for line in lines)


def test_a_record_that_forgets_to_say_so_is_still_simulated() -> None:
    (entry,) = find_measurements([replace(record("digits_int8", "s24"), measured=FOUND)])
    assert entry.simulated
    on_silicon = replace(record("digits_int8", "s24").device, simulated=False)
    (entry,) = find_measurements([replace(record("digits_int8", "s24"), device=on_silicon, measured=FOUND)])
    assert not entry.simulated
    assert "(sim)" not in measured_text(entry)


def test_the_page_shows_sources_and_reasons(tmp_path: Path) -> None:
    page = render_html(with_measured(session(tmp_path), FOUND))
    for text in ("Time, memory and energy", "INIT of NetRun", "the device does not show Pss", "331 ms"):
        assert text in page
    assert "Time, memory and energy" not in render_html(session(tmp_path / "other"))


def test_what_a_device_says_is_escaped(tmp_path: Path) -> None:
    bad = replace(
        FOUND,
        latency=Latency(why=ATTACK),
        load_us=Figure(value=1.0, source=ATTACK),
        energy_mj=absent(ATTACK),
    )
    page = render_html(with_measured(session(tmp_path), bad))
    assert "<script>window" not in page
    assert "<svg onload" not in page
    lines = summarize(with_measured(session(tmp_path / "other"), bad), 100)
    assert not any("\x1b" in line.text or "\x00" in line.text for line in lines)


def test_session_json_holds_to_its_schema(tmp_path: Path) -> None:
    data = to_json(with_measured(session(tmp_path), FOUND, replace(FOUND, latency=Latency(why="no clock"))))
    schema = jsonschema.Draft202012Validator(session_schema())
    schema.validate(json.loads(json.dumps(data)))
    data["measurements"][0]["load_us"]["value"] = 0
    assert not schema.is_valid(data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (time_text(None), "none"),
        (time_text(13.49), "13.5 us"),
        (time_text(1899.0), "1.9 ms"),
        (time_text(2.5e6), "2.5 s"),
        (size_text(512.0), "0.5 MiB"),
        (size_text(2 << 20), "2,048 MiB"),
        (energy_text(14_400.0), "14,400 mJ"),
        (latency_text(Latency(inferences=2, mean_us=2500.0, source="x")), "2.5 ms mean of 2"),
        (latency_text(Latency(why="no clock")), "no latency (no clock)"),
    ],
)
def test_figures_are_written_in_units_that_suit_them(text: str, said: str) -> None:
    assert text == said
    assert {time_text(None), size_text(None), energy_text(None)} == {"none"}


def test_no_latency_is_no_pass() -> None:
    usual = record("digits_int8", "s24")
    assert judge_measured(replace(usual, measured=FOUND)).outcome == "pass"
    missing = judge_measured(replace(usual, measured=replace(FOUND, latency=Latency(why="no clock"))))
    assert (missing.outcome, missing.reason) == ("inconclusive", "no latency: no clock")
    assert "brought no figures" in judge_measured(usual).reason
    failed = judge_measured(replace(usual, status="failed", error="device s24 is gone"))
    assert (failed.outcome, "device s24 is gone" in failed.reason) == ("inconclusive", True)
