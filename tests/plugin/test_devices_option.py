"""`--devices`: whatever is wrong with what it names is said once, before anything is started."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.plugin.projects import Project, cpu, npu, one_message


@pytest.fixture(autouse=True)
def _nothing_written(project: Project) -> None:
    project.write(cpu("one"))


def _refused(project: Project, *arguments: str) -> str:
    """Run pytest and return its message; nothing was begun that could be half written."""
    message = one_message(project.run_inprocess(*arguments))
    assert not (project.path / "reports").exists()
    return message


def test_missing_matrix(project: Project) -> None:
    (project.path / "m.yaml").unlink()
    message = _refused(project)
    assert "m.yaml" in message
    assert "fix:" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "m.yaml:1:1"),
        ("devices: [", "m.yaml:1:"),
        ("\x00\xff", "m.yaml"),
        ("just words", "m.yaml:1:1"),
    ],
    ids=["empty", "broken", "binary", "words"],
)
def test_a_file_that_is_no_matrix(project: Project, text: str, said: str) -> None:
    (project.path / "m.yaml").write_text(text, encoding="latin-1")
    assert said in _refused(project)


def test_a_folder_and_an_empty_name_are_no_matrix(project: Project) -> None:
    (project.path / "m.yaml").unlink()
    (project.path / "m.yaml").mkdir()
    assert "m.yaml" in _refused(project)
    # An unset variable in `--devices=$MATRIX` must not make a session without devices, and green.
    one_message(project.pytester.runpytest_inprocess("--devices="))


def test_every_mistake_is_listed_at_once(project: Project) -> None:
    project.write_matrix(
        [{"id": "a", "kind": "virtuel", "soc": "SM8650"}, {"id": "b", "kind": "virtual", "soc": "SM8560"}],
        [{"id": "m", "path": "model.onnx", "runtime": "ort", "sampels": 3}],
    )
    message = _refused(project)
    assert "did you mean 'virtual'" in message
    assert "unknown soc 'SM8560'" in message
    assert "did you mean SM8" in message
    assert "did you mean 'samples'" in message
    assert message.count("m.yaml:") >= 3


def test_no_devices(project: Project) -> None:
    project.write_matrix([], [{"id": "m", "path": "model.onnx", "runtime": "ort"}])
    assert "devices" in _refused(project)


@pytest.mark.parametrize("key", ["path", "reference", "inputs", "labels"])
def test_missing_file(project: Project, key: str) -> None:
    project.model = {key: "nowhere.bin"}
    project.write(cpu("one"))
    message = _refused(project)
    assert "nowhere.bin" in message
    assert "m.yaml:" in message


@pytest.mark.parametrize("key", ["path", "reference"])
@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"A text that is no model.\n",
        lambda content: content[: len(content) // 2],
        lambda content: b"",
    ],
    ids=["text", "truncated", "empty"],
)
def test_a_model_that_is_not_onnx(project: Project, key: str, change: Callable[[bytes], bytes]) -> None:
    (project.path / "broken.onnx").write_bytes(change((project.path / "model.onnx").read_bytes()))
    project.model = {key: "broken.onnx"}
    project.write(cpu("one"))
    message = _refused(project)
    assert "broken.onnx: not an ONNX model" in message
    assert "why:" in message
    assert "fix: name an .onnx file" in message


def _pickled(path: Path) -> None:
    np.savez(path, x=np.array([{"a": 1}, None], dtype=object))


@pytest.mark.parametrize(
    ("save", "said"),
    [
        (_pickled, "inputs cannot be read"),
        (lambda path: np.savez(path, z=np.zeros((12, 4), np.float32)), "these are not the inputs of"),
        (lambda path: np.savez(path, x=np.zeros((12, 5), np.float32)), "these are not the inputs of"),
        (lambda path: np.savez(path, x=np.zeros((0, 4), np.float32)), "hold no samples"),
        (lambda path: path.write_text("no archive"), "inputs cannot be read"),
        (lambda path: path.write_bytes(b""), "inputs cannot be read"),
    ],
    ids=["pickled", "other name", "other shape", "no samples", "text", "empty"],
)
def test_inputs_that_do_not_fit(project: Project, save: Callable[[Path], object], said: str) -> None:
    save(project.path / "inputs.npz")
    message = _refused(project)
    assert said in message
    assert "inputs.npz" in message
    assert "fix: " in message


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.zeros(3, np.int64), "fewer labels than samples"),
        (np.zeros(12, np.float32), "labels are not [N] integers"),
        (np.array([{}, None], dtype=object), "labels cannot be read"),
    ],
    ids=["too few", "floats", "pickled"],
)
def test_labels_that_do_not_fit(project: Project, labels: npt.NDArray[np.generic], said: str) -> None:
    np.save(project.path / "labels.npy", labels, allow_pickle=True)
    message = _refused(project)
    assert said in message
    assert "labels.npy" in message
    assert "fix: " in message


def test_several_problems_of_several_files(project: Project) -> None:
    np.save(project.path / "labels.npy", np.zeros(3, np.int64))
    (project.path / "float.onnx").write_text("no model")
    usual = {"path": "model.onnx", "inputs": "inputs.npz", "runtime": "ort"}
    project.write_matrix(
        [cpu("one")],
        [{"id": "a", "reference": "float.onnx", **usual}, {"id": "b", "labels": "labels.npy", **usual}],
    )
    message = _refused(project)
    assert "2 problems" in message
    assert "float.onnx: not an ONNX model" in message
    assert "fewer labels than samples" in message


def test_adb_is_missing(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICELAB_ADB", "/nowhere/adb")
    message = _refused(project)
    assert "adb was not found at /nowhere/adb" in message
    assert "why: $DEVICELAB_ADB names no file" in message
    assert "fix: " in message


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'Android Debug Bridge version 1.0.39'; echo 'Version 27.0.1-eng'", "is too old"),
        ("echo hello", "is not adb"),
        ("exit 1", "is not adb"),
    ],
)
def test_adb_is_too_old_or_something_else(
    project: Project, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    stub = project.path / "adb"
    stub.write_text(f"#!/bin/sh\n{script}\n")
    stub.chmod(0o755)
    monkeypatch.setenv("DEVICELAB_ADB", str(stub))
    message = _refused(project)
    assert said in message
    assert str(stub) in message
    assert "fix: " in message


def test_the_simulator_is_not_installed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)  # as if there were none
    project.write({"id": "phone", "kind": "virtual", "soc": "SM8650"}, cpu("one"))
    message = _refused(project)
    assert "not installed: onnxruntime-qnn" in message
    assert "the HTP simulator of phone" in message
    assert "pip install 'pytest-devicelab[virtual]'" in message
    assert "engine: cpu" in message


def test_onnx_runtime_is_not_installed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "not installed: onnxruntime" in _refused(project)


def test_an_engine_that_is_not_there(project: Project) -> None:
    project.write(npu("phone", "nothing_of_that_name"))
    message = _refused(project)
    assert "tests.plugin.engines:nothing_of_that_name" in message
    assert "fix: " in message


def test_a_cloud_without_settings(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(project.path / "none.ini"))
    project.write({"id": "hub", "kind": "aihub", "name": "Samsung Galaxy S25"})
    message = _refused(project)
    assert "none.ini does not say how to reach Qualcomm AI Hub" in message
    assert "fix: " in message


def test_a_folder_for_reports_that_cannot_be_made(project: Project) -> None:
    (project.path / "blocked").write_text("a file")
    message = _refused(project, "--devicelab-reports=blocked/reports")
    assert "cannot be made" in message
    assert "fix: " in message


def test_help_names_the_options(pytester: pytest.Pytester) -> None:
    pytester.runpytest_inprocess("--help").stdout.fnmatch_lines(
        ["*--devices=MATRIX.yaml*", "*--devicelab-select=EXPR*", "*--devicelab-reports=DIR*"]
    )
