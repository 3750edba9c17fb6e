from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from pytest_devicelab.audit.graph import parse_graph
from pytest_devicelab.errors import ModelError, UserError
from pytest_devicelab.matrix.specs import DeviceSpec, ModelSpec, Source
from pytest_devicelab.runtimes.registry import choose_runtime, find_runtime, runtime_of_file
from pytest_devicelab.runtimes.runtime import Job, Prepared
from pytest_devicelab.virtual.litert_model import load_litert

FIXTURES = Path(__file__).parents[2] / "fixtures"
LITERT = FIXTURES / "digits_cnn/int8.tflite"
PLACE = Source(file="m.yaml", line=1, column=1)
JOB = Job(model="/m", input_list="l", output_dir="/o", log_level="warn", backend="cpu")


def model(name: str, runtime: str) -> ModelSpec:
    return ModelSpec(id="m", path=Path(name), source=PLACE, runtime=runtime)


def test_a_device_overrules_only_models_whose_files_its_runtime_takes() -> None:
    device = DeviceSpec(id="d", kind="virtual", source=PLACE, runtime="ort")
    assert choose_runtime(device, model("a.onnx", "qnn")) == "ort"
    assert choose_runtime(device, model("a.tflite", "litert")) == "litert"


def test_a_file_is_run_on_the_host_by_the_runtime_that_takes_it() -> None:
    found = [runtime_of_file(Path(name)).name for name in ("a.onnx", "a.tflite", "a.pte", "a.other")]
    assert found == ["ort", "litert", "executorch", "ort"]


def test_an_unknown_runtime_lists_those_there_are() -> None:
    with pytest.raises(UserError, match="there are qnn, ort, litert, executorch"):
        find_runtime("tensorrt")


@pytest.mark.parametrize(("name", "package"), [("litert", "litert"), ("executorch", "executorch")])
def test_what_is_missing_is_said_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    def missing(module: str) -> None:
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=rf"pytest-devicelab\[{package}\]"):
        find_runtime(name).require()


def test_what_a_tflite_file_declares() -> None:
    assert dict(find_runtime("litert").declared_inputs(LITERT)) == {"image": ("float32", (1, 1, 8, 8))}


@pytest.mark.parametrize("content", [b"", b"no model", LITERT.read_bytes()[:5000]])
def test_a_damaged_tflite_file_is_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.tflite").write_bytes(content)
    with pytest.raises(ModelError, match="not a model LiteRT can run"):
        find_runtime("litert").declared_inputs(tmp_path / "bad.tflite")


@pytest.mark.parametrize(("axis", "fits"), [(0, True), (2, False)])
def test_only_the_batch_may_be_open(tmp_path: Path, axis: int, fits: bool) -> None:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as tfl

    opened = tfl.ModelT.InitFromObj(tfl.Model.GetRootAs(LITERT.read_bytes(), 0))
    image = opened.subgraphs[0].tensors[opened.subgraphs[0].inputs[0]]
    signature = np.array(image.shape, np.int32)
    signature[axis] = -1
    image.shapeSignature = signature
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(opened.Pack(builder), file_identifier=b"TFL3")
    (tmp_path / "open.tflite").write_bytes(bytes(builder.Output()))
    if fits:
        assert load_litert(tmp_path / "open.tflite", kernels="reference").inputs[0].shape == (1, 1, 8, 8)
    else:
        with pytest.raises(ModelError, match="leaves dimensions of its inputs open"):
            load_litert(tmp_path / "open.tflite", kernels="reference")


def test_the_fixture_is_what_its_script_makes(tmp_path: Path) -> None:
    import onnx

    spec = importlib.util.spec_from_file_location("build_tflite", FIXTURES / "build_tflite.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.digits_cnn(onnx.load(FIXTURES / "digits_cnn/int8.onnx")) == LITERT.read_bytes()


def test_only_onnx_models_are_taken_apart() -> None:
    with pytest.raises(ModelError, match="a model for LiteRT, and only ONNX models are taken apart"):
        parse_graph(LITERT.read_bytes())


@pytest.mark.parametrize("name", ["qnn", "ort", "litert", "executorch"])
def test_a_runner_of_the_matrix_is_the_one_that_runs(name: str) -> None:
    prepared = Prepared(file=Path("m"), outputs=(), options={})
    job = Job(**{field: getattr(JOB, field) for field in Job.__slots__} | {"program": "/data/my-runner"})
    assert "/data/my-runner" in " ".join(find_runtime(name).command(prepared, job)).split()


def test_executorch_gets_bare_paths_and_quotes_ours() -> None:
    shell, flag, text, program = find_runtime("executorch").command(
        Prepared(file=Path("m"), outputs=(), options={}),
        Job(model="/slots/a 'b'; c.pte", input_list="l", output_dir="/o p", log_level="warn", backend="cpu"),
    )
    assert (shell, flag, program) == ("sh", "-c", "qnn_executor_runner")
    assert "exec qnn_executor_runner '--model_path=/slots/a '\"'\"'b'\"'\"'; c.pte'" in text
    assert "sed 's/[^ ]*:=//g' l > '/o p/input_list.bare'" in text
