"""Measuring runs on virtual devices: real processes, the real adb, the simulator's times."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_devicelab.evidence.record import ModelIdentity, RunRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.attempts import run_on_device
from pytest_devicelab.lab.request import RunRequest
from pytest_devicelab.matrix.specs import LogProfile, MeasureSpec, Retries
from pytest_devicelab.runtimes.inputs import load_inputs
from pytest_devicelab.verdicts.measured import judge_measured
from pytest_devicelab.virtual.tools import vitals
from tests.e2e.virtual_lab import VirtualLab

FIXTURES = Path(__file__).parents[2] / "fixtures"
PLAN = MeasureSpec(inferences=10, warm_up=2)
Measure = Callable[..., RunRecord]


@pytest.fixture
def measure(virtual_lab: VirtualLab, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Measure:
    """Measure the digits on a device of the lab; the record that is returned is the one on disk."""
    store = SessionStore.create(tmp_path / "reports", "session")

    def measure(
        device: str, runtime: str = "ort", *, progress: Callable[[str], None] = lambda text: None
    ) -> RunRecord:
        request = RunRequest(
            id=f"digits.{device}.measure",
            model=ModelIdentity(id="digits", variant="", sha256="0" * 64),
            path=FIXTURES / "digits_cnn/int8.onnx",
            runtime=runtime,
            options={},
            inputs=load_inputs(FIXTURES / "digits_eval.npz", samples=1),
            purpose="measure",
            logging=LogProfile(level="off"),
            timeout_s=120,
            retries=Retries(per_run=0),
            measure=PLAN,
        )
        cache = tmp_path_factory.getbasetemp() / "runner-cache"
        record = run_on_device(virtual_lab.device(device), request, store, cache=cache, progress=progress)
        assert store.read_record(request.id) == record
        return record

    return measure


@pytest.fixture
def battery(virtual_lab: VirtualLab) -> Iterator[Callable[..., None]]:
    """Change the battery of `pixel`, which is as it was afterwards."""
    root = str(virtual_lab.root("pixel"))
    before = vitals.read(root, "battery")

    def change(**fields: object) -> None:
        vitals.write(root, "battery", vitals.read(root, "battery") | fields)

    yield change
    vitals.write(root, "battery", before)


@pytest.fixture
def ort_run(virtual_lab: VirtualLab) -> Iterator[Callable[[str], None]]:
    """Put shell text before `ort-run` on `pixel`; `$genuine` is the program as it was."""
    path = virtual_lab.root("pixel") / "system/bin/ort-run"
    genuine = path.read_bytes()
    other = path.with_name("ort-run.genuine")
    other.write_bytes(genuine)
    other.chmod(0o755)

    def write(script: str) -> None:
        find_out = 'for word in "$@"; do case $word in --output_dir=*) out=${word#*=} ;; esac; done'
        path.write_text(f"#!/bin/sh\ngenuine=/system/bin/ort-run.genuine\n{find_out}\n{script}\n")

    yield write
    path.write_bytes(genuine)
    other.unlink()


def test_time_and_memory_of_the_simulator_are_real_and_say_whose_they_are(measure: Measure) -> None:
    record = measure("s24", "qnn")
    assert (record.status, record.purpose, record.outputs) == ("ok", "measure", ())
    found = record.measured
    assert found is not None
    assert found.simulated
    assert (found.latency.inferences, found.latency.warm_up) == (10, 2)
    assert found.latency.source == "profile of qnn-net-run, QNN (execute) time"
    assert found.load_us.source == "profile of qnn-net-run, QNN (load binary) time"
    # Of a process with onnxruntime and the simulator in it, and not of the shell that started it.
    assert found.peak_rss_kib.value is not None
    assert found.peak_rss_kib.value > 50 << 10
    assert found.peak_pss_kib.value is not None
    assert "power from outside" in found.energy_mj.why
    verdict = judge_measured(record)
    assert verdict.outcome == "pass"
    assert "the simulator's time on this host, not the chip's" in verdict.reason
    assert list(verdict.details["absent"]) == ["energy_mj"]  # type: ignore[call-overload]


def test_a_device_on_its_battery_shows_what_it_used(measure: Measure, battery: Callable[..., None]) -> None:
    battery(usb_powered=False, status=3, charge_counter_uah=3_000_000, voltage_mv=4000)

    def drain(step: str) -> None:
        if "running" in step and "once more" not in step:
            battery(charge_counter_uah=2_999_000)

    found = measure("pixel", progress=drain).measured
    assert found is not None
    assert found.latency.source == "timing.json of ort-run"
    assert found.energy_mj.value == pytest.approx(14_400)
    assert "fuel gauge" in found.energy_mj.source


def test_a_fuel_gauge_that_did_not_move_is_no_zero(measure: Measure, battery: Callable[..., None]) -> None:
    battery(usb_powered=False, status=3)
    found = measure("pixel").measured
    assert found is not None
    assert found.energy_mj.value is None
    assert "did not go down" in found.energy_mj.why


def test_a_runner_killed_in_mid_measurement_has_no_figures(
    measure: Measure, ort_run: Callable[[str], None]
) -> None:
    ort_run('"$genuine" "$@"; kill -9 $$')
    record = measure("pixel")
    assert (record.status, record.measured) == ("failed", None)
    verdict = judge_measured(record)
    assert verdict.outcome == "inconclusive"
    assert "exited with 137" in verdict.reason


def test_a_runner_killed_while_its_memory_is_looked_at_keeps_its_times(
    measure: Measure, ort_run: Callable[[str], None]
) -> None:
    ort_run('case $out in *again) kill -9 $$ ;; esac; exec "$genuine" "$@"')
    found = measure("pixel").measured
    assert found is not None
    assert found.latency.inferences == 10
    assert "exit status 137 while its memory was looked at" in found.peak_rss_kib.why


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"load_us": -1, "inference_us": [-5] * 12}, "-5 us is no time"),
        (None, "left no timing.json"),
    ],
)
def test_what_a_hostile_device_says_gives_no_figure(
    measure: Measure, ort_run: Callable[[str], None], told: object, why: str
) -> None:
    end = 'rm -f "$out/timing.json"'
    if told is not None:
        end = f"echo '{json.dumps(told)}' > \"$out/timing.json\""
    ort_run(f'"$genuine" "$@" && {end}')
    record = measure("pixel")
    found = record.measured
    assert found is not None
    assert found.latency.mean_us is None
    assert why in found.latency.why
    assert found.load_us.value is None
    # The program ran as a child of the script in its place.
    assert "processes of its own" in found.peak_rss_kib.why
    assert judge_measured(record).outcome == "inconclusive"


def test_figures_of_a_device_that_throttled_are_dropped(measure: Measure, virtual_lab: VirtualLab) -> None:
    root = str(virtual_lab.root("pixel"))
    before = vitals.read(root, "thermal")

    def heat(step: str) -> None:
        if "once more" in step:
            vitals.write(root, "thermal", before | {"status": 3})

    try:
        record = measure("pixel", progress=heat)
    finally:
        vitals.write(root, "thermal", before)
    assert (record.status, record.measured) == ("failed", None)
    assert record.error.startswith("device pixel: heat slowed it down")
