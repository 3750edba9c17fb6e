from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from pytest_devicelab.cli import main
from pytest_devicelab.commands import fingerprint
from pytest_devicelab.lab.finding import Finding


def test_names_in_a_model_do_not_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x\x1b[2J", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x\x1b[2J"], ["y"])], "g", info[:1], info[1:])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 4), np.float32))
    matrix = {
        "schema": "devicelab.matrix/1",
        "devices": [
            {"id": name, "kind": "virtual", "soc": "Tensor G4", "engine": "cpu", "runtime": "ort"}
            for name in ("a", "b")
        ],
        "models": [{"id": "m", "path": "m.onnx", "inputs": "x.npz", "runtime": "ort"}],
    }
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(matrix))
    assert main(["bisect", "m", "--devices=a,b", f"--matrix={tmp_path / 'm.yaml'}"]) == 4
    said = capsys.readouterr().err
    assert "cannot be written into an input list" in said
    assert "\x1b" not in said
    assert "x\\x1b[2J" in said


def test_the_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"devicelab {importlib.metadata.version('pytest-devicelab')}\n"


def test_a_matrix_that_is_not_there_names_no_option_of_another_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["matrix", str(tmp_path / "nope.yaml")]) == 4
    said = capsys.readouterr().err
    assert "nope.yaml cannot be read" in said
    assert "--devices" not in said
    assert "fix: check its name" in said


def test_what_devices_say_does_not_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "adb says \x1b]0;pwned\x07\x1b[2J\u202e\nand more"

    def found(**_: object) -> list[Finding]:
        return [Finding(grade="warn", name="phones", text=hostile, fix=hostile)]

    monkeypatch.setattr("pytest_devicelab.lab.checkup.check_up", found)
    assert main(["doctor"]) == 0
    fingerprint._say(hostile)
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert "adb says \\x1b]0;pwned\\x07\\x1b[2J\\u202e\n" in text
        assert "and more" in text
        assert all(char.isprintable() or char == "\n" for char in text)


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pytest_devicelab.lab.checkup.check_up", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "devicelab: interrupted\n"
