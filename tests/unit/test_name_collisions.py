"""Two things with one name, or with names that become one: each keeps its own evidence, or is refused before a push."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pytest_devicelab.devices.slots import sha256_file
from pytest_devicelab.errors import InfrastructureError, ModelError
from pytest_devicelab.lab.request import RunRequest, make_request
from pytest_devicelab.matrix.specs import DeviceSpec, LabSpec, MatrixSpec, ModelSpec, Source
from pytest_devicelab.runtimes.kit import Kit
from pytest_devicelab.runtimes.names import file_problem
from pytest_devicelab.runtimes.registry import find_runtime
from pytest_devicelab.virtual.context_binary import TensorInfo
from pytest_devicelab.virtual.tools.raw_files import file_name, read_input_list, told_files

PLACE = Source(file="m.yaml", line=1, column=1)


def write_model(path: Path, *, inputs: tuple[str, ...] = ("x",), outputs: tuple[str, ...] = ("y",)) -> Path:
    """A model that hands its first input out under each name."""
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in (*inputs, *outputs)
    }
    graph = helper.make_graph(
        [helper.make_node("Identity", [inputs[0]], [name], name=f"n{i}") for i, name in enumerate(outputs)],
        "graph",
        [values[name] for name in inputs],
        [values[name] for name in outputs],
    )
    path.parent.mkdir(exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def request(model_id: str, device_id: str, path: Path) -> RunRequest:
    model = ModelSpec(id=model_id, path=path, source=PLACE)
    spec = DeviceSpec(id=device_id, kind="virtual", source=PLACE)
    matrix = MatrixSpec(path=Path("m.yaml"), lab=LabSpec(), devices=(spec,), models=(model,))
    return make_request(matrix, spec, model, {"x": np.zeros((1, 2), np.float32)}, "evaluate", path)


def test_a_dot_in_an_id_never_makes_two_runs_one(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx")
    # All of these begin with `a.b.c.evaluate`, and run the same file on the same inputs.
    ids = {request(model, device, path).id for model, device in [("a.b", "c"), ("a", "b.c")]}
    assert len(ids) == 2
    assert request("a", "b", path).id == request("a", "b", path).id


def test_files_of_one_name_are_told_apart_by_content(tmp_path: Path) -> None:
    first = write_model(tmp_path / "first/model.onnx")
    second = write_model(tmp_path / "second/model.onnx", outputs=("z",))
    assert sha256_file(first) != sha256_file(second)  # what slots, caches and AI Hub's uploads go by
    assert request("m", "d", first).id != request("m", "d", second).id


@pytest.mark.parametrize("outputs", [("a/b", "a:b"), ("ü", "ö"), ("a b", "a_b"), ("1", "_1")])
def test_outputs_that_qnn_net_run_would_write_into_one_file(tmp_path: Path, outputs: tuple[str, str]) -> None:
    assert file_name(outputs[0]) == file_name(outputs[1])
    path = write_model(tmp_path / "m.onnx", outputs=outputs)
    with pytest.raises(ModelError, match="would share a file") as caught:
        find_runtime("qnn").declared_inputs(path)
    assert "runtime: ort" in caught.value.fix
    # ort-run and litert-run say which file is which, so they are free to number them.
    assert set(find_runtime("ort").declared_inputs(path)) == {"x"}
    assert told_files(outputs) == {outputs[0]: "output.0.raw", outputs[1]: "output.1.raw"}


def test_an_output_whose_name_no_file_can_have(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", outputs=("y" * 300, "z"))
    with pytest.raises(ModelError, match="no file can have the name of output 'yyy"):
        find_runtime("qnn").declared_inputs(path)
    assert file_problem(["y" * 244]) == ""
    assert "first NUL character" in file_problem(["a\0b"])
    assert told_files(["y" * 300, "z"]) == {"y" * 300: "output.0.raw", "z": "z.raw"}


def test_names_that_differ_in_case_or_in_form_alone_are_two() -> None:
    assert told_files(["Logits", "logits"]) == {"Logits": "Logits.raw", "logits": "logits.raw"}
    # One é as one character and as two: equal to a reader, and never to a file system of Android's.
    assert len(set(told_files(["\u00e9", "e\u0301"]).values())) == 2


def test_an_input_named_as_another_is_spelled_keeps_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEVICELAB_VDEVICE", str(tmp_path))
    inputs = tuple(TensorInfo(name=name, dtype="float32", shape=(1,)) for name in ("a_b", "a/b"))
    (tmp_path / "list").write_text("a_b:=0.raw a/b:=1.raw\n")
    (sample,) = read_input_list(tmp_path / "list", inputs, ["y"]).samples
    assert {name: path.name for name, path in sample.items()} == {"a_b": "0.raw", "a/b": "1.raw"}


@pytest.mark.parametrize(
    "name", ["#x", "%x", "a,b", "a:b", "a\u202eb", "a\x1b[2Jb", "a\u2028b", "a\u00a0b", "a\0b"]
)
def test_an_input_that_no_list_or_command_line_can_name(tmp_path: Path, name: str) -> None:
    path = write_model(tmp_path / "m.onnx", inputs=(name,))
    for runtime in ("qnn", "ort"):
        with pytest.raises(ModelError, match="cannot be written into an input list") as caught:
            find_runtime(runtime).declared_inputs(path)
        assert name not in str(caught.value) or name.isprintable()


def test_files_of_a_kit_lie_side_by_side_in_its_folder(tmp_path: Path) -> None:
    whole = Kit(program="run", files={"run": tmp_path / "run"}, texts={"run.json": "{}"})
    assert replace(whole, texts={}).texts == {}
    for texts in (
        {"run": "{}"},
        {"../x": ""},
        {"/data/x": ""},
        {"-rf": ""},
        {"a\nb": ""},
        {"..": ""},
        {"": ""},
    ):
        with pytest.raises(InfrastructureError, match="cannot lie in one folder"):
            replace(whole, texts=texts)
    with pytest.raises(InfrastructureError, match="cannot lie in one folder"):
        replace(whole, files={"a b;reboot": tmp_path / "run"})
