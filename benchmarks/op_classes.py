"""Which Hexagon versions compute one operator to the same bits: 20 operators in three precisions, as a table.

Run `python benchmarks/op_classes.py`. Every operator is a model of its own, quantized by ONNX Runtime's recipe for
QNN with ranges from seeded noise. It runs on Qualcomm's HTP simulator at each Hexagon, with the edges of its graph
on the NPU. Versions without a slash between them gave the same bits for every sample; where a node ran on the CPU, or
a chip refused the model, the cell says so.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

from pytest_devicelab.matrix.soc import SIMULATED_HEXAGONS, Soc, find_soc
from pytest_devicelab.tensors.classes import equivalence_classes
from pytest_devicelab.virtual.engine import EngineJob, EngineRefused
from pytest_devicelab.virtual.engines.htp import run_htp
from pytest_devicelab.virtual.simulator import versions

CHIPS = ("SM8350", "SM8450", "SM8550", "SM8650", "SM8750", "SM8850")
PRECISIONS = ("int8", "a16w8", "fp16")
SAMPLES = 4
IMAGE = (1, 8, 16, 16)
TOKENS = (1, 32, 64)
Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One operator: its ONNX type, the shape of its input, its constants and attributes."""

    name: str
    op: str
    shape: tuple[int, ...]
    constants: tuple[tuple[int, ...], ...] = ()
    attributes: tuple[tuple[str, Any], ...] = ()
    twice: bool = False


CASES = (
    Case(name="Conv", op="Conv", shape=IMAGE, constants=((8, 8, 3, 3),), attributes=(("pads", [1] * 4),)),
    Case(
        name="Conv (depthwise)",
        op="Conv",
        shape=IMAGE,
        constants=((8, 1, 3, 3),),
        attributes=(("pads", [1] * 4), ("group", 8)),
    ),
    Case(
        name="ConvTranspose",
        op="ConvTranspose",
        shape=IMAGE,
        constants=((8, 8, 2, 2),),
        attributes=(("strides", [2, 2]),),
    ),
    Case(name="MatMul", op="MatMul", shape=TOKENS, constants=((64, 64),)),
    Case(name="Gemm", op="Gemm", shape=(32, 64), constants=((64, 64), (64,))),
    Case(name="Attention (QK, Softmax, AV)", op="Attention", shape=TOKENS),
    Case(name="Add", op="Add", shape=IMAGE, constants=((1, 8, 1, 1),)),
    Case(name="Mul", op="Mul", shape=IMAGE, constants=((1, 8, 1, 1),)),
    Case(name="Softmax", op="Softmax", shape=TOKENS, attributes=(("axis", -1),)),
    Case(name="Sigmoid", op="Sigmoid", shape=IMAGE),
    Case(name="Tanh", op="Tanh", shape=IMAGE),
    Case(name="Gelu", op="Gelu", shape=IMAGE),
    Case(name="HardSwish", op="HardSwish", shape=IMAGE),
    Case(
        name="MaxPool", op="MaxPool", shape=IMAGE, attributes=(("kernel_shape", [2, 2]), ("strides", [2, 2]))
    ),
    Case(
        name="AveragePool",
        op="AveragePool",
        shape=IMAGE,
        attributes=(("kernel_shape", [2, 2]), ("strides", [2, 2])),
    ),
    Case(name="GlobalAveragePool", op="GlobalAveragePool", shape=IMAGE),
    Case(name="Resize (linear, x2)", op="Resize", shape=IMAGE, attributes=(("mode", "linear"),)),
    Case(name="LayerNormalization", op="LayerNormalization", shape=TOKENS, constants=((64,), (64,))),
    Case(name="InstanceNormalization", op="InstanceNormalization", shape=IMAGE, constants=((8,), (8,))),
    Case(name="ReduceMean", op="ReduceMean", shape=IMAGE),
)


