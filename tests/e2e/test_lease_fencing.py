"""A holder that lost its lease neither touches the device nor writes a record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.errors import LeaseLost
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.lab import Lab
from pytest_devicelab.lab.lease import release
from pytest_devicelab.lab.session import LabSession
from pytest_devicelab.matrix.specs import LabSpec, MatrixSpec, ModelSpec, Source
from tests.e2e.virtual_lab import VirtualLab

FIXTURES = Path(__file__).parents[2] / "fixtures"
REMOTE = "/data/local/tmp/touched"

USES: dict[str, Callable[[AdbDevice, Path], object]] = {
    "shell": lambda device, here: device.shell(["touch", REMOTE]),
    "script": lambda device, here: device.script(f"touch {REMOTE}"),
    "exec_out": lambda device, here: device.exec_out(["touch", REMOTE]),
    "stream": lambda device, here: device.stream(f"touch {REMOTE}", lambda data: True, timeout_s=10),
    "push": lambda device, here: device.push(here / "file", REMOTE),
    "pull": lambda device, here: device.pull("/system/build.prop", here / "pulled"),
    "setprop": lambda device, here: device.setprop("debug.touched", "1"),
    "hash": lambda device, here: device.hash("/system/build.prop"),
    "reconnect": lambda device, here: device.reconnect(timeout_s=5),
    "identity": lambda device, here: device.identity(),
}


@pytest.mark.parametrize("use", USES)
def test_a_released_device_is_not_touched(virtual_lab: VirtualLab, tmp_path: Path, use: str) -> None:
    (tmp_path / "file").write_text("content")
    lab = Lab(virtual_lab.address, holder="a test")
    with lab.lease(virtual_lab.specs["twin"]) as device:
        assert device.getprop("ro.soc.model") != ""
        assert release(virtual_lab.serial("twin")) is not None
        with pytest.raises(LeaseLost, match=r"twin is not ours any more\n  why: user .* released it"):
            USES[use](device, tmp_path)
    other = virtual_lab.device("twin")
    assert other.shell(["test", "-e", REMOTE]).exit_code != 0
    assert other.getprop("debug.touched") == ""
    assert not (tmp_path / "pulled").exists()


def test_a_device_is_not_used_after_its_block(virtual_lab: VirtualLab) -> None:
    with Lab(virtual_lab.address, holder="a test").lease(virtual_lab.specs["twin"]) as device:
        pass
    with pytest.raises(LeaseLost, match="has ended"):
        device.getprop("ro.soc.model")


@pytest.mark.parametrize("step", ["compiling", "deploying", "running", "collecting"])
def test_a_run_whose_lease_is_lost_leaves_no_record_and_can_be_made_again(
    virtual_lab: VirtualLab, tmp_path: Path, step: str
) -> None:
    released: list[str] = []

    def lose(text: str) -> None:
        if step in text and not released:
            released.append(text)
            release(virtual_lab.serial("twin"))

    model = ModelSpec(
        id="m",
        path=FIXTURES / "digits_cnn/int8.onnx",
        source=Source(file="matrix.yaml", line=1, column=1),
        inputs=FIXTURES / "digits_eval.npz",
        runtime="ort",
        samples=4,
    )
    spec = virtual_lab.specs["twin"]
    store = SessionStore.create(tmp_path / "reports", "session")
    session = LabSession(
        matrix=MatrixSpec(
            path=Path("matrix.yaml"), lab=LabSpec(run_timeout_s=60), devices=(spec,), models=(model,)
        ),
        devices=(spec,),
        store=store,
        lab=Lab(virtual_lab.address, holder="a test"),
        cache=tmp_path / "cache",
        progress=lose,
    )
    lost = session.evaluate(spec, model)
    assert released
    assert (lost.status, lost.outputs) == ("failed", ())
    assert "released it" in lost.error
    assert list(store.records()) == []
    again = session.evaluate(spec, model)
    assert again.status == "ok"
    assert list(store.records()) == [again]
