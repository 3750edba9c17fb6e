from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pytest_devicelab.errors import ModelError, UserError
from pytest_devicelab.lab.preflight import check_inputs, check_lab
from pytest_devicelab.lab.services import namespace_wanted
from pytest_devicelab.matrix.soc import find_soc
from pytest_devicelab.matrix.specs import DeviceSpec, LabSpec, MatrixSpec, ModelSpec, Source

FIXTURES = Path(__file__).parents[2] / "fixtures"
PLACE = Source(file="matrix.yaml", line=3, column=5)


def device(device_id: str = "s24", **facts: Any) -> DeviceSpec:
    return DeviceSpec(
        **{"id": device_id, "kind": "virtual", "source": PLACE, "soc": find_soc("SM8650")[0], **facts}
    )


def write_model(path: Path, *, name: str = "x", dtype: int = TensorProto.FLOAT, shape: Any = (1, 4)) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], ["y"])],
        "graph",
        [helper.make_tensor_value_info(name, dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, shape)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> ModelSpec:
    np.savez(tmp_path / "in.npz", x=np.zeros((3, 4), np.float32))
    np.save(tmp_path / "labels.npy", np.zeros(3, np.int64))
    return ModelSpec(
        id="tiny",
        path=write_model(tmp_path / "tiny.onnx"),
        reference=write_model(tmp_path / "float.onnx"),
        source=PLACE,
        inputs=tmp_path / "in.npz",
        labels=tmp_path / "labels.npy",
    )


def matrix(*models: ModelSpec) -> MatrixSpec:
    return MatrixSpec(path=Path("matrix.yaml"), lab=LabSpec(), devices=(), models=models)


def problems(*models: ModelSpec, devices: tuple[DeviceSpec, ...] = (device(),)) -> list[UserError]:
    with pytest.raises(UserError) as caught:
        check_lab(matrix(*models), devices)
    found: list[UserError] = list(caught.value.evidence.get("problems", [caught.value]))
    assert all(str(problem) in str(caught.value) for problem in found)
    assert all(problem.fix for problem in found)
    return found


def test_a_lab_in_order_passes(model: ModelSpec) -> None:
    check_lab(matrix(model), (device(),))
    check_lab(matrix(replace(model, labels=None, reference=None, samples=2)), (device(),))


def test_every_problem_is_found_at_once(
    model: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEVICELAB_ADB", str(tmp_path / "no-adb"))
    monkeypatch.setenv("DEVICELAB_NAMESPACE", "sometimes")
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(tmp_path / "no.ini"))
    whole = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.startswith("onnxruntime") else whole(name)
    )
    (tmp_path / "bad.onnx").write_text("this is no model")
    (tmp_path / "bad.npz").write_text("these are no inputs")
    (tmp_path / "bad.npy").write_text("these are no labels")
    broken = ModelSpec(
        id="broken",
        source=PLACE,
        path=tmp_path / "bad.onnx",
        reference=tmp_path / "missing.onnx",
        inputs=tmp_path / "bad.npz",
        labels=tmp_path / "bad.npy",
    )
    found = problems(
        broken,
        model,
        replace(model, id="without", inputs=None),
        devices=(
            device(),
            device("hub", kind="aihub"),
            device("mine", engine="no_such_package:engine"),
        ),
    )
    said = "\n".join(str(problem) for problem in found)
    assert len(found) == 10
    for part in (
        "adb was not found",
        "$DEVICELAB_NAMESPACE is 'sometimes'",
        "no.ini does not say how to reach Qualcomm AI Hub",
        "not installed: onnxruntime, onnxruntime-qnn",
        "engine 'no_such_package:engine' cannot be imported",
        "bad.onnx: not an ONNX model (model broken, matrix.yaml:3:5)",
        "missing.onnx: not an ONNX model",
        "bad.npz: inputs cannot be read",
        "bad.npy: labels cannot be read",
        "model without has no inputs",
    ):
        assert part in said


