from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_devicelab.audit.bisect import bisect
from pytest_devicelab.cli import main
from pytest_devicelab.errors import UserError
from pytest_devicelab.lab.open import open_session
from pytest_devicelab.lab.session_lock import SessionLock
from pytest_devicelab.matrix.decode import load_matrix
from tests.e2e.audit_lab import LAYERS, SAMPLES, deep_matrix, digits_matrix


class Bisect:
    """`devicelab bisect` in a folder of its own."""

    def __init__(self, matrix: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.matrix = matrix
        self.reports = matrix.parent / "reports"
        self._capsys = capsys

    def __call__(self, model: str, devices: str, *more: str) -> tuple[int, str]:
        arguments = ["bisect", model, "--devices", devices, "--matrix", str(self.matrix)]
        status = main([*arguments, "--reports", str(self.reports), *more])
        captured = self._capsys.readouterr()
        return status, captured.out if status < 3 else captured.err

    def json(self, model: str, devices: str, *more: str) -> tuple[int, Any]:
        status, text = self(model, devices, "--json", *more)
        return status, json.loads(text)

    @property
    def session(self) -> Path:
        return (self.reports / "experiments/latest").resolve()


@pytest.fixture
def deep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Bisect:
    return Bisect(deep_matrix(tmp_path), capsys)


@pytest.fixture
def digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Bisect:
    return Bisect(digits_matrix(tmp_path), capsys)


def test_a_fault_planted_in_a_device_is_found(deep: Bisect) -> None:
    status, found = deep.json("deep", "sound,planted,twin")
    assert status == 1
    assert (found["schema"], found["samples"], found["depth"]) == ("devicelab.bisect/1", SAMPLES, LAYERS + 2)
    (first,) = found["divergences"]
    assert (first["node"], first["op"], first["depth"]) == ("layer23", "Add", 24)
    assert (first["reference"], first["observed"]) == (["sound"], ["planted"])
    assert (first["elements_different"], first["max_lsb"]) == (SAMPLES, 1.0)
    planted, twin = found["curves"]
    assert [layer["elements_different"] for layer in planted["layers"][:23]] == [0] * 23
    assert all(layer["elements_different"] == 0 for layer in twin["layers"])
    assert found["notes"] == []


def test_a_walk_that_was_broken_off_goes_on(deep: Bisect) -> None:
    _, before = deep.json("deep", "sound,planted")
    session = deep.session
    records = {path: path.stat().st_mtime_ns for path in session.glob("runs/*/record.json")}
    assert len(records) == 4
    lost = min(records)
    lost.unlink()
    status, after = deep.json("deep", "sound,planted", "--resume", str(session))
    assert (status, after) == (1, before)
    again = {path: path.stat().st_mtime_ns for path in session.glob("runs/*/record.json")}
    assert again.keys() == records.keys()
    assert [path for path in records if again[path] != records[path]] == [lost]


def test_runs_the_lab_could_not_carry_out_are_made_again(deep: Bisect) -> None:
    deep.json("deep", "sound,planted")
    session = deep.session
    record = min(session.glob("runs/*/record.json"))
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "status": "failed", "error": "the cable fell out"}))
    status, _ = deep.json("deep", "sound,planted", "--resume", str(session))
    assert status == 1
    assert json.loads(record.read_text())["status"] == "ok"
    assert "the cable fell out" in record.with_name("record.failed.json").read_text()


def test_chunks_under_a_memory_cap_find_the_same(deep: Bisect) -> None:
    matrix = load_matrix(deep.matrix)
    devices = (matrix.device("sound"), matrix.device("planted"))
    model = matrix.model("deep")
    with open_session(matrix, devices, reports=deep.reports, progress=lambda text: None) as session:
        with pytest.raises(UserError, match="is being run"):
            SessionLock.take(session.store.root)
        whole = bisect(session, model, devices, samples=SAMPLES)
        parts = bisect(session, model, devices, samples=SAMPLES, memory_bytes=16 * 4 * SAMPLES)
        runs = [record for record in session.store.records() if record.device.id == "planted"]
    assert parts == whole
    assert max(len(record.outputs) for record in runs) == LAYERS + 2
    # The model itself, all taps at once, and 31 layers of 16 bytes a sample, four to a chunk. A chunk of nothing
    # but the model's own output is the model itself, which has run.
    assert len(runs) == 1 + 1 + 8


def test_where_tapping_changes_the_output_the_model_is_cut(deep: Bisect) -> None:
    status, found = deep.json("deep", "sound,fusing")
    assert status == 1
    (curve,) = found["curves"]
    assert (curve["method"], curve["taps_changed_output"]) == ("cut", False)
    (first,) = found["divergences"]
    assert (first["node"], first["depth"], first["taps_changed_output"]) == ("layer10", 11, False)
    assert found["notes"][0] == "fusing: tapping changed bits of the output y"
    assert "the model was cut into its layers, each fed with the tensors of sound" in found["notes"][1]


def test_a_device_that_does_not_take_part_is_never_the_same(deep: Bisect) -> None:
    status, text = deep("deep", "sound,refusing,twin")
    assert status == 2
    assert "refusing did not take part: " in text
    assert "Failed to finalize QNN graph" in text
    assert "twin against sound: the same bits in every layer" in text


def test_simulated_chips_part_where_they_are_known_to(digits: Bisect) -> None:
    status, text = digits("cnn", "v69,v75,v79", "--samples", "8")
    assert status == 1
    assert "v75 against v69: parts first at Conv conv1, layer 2 of 10" in text
    assert "at most 1 LSB" in text
    line = next(line for line in text.splitlines() if "elements that differ" in line)
    assert line.split()[3].startswith("·▁")  # nothing at the input's rounding, then something
    assert "v75 against float: " in text
    assert "not found in the float model" not in text
    status, found = digits.json("cnn", "v75,v79", "--samples", "8")
    assert status == 0
    assert found["divergences"] == []
    noise = [layer["sqnr_db"] for layer in found["against_float"][0]["layers"]]
    assert noise[0] > 50 > noise[-1] > 30  # errors add up over depth


@pytest.mark.parametrize(
    ("model", "devices", "message"),
    [
        ("deep", "sound,plantd", "has no device 'plantd' (did you mean 'planted'?)"),
        ("dep", "sound,twin", "has no model 'dep' (did you mean 'deep'?)"),
        ("deep", "sound,sound", "names a device twice"),
        ("deep", "sound", "names one device, and it takes two to compare"),
    ],
)
def test_a_misspelled_request_is_a_mistake_of_the_user(
    deep: Bisect, model: str, devices: str, message: str
) -> None:
    status, said = deep(model, devices)
    assert status == 4
    assert message in said


@pytest.mark.parametrize(
    ("left", "why"),
    [
        (("runs", "session.json"), "it is a session of tests"),
        (("runs", "verdicts/"), "it is a session of tests"),
        (("runs", "starts/"), "it is a session of tests"),
        (("other",), "it has no runs/"),
    ],
)
def test_only_an_experiment_is_gone_on_with(deep: Bisect, left: tuple[str, ...], why: str) -> None:
    folder = deep.matrix.parent / "some"
    for name in left:
        path = folder / name
        path.mkdir(parents=True)
    status, said = deep("deep", "sound,twin", "--resume", str(folder))
    assert status == 4
    assert why in said
    assert "fix: name a folder `REPORTS/experiments/<session>`" in said
