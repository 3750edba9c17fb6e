from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from pytest_devicelab.audit.divergence import first_divergence
from pytest_devicelab.audit.graph import output_lsb, parse_graph, read_model
from pytest_devicelab.audit.layers import LayerDiff, compare_layer
from pytest_devicelab.audit.taps import Tap, chunk_taps, find_taps, tap_model
from pytest_devicelab.errors import ModelError, TensorMismatch, UserError
from pytest_devicelab.evidence.record import Quantization
from pytest_devicelab.verdicts.comparison import Divergence
from pytest_devicelab.virtual.onnx_model import output_quantization

SCALE = 0.03125
X = np.random.default_rng(0).uniform(0, 1, (4, 6)).astype(np.float32)


def build(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, npt.NDArray[np.generic]],
    output_type: int = TensorProto.FLOAT,
) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])],
        [helper.make_tensor_value_info("y", output_type, ["A", "B"])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


def quantize(source: str, name: str) -> list[onnx.NodeProto]:
    """A Q/DQ pair: `source` -> `name_q` (uint8) -> `name`."""
    return [
        helper.make_node("QuantizeLinear", [source, "scale", "zero"], [f"{name}_q"], name=f"{name}_Q"),
        helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [name], name=f"{name}_DQ"),
    ]


def qdq_model() -> bytes:
    """x -> Q/DQ -> MatMul (int8 weights) -> Relu -> Q/DQ -> Transpose -> Q/DQ -> Add -> Q/DQ -> y."""
    nodes = [
        *quantize("x", "x1"),
        helper.make_node("DequantizeLinear", ["w_int", "scale"], ["w"], name="w_DQ"),
        helper.make_node("MatMul", ["x1", "w"], ["mm"], name="matmul"),
        helper.make_node("Relu", ["mm"], ["relu"], name="relu"),
        *quantize("relu", "a"),
        helper.make_node("Transpose", ["a"], ["t"], name="transpose", perm=[1, 0]),
        *quantize("t", "b"),
        helper.make_node("Add", ["b", "b"], ["sum"]),
        *quantize("sum", "y"),
    ]
    weights = np.random.default_rng(1).integers(0, 40, (6, 3)).astype(np.uint8)
    return build(
        nodes,
        {"scale": np.array(SCALE, np.float32), "zero": np.array(5, np.uint8), "w_int": weights},
    )


def float_model() -> bytes:
    nodes = [
        helper.make_node("Neg", ["x"], ["n"], name="neg"),
        helper.make_node("Transpose", ["n"], ["t"], name="transpose"),
        helper.make_node("Shape", ["t"], ["s"], name="shape"),
        helper.make_node("Exp", ["t"], ["y"], name="exp"),
    ]
    return build(nodes, {})


def run(model: bytes) -> dict[str, npt.NDArray[np.generic]]:
    evaluator = ReferenceEvaluator(onnx.load_model_from_string(model))
    return dict(zip(evaluator.output_names, evaluator.run(None, {"x": X}), strict=True))


def test_a_qdq_model_is_tapped_at_its_activations() -> None:
    taps = find_taps(qdq_model(), offloaded_io=False)
    assert [(tap.op, tap.node, tap.tensor, tap.depth) for tap in taps] == [
        ("QuantizeLinear", "x1_Q", "x1_q", 1),  # an input's rounding is a step of its own
        ("MatMul", "matmul", "a_q", 2),  # Relu only passes on; the Transpose behind it is not tapped
        ("Add", "sum", "y_q", 3),  # a node without a name is called by its output
        ("DequantizeLinear", "y_DQ", "y", 4),
    ]
    assert taps[1].quantization == Quantization(scale=SCALE, zero_point=5, dtype="uint8")


def test_offloaded_outputs_are_not_tapped_twice() -> None:
    assert [tap.tensor for tap in find_taps(qdq_model())] == ["x1_q", "a_q", "y"]


def test_a_float_model_is_tapped_at_every_float_that_is_computed() -> None:
    taps = find_taps(float_model())
    assert [(tap.node, tap.tensor) for tap in taps] == [("neg", "n"), ("exp", "y")]
    assert {tap.quantization for tap in taps} == {None}


@pytest.mark.parametrize("make", [qdq_model, float_model])
def test_original_outputs_come_first_and_keep_their_bits(make: Callable[[], bytes]) -> None:
    tapped = tap_model(make(), offloaded_io=False)
    plain, more = run(make()), run(tapped.model)
    assert next(iter(more)) == "y"
    assert more["y"].tobytes() == plain["y"].tobytes()
    assert set(more) == {tap.tensor for tap in tapped.taps}
    onnx.checker.check_model(onnx.load_model_from_string(tapped.model), full_check=True)


