"""What every way to reach an NPU promises of a run: the same record, whoever carried it out.

The same chip four ways: a virtual device, the same device as a phone with a serial, over pure-python-adb, and in the
cloud (a double whose inference is the same simulator).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
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
from tests.e2e.hostile_models import INPUT, OUTPUT, rename_onnx
from tests.e2e.virtual_lab import VirtualLab

CNN = FIXTURES / "digits_cnn/int8.onnx"
INPUTS = FIXTURES / "digits_eval.npz"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to reach the chip: how a matrix says it, one that leads nowhere, and how to cut an output short."""

    device: str
    away: str
    cache: Path
    shorten: Callable[[], None]


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contexts")


@pytest.fixture(params=list(WAYS))
def way(
    request: pytest.FixtureRequest,
    virtual_lab: VirtualLab,
    tmp_path: Path,
    contexts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Way]:
    """One of the ways; for the cloud, with its double up."""
    chosen: str = request.param
    way = Way(
        device=WAYS[chosen].format(serial=virtual_lab.serial("s24")),
        away=AWAY[chosen],
        cache=contexts,
        shorten=lambda: virtual_lab.tell("s24", "fault short_output"),
    )
    if chosen != "aihub":
        yield way
        virtual_lab.tell("s24", "fault clear")
        return
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "double").mkdir()
    with serve(tmp_path / "double", contexts) as double:
        monkeypatch.setenv("QAIHUB_CLIENT_INI", str(double.write_ini(tmp_path / "client.ini")))
        # What was uploaded to one service is not in the next.
        yield replace(
            way,
            cache=tmp_path / "cache",
            shorten=lambda: setattr(double.account.trouble, "outputs", "short"),
        )


@pytest.fixture(scope="module")
def direct(virtual_lab: VirtualLab, contexts: Path, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """The record of the plainest way."""
    record, _ = evaluate(virtual_lab, tmp_path_factory.mktemp("direct"), WAYS["virtual"], CNN, contexts)
    return record


def evaluate(
    lab: VirtualLab, folder: Path, device: str, model: Path, cache: Path, inputs: Path = INPUTS
) -> tuple[RunRecord, LabSession]:
    """Evaluate a model on a device, two samples, in a session of its own."""
    path = folder / "matrix.yaml"
    path.write_text(
        f"schema: devicelab.matrix/1\n"
        f"devices: [{{{device}}}]\n"
        f"models: [{{id: m, path: {json.dumps(str(model))}, inputs: {inputs}, samples: 2}}]\n"
    )
    matrix = load_matrix(path)
    (folder / "session").mkdir()
    session = LabSession(
        matrix=matrix,
        devices=matrix.devices,
        store=SessionStore.open(folder / "session"),
        lab=Lab(replace(lab.address, ports={**lab.address.ports, "gone": 1}), holder="a test"),
        cache=cache,
        progress=lambda text: None,
    )
    record = session.evaluate(matrix.devices[0], matrix.models[0])
    session.close()
    return record, session


def test_a_run_leaves_the_same_record(
    virtual_lab: VirtualLab, tmp_path: Path, way: Way, direct: RunRecord
) -> None:
    record, session = evaluate(virtual_lab, tmp_path, way.device, CNN, way.cache)
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
    assert output.sha256 == direct.outputs[0].sha256
    assert session.store.read_output(output).shape == (2, 10)


def test_an_output_that_is_short_is_a_failed_run_and_no_output(
    virtual_lab: VirtualLab, tmp_path: Path, way: Way
) -> None:
    way.shorten()
    record, session = evaluate(virtual_lab, tmp_path, way.device, CNN, way.cache)
    assert (record.status, record.outputs) == ("failed", ())
    assert "logits" in record.error
    assert [attempt.failure for attempt in record.attempts] == ["output"], "it is a result: no second try"
    assert session.store.read_record(record.id) == record


def test_a_model_that_is_refused_is_a_finding(virtual_lab: VirtualLab, tmp_path: Path, way: Way) -> None:
    record, session = evaluate(
        virtual_lab, tmp_path, way.device, FIXTURES / "digits_channelnorm/int8.onnx", way.cache
    )
    assert record.status == "refused"
    assert "LayerNorm" in record.error
    assert session.store.read_record(record.id) == record
    assert record.outputs == ()


def test_a_device_out_of_reach_is_a_record_and_no_exception(
    virtual_lab: VirtualLab, tmp_path: Path, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leases").mkdir()
    monkeypatch.setenv("DEVICELAB_LEASES", str(tmp_path / "leases"))
    impatient = Limits(reconnect_s=1, restart_s=1, power_cycle_s=1, reboot_s=1)
    for limits in ("PHONE_LIMITS", "VIRTUAL_LIMITS"):
        monkeypatch.setattr(f"pytest_devicelab.lab.recovery.{limits}", impatient)
    record, session = evaluate(virtual_lab, tmp_path, way.away, CNN, way.cache)
    assert record.status == "failed"
    assert record.attempts[-1].failure
    assert "\n  why: " in record.error
    assert session.store.read_record(record.id) == record
    assert record.outputs == ()


def test_hostile_names_of_file_input_and_output_are_no_command(
    virtual_lab: VirtualLab, tmp_path: Path, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(_empty(tmp_path / "here"))
    model = rename_onnx(CNN, _empty(tmp_path / "models") / f"{HOSTILE}.onnx")
    with np.load(INPUTS) as images:
        np.savez(tmp_path / "inputs.npz", **{INPUT: images["image"][:2]})
    record, _ = evaluate(
        virtual_lab, _empty(tmp_path / "s"), way.device, model, way.cache, tmp_path / "inputs.npz"
    )
    assert record.status == "ok", record.error
    assert [output.name for output in record.outputs] == [OUTPUT]
    assert not [path for path in tmp_path.rglob("*pwned*") if "touch" not in path.name]
    assert not [path for path in virtual_lab.root("s24").rglob("*pwned*") if "touch" not in path.name]


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder
