from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pytest_devicelab.audit.stress_inputs import join_cases, stress_inputs
from pytest_devicelab.errors import ModelError
from pytest_devicelab.runtimes.host import run_on_host
from pytest_devicelab.runtimes.inputs import load_inputs

FIXTURES = Path(__file__).parents[2] / "fixtures"
ALWAYS = ["zeros", "ones", "ramp", "one_hot", "noise"]


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def save(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[str, int, Sequence[int | str | None]]],
    constants: Sequence[onnx.TensorProto] = (),
) -> Path:
    output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    values = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs]
    graph = helper.make_graph(list(nodes), "g", values, [output], list(constants))
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def quantizer(folder: Path, zero_point: np.generic) -> Path:
    """A model that quantizes its input `[1, 2, 3]` in steps of 0.5, behind a Reshape."""
    constants = [
        numpy_helper.from_array(np.array([1, 6]), "shape"),
        numpy_helper.from_array(np.array(0.5, np.float32), "scale"),
        numpy_helper.from_array(np.asarray(zero_point), "zero"),
    ]
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("QuantizeLinear", ["flat", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    return save(folder, nodes, [("x", TensorProto.FLOAT, (1, 2, 3))], constants)


@pytest.mark.parametrize(
    ("zero_point", "low", "high"),
    [
        (np.uint8(100), -50.0, 77.5),
        (np.int8(-128), 0.0, 127.5),
        (np.uint16(0), 0.0, 32767.5),
        (np.int16(0), -16384.0, 16383.5),
    ],
)
def test_the_range_is_what_the_input_can_represent(
    tmp_path: Path, zero_point: np.generic, low: float, high: float
) -> None:
    cases = stress_inputs(quantizer(tmp_path, zero_point), rng=rng())
    assert list(cases) == [*ALWAYS, "range_min", "range_max"]
    np.testing.assert_array_equal(cases["range_min"]["x"], np.full((1, 2, 3), low, np.float32))
    np.testing.assert_array_equal(cases["range_max"]["x"], np.full((1, 2, 3), high, np.float32))
    up, down = cases["ramp"]["x"].reshape(2, 6)
    assert (up[0], up[-1]) == (low, high)
    assert (np.diff(up) > 0).all()
    np.testing.assert_array_equal(down, up[::-1])
    hot = cases["one_hot"]["x"].reshape(6, 6)
    np.testing.assert_array_equal(hot, high * np.eye(6, dtype=np.float32))
    noise = cases["noise"]["x"]
    assert noise.shape == (8, 2, 3)
    assert low <= noise.min() < noise.max() <= high


def test_the_ends_of_the_range_are_the_first_and_the_last_code(tmp_path: Path) -> None:
    path = quantizer(tmp_path, np.uint8(100))
    cases = stress_inputs(path, rng=rng())
    ends = {name: cases[name]["x"] for name in ("range_min", "range_max")}
    for name, array in ends.items():
        end = array.astype(np.float32)
        np.testing.assert_array_equal(run_on_host(path, {"x": end})["y"].reshape(1, 6), end.reshape(1, 6))
        beyond = end + np.float32(-0.5 if name == "range_min" else 0.5)
        saturated = run_on_host(path, {"x": beyond})["y"]
        np.testing.assert_array_equal(saturated.reshape(1, 6), end.reshape(1, 6))


def test_noise_repeats_by_its_generator(tmp_path: Path) -> None:
    path = quantizer(tmp_path, np.uint8(0))
    first, again = (stress_inputs(path, rng=rng(), samples=3)["noise"]["x"] for _ in range(2))
    other = stress_inputs(path, rng=np.random.default_rng(6), samples=3)["noise"]["x"]
    np.testing.assert_array_equal(first, again)
    assert len(first) == 3
    assert (first != other).any()


@pytest.mark.parametrize("model", ["digits_cnn/int8", "digits_transformer/int8", "digits_cnn/float"])
def test_the_fixtures_run_on_all_cases(model: str) -> None:
    path = FIXTURES / f"{model}.onnx"
    calibration = load_inputs(FIXTURES / "digits_calibration.npz")
    cases = stress_inputs(path, rng=rng(), calibration=calibration)
    known = [] if model.endswith("float") else ["range_min", "range_max"]
    assert list(cases) == [*ALWAYS, *known, "calibration"]
    whole = join_cases(cases)
    assert whole["image"].shape == (sum(len(arrays["image"]) for arrays in cases.values()), 1, 8, 8)
    np.testing.assert_array_equal(whole["image"][-8:], calibration["image"][:8])
    logits = run_on_host(path, whole)["logits"]
    assert logits.shape == (len(whole["image"]), 10)
    assert np.isfinite(logits).all()
    assert len(np.unique(logits, axis=0)) > len(logits) // 2, "they are not all the same to the model"


def test_indices_stay_in_range_and_codes_use_all_of_theirs(tmp_path: Path) -> None:
    constants = [
        numpy_helper.from_array(np.array([[1.0], [2.0]], np.float32), "table"),
        numpy_helper.from_array(np.array(0.5, np.float32), "scale"),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "token"], ["row"]),
        helper.make_node("DequantizeLinear", ["code", "scale"], ["real"]),
        helper.make_node("Where", ["mask", "row", "real"], ["y"]),
    ]
    inputs = [
        ("token", TensorProto.INT64, (1, 4)),
        ("code", TensorProto.INT8, (1, 4, 1)),
        ("mask", TensorProto.BOOL, (1, 4, 1)),
    ]
    path = save(tmp_path, nodes, inputs, constants)
    cases = stress_inputs(path, rng=rng())
    for arrays in cases.values():
        assert {array.dtype.name for array in arrays.values()} == {"int64", "int8", "bool"}
        assert set(np.unique(arrays["token"])) <= {0, 1}
        assert len({len(array) for array in arrays.values()}) == 1
    assert (cases["range_min"]["code"] == -128).all()
    assert (cases["range_max"]["code"] == 127).all()
    assert (cases["range_max"]["mask"]).all()
    assert len(np.unique(cases["noise"]["code"])) > 16


