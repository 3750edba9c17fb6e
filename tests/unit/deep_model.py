"""A deep quantized model whose every layer can be given a fault, and runs of it on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[np.generic]

WIDTH = 16
SCALE = 0.05
MIDDLE = 128


def layer_names(layers: int) -> list[str]:
    return [f"layer{number}" for number in range(1, layers + 1)]


def deep_model(layers: int, seed: int) -> bytes:
    """x -> Q/DQ -> `layers` times (MatMul, Add or Tanh -> Q/DQ) -> y, uint8 activations, `[1, WIDTH]`."""
    noise = np.random.default_rng(seed)
    constants: dict[str, Array] = {"scale": np.array(SCALE, np.float32), "middle": np.array(MIDDLE, np.uint8)}
    nodes = _pair("x", "layer0_dq", "layer0")
    source = "layer0_dq"
    for number, name in enumerate(layer_names(layers)):
        op = ("MatMul", "Add", "Tanh")[number % 3]
        if op == "Tanh":
            nodes.append(helper.make_node("Tanh", [source], [name], name=name))
        else:
            shape = (WIDTH, WIDTH) if op == "MatMul" else (1, WIDTH)
            spread = 1.7 if op == "MatMul" else 1.0
            constants[f"{name}_c"] = (noise.normal(size=shape) * spread / np.sqrt(WIDTH)).astype(np.float32)
            nodes.append(helper.make_node(op, [source, f"{name}_c"], [name], name=name))
        source = "y" if number == layers - 1 else f"{name}_dq"
        nodes += _pair(name, source, name)
    graph = helper.make_graph(
        nodes,
        "deep",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _pair(tensor: str, out: str, name: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [tensor, "scale", "middle"], [f"{name}_q"], name=f"{name}_Q"),
        helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "middle"], [out], name=f"{name}_DQ"),
    ]


def plant(model: bytes, node: str, steps: float = 1.0) -> bytes:
    """The model with a fault: the output of one node is `steps` quantization steps too large in its first element."""
    parsed = onnx.load_model_from_string(model)
    faulty = next(each for each in parsed.graph.node if each.name == node)
    delta = np.zeros((1, WIDTH), np.float32)
    delta[0, 0] = steps * SCALE
    parsed.graph.initializer.append(numpy_helper.from_array(delta, "fault"))
    position = list(parsed.graph.node).index(faulty)
    tensor = faulty.output[0]
    faulty.output[0] = f"{tensor}_sound"
    parsed.graph.node.insert(position + 1, helper.make_node("Add", [f"{tensor}_sound", "fault"], [tensor]))
    return bytes(parsed.SerializeToString())


def inputs(samples: int, seed: int) -> Array:
    return np.random.default_rng(seed).uniform(-2, 2, (samples, WIDTH)).astype(np.float32)


def run(model: bytes, x: Array, feed: Mapping[str, Array] | None = None) -> dict[str, Array]:
    """Every output of a model over samples, `[N, ...]`."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    arrays = dict(feed) if feed is not None else {"x": x}
    runs: list[Sequence[Array]] = [
        session.run(names, {name: array[sample : sample + 1] for name, array in arrays.items()})
        for sample in range(len(x))
    ]
    return {name: np.concatenate([each[index] for each in runs]) for index, name in enumerate(names)}
