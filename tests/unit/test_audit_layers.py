from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pytest_devicelab.audit.float_reference import match_float
from pytest_devicelab.audit.graph import Graph, parse_graph
from pytest_devicelab.audit.layers import clipping, compare_layer, compare_with_float, saturation
from pytest_devicelab.audit.taps import Tap, find_taps
from pytest_devicelab.errors import TensorMismatch
from pytest_devicelab.evidence.record import Quantization

HALF = Quantization(scale=0.5, zero_point=10, dtype="uint8")
TAP = Tap(node="conv", op="Conv", tensor="conv_q", depth=3, quantization=HALF)
FLOAT_TAP = Tap(node="exp", op="Exp", tensor="e", depth=1)


def codes(*values: int) -> npt.NDArray[np.generic]:
    return np.array([values], np.uint8)


def test_codes_are_compared_as_what_they_stand_for() -> None:
    layer = compare_layer(TAP, codes(12, 10, 255, 0), codes(14, 10, 255, 0))
    assert (layer.node, layer.op, layer.tensor, layer.depth) == ("conv", "Conv", "conv_q", 3)
    assert (layer.elements, layer.elements_different, layer.bits_different) == (4, 1, 1)  # 1100 and 1110
    assert (layer.max_lsb, layer.max_abs) == (2.0, 1.0)
    # Real values 1, 0, 122.5 and -5: the zero point is no signal.
    assert layer.sqnr_db == pytest.approx(10 * math.log10(1 + 122.5**2 + 25))
    assert layer.wasserstein == pytest.approx(0.25)
    assert layer.kl is not None
    assert layer.kl > 0
    assert (layer.saturation_reference, layer.saturation_observed) == (0.5, 0.5)
    assert layer.clipping is None
    assert layer.parts


def test_the_same_codes_have_no_noise() -> None:
    layer = compare_layer(TAP, codes(1, 2), codes(1, 2))
    assert not layer.parts
    assert (layer.sqnr_db, layer.max_abs, layer.kl, layer.wasserstein) == (None, 0.0, 0.0, 0.0)


def test_floats_without_quantization_have_neither_steps_nor_saturation() -> None:
    one, other = (np.array([[1.0, value]], np.float32) for value in (-0.0, 0.0))
    layer = compare_layer(FLOAT_TAP, one, other)
    assert layer.parts  # the sign of zero is a bit
    assert (layer.bits_different, layer.max_lsb, layer.sqnr_db) == (1, None, None)
    assert (layer.saturation_reference, layer.saturation_observed) == (None, None)


def test_against_float_bits_are_not_counted() -> None:
    floats = np.array([[[1.25]], [[300.0]]], np.float32)
    layer = compare_with_float(TAP, floats, np.array([[12], [255]], np.uint8))
    assert (layer.elements_different, layer.bits_different) == (None, None)
    assert not layer.parts
    assert layer.max_abs == pytest.approx(300 - 122.5)
    assert layer.max_lsb == pytest.approx((300 - 122.5) / 0.5)
    assert (layer.clipping, layer.saturation_observed) == (0.5, 0.5)


def test_layers_that_do_not_fit_are_not_equal() -> None:
    with pytest.raises(TensorMismatch):
        compare_layer(TAP, codes(1, 2), codes(1))
    with pytest.raises(TensorMismatch):
        compare_with_float(TAP, np.ones((1, 3), np.float32), codes(1, 2))
    with pytest.raises(TensorMismatch):
        compare_layer(TAP, codes(), codes())


def test_clipping_begins_half_a_step_outside_the_codes() -> None:
    # The codes stand for -5.0 to 122.5; half a step more still rounds to one of them.
    values = np.array([-5.25, -5.26, 122.75, 122.76, 0.0, np.nan, np.inf, -np.inf], np.float32)
    assert clipping(HALF, values) == 4 / 8
    assert clipping(None, values) is None