@pytest.mark.parametrize("content", [b"", b"\x08", b"\x00" * 100, b"PK\x03\x04"])
def test_what_is_no_model(model: ModelSpec, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.onnx").write_bytes(content)
    (problem,) = problems(replace(model, path=tmp_path / "odd.onnx"))
    assert isinstance(problem, ModelError)
    assert "odd.onnx: not an ONNX model" in str(problem)


def test_a_model_that_was_cut_short(model: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes(model.path.read_bytes()[:-20])
    (problem,) = problems(replace(model, path=tmp_path / "cut.onnx"))
    assert "cut.onnx" in str(problem)


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({"name": "other"}, "declares other: float32 [1, 4]; one sample here has x: float32 [1, 4]"),
        ({"shape": (1, 5)}, "declares x: float32 [1, 5]; one sample here has x: float32 [1, 4]"),
        ({"shape": (1, 4, 1)}, "declares x: float32 [1, 4, 1]"),
        ({"shape": (2, 4)}, "declares x: float32 [2, 4]"),
        (
            {"dtype": TensorProto.INT64},
            "declares x: int64 [1, 4]; one sample here has x: float32 [1, 4]",
        ),
    ],
)
def test_inputs_of_another_model(
    model: ModelSpec, tmp_path: Path, declared: dict[str, Any], says: str
) -> None:
    other = write_model(tmp_path / "other.onnx", **declared)
    (problem,) = problems(replace(model, path=other, reference=None))
    assert "these are not the inputs of other.onnx (model tiny, matrix.yaml:3:5)" in problem.what
    assert says in problem.why


def test_a_reference_of_another_shape(model: ModelSpec, tmp_path: Path) -> None:
    (problem,) = problems(replace(model, reference=write_model(tmp_path / "wide.onnx", shape=(1, 9))))
    assert "not the inputs of wide.onnx" in problem.what


def test_an_open_batch_is_one_where_onnx_runtime_runs_it(model: ModelSpec, tmp_path: Path) -> None:
    other = write_model(tmp_path / "open.onnx", shape=("batch", 4))
    check_lab(matrix(replace(model, path=other, runtime="ort")), (device(),))
    # The float model runs on this host, which takes any shape.
    check_lab(
        matrix(replace(model, reference=write_model(tmp_path / "any.onnx", shape=("n", "m")))), (device(),)
    )


@pytest.mark.parametrize(
    ("runtime", "shape", "said"),
    [
        ("qnn", ("batch", 4), r"x \[\?, 4\]: QNN compiles fixed shapes"),
        ("qnn", (1, "n"), r"x \[1, \?\]: QNN compiles fixed shapes"),
        ("ort", (1, "n"), r"x: float32 \[1, \?\]: only the first, the batch, may be open"),
    ],
)
@pytest.mark.parametrize("kind", ["virtual", "adb", "aihub"])
def test_open_shapes_are_refused_before_anything_is_started(
    model: ModelSpec,
    tmp_path: Path,
    runtime: str,
    shape: Any,
    said: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pytest_devicelab.lab.preflight.refuse_unsupported", lambda devices: None)
    other = replace(model, path=write_model(tmp_path / "open.onnx", shape=shape), runtime=runtime)
    (problem,) = problems(other, devices=(device(kind=kind),))
    assert problem.what.startswith(f"{other.path}: the model leaves dimensions of its inputs open")
    assert re.search(said, problem.why)
    assert "make_dynamic_shape_fixed" in problem.fix


@pytest.mark.parametrize("name", ["a b", "a:=b", "a\nb"])
def test_an_input_name_that_no_input_list_can_hold(model: ModelSpec, tmp_path: Path, name: str) -> None:
    (problem,) = problems(replace(model, path=write_model(tmp_path / "odd.onnx", name=name), reference=None))
    assert "cannot be written into an input list" in problem.what


def test_labels(model: ModelSpec, tmp_path: Path) -> None:
    for labels, says in (
        (np.zeros(2, np.int64), "fewer labels than samples\n  why: 2 labels for 3 samples"),
        (np.zeros(3, np.float32), "labels are not [N] integers\n  why: found float32 (3,)"),
        (np.zeros((3, 1), np.int64), "labels are not [N] integers"),
        (np.array([{}] * 3, dtype=object), "labels cannot be read"),
    ):
        np.save(tmp_path / "odd.npy", labels, allow_pickle=True)
        (problem,) = problems(replace(model, labels=tmp_path / "odd.npy"))
        assert says in str(problem)


def test_the_simulator_is_needed_only_where_the_matrix_asks_for_it(
    model: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime_qnn" else whole(name)
    )
    (problem,) = problems(model)
    assert "the HTP simulator of s24" in problem.why
    assert "pip install 'pytest-devicelab[virtual]'" in problem.fix
    check_lab(matrix(model), (device(engine="cpu", runtime="ort"),))


_EXTRAS = ("onnxruntime", "onnxruntime_qnn", "ai_edge_litert", "executorch", "qai_hub", "ray", "ppadb")
"""The first package of each optional extra that a matrix can need."""


@pytest.mark.parametrize(
    ("facts", "runtime", "extras"),
    [
        ({}, "qnn", {"virtual"}),
        ({}, "ort", {"virtual"}),
        ({}, "litert", {"litert"}),
        ({}, "executorch", {"executorch"}),
        ({"engine": "cpu"}, "ort", {"virtual"}),
        ({"kind": "adb"}, "qnn", {"virtual"}),
        ({"kind": "adb"}, "litert", {"litert"}),
        ({"kind": "adb", "transport": "ppadb"}, "executorch", {"executorch", "ppadb"}),
        ({"kind": "aihub"}, "qnn", {"virtual", "aihub"}),
        ({"kind": "cluster"}, "qnn", {"virtual", "cluster"}),
    ],
)
def test_each_optional_extra_that_is_missing_is_named(
    model: ModelSpec, monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], runtime: str, extras: set[str]
) -> None:
    for name in (*_EXTRAS, "ai_edge_litert.interpreter", "executorch.runtime"):
        monkeypatch.setitem(sys.modules, name, None)
    # What another test has imported already would hide that ppadb is missing.
    for name in [
        name for name in sys.modules if name.startswith("ppadb.") or name.endswith(".ppadb_transport")
    ]:
        monkeypatch.delitem(sys.modules, name)
    endings = {"litert": "digits_cnn/int8.tflite", "executorch": "digits_cnn/float.pte"}
    path = FIXTURES / endings[runtime] if runtime in endings else model.path
    bare = replace(model, path=path, runtime=runtime, reference=None, labels=None)
    found = problems(bare, devices=(device(**facts),))
    assert set(re.findall(r"pytest-devicelab\[(.+?)\]", "".join(problem.fix for problem in found))) == extras


