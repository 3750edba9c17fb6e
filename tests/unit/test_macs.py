from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pytest_devicelab.runtimes.macs import node_macs
from pytest_devicelab.virtual.onnx_model import load_model

FIXTURES = Path(__file__).parents[2] / "fixtures"


def one_node(node: onnx.NodeProto, x: list[int | str], weight: tuple[int, ...]) -> onnx.ModelProto:
    node.name = "it"
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", *["?"] * (len(x) - 1)])],
        [numpy_helper.from_array(np.zeros(weight, np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize(
    ("node", "x", "weight", "macs"),
    [
        # 8 filters over 3 channels of 3x3, on 6x6 positions
        (helper.make_node("Conv", ["x", "w"], ["y"]), [1, 3, 8, 8], (8, 3, 3, 3), 8 * 6 * 6 * 27),
        (helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4), [1, 3, 8, 8], (8, 3, 3, 3), 8 * 64 * 27),
        (helper.make_node("Conv", ["x", "w"], ["y"], group=4), [1, 4, 5, 5], (4, 1, 5, 5), 4 * 25),
        (
            helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]),
            [1, 3, 4, 4],
            (3, 5, 2, 2),
            48 * 20,
        ),
        (helper.make_node("Gemm", ["x", "w"], ["y"]), [1, 7], (7, 10), 70),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1, transB=1), [7, 2], (10, 7), 140),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), [1, 4, 6, 7], (7, 10), 4 * 6 * 7 * 10),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), ["batch", 7], (7, 10), 70),
    ],
)
def test_counts(node: onnx.NodeProto, x: list[int | str], weight: tuple[int, ...], macs: int) -> None:
    assert node_macs(one_node(node, x, weight)) == {"it": macs}


def test_what_has_none_to_speak_of_counts_none() -> None:
    assert node_macs(one_node(helper.make_node("Add", ["x", "w"], ["y"]), [1, 4], (4,))) == {"it": 0}


def test_what_shapes_do_not_tell_is_unknown() -> None:
    reshaped = one_node(helper.make_node("MatMul", ["r", "w"], ["y"]), [1, 4], (4, 4))
    reshaped.graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [2]))
    reshaped.graph.node.insert(0, helper.make_node("Reshape", ["x", "shape"], ["r"], name="r"))
    assert node_macs(reshaped) == {"r": 0, "it": None}
    contradictory = one_node(helper.make_node("MatMul", ["x", "w"], ["y"]), [1, 5], (4, 4))
    assert node_macs(contradictory)["it"] is None


def test_a_quantized_model_has_the_macs_of_its_float_model() -> None:
    folder = FIXTURES / "digits_channelnorm"
    quantized = node_macs(load_model(folder / "int8.onnx"))
    plain = node_macs(load_model(folder / "float.onnx"))
    counted = {name: macs for name, macs in plain.items() if macs}
    assert len(counted) == 3
    assert counted == {name: quantized[name] for name in counted}