def test_tapped_outputs_have_the_type_of_the_tensor() -> None:
    graph = parse_graph(tap_model(qdq_model()).model).model.graph
    types = {output.name: output.type.tensor_type.elem_type for output in graph.output}
    assert types == {"y": TensorProto.FLOAT, "x1_q": TensorProto.UINT8, "a_q": TensorProto.UINT8}


def test_a_deep_model_can_be_tapped_in_chunks() -> None:
    taps = find_taps(qdq_model())
    tapped = tap_model(qdq_model(), taps[1:2])
    assert tapped.taps == taps[1:2]
    assert list(run(tapped.model)) == ["y", "a_q"]


def test_an_op_onnx_does_not_know_can_still_be_tapped() -> None:
    nodes = [
        helper.make_node("Mystery", ["x"], ["m"], name="mystery", domain="com.example"),
        helper.make_node("Exp", ["m"], ["y"], name="exp"),
    ]
    tapped = tap_model(build(nodes, {}))
    assert [tap.tensor for tap in tapped.taps] == ["m", "y"]
    assert [output.name for output in parse_graph(tapped.model).model.graph.output] == ["y", "m"]


def test_a_tap_of_another_model_is_refused() -> None:
    stray = Tap(node="n", op="Conv", tensor="elsewhere", depth=1)
    with pytest.raises(ModelError, match="no tensor 'elsewhere'"):
        tap_model(qdq_model(), [stray])


@pytest.mark.parametrize("junk", [b"", b"not a model", b"\x00" * 64])
def test_junk_is_not_a_model(junk: bytes) -> None:
    for read in (find_taps, parse_graph, output_lsb):
        with pytest.raises(ModelError):
            read(junk)


def test_the_quantization_of_an_output_is_read_from_its_dequantize() -> None:
    expected = Quantization(scale=SCALE, zero_point=5, dtype="uint8")
    assert output_quantization(parse_graph(qdq_model()).model) == {"y": expected}
    assert output_lsb(qdq_model()) == {"y": SCALE}


def test_an_output_of_raw_integers_has_steps_of_one() -> None:
    constants: dict[str, npt.NDArray[np.generic]] = {
        "scale": np.array(SCALE, np.float32),
        "zero": np.array(5, np.uint8),
    }
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])
    model = build([node], constants, TensorProto.UINT8)
    assert output_quantization(parse_graph(model).model)["y"].zero_point == 5
    assert output_lsb(model) == {"y": 1.0}


def test_nodes_that_only_move_values_keep_the_quantization() -> None:
    constants: dict[str, npt.NDArray[np.generic]] = {
        "scale": np.array([0.5], np.float32),
        "zero": np.array([3], np.int8),
    }
    nodes = [*quantize("x", "d"), helper.make_node("Flatten", ["d"], ["y"])]
    assert output_lsb(build(nodes, constants)) == {"y": 0.5}


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_that_is_no_step_is_unknown(scale: float) -> None:
    constants: dict[str, npt.NDArray[np.generic]] = {
        "scale": np.array(scale, np.float32),
        "zero": np.array(3, np.int8),
    }
    nodes = [*quantize("x", "d"), helper.make_node("Flatten", ["d"], ["y"])]
    assert output_lsb(build(nodes, constants)) == {}


def test_float_and_per_channel_outputs_have_no_lsb() -> None:
    assert output_lsb(float_model()) == {}
    constants: dict[str, npt.NDArray[np.generic]] = {
        "scale": np.ones(6, np.float32),
        "zero": np.zeros(6, np.uint8),
    }
    assert output_lsb(build(quantize("x", "y"), constants)) == {}


def test_a_constant_kept_outside_the_model_is_not_opened() -> None:
    model = onnx.load_model_from_string(qdq_model())
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == "scale")
    scale.ClearField("raw_data")
    scale.data_location = TensorProto.EXTERNAL
    scale.external_data.add(key="location", value="../../etc/hostname")
    assert output_quantization(model) == {}


TAPS = find_taps(qdq_model(), offloaded_io=False)
ARRAYS = run(tap_model(qdq_model(), offloaded_io=False).model)


