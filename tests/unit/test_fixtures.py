from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

FIXTURES = Path(__file__).parents[2] / "fixtures"
# Right answers out of the 540 evaluation images, on the CPU, as docs/reference/fixtures.md states them.
CORRECT = {
    "digits_cnn/float.onnx": 537,
    "digits_cnn/int8.onnx": 537,
    "digits_cnn/int8_bn.onnx": 537,
    "digits_cnn/a16w8.onnx": 537,
    "digits_transformer/float.onnx": 531,
    "digits_transformer/int8.onnx": 531,
    "digits_channelnorm/float.onnx": 534,
    "digits_channelnorm/int8.onnx": 534,
}


def load_build() -> Any:
    pytest.importorskip("onnxruntime.quantization")
    spec = importlib.util.spec_from_file_location("fixtures_build", FIXTURES / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def eval_images() -> npt.NDArray[np.float32]:
    with np.load(FIXTURES / "digits_eval.npz", allow_pickle=False) as file:
        images: npt.NDArray[np.float32] = file["image"]
    return images


def cpu_runner(model: bytes) -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])


def shape(value: onnx.ValueInfoProto) -> tuple[str, int, list[int]]:
    tensor = value.type.tensor_type
    return value.name, tensor.elem_type, [dim.dim_value for dim in tensor.shape.dim]


def test_evaluation_data_is_540_images_of_sixteenths_with_labels() -> None:
    images, labels = eval_images(), np.load(FIXTURES / "digits_labels.npy", allow_pickle=False)
    assert (images.shape, images.dtype) == ((540, 1, 8, 8), np.dtype(np.float32))
    assert (labels.shape, labels.dtype) == ((540,), np.dtype(np.int64))
    assert set(np.unique(labels)) == set(range(10))
    assert set(np.unique(images * 16)) == set(range(17))


def test_calibration_images_are_not_evaluation_images() -> None:
    with np.load(FIXTURES / "digits_calibration.npz", allow_pickle=False) as file:
        calibration = {image.tobytes() for image in file["image"]}
    assert len(calibration) == 100
    assert calibration.isdisjoint(image.tobytes() for image in eval_images())


def test_data_is_scikit_learns_digits_under_the_stated_split() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    order = np.random.RandomState(20261120).permutation(1797)[1257:]
    np.testing.assert_array_equal(eval_images()[:, 0] * 16, digits.images[order])
    labels = np.load(FIXTURES / "digits_labels.npy", allow_pickle=False)
    np.testing.assert_array_equal(labels, digits.target[order])


def test_every_committed_model_is_listed_here() -> None:
    assert {path.relative_to(FIXTURES).as_posix() for path in FIXTURES.glob("*/*.onnx")} == set(CORRECT)


@pytest.mark.parametrize("name", CORRECT)
def test_model_has_the_shared_interface_and_named_nodes(name: str) -> None:
    model = onnx.load(FIXTURES / name)
    onnx.checker.check_model(model, full_check=True)
    assert [shape(value) for value in model.graph.input] == [("image", onnx.TensorProto.FLOAT, [1, 1, 8, 8])]
    assert [shape(value) for value in model.graph.output] == [("logits", onnx.TensorProto.FLOAT, [1, 10])]
    names = [node.name for node in model.graph.node]
    assert "" not in names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", CORRECT)
def test_model_answers_as_many_images_rightly_as_documented(name: str) -> None:
    logits = cpu_runner((FIXTURES / name).read_bytes())(eval_images())
    labels = np.load(FIXTURES / "digits_labels.npy", allow_pickle=False)
    # Another CPU's kernels may round differently and tip an image or two.
    assert abs(int(np.sum(logits.argmax(1) == labels)) - CORRECT[name]) <= 2


@pytest.mark.parametrize("name", CORRECT)
def test_quantized_models_keep_the_float_models_layer_names(name: str) -> None:
    def layers(path: Path) -> list[tuple[str, str]]:
        nodes, quantizers = onnx.load(path).graph.node, ("QuantizeLinear", "DequantizeLinear")
        return [(node.name, node.op_type) for node in nodes if node.op_type not in quantizers]

    folds = name in ("digits_cnn/int8.onnx", "digits_cnn/a16w8.onnx")
    expected = layers((FIXTURES / name).with_name("float.onnx"))
    if folds:
        expected = [(layer, op) for layer, op in expected if op != "BatchNormalization"]
    assert sorted(layers(FIXTURES / name)) == sorted(expected)


def test_folding_batch_norm_does_not_change_what_the_float_model_computes() -> None:
    build = load_build()
    with np.load(FIXTURES / "digits_cnn" / "weights.npz", allow_pickle=False) as file:
        weights = dict(file)
    folded = build.digits_cnn(build.fold_batch_norm(weights))
    assert "BatchNormalization" not in {node.op_type for node in folded.graph.node}
    images = eval_images()[:50]
    plain = cpu_runner(build.digits_cnn(weights).SerializeToString())(images)
    np.testing.assert_allclose(cpu_runner(folded.SerializeToString())(images), plain, atol=1e-4)


def test_rebuilding_gives_the_committed_models(tmp_path: Path) -> None:
    rebuilt = load_build().build(tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in rebuilt} == set(CORRECT)
    for path in rebuilt:
        committed = onnx.load(FIXTURES / path.relative_to(tmp_path))
        fresh = onnx.load(path)
        assert committed.graph.node == fresh.graph.node, path
        for old, new in zip(committed.graph.initializer, fresh.graph.initializer, strict=True):
            assert (old.name, old.data_type) == (new.name, new.data_type)
            # On one machine the bytes are equal. Another CPU may calibrate a scale that differs in its last
            # bits, and with it a bias, which is stored in steps of that scale; never the weights.
            relative = 0.0 if old.data_type == onnx.TensorProto.UINT8 else 1e-5
            step = 1 if old.data_type in (onnx.TensorProto.INT32, onnx.TensorProto.UINT16) else 0
            np.testing.assert_allclose(
                onnx.numpy_helper.to_array(new).astype(np.float64),
                onnx.numpy_helper.to_array(old).astype(np.float64),
                rtol=relative,
                atol=step,
                err_msg=f"{path.name}: {old.name}",
            )


def test_rebuilding_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    build = load_build().build
    first, second = build(tmp_path / "first"), build(tmp_path / "second")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_all_fixtures_stay_under_a_megabyte() -> None:
    kept = [path for path in FIXTURES.rglob("*") if path.suffix in (".npz", ".npy", ".onnx")]
    assert sum(path.stat().st_size for path in kept) < 1_000_000