class _Samples(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    def __init__(self, samples: Sequence[Array]) -> None:
        self._samples: Iterator[Array] = iter(samples)

    def get_next(self) -> dict[str, Array] | None:
        """Answer the next input, or None at the end."""
        sample = next(self._samples, None)
        return None if sample is None else {"x": sample}


def samples(case: Case) -> list[Array]:
    """Return the inputs of a case, `[1, ...]` each: seeded normal noise."""
    noise = np.random.default_rng(3)
    return [noise.normal(size=case.shape).astype(np.float32) for _ in range(SAMPLES)]


def float_model(case: Case) -> onnx.ModelProto:
    """Return the model of one operator, `x` -> `y`, both float32."""
    noise = np.random.default_rng(7)
    arrays = {
        f"c{number}": (noise.normal(size=shape) * 0.2).astype(np.float32)
        for number, shape in enumerate(case.constants)
    }
    if case.op == "Attention":
        nodes = [
            helper.make_node("Transpose", ["x"], ["k"], name="k", perm=[0, 2, 1]),
            helper.make_node("MatMul", ["x", "k"], ["scores"], name="scores"),
            helper.make_node("Mul", ["scores", "factor"], ["scaled"], name="scaled"),
            helper.make_node("Softmax", ["scaled"], ["weights"], name="weights", axis=-1),
            helper.make_node("MatMul", ["weights", "x"], ["y"], name="mix"),
        ]
        arrays["factor"] = np.array(0.125, np.float32)
    else:
        more = ["", "scales"] if case.op == "Resize" else [*arrays]
        if case.op == "Resize":
            arrays["scales"] = np.array([1, 1, 2, 2], np.float32)
        if case.op == "ReduceMean":
            more = ["axes"]
        nodes = [helper.make_node(case.op, ["x", *more], ["y"], name="op", **dict(case.attributes))]
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    if case.op == "ReduceMean":
        constants.append(numpy_helper.from_array(np.array([2, 3], np.int64), "axes"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, case.shape)
    graph = helper.make_graph(
        nodes, "g", [x], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def write_model(case: Case, precision: str, folder: Path) -> Path:
    """Write a case in a precision: quantized by ONNX Runtime's own recipe for QNN, or as it is for fp16."""
    model = float_model(case)
    path = folder / f"{CASES.index(case)}.{precision}.onnx"
    if precision == "fp16":
        onnx.save(model, path)
        return path
    activation = QuantType.QUInt8 if precision == "int8" else QuantType.QUInt16
    source = copy.deepcopy(model)
    config = get_qnn_qdq_config(
        source, _Samples(samples(case)), activation_type=activation, weight_type=QuantType.QUInt8
    )
    # Otherwise operators that only pass values on, such as MaxPool, are left in float without a neighbour to follow.
    config.extra_options["ForceQuantizeNoInputCheck"] = True
    quantize(source, path, config)
    _check_quantized(onnx.load(path))
    return path


def _check_quantized(model: onnx.ModelProto) -> None:
    """Refuse a model that computes in float: its row would speak of another precision than its column."""
    dequantized = {
        name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") and node.input[0] not in dequantized:
            raise AssertionError(f"{node.op_type} {node.name} was not quantized")


def measure(case: Case, precision: str, model: Path, chips: Sequence[Soc]) -> str:
    """Return a cell of the table: the classes of Hexagons, and what kept one out of them."""
    inputs = tuple({"x": sample} for sample in samples(case))
    options = {"offload_graph_io_quantization": "0"}
    if precision == "fp16":
        options["enable_htp_fp16_precision"] = "1"
    hashes: dict[str, tuple[str, ...]] = {}
    refused: list[str] = []
    on_cpu: list[str] = []
    for chip in chips:
        hexagon = chip.hexagon or "?"
        with tempfile.TemporaryDirectory() as work:
            job = EngineJob(
                model=model, format="onnx", inputs=inputs, soc=chip, options=options, work=Path(work)
            )
            try:
                result = run_htp(job)
            except EngineRefused:
                refused.append(hexagon)
                continue
        if any(node.unit != "htp" for node in result.placement):
            on_cpu.append(hexagon)
            continue
        hashes[hexagon] = tuple(output["y"].tobytes().hex() for output in result.outputs)
    return _cell(hashes, refused, on_cpu)


def _cell(hashes: Mapping[str, tuple[str, ...]], refused: Sequence[str], on_cpu: Sequence[str]) -> str:
    classes = equivalence_classes(hashes) if hashes else ()
    ordered = sorted(classes, key=lambda members: members[0])
    parts = (
        ["all equal" if len(ordered) == 1 and not (refused or on_cpu) else _bars(ordered)] if ordered else []
    )
    parts += [f"refused: {' '.join(refused)}"] if refused else []
    parts += [f"on the CPU: {' '.join(on_cpu)}"] if on_cpu else []
    return "; ".join(parts)


def _bars(classes: Sequence[Sequence[str]]) -> str:
    return " / ".join(" ".join(members) for members in classes)


def main(argv: Sequence[str]) -> int:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], metavar="OP", help="these operators only")
    options = parser.parse_args(argv)
    chips = [find_soc(name)[0] for name in CHIPS]
    assert tuple(chip.hexagon for chip in chips) == SIMULATED_HEXAGONS
    chosen = [case for case in CASES if not options.only or case.op in options.only]
    print(
        f"Versions: {', '.join(f'{name} {version}' for name, version in versions().items())}; {SAMPLES} samples.\n"
    )
    print(f"| Operator | {' | '.join(PRECISIONS)} |")
    print(f"|---|{'---|' * len(PRECISIONS)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        # All models first: a session on the simulator makes ONNX Runtime talk for the rest of the process.
        rows = [
            (case, [write_model(case, precision, Path(folder)) for precision in PRECISIONS])
            for case in chosen
        ]
        for case, models in rows:
            cells = [measure(case, *pair, chips) for pair in zip(PRECISIONS, models, strict=True)]
            print(f"| {case.name} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