def test_a_range_beyond_half_precision_ends_at_its_largest_number(tmp_path: Path) -> None:
    constants = [
        numpy_helper.from_array(np.array(100.0, np.float16), "scale"),
        numpy_helper.from_array(np.array(0, np.uint16), "zero"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    path = save(tmp_path, nodes, [("x", TensorProto.FLOAT16, (1, 2))], constants)
    assert (stress_inputs(path, rng=rng())["range_max"]["x"] == np.float16(65504)).all()


def relu(folder: Path, shape: Sequence[int | str | None], kind: int = TensorProto.FLOAT) -> Path:
    return save(folder, [helper.make_node("Relu", ["x"], ["y"])], [("x", kind, shape)])


def test_an_open_batch_is_one_and_an_open_shape_must_be_given(tmp_path: Path) -> None:
    assert stress_inputs(relu(tmp_path, ("N", 5)), rng=rng())["zeros"]["x"].shape == (1, 5)
    path = relu(tmp_path, ("N", "height", 5))
    with pytest.raises(ModelError, match="leaves its shape open") as caught:
        stress_inputs(path, rng=rng())
    assert "shapes={'x': (...)}" in caught.value.fix
    assert stress_inputs(path, rng=rng(), shapes={"x": (7, 5)})["noise"]["x"].shape == (8, 7, 5)
    with pytest.raises(ModelError, match="is none of input x"):
        stress_inputs(path, rng=rng(), shapes={"x": (7, 6)})
    with pytest.raises(ModelError, match="is none of input x"):
        stress_inputs(path, rng=rng(), shapes={"x": (7,)})


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        ((3, 5), TensorProto.FLOAT, "no batch dimension of 1"),
        ((), TensorProto.FLOAT, "no batch dimension of 1"),
        ((1, 2**40), TensorProto.FLOAT, "1,099,511,627,776 elements"),
        ((1, 0), TensorProto.FLOAT, "0 elements"),
        ((1, 2), TensorProto.STRING, "not a tensor of"),
        ((1, 2), TensorProto.COMPLEX64, "not a tensor of numbers"),
    ],
)
def test_inputs_that_cannot_be_made_are_refused(
    tmp_path: Path, shape: Sequence[int], kind: int, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        stress_inputs(relu(tmp_path, shape, kind), rng=rng())


@pytest.mark.parametrize(
    "given",
    [
        {"other": np.zeros((4, 5), np.float32)},
        {"x": np.zeros((4, 6), np.float32)},
        {"x": np.zeros((4, 5), np.float64)},
        {"x": np.zeros((0, 5), np.float32)},
    ],
)
def test_calibration_that_does_not_fit_is_refused(tmp_path: Path, given: dict[str, np.ndarray]) -> None:
    with pytest.raises(ModelError, match="calibration"):
        stress_inputs(relu(tmp_path, (1, 5)), rng=rng(), calibration=given)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x01 not a model")
    with pytest.raises(ModelError):
        stress_inputs(tmp_path / "m.onnx", rng=rng())
