from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from pytest_devicelab.audit.divergence import TappedRun, first_divergence, taps_changed_output
from pytest_devicelab.audit.graph import output_lsb, output_quantization, parse_graph
from pytest_devicelab.audit.taps import Tap, find_taps, tap_model
from pytest_devicelab.errors import ModelError, TensorMismatch
from pytest_devicelab.evidence.record import Quantization

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
    for read in (find_taps, output_quantization, output_lsb):
        with pytest.raises(ModelError):
            read(junk)


def test_the_quantization_of_an_output_is_read_from_its_dequantize() -> None:
    expected = Quantization(scale=SCALE, zero_point=5, dtype="uint8")
    assert output_quantization(qdq_model()) == {"y": expected}
    assert output_lsb(qdq_model()) == {"y": SCALE}


def test_an_output_of_raw_integers_has_steps_of_one() -> None:
    constants: dict[str, npt.NDArray[np.generic]] = {
        "scale": np.array(SCALE, np.float32),
        "zero": np.array(5, np.uint8),
    }
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])
    model = build([node], constants, TensorProto.UINT8)
    assert output_quantization(model)["y"].zero_point == 5
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
    assert output_quantization(model.SerializeToString()) == {}


def tapped_run(name: str, change: str = "", amount: int = 1) -> TappedRun:
    """A run of the tapped QDQ model, with one element of one tensor changed."""
    arrays = run(tap_model(qdq_model(), offloaded_io=False).model)
    if change:
        changed = arrays[change].copy()
        changed.flat[0] += np.asarray(amount, changed.dtype)
        arrays[change] = changed
    return TappedRun(devices=(name,), tapped=arrays, untapped={"y": arrays["y"]})


TAPS = find_taps(qdq_model(), offloaded_io=False)


@pytest.mark.parametrize("tap", TAPS)
def test_the_first_tensor_that_differs_is_named(tap: Tap) -> None:
    divergence = first_divergence(TAPS, tapped_run("v68"), tapped_run("v73", tap.tensor, 3))
    assert divergence is not None
    assert (divergence.node, divergence.op, divergence.tensor) == (tap.node, tap.op, tap.tensor)
    assert (divergence.depth, divergence.layers) == (tap.depth, 4)
    assert (divergence.reference, divergence.observed) == (("v68",), ("v73",))
    assert divergence.elements_different == 1
    assert divergence.max_lsb == pytest.approx(3.0 if tap.tensor != "y" else 3 / SCALE)
    assert divergence.taps_changed_output is False


def test_identical_runs_do_not_part() -> None:
    assert first_divergence(TAPS, tapped_run("v68"), tapped_run("v69")) is None


def test_a_shallow_difference_wins_over_a_deep_one() -> None:
    observed = tapped_run("v73", "a_q")
    deep = {**observed.tapped, "y": observed.tapped["y"][::-1]}
    both = TappedRun(devices=("v73",), tapped=deep, untapped={"y": deep["y"]})
    divergence = first_divergence(TAPS, tapped_run("v68"), both)
    assert divergence is not None
    assert divergence.tensor == "a_q"


def test_taps_that_change_the_output_are_found_out() -> None:
    run = tapped_run("v73", "a_q")
    moved = TappedRun(devices=("v73",), tapped=run.tapped, untapped={"y": run.tapped["y"][::-1]})
    assert taps_changed_output(moved)
    divergence = first_divergence(TAPS, tapped_run("v68"), moved)
    assert divergence is not None
    assert divergence.taps_changed_output


def test_untapped_runs_may_have_more_samples() -> None:
    run = tapped_run("v73")
    more = {"y": np.concatenate([run.tapped["y"], run.tapped["y"]])}
    assert not taps_changed_output(TappedRun(devices=("v73",), tapped=run.tapped, untapped=more))


def test_comparing_nothing_is_never_equal() -> None:
    whole = tapped_run("v68")
    lacking = TappedRun(
        devices=("v73",),
        tapped={name: array for name, array in whole.tapped.items() if name != "a_q"},
        untapped=whole.untapped,
    )
    blind = TappedRun(devices=("v73",), tapped=whole.tapped, untapped={})
    with pytest.raises(TensorMismatch, match="no tensor was tapped"):
        first_divergence((), whole, whole)
    with pytest.raises(TensorMismatch, match="no tensor 'a_q'"):
        first_divergence(TAPS, whole, lacking)
    with pytest.raises(TensorMismatch, match="no untapped output"):
        first_divergence(TAPS, whole, blind)
