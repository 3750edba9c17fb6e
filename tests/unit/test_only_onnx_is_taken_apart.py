"""Commands that take a model apart, or read files, on a model of another runtime: refused before a lab is up."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pytest_devicelab.aihub.quantize import quantize
from pytest_devicelab.cli import main
from pytest_devicelab.errors import ModelError

FIXTURES = Path(__file__).parents[2] / "fixtures"
MODELS = {"LiteRT": "digits_cnn/int8.tflite", "ExecuTorch": "digits_cnn/float.pte"}


@pytest.fixture(params=MODELS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(tmp_path: Path, kind: str) -> Path:
    return Path(shutil.copy(FIXTURES / MODELS[kind], tmp_path))


@pytest.mark.parametrize("command", ["bisect", "sensitivity", "repro"])
def test_experiments_refuse_what_is_no_onnx_model(
    tmp_path: Path,
    model: Path,
    kind: str,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    np.savez(tmp_path / "in.npz", image=np.zeros((2, 1, 8, 8), np.float32))
    devices = [{"id": name, "kind": "virtual", "soc": "SM8650"} for name in ("a", "b")]
    entry = {"id": "m", "path": model.name, "inputs": "in.npz"}
    matrix = tmp_path / "m.yaml"
    matrix.write_text(yaml.safe_dump({"schema": "devicelab.matrix/1", "devices": devices, "models": [entry]}))

    def never(*_: Any, **__: Any) -> None:
        pytest.fail("a lab was brought up")

    monkeypatch.setattr("pytest_devicelab.lab.open.open_session", never)
    # What is missing on this machine is not the question here.
    monkeypatch.setattr("pytest_devicelab.lab.preflight.check_lab", lambda *_: None)
    out = [f"--out={tmp_path / 'o.zip'}"] if command == "repro" else []
    assert main([command, "m", "--devices=a,b", f"--matrix={matrix}", *out]) == 4
    said = capsys.readouterr().err
    assert f"{model} is a model for {kind}, and only ONNX models are taken apart" in said
    assert "give the ONNX model it was made from" in said


def test_diff_names_the_tensor_files_it_takes(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(model), str(model)]) == 2
    assert "its name does not end as a tensor file's: .npy, .npz" in capsys.readouterr().err


def test_a_model_is_no_fingerprint(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fingerprint", "--diff", str(model), str(model)]) == 4
    said = capsys.readouterr().err
    assert str(model) in said
    assert "Traceback" not in said


def test_quantize_takes_onnx_models(tmp_path: Path, model: Path) -> None:
    edge: Any = None  # never asked
    with pytest.raises(ModelError, match="AI Hub quantizes ONNX models"):
        quantize(edge, model, {}, tmp_path / "o.onnx", cache=tmp_path, timeout_s=1, say=print)