def test_what_compiles_elsewhere_needs_no_compiler_here(
    model: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_devicelab.lab.preflight.refuse_unsupported", lambda devices: None)
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)
    check_lab(matrix(model), (device(kind="aihub"), device("other", kind="cluster")))
    (problem,) = problems(model, devices=(device("hub", kind="aihub", compiler="ours"),))
    assert "compiling context binaries for hub" in problem.why


def test_how_namespaces_are_asked_for() -> None:
    assert namespace_wanted({}) is None
    assert namespace_wanted({"DEVICELAB_NAMESPACE": ""}) is None
    assert namespace_wanted({"DEVICELAB_NAMESPACE": "auto"}) is None
    assert namespace_wanted({"DEVICELAB_NAMESPACE": "require"}) is True
    assert namespace_wanted({"DEVICELAB_NAMESPACE": "never"}) is False
    with pytest.raises(UserError, match="it takes auto, require, never"):
        namespace_wanted({"DEVICELAB_NAMESPACE": "yes"})


def test_labels_of_other_inputs_are_refused(model: ModelSpec, tmp_path: Path) -> None:
    np.save(tmp_path / "many.npy", np.zeros(7, np.int64))
    (problem,) = problems(replace(model, labels=tmp_path / "many.npy"))
    assert "more labels than samples" in problem.what
    check_lab(matrix(replace(model, labels=tmp_path / "many.npy", samples=2)), (device(),))


def test_more_samples_than_there_are_is_a_mistake(model: ModelSpec) -> None:
    (problem,) = problems(replace(model, samples=4))
    assert problem.why == "`samples: 4`, and the file holds 3"


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"x": [[0.0] * 4]},
        {"x": np.float32(0)},
        {"x": np.zeros((2, 5), np.float32)},
        {"x": np.zeros((2, 2, 2), np.float32)},
        {"x": np.zeros((2, 4), np.float64)},
        {"x": np.zeros((2, 4), np.float32), "y": np.zeros((2, 4), np.float32)},
    ],
)
def test_inputs_given_in_code_are_held_against_the_model(model: ModelSpec, inputs: Any) -> None:
    with pytest.raises(ModelError):
        check_inputs(model, inputs)


def test_inputs_given_in_code_that_fit_pass(model: ModelSpec) -> None:
    check_inputs(model, {"x": np.zeros((2, 4), np.float32)})
