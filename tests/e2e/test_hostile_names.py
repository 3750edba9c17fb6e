"""Hostile names, over the real adb: they work or are refused, no shell carries them out, nothing leaves its folder."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.slots import DEVICE_ROOT
from pytest_devicelab.evidence.record import ModelIdentity, RunRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.attempts import run_on_device
from pytest_devicelab.lab.request import RunRequest
from pytest_devicelab.matrix.specs import log_profile
from pytest_devicelab.runtimes.inputs import load_inputs
from pytest_devicelab.runtimes.registry import find_runtime
from tests.e2e.hostile_models import FILE_NAMES, FIXTURES, INPUT, OUTPUT, rename_bytes, rename_onnx
from tests.e2e.stub_sdk import build_sdk
from tests.e2e.virtual_lab import VirtualLab

IMAGES = load_inputs(FIXTURES / "digits_eval.npz", samples=2)["image"]


@pytest.fixture(autouse=True)
def _nothing_happens_elsewhere(
    virtual_lab: VirtualLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """What a shell carried out would leave a file called `pwned`, here or on the device; what left its folder, any."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    root = virtual_lab.root("s24")
    before = _outside(root)
    yield
    assert list(here.iterdir()) == []
    assert _outside(root) == before
    assert not [
        path for path in (*root.rglob("*pwned*"), *tmp_path.rglob("*pwned*")) if "touch" not in path.name
    ]


def _outside(root: Path) -> set[Path]:
    """The files of the device where no run has any business."""
    ours = root / DEVICE_ROOT.removeprefix("/")
    watched = [root / "data", root / "system", root / "sdcard"]
    return {path for folder in watched for path in folder.rglob("*") if not path.is_relative_to(ours)}


def carry_out(
    lab: VirtualLab, tmp_path: Path, path: Path, runtime: str, inputs: Mapping[str, Any], **facts: Any
) -> tuple[RunRecord, SessionStore]:
    request = RunRequest(
        id=f"hostile.{runtime}",
        model=ModelIdentity(
            id="hostile", variant="$(touch pwned)", sha256=hashlib.sha256(path.read_bytes()).hexdigest()
        ),
        path=path,
        runtime=runtime,
        options={"offload_graph_io_quantization": "0"} if path.suffix == ".onnx" else {},
        inputs=inputs,
        purpose="evaluate",
        logging=log_profile("verbose"),
        timeout_s=60,
        qairt_sdk=facts.pop("sdk", None),
    )
    store = SessionStore.create(tmp_path / "reports", f"s{len(list(tmp_path.glob('reports/s*')))}")
    device = AdbDevice(replace(lab.specs["s24"], **facts), lab.transport("s24"))
    return run_on_device(device, request, store, cache=tmp_path / "cache"), store


@pytest.mark.parametrize(("runtime", "number"), [("qnn", 0), ("ort", 1)])
def test_an_onnx_model_under_hostile_names(
    virtual_lab: VirtualLab, tmp_path: Path, runtime: str, number: int
) -> None:
    source = FIXTURES / "digits_cnn/int8.onnx"
    path = rename_onnx(source, tmp_path / f"{FILE_NAMES[number]}.onnx")
    assert set(find_runtime(runtime).declared_inputs(path)) == {INPUT}
    record, store = carry_out(virtual_lab, tmp_path, path, runtime, {INPUT: IMAGES})
    assert record.status == "ok", record.error
    (output,) = record.outputs
    assert output.name == OUTPUT
    plain, _ = carry_out(virtual_lab, tmp_path, source, runtime, {"image": IMAGES})
    assert output.sha256 == plain.outputs[0].sha256
    assert store.read_record(record.id) == record


def test_a_tflite_model_under_hostile_names(virtual_lab: VirtualLab, tmp_path: Path) -> None:
    names = {b"image": b"`id`;", b"logits": b"../\n'\x1b"}
    path = rename_bytes(FIXTURES / "digits_cnn/int8.tflite", tmp_path / f"{FILE_NAMES[2]}.tflite", names)
    assert set(find_runtime("litert").declared_inputs(path)) == {"`id`;"}
    record, _ = carry_out(virtual_lab, tmp_path, path, "litert", {"`id`;": IMAGES})
    assert record.status == "ok", record.error
    assert [output.name for output in record.outputs] == ["../\n'\x1b"]


def test_a_phone_with_the_sdk_under_hostile_names(virtual_lab: VirtualLab, tmp_path: Path) -> None:
    path = rename_onnx(FIXTURES / "digits_cnn/int8.onnx", tmp_path / f"{FILE_NAMES[0]}.onnx")
    sdk = build_sdk(tmp_path / FILE_NAMES[2])
    transcript = virtual_lab.root("s24") / "data/local/tmp/stub-transcript"
    facts = {"kind": "adb", "serial": virtual_lab.serial("s24"), "sdk": sdk}
    record, _ = carry_out(virtual_lab, tmp_path, path, "qnn", {INPUT: IMAGES}, **facts)
    assert record.status == "ok", record.error
    transcript.unlink()
    assert record.versions["qairt_sdk"] == "2.99.0.271120"
    assert [output.name for output in record.outputs] == [OUTPUT]


def test_a_program_under_a_hostile_name(virtual_lab: VirtualLab, tmp_path: Path) -> None:
    path = tmp_path / f"{FILE_NAMES[0]}.pte"
    shutil.copy(FIXTURES / "pte/qnn_sm8650_inline.pte", path)
    runner = virtual_lab.root("s24") / "data/local/tmp/executor"
    runner.write_text(
        '#!/bin/sh\nfor word in "$@"; do case $word in --output_folder_path=*) cd "${word#*=}" ;; esac; done\n'
        "for n in 0 1; do head -c 40 /dev/zero > output_${n}_0.raw; done\n"
    )
    runner.chmod(0o755)
    facts = {
        "kind": "adb",
        "serial": virtual_lab.serial("s24"),
        "runners": {"executorch": "/data/local/tmp/executor"},
    }
    record, _ = carry_out(
        virtual_lab, tmp_path, path, "executorch", {"input_0": np.zeros((2, 1, 8, 8), np.float32)}, **facts
    )
    runner.unlink()
    assert record.status == "ok", record.error
