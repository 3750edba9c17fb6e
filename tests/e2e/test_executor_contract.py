"""What every way to reach an NPU promises of a run: the same record, whoever carried it out.

The same chip four ways: a virtual device, the same device as a phone with a serial, over pure-python-adb, and in the
cloud (a double whose inference is the same simulator).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("qai_hub")

from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.lab import Lab
from pytest_devicelab.lab.recovery import Limits
from pytest_devicelab.lab.session import LabSession
from pytest_devicelab.matrix.decode import load_matrix
from tests.e2e.aihub_double.server import serve
from tests.e2e.aihub_lab import FIXTURES
from tests.e2e.virtual_lab import VirtualLab

WAYS = {
    "virtual": "id: s24, kind: virtual, soc: SM8650",
    "adb": 'id: phone, kind: adb, serial: "{serial}"',
    "ppadb": 'id: phone, kind: adb, transport: ppadb, serial: "{serial}"',
    "aihub": "id: hub, kind: aihub, name: Samsung Galaxy S24, timeout_s: 60",
}
AWAY = {
    "virtual": "id: gone, kind: virtual, soc: SM8650",
    "adb": "id: gone, kind: adb, serial: nobody",
    "ppadb": "id: gone, kind: adb, transport: ppadb, serial: nobody",
    "aihub": "id: gone, kind: aihub, name: No Such Phone, timeout_s: 20",
}
# A line break in a path is a mistake of the matrix already.
HOSTILE = "a b';$(touch pwned)`touch pwned`\"&|>pwned ü"


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contexts")


@pytest.fixture(params=list(WAYS))
def way(
    request: pytest.FixtureRequest, tmp_path: Path, contexts: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """One of the ways; for the cloud, with its double up."""
    chosen: str = request.param
    if chosen != "aihub":
        yield chosen
        return
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "double").mkdir()
    with serve(tmp_path / "double", contexts) as double:
        monkeypatch.setenv("QAIHUB_CLIENT_INI", str(double.write_ini(tmp_path / "client.ini")))
        yield chosen


def evaluate(lab: VirtualLab, folder: Path, device: str, model: Path) -> tuple[RunRecord, LabSession]:
    """Evaluate a model on a device, two samples, in a session of its own."""
    path = folder / "matrix.yaml"
    path.write_text(
        f"schema: devicelab.matrix/1\n"
        f"devices: [{{{device.format(serial=lab.serial('s24'))}}}]\n"
        f"models: [{{id: m, path: {json.dumps(str(model))}, inputs: {FIXTURES}/digits_eval.npz, samples: 2}}]\n"
    )
    matrix = load_matrix(path)
    (folder / "session").mkdir()
    session = LabSession(
        matrix=matrix,
        devices=matrix.devices,
        store=SessionStore.open(folder / "session"),
        lab=Lab(replace(lab.address, ports={**lab.address.ports, "gone": 1}), holder="a test"),
        cache=folder / "cache",
        progress=lambda text: None,
    )
    record = session.evaluate(matrix.devices[0], matrix.models[0])
    session.close()
    return record, session


def test_a_run_leaves_the_same_record(virtual_lab: VirtualLab, tmp_path: Path, way: str) -> None:
    model = FIXTURES / "digits_cnn/int8.onnx"
    record, session = evaluate(virtual_lab, tmp_path, WAYS[way], model)
    assert (record.status, record.error) == ("ok", "")
    assert session.store.read_record(record.id) == record, "what is returned is what is on disk"
    assert (record.device.soc, record.device.hexagon) == ("SM8650", "V75")
    assert record.device.simulated, "no phone computed this, whatever the matrix calls it"
    assert (record.runtime, record.backend, record.purpose, record.samples) == ("qnn", "htp", "evaluate", 2)
    assert record.versions
    assert record.log_sources["logcat"] > 0
    assert record.ops
    assert len(record.attempts) == 1
    (output,) = record.outputs
    assert (output.name, output.dtype, output.shape) == ("logits", "float32", (2, 10))
    direct, _ = evaluate(virtual_lab, _empty(tmp_path / "direct"), WAYS["virtual"], model)
    assert output.sha256 == direct.outputs[0].sha256
    assert session.store.read_output(output).shape == (2, 10)


def test_a_model_that_is_refused_is_a_finding(virtual_lab: VirtualLab, tmp_path: Path, way: str) -> None:
    record, session = evaluate(virtual_lab, tmp_path, WAYS[way], FIXTURES / "digits_channelnorm/int8.onnx")
    assert record.status == "refused"
    assert "LayerNorm" in record.error
    assert session.store.read_record(record.id) == record
    assert record.outputs == ()


def test_a_device_out_of_reach_is_a_record_and_no_exception(
    virtual_lab: VirtualLab, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leases").mkdir()
    monkeypatch.setenv("DEVICELAB_LEASES", str(tmp_path / "leases"))
    impatient = Limits(reconnect_s=1, restart_s=1, power_cycle_s=1, reboot_s=1)
    for limits in ("PHONE_LIMITS", "VIRTUAL_LIMITS"):
        monkeypatch.setattr(f"pytest_devicelab.lab.recovery.{limits}", impatient)
    record, session = evaluate(virtual_lab, tmp_path, AWAY[way], FIXTURES / "digits_cnn/int8.onnx")
    assert record.status == "failed"
    assert "\n  why: " in record.error
    assert session.store.read_record(record.id) == record
    assert record.outputs == ()


def test_a_hostile_file_name_runs_or_is_refused_and_is_no_command(
    virtual_lab: VirtualLab, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(_empty(tmp_path / "here"))
    model = _empty(tmp_path / "models") / f"{HOSTILE}.onnx"
    shutil.copy(FIXTURES / "digits_cnn/int8.onnx", model)
    record, _ = evaluate(virtual_lab, _empty(tmp_path / "s"), WAYS[way], model)
    assert record.status == "ok", record.error
    assert not list(tmp_path.rglob("pwned*"))
    assert not list(virtual_lab.root("s24").rglob("pwned*"))


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder
