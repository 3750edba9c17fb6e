from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pytest_devicelab.errors import InfrastructureError, TransferError
from pytest_devicelab.evidence.record import Quantization
from pytest_devicelab.matrix.soc import find_soc
from pytest_devicelab.matrix.specs import DeviceSpec, Source
from pytest_devicelab.runtimes.ort import OrtRuntime
from pytest_devicelab.runtimes.runtime import OutputFile, Prepared

SPEC = DeviceSpec(id="desk", kind="adb", source=Source(file="m.yaml", line=3, column=5), serial="R5CT")


def said(name: str, **changes: Any) -> dict[str, Any]:
    row = {"name": name, "file": f"{name}.raw", "dtype": "uint8", "shape": [1, 4], "quantization": None}
    return row | changes


def read(folder: Path, *rows: dict[str, Any]) -> tuple[OutputFile, ...]:
    """Have a device say where the outputs of a model are: `q uint8`, a quantized `y`, and `y` itself."""
    grid = {"s": np.float32(0.5), "z": np.uint8(100)}
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["y"]),
            helper.make_node("QuantizeLinear", ["y", "s", "z"], ["q"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4]),
            helper.make_tensor_value_info("q", TensorProto.UINT8, [1, 4]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in grid.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), folder / "m.onnx")
    (folder / "outputs.json").write_text(json.dumps(rows))
    return OrtRuntime().read_outputs(Prepared(file=folder / "m.onnx", outputs=None, options={}), folder)


def test_all_outputs_each_in_its_file(tmp_path: Path) -> None:
    found = read(tmp_path, said("q"), said("y", dtype="float32"))
    assert [(output.name, output.file) for output in found] == [("q", "q.raw"), ("y", "y.raw")]


@pytest.mark.parametrize(
    "rows",
    [
        [said("q")],
        [said("q"), said("q"), said("y")],
        [said("q"), said("y"), said("z")],
        [said("q"), said("\ud800", file="y.raw")],
        [said("q"), said("y", file="q.raw")],
    ],
    ids=["one is left out", "twice", "one too many", "another name", "one file for two"],
)
def test_an_output_nobody_would_look_at_is_missing_evidence(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    with pytest.raises(TransferError, match="does not say which outputs there are"):
        read(tmp_path, *rows)


def test_a_device_does_not_choose_the_yardstick(tmp_path: Path) -> None:
    own = {"scale": 1e-9, "zero_point": 0, "dtype": "uint8"}
    found = {output.name: output for output in read(tmp_path, said("q", quantization=own), said("y"))}
    assert found["q"].quantization == Quantization(scale=0.5, zero_point=100, dtype="uint8")


@pytest.mark.parametrize("scale", [0.0, -0.5, "NaN", "Infinity"])
def test_a_scale_that_is_no_step_is_refused(tmp_path: Path, scale: float | str) -> None:
    own = {"scale": scale, "zero_point": 0, "dtype": "uint8"}
    with pytest.raises(TransferError, match="cannot be read"):
        read(tmp_path, said("q"), said("y", quantization=own))


def test_a_chip_nobody_knows_is_not_taken_for_one_without_an_npu() -> None:
    with pytest.raises(InfrastructureError, match="does not say which chip it has"):
        OrtRuntime().backend(SPEC, None)
    assert OrtRuntime().backend(SPEC, find_soc("SM8650")[0]) == "htp"
    assert OrtRuntime().backend(SPEC, find_soc("Tensor G4")[0]) == "cpu"


FIXTURE = Path(__file__).parents[2] / "fixtures" / "digits_channelnorm" / "int8.onnx"
CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


def place(folder: Path, *rows: tuple[str, str, str]) -> dict[str, bool | None]:
    """Have a device say where nodes went; return which of them were found to stand at an edge."""
    listed = [{"node": node, "op": op, "unit": unit} for node, op, unit in rows]
    (folder / "placement.json").write_text(json.dumps(listed))
    left = OrtRuntime().read_leftovers(Prepared(file=FIXTURE, outputs=None, options={}), folder)
    return {node.node: node.boundary for node in left.placement}


def whole_model(cpu: set[str]) -> list[tuple[str, str, str]]:
    nodes = onnx.load(FIXTURE).graph.node
    return [(node.name, node.op_type, "cpu" if node.name in cpu else "htp") for node in nodes]


def test_conversions_around_a_node_on_the_cpu_stand_at_an_edge(tmp_path: Path) -> None:
    around = {"channel_norm.weight_DequantizeLinear", "channel_norm_QuantizeLinear"}
    found = place(tmp_path, *whole_model({"channel_norm", *around}))
    assert {node for node in around if found[node]} == around
    assert found["channel_norm"] is None


def test_conversions_inside_the_part_on_the_npu_do_not(tmp_path: Path) -> None:
    found = place(tmp_path, *whole_model({"conv2_QuantizeLinear", "image_QuantizeLinear"}))
    assert (found["conv2_QuantizeLinear"], found["image_QuantizeLinear"]) == (False, True)


def test_an_assignment_of_a_few_nodes_is_none_of_the_model(tmp_path: Path) -> None:
    rows = [row for row in whole_model(set()) if row[1] not in CONVERSIONS]
    assert place(tmp_path, rows[0]) == {}
    assert len(place(tmp_path, *rows)) == len(rows)