@pytest.mark.parametrize(
    ("dtype", "first", "last"), [("uint8", 0, 255), ("int8", -128, 127), ("uint16", 0, 65535)]
)
def test_saturation_counts_the_first_and_the_last_code(dtype: str, first: int, last: int) -> None:
    how = Quantization(scale=1.0, zero_point=0, dtype=dtype)
    assert saturation(how, np.array([first, last, 1, 2], dtype)) == 0.5
    assert saturation(how, np.array([first, last], np.float32)) is None


def model(nodes: list[onnx.NodeProto], zero: int = 3) -> Graph:
    """x -> nodes -> y, with the constants the nodes of these tests name."""
    constants = [
        numpy_helper.from_array(np.array(0.5, np.float32), "scale"),
        numpy_helper.from_array(np.array(zero, np.uint8), "zero"),
        *(numpy_helper.from_array(np.ones(4, np.float32), name) for name in ("a", "b", "c", "d")),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 2, 2])],
        constants,
    )
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return parse_graph(bytes(whole.SerializeToString()))


def pair(tensor: str, out: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [tensor, "scale", "zero"], [f"{tensor}_q"], name=f"{tensor}_Q"),
        helper.make_node("DequantizeLinear", [f"{tensor}_q", "scale", "zero"], [out], name=f"{tensor}_DQ"),
    ]


def float_net() -> Graph:
    """x -> neg -> bn -> relu -> exp -> y."""
    return model(
        [
            helper.make_node("Neg", ["x"], ["neg"], name="neg"),
            helper.make_node("BatchNormalization", ["neg", "a", "b", "c", "d"], ["bn"], name="bn"),
            helper.make_node("Relu", ["bn"], ["relu"], name="relu"),
            helper.make_node("Exp", ["relu"], ["y"], name="exp"),
        ]
    )


def quantized(zero: int, *, relu: bool, prefix: str = "") -> Graph:
    """float_net with its BatchNormalization folded into neg, and its Relu kept or dropped."""
    nodes = [
        *pair("x", "x_dq"),
        helper.make_node("Neg", ["x_dq"], ["neg"], name=f"{prefix}neg"),
        *pair("neg", "neg_dq"),
    ]
    source = "neg_dq"
    if relu:
        nodes += [
            helper.make_node("Relu", [source], ["relu"], name=f"{prefix}relu"),
            *pair("relu", "relu_dq"),
        ]
        source = "relu_dq"
    nodes.append(helper.make_node("Exp", [source], ["exp_in"], name=f"{prefix}exp"))
    return model([*nodes, *pair("exp_in", "y")], zero)


def matched(net: Graph) -> dict[str, str]:
    taps = find_taps(bytes(net.model.SerializeToString()))
    return dict(match_float(taps, net, float_net()))


def test_float_tensors_are_found_by_name_and_behind_what_was_folded() -> None:
    assert matched(quantized(3, relu=True)) == {"x_q": "x", "neg_q": "bn", "relu_q": "relu", "y": "y"}


def test_codes_that_begin_at_zero_stand_for_the_tensor_behind_the_relu() -> None:
    assert matched(quantized(0, relu=True))["neg_q"] == "relu"
    assert matched(quantized(0, relu=False))["neg_q"] == "relu"


def test_a_relu_that_was_dropped_counts_as_folded() -> None:
    assert matched(quantized(3, relu=False))["neg_q"] == "relu"


def test_where_node_names_have_nothing_in_common_nothing_counts_as_folded() -> None:
    assert matched(quantized(3, relu=True, prefix="other_"))["neg_q"] == "neg"


def test_what_has_no_name_in_common_is_not_matched() -> None:
    nodes = [*pair("x", "d"), helper.make_node("Abs", ["d"], ["abs"], name="abs"), *pair("abs", "y")]
    taps = find_taps(bytes(model(nodes).model.SerializeToString()), offloaded_io=False)
    assert dict(match_float(taps, model(nodes), float_net())) == {"x_q": "x", "y": "y"}
