from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pytest_devicelab.audit.cut import cut_model
from pytest_devicelab.audit.graph import parse_graph
from pytest_devicelab.audit.taps import find_taps, tap_model
from pytest_devicelab.errors import ModelError
from tests.unit.deep_model import Array, deep_model, inputs, run


def graph_of(nodes: list[onnx.NodeProto], **constants: Array) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


def diamond() -> bytes:
    """x -> a -> (b, c) -> y = b + c * two."""
    nodes = [
        helper.make_node("Neg", ["x"], ["a"], name="a"),
        helper.make_node("Exp", ["a"], ["b"], name="b"),
        helper.make_node("Tanh", ["a"], ["c"], name="c"),
        helper.make_node("Mul", ["c", "two"], ["d"], name="d"),
        helper.make_node("Add", ["b", "d"], ["y"], name="y"),
    ]
    return graph_of(nodes, two=np.array(2, np.float32), unused=np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("known", "inputs_", "nodes"),
    [
        ([], ("x",), ("a", "b", "c", "d", "y")),
        (["a"], ("a",), ("b", "c", "d", "y")),
        (["b", "a"], ("a", "b"), ("c", "d", "y")),
        (["d", "b"], ("b", "d"), ("y",)),
        (["d"], ("x", "d"), ("a", "b", "y")),
        (["y", "d", "b"], ("b", "d"), ("y",)),
    ],
)
def test_the_cut_goes_through_the_nearest_known_tensors(
    known: list[str], inputs_: tuple[str, ...], nodes: tuple[str, ...]
) -> None:
    part = cut_model(parse_graph(diamond()), known, ["y"])
    assert (part.inputs, part.nodes, part.outputs) == (inputs_, nodes, ("y",))
    model = onnx.load_model_from_string(part.model)
    onnx.checker.check_model(model, full_check=True)
    assert [info.name for info in model.graph.input] == list(inputs_)
    assert {tensor.name for tensor in model.graph.initializer} <= {"two"}


def test_parts_in_a_row_compute_what_the_whole_computes() -> None:
    model, x = deep_model(9, 3), inputs(5, 3)
    graph, taps = parse_graph(model), find_taps(model)
    whole = run(tap_model(model).model, x)
    known: dict[str, Array] = {}
    for tap in taps:
        part = cut_model(graph, known, [tap.tensor])
        feed = {name: known.get(name, x) for name in part.inputs}
        known[tap.tensor] = run(part.model, x, feed)[tap.tensor]
        assert known[tap.tensor].tobytes() == whole[tap.tensor].tobytes()
        assert len(part.inputs) == 1


def test_what_a_branch_takes_from_outside_is_an_edge_too() -> None:
    branches = [
        helper.make_graph(
            [helper.make_node(op, ["a"], [f"{op}_out"])],
            op,
            [],
            [helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, [1, 4])],
        )
        for op in ("Exp", "Tanh")
    ]
    nodes = [
        helper.make_node("Neg", ["x"], ["a"], name="a"),
        helper.make_node("If", ["yes"], ["y"], name="if", then_branch=branches[0], else_branch=branches[1]),
    ]
    model = graph_of(nodes, yes=np.array(True))
    part = cut_model(parse_graph(model), ["a"], ["y"])
    assert (part.inputs, part.nodes) == (("a",), ("if",))


def test_a_part_does_not_carry_what_an_exporter_noted() -> None:
    model = onnx.load_model_from_string(diamond())
    model.doc_string = "exported from /home/alice/secret"
    model.metadata_props.add(key="path", value="/home/alice")
    model.graph.doc_string = "/home/alice"
    for node in model.graph.node:
        node.doc_string = "File /home/alice/net.py, line 3"
    part = cut_model(parse_graph(bytes(model.SerializeToString())), ["a"], ["y"])
    assert b"alice" not in part.model


def test_a_tensor_nobody_makes_cannot_be_cut_behind() -> None:
    with pytest.raises(ModelError, match="no tensor 'elsewhere'"):
        cut_model(parse_graph(diamond()), [], ["elsewhere"])


def test_an_edge_of_unknown_type_is_refused() -> None:
    nodes = [
        helper.make_node("Mystery", ["x"], ["m"], name="mystery", domain="com.example"),
        helper.make_node("Exp", ["m"], ["y"], name="exp"),
    ]
    with pytest.raises(ModelError, match="type of tensor 'm' is unknown"):
        cut_model(parse_graph(graph_of(nodes)), ["m"], ["y"])


def test_weights_in_other_files_are_refused() -> None:
    model = onnx.load_model_from_string(diamond())
    two = next(tensor for tensor in model.graph.initializer if tensor.name == "two")
    two.ClearField("raw_data")
    two.data_location = TensorProto.EXTERNAL
    two.external_data.add(key="location", value="weights.bin")
    with pytest.raises(ModelError, match="'two' is kept outside"):
        cut_model(parse_graph(bytes(model.SerializeToString())), ["a"], ["y"])