def layers(change: str = "", amount: int = 1) -> list[LayerDiff]:
    """The layers of two runs of the tapped QDQ model, with one element of one tensor changed in the second."""
    observed = dict(ARRAYS)
    if change:
        observed[change] = observed[change].copy()
        observed[change].flat[0] += np.asarray(amount, observed[change].dtype)
    return [compare_layer(tap, ARRAYS[tap.tensor], observed[tap.tensor]) for tap in TAPS]


def first(found: Sequence[LayerDiff], *, changed: bool = False) -> Divergence | None:
    return first_divergence(found, ("v68",), ("v73",), samples=4, depth=4, taps_changed_output=changed)


@pytest.mark.parametrize("tap", TAPS)
def test_the_first_tensor_that_differs_is_named(tap: Tap) -> None:
    divergence = first(layers(tap.tensor, 3))
    assert divergence is not None
    assert (divergence.node, divergence.op, divergence.tensor) == (tap.node, tap.op, tap.tensor)
    assert (divergence.depth, divergence.layers, divergence.samples) == (tap.depth, 4, 4)
    assert (divergence.reference, divergence.observed) == (("v68",), ("v73",))
    assert divergence.elements_different == 1
    assert divergence.max_lsb == pytest.approx(3.0 if tap.tensor != "y" else 3 / SCALE)
    assert divergence.taps_changed_output is False


def test_identical_runs_do_not_part() -> None:
    assert first(layers()) is None


def test_a_layer_found_where_tapping_changed_the_output_is_a_hint() -> None:
    divergence = first(layers("a_q"), changed=True)
    assert divergence is not None
    assert divergence.taps_changed_output


def test_comparing_nothing_is_never_equal() -> None:
    with pytest.raises(TensorMismatch, match="no layer of v68 and v73 was compared"):
        first([])


def test_chunks_keep_the_order_and_fit_into_memory() -> None:
    graph = parse_graph(qdq_model())
    sizes = {tap.tensor: graph.size_bytes(tap.tensor) * 10 for tap in TAPS}
    assert sizes == {"x1_q": 60, "a_q": 30, "y_q": 30, "y": 120}  # an open dimension counts as 1
    chunks = chunk_taps(graph, TAPS, samples=10, memory_bytes=120)
    assert [[tap.tensor for tap in chunk] for chunk in chunks] == [["x1_q", "a_q", "y_q"], ["y"]]
    assert [tap for chunk in chunks for tap in chunk] == list(TAPS)


def test_a_layer_that_does_not_fit_says_how_many_samples_would() -> None:
    with pytest.raises(UserError, match="at most 5 samples") as caught:
        chunk_taps(parse_graph(qdq_model()), TAPS, samples=10, memory_bytes=60)
    assert "layer 4, y, does not fit into 60 bytes" in str(caught.value)


def test_a_tensor_of_unknown_size_has_a_chunk_of_its_own() -> None:
    nodes = [
        helper.make_node("Mystery", ["x"], ["m"], name="mystery", domain="com.example"),
        helper.make_node("Exp", ["m"], ["y"], name="exp"),
    ]
    model = build(nodes, {})
    chunks = chunk_taps(parse_graph(model), find_taps(model), samples=1, memory_bytes=1000)
    assert [[tap.tensor for tap in chunk] for chunk in chunks] == [["m"], ["y"]]


@pytest.mark.parametrize("late", [True, False])
def test_a_cycle_and_a_tensor_made_twice_are_refused(late: bool) -> None:
    pair = [helper.make_node("Neg", ["b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])]
    twice = [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Exp", ["x"], ["a"])]
    with pytest.raises(ModelError, match="before it is made" if late else "two nodes"):
        parse_graph(build([*(pair if late else twice), helper.make_node("Neg", ["a"], ["y"])], {}))


def test_weights_beside_a_model_are_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = onnx.load_model_from_string(qdq_model())
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    alone = read_model(path)
    (tmp_path / "weights.bin").unlink()
    assert run(alone)["y"].tobytes() == run(qdq_model())["y"].tobytes()


def test_weights_outside_the_folder_of_a_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    model = onnx.load_model_from_string(qdq_model())
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == "scale")
    scale.ClearField("raw_data")
    scale.data_location = TensorProto.EXTERNAL
    scale.external_data.add(key="location", value="../secret.bin")
    (tmp_path / "models").mkdir()
    path = tmp_path / "models/model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"secret\.bin cannot be used"):
        read_model(path)


@pytest.mark.parametrize("content", [None, b"not a model"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match="not an ONNX model"):
        read_model(path)
