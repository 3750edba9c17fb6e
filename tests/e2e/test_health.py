"""The health gate around runs, on a virtual device that is made warm, empty, full and late."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.adb_server import AdbServer
from pytest_devicelab.devices.device import ShellResult
from pytest_devicelab.devices.performance import fixed_performance
from pytest_devicelab.devices.slots import DEVICE_ROOT
from pytest_devicelab.devices.toggles import restore_toggles
from pytest_devicelab.devices.vitals import read_vitals
from pytest_devicelab.evidence.record import ModelIdentity, RunRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.attempts import run_on_device
from pytest_devicelab.lab.gate import HealthGate
from pytest_devicelab.lab.request import RunRequest
from pytest_devicelab.matrix.specs import HealthSpec, log_profile
from pytest_devicelab.runtimes.inputs import load_inputs
from pytest_devicelab.virtual.control import control
from pytest_devicelab.virtual.spawn import spawn
from tests.e2e.virtual_lab import VirtualLab, virtual_spec

MODEL = Path(__file__).parents[2] / "fixtures" / "digits_cnn" / "int8.onnx"
INPUTS = Path(__file__).parents[2] / "fixtures" / "digits_eval.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ward:
    """One device, and runs on it in one session."""

    lab: VirtualLab
    store: SessionStore
    cache: Path
    said: list[str]

    @property
    def device(self) -> AdbDevice:
        return self.lab.device("patient")

    def tell(self, *words: str) -> None:
        control(self.lab.root("patient"), " ".join(("fault", *words)))

    def run(self, name: str, health: HealthSpec | None = None, **facts: Any) -> RunRecord:
        request = RunRequest(
            id=name,
            model=ModelIdentity(id="cnn", variant="", sha256=hashlib.sha256(MODEL.read_bytes()).hexdigest()),
            path=MODEL,
            runtime="ort",
            options={},
            inputs=load_inputs(INPUTS, samples=2),
            purpose="evaluate",
            logging=log_profile("verbose"),
            timeout_s=60,
            health=health or HealthSpec(),
            **facts,
        )
        return run_on_device(self.device, request, self.store, cache=self.cache, progress=self.said.append)


@pytest.fixture(scope="module")
def hospital() -> Iterator[VirtualLab]:
    with ExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dl-")))
        server = stack.enter_context(AdbServer(state / "adb"))
        spec = virtual_spec("patient", "Tensor G4", engine="cpu")
        farm = stack.enter_context(spawn([spec], state / "v", timeout_s=60))
        lab = VirtualLab(server=server, specs={"patient": spec}, farms={"patient": farm})
        server.connect(lab.serial("patient"))
        yield lab


@pytest.fixture
def ward(hospital: VirtualLab, tmp_path: Path) -> Iterator[Ward]:
    ward = Ward(
        lab=hospital, store=SessionStore.create(tmp_path, "session"), cache=tmp_path / "cache", said=[]
    )
    yield ward
    ward.tell("clear")
    ward.device.shell(["dumpsys", "battery", "reset"])


def test_a_fit_device_runs_and_its_vitals_are_in_the_record(ward: Ward) -> None:
    record = ward.run("fit")
    assert record.status == "ok", record.error
    assert record.telemetry["before.battery_percent"] == record.telemetry["after.battery_percent"] == "85"
    assert record.telemetry["before.thermal_status"] == "none"
    assert record.telemetry["after.wakefulness"] == "Awake"
    assert abs(float(record.telemetry["before.clock_skew_s"])) < 5
    assert record.telemetry["before.adb_version"] == record.telemetry["after.adb_version"] != ""
    assert ward.store.blames() == ()


def test_heat_is_waited_out(ward: Ward) -> None:
    ward.tell("throttle", "peak_c=48", "over_s=0.1")
    _wait_until(lambda: (read_vitals(ward.device).thermal_status or 0) >= 2)
    cool = threading.Timer(2.0, lambda: ward.tell("clear"))
    cool.start()
    try:
        record = ward.run("warm")
    finally:
        cool.join()
    assert record.status == "ok", record.error
    assert len(record.attempts) == 1
    assert any("waiting, thermal status" in line for line in ward.said)


def test_heat_that_does_not_pass_is_no_finding_about_the_model(ward: Ward) -> None:
    ward.tell("throttle", "peak_c=48", "over_s=0.1")
    _wait_until(lambda: (read_vitals(ward.device).thermal_status or 0) >= 2)
    record = ward.run("hot", HealthSpec(cool_wait_s=0))
    assert record.status == "failed"
    assert "not fit to be used" in record.error
    assert "more than light" in record.error


def test_who_waits_in_vain_waits_for_all(ward: Ward) -> None:
    ward.tell("throttle", "peak_c=48", "over_s=0.1")
    _wait_until(lambda: (read_vitals(ward.device).thermal_status or 0) >= 2)
    health = HealthSpec(cool_wait_s=3)
    waited = [ward.run(name, health).attempts[0].duration_s for name in ("first", "second")]
    assert waited[0] >= 3 > waited[1]
    # As long as that later, the next one waits again.
    (note,) = (ward.store.root / "waits").iterdir()
    os.utime(note, (time.time() - 3.1,) * 2)
    assert ward.run("third", health).attempts[0].duration_s >= 3


def test_a_run_that_heat_slowed_down_does_not_count_and_is_blamed(ward: Ward) -> None:
    ward.tell("throttle", "during=run", "peak_c=48", "over_s=0.1")
    record = ward.run("heater", HealthSpec(cool_wait_s=0))
    assert record.status == "failed"
    assert "heat slowed it down" in record.attempts[0].error
    assert record.telemetry["before.thermal_status"] != "none"
    assert len(record.attempts) == 2
    (blame,) = ward.store.blames()
    assert (blame.device, blame.by, blame.kind) == ("patient", "heater", "heat")
    later = ward.run("later", HealthSpec(cool_wait_s=0))
    assert later.status == "failed"
    assert "it was fine until heater" in later.error


def test_heat_that_comes_and_goes_within_a_run_is_noticed(ward: Ward) -> None:
    ward.tell("throttle", "during=run", "peak_c=48", "over_s=0", "lasts_s=0.3", "slowdown=4")
    record = ward.run("burst")
    first = record.attempts[0]
    assert first.failure == "throttled", first
    assert "in between; it is cool again" in first.error
    assert (record.status, len(record.attempts)) == ("ok", 2), record.error


def test_an_empty_battery_is_refused_unless_it_charges(ward: Ward) -> None:
    ward.device.shell(["dumpsys", "battery", "unplug"])
    ward.device.shell(["dumpsys", "battery", "set", "status", "3"])
    ward.device.shell(["dumpsys", "battery", "set", "level", "3"])
    record = ward.run("empty")
    assert record.status == "failed"
    assert "battery at 3 % and not charging" in record.error
    assert ward.run("allowed", HealthSpec(min_battery=2)).status == "ok"


def test_a_full_disk_is_said_before_anything_is_pushed(ward: Ward) -> None:
    ward.tell("disk_full", "free_bytes=1000000")
    record = ward.run("full")
    assert "MiB free in /data/local/tmp" in record.error
    assert record.transfers.pushed_bytes == 0


def test_a_clock_that_is_wrong_is_noted_and_nothing_more(ward: Ward) -> None:
    ward.tell("clock_jump", "seconds=7200")
    record = ward.run("late")
    assert record.status == "ok", record.error
    assert 7190 < float(record.telemetry["before.clock_skew_s"]) < 7210


def test_a_runner_left_over_is_ended_and_others_are_left_alone(ward: Ward) -> None:
    program = ward.lab.root("patient") / "system/bin/executor_runner"
    shutil.copy("/usr/bin/tail", program)
    try:
        for place in (f"{DEVICE_ROOT}/runs/old", "/data/local/tmp/theirs"):
            ward.device.script(
                f"mkdir -p {place}; : > {place}/log; executor_runner -f {place}/log >/dev/null 2>&1 &"
            )
        _wait_until(lambda: len(read_vitals(ward.device).runners) == 1)
        (ours,) = read_vitals(ward.device).runners
        record = ward.run("after")
        assert record.status == "ok", record.error
        assert any(f"ending runners left over (process {ours})" in line for line in ward.said)
        assert read_vitals(ward.device).runners == ()
        alive = ward.device.shell(["pidof", "executor_runner"]).text.split()
        assert len(alive) == 1
    finally:
        ward.device.script("kill -9 $(pidof executor_runner)")
        program.unlink()


def test_processes_are_not_searched_where_no_runner_can_be(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[bytes] = []

    def traced(self: AdbDevice, text: str, *, timeout_s: float = 30.0) -> ShellResult:
        result = script(self, f"set -x\n{text}", timeout_s=timeout_s)
        said.append(result.stderr)
        return result

    script = AdbDevice.script
    monkeypatch.setattr(AdbDevice, "script", traced)
    read_vitals(ward.device)
    assert b"grep -qs" in said[0]
    assert b"pidof" not in said[0]


def test_a_property_that_a_test_left_set_is_blamed_and_put_back(ward: Ward) -> None:
    device = ward.device
    device.setprop("debug.kept", "before")
    gate = HealthGate(device, HealthSpec(), ward.store, user="careless", progress=ward.said.append)
    with gate.around():
        device.setprop("debug.kept", "$(reboot)")
        device.setprop("debug.tracing.screen_state", "2")  # as Android itself does
        device.shell(["setprop", "log.tag.Mine", "VERBOSE"])
    blames = sorted((blame.by, blame.kind, blame.text) for blame in ward.store.blames())
    assert blames == [
        ("careless", "property", "property debug.kept is '$(reboot)'; it was 'before'"),
        ("careless", "property", "property log.tag.Mine is 'VERBOSE'; it was ''"),
    ]
    found = [device.getprop(name) for name in ("debug.kept", "log.tag.Mine", "debug.tracing.screen_state")]
    assert found == ["before", "", "2"]


def test_a_property_that_a_run_could_not_put_back_is_left_to_the_next_holder(ward: Ward) -> None:
    device = ward.device
    gate = HealthGate(device, HealthSpec(), ward.store, user="cut off", progress=ward.said.append)
    with gate.around():
        device.script(
            "mkdir -p /data/local/tmp/devicelab/restore && : > /data/local/tmp/devicelab/restore/log.tag.Q"
        )
        device.setprop("log.tag.Q", "VERBOSE")
    assert ward.store.blames() == ()
    assert restore_toggles(device) == ("log.tag.Q",)
    assert device.getprop("log.tag.Q") == ""


def test_fixed_performance_is_put_back_also_after_a_crash(ward: Ward) -> None:
    state = ward.lab.root("patient") / "dev/devicelab/fixed_performance"
    record = ward.run("steady", fixed_performance=True)
    assert record.telemetry["fixed_performance"] == "on"
    assert state.read_text() == "false\n"
    # A holder that was killed in the block never came to its end.
    crashed = fixed_performance(ward.device)
    crashed.__enter__()
    assert state.read_text() == "true\n"
    restore_toggles(ward.device)
    assert state.read_text() == "false\n"
    crashed.__exit__(None, None, None)


def _wait_until(holds: Callable[[], bool]) -> None:
    for _ in range(100):
        if holds():
            return
        threading.Event().wait(0.1)
    pytest.fail("it did not come about")
