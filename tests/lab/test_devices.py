"""What every device of the lab must do before a verdict of it means anything: run by `pytest --devices=...`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.slots import deploy_file
from pytest_devicelab.devices.toggles import toggled
from pytest_devicelab.fixtures import Fleet
from pytest_devicelab.lab.session import Run
from pytest_devicelab.matrix.specs import ModelSpec


def test_the_device_is_the_chip_the_matrix_says(device: AdbDevice) -> None:
    assert device.spec.soc is not None
    assert device.identity().soc == device.spec.soc.name


def test_an_unchanged_file_is_pushed_once(device: AdbDevice, tmp_path: Path) -> None:
    file = tmp_path / "blob; $(reboot)"
    file.write_bytes(np.random.default_rng(7).bytes(300_001))
    first = deploy_file(device, file, file.name)
    pushed = device.pushed_bytes
    assert deploy_file(device, file, file.name) == first
    assert device.pushed_bytes == pushed >= 300_001
    device.pull(first, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    device.exec_out(["rm", "-f", first])


def test_toggled_properties_are_put_back(device: AdbDevice) -> None:
    before = device.getprop("debug.nn.vlog")
    with toggled(device, {"debug.nn.vlog": "compilation"}):
        assert device.getprop("debug.nn.vlog") == "compilation"
    assert device.getprop("debug.nn.vlog") == before


def test_a_blank_image_gives_the_same_finite_logits_as_in_a_batch(
    device: AdbDevice, model: ModelSpec, run_model: Callable[..., Run]
) -> None:
    blank = np.zeros((3, 1, 8, 8), np.float32)
    logits = run_model(model, {"image": blank}).outputs["logits"]
    assert logits.shape == (3, 10)
    assert np.isfinite(logits).all()
    assert (logits == logits[0]).all()


def test_no_chip_reads_a_digit_differently_from_the_others(fleet: Fleet, model: ModelSpec) -> None:
    read = {device: run.outputs["logits"].argmax(axis=1) for device, run in fleet.run(model).items()}
    votes = np.stack(list(read.values()))
    outvoted = (votes != votes[0]).any(axis=0)
    # Bits part between chips, and a near tie may tip: but never for more than one image in a hundred.
    assert outvoted.mean() <= 0.01
