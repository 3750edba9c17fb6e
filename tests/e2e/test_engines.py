from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pytest_devicelab.errors import CompileRefused, DeadlineExceeded, ModelError, UserError
from pytest_devicelab.evidence.record import NodePlacement, Quantization
from pytest_devicelab.matrix.soc import Soc, find_soc
from pytest_devicelab.runtimes.compile import CompiledContext, compile_context
from pytest_devicelab.virtual.engine import EngineJob, EngineRefused, EngineResult
from pytest_devicelab.virtual.engines.cpu import run_cpu
from pytest_devicelab.virtual.engines.htp import run_htp
from pytest_devicelab.virtual.engines.resolve import resolve_engine

CHIPS = {
    "V68": "SM8350",
    "V69": "SM8450",
    "V73": "SM8550",
    "V75": "SM8650",
    "V79": "SM8750",
    "V81": "SM8850",
}
OLD_AND_NEW = {frozenset({"V68", "V69"}), frozenset({"V73", "V75", "V79", "V81"})}
V81_APART = {frozenset({"V68", "V69"}), frozenset({"V73", "V75", "V79"}), frozenset({"V81"})}
ALL_EQUAL = {frozenset(CHIPS)}
SHAPE = (1, 8, 16, 16)
Build = Callable[[str, "type[np.unsignedinteger[Any]]"], Path]


def soc(hexagon: str) -> Soc:
    return find_soc(CHIPS[hexagon])[0]


def sample(shape: Sequence[int] = SHAPE, seed: int = 3) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def qdq_pair(
    tensor: str, scale: float, zero: np.generic
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes that quantize `tensor` and dequantize it to `<tensor>_dq`, and their constants."""
    names = [f"{tensor}_scale", f"{tensor}_zero"]
    nodes = [
        helper.make_node("QuantizeLinear", [tensor, *names], [f"{tensor}_q"], name=f"{tensor}_q"),
        helper.make_node("DequantizeLinear", [f"{tensor}_q", *names], [f"{tensor}_dq"], name=f"{tensor}_dq"),
    ]
    values = [np.float32(scale), zero]
    return nodes, [numpy_helper.from_array(np.asarray(v), n) for v, n in zip(values, names, strict=True)]


def weight(name: str, shape: Sequence[int], seed: int) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    """A constant of signed 8-bit codes, dequantized to `<name>_dq`."""
    codes = np.random.default_rng(seed).integers(-127, 128, size=shape).astype(np.int8)
    constants = [
        numpy_helper.from_array(codes, name),
        numpy_helper.from_array(np.asarray(np.float32(0.004)), f"{name}_scale"),
        numpy_helper.from_array(np.asarray(np.int8(0)), f"{name}_zero"),
    ]
    inputs = [name, f"{name}_scale", f"{name}_zero"]
    return helper.make_node("DequantizeLinear", inputs, [f"{name}_dq"], name=f"{name}_dq"), constants


def operator(op: str) -> tuple[onnx.NodeProto, Mapping[str, Sequence[int]], Sequence[int]]:
    """The node under test, the shapes of its weights, and the shape of its input."""
    cases: Mapping[str, tuple[list[str], dict[str, Any], Mapping[str, Sequence[int]], Sequence[int]]] = {
        "Conv": (["w"], {"pads": [1, 1, 1, 1]}, {"w": (8, 8, 3, 3)}, SHAPE),
        "MatMul": (["w"], {}, {"w": (64, 64)}, (32, 64)),  # many elements: ties of a rounding are rare
        "Add": (["x_dq"], {}, {}, SHAPE),
        "Softmax": ([], {"axis": -1}, {}, (1, 64)),
        "Sigmoid": ([], {}, {}, SHAPE),
        "AveragePool": ([], {"kernel_shape": [2, 2], "strides": [2, 2]}, {}, SHAPE),
    }
    others, attributes, weights, shape = cases[op]
    inputs = ["x_dq", *(f"{name}_dq" if name in weights else name for name in others)]
    return helper.make_node(op, inputs, ["z"], name="op", **attributes), weights, shape


def save(
    nodes: Sequence[onnx.NodeProto], constants: Sequence[onnx.TensorProto], shape: Sequence[int], path: Path
) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "g", [x], [y], list(constants))
    opsets = [helper.make_opsetid("", 21)]
    model = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=opsets, ir_version=10), strict_mode=True
    )
    onnx.save(model, path)
    return path


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Write a model of one quantized operator: the operator's type, the activations' dtype -> the file."""

    def write(op: str, codes: type[np.unsignedinteger[Any]]) -> Path:
        step = 8.0 / np.iinfo(codes).max
        middle = codes(np.iinfo(codes).max // 2 + 1)
        node, weights, shape = operator(op)
        nodes, constants = qdq_pair("x", step, middle)
        for number, (name, size) in enumerate(weights.items()):
            dequantize, values = weight(name, size, number)
            nodes.append(dequantize)
            constants += values
        after, more = qdq_pair("z", 1 / np.iinfo(codes).max if op in ("Softmax", "Sigmoid") else step, middle)
        if op in ("Softmax", "Sigmoid"):
            more[1] = numpy_helper.from_array(np.asarray(codes(0)), "z_zero")
        after[-1].output[0] = "y"
        return save([*nodes, node, *after], [*constants, *more], shape, tmp_path / f"{op}.onnx")

    return write


@pytest.fixture
def channel_norm(tmp_path: Path) -> Path:
    """A model whose LayerNormalization runs over a non-last axis, which the HTP does not do in INT8."""
    nodes, constants = qdq_pair("x", 0.06, np.uint8(128))
    conv_weight, values = weight("w", (8, 8, 3, 3), 1)
    after_conv, conv_constants = qdq_pair("c", 0.06, np.uint8(128))
    scale_nodes, scale_constants = weight("s", (8, 16, 16), 2)
    last, last_constants = qdq_pair("z", 0.06, np.uint8(128))
    last[-1].output[0] = "y"
    everything = [
        *nodes,
        conv_weight,
        helper.make_node("Conv", ["x_dq", "w_dq"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        *after_conv,
        scale_nodes,
        helper.make_node("LayerNormalization", ["c_dq", "s_dq"], ["z"], name="norm", axis=1),
        *last,
    ]
    all_constants = [*constants, *values, *conv_constants, *scale_constants, *last_constants]
    return save(everything, all_constants, SHAPE, tmp_path / "channel_norm.onnx")


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., EngineJob]:
    counter = iter(range(1000))

    def make(model: Path, chip: Soc, **more: object) -> EngineJob:
        work = tmp_path / f"work{next(counter)}"
        work.mkdir()
        settings: dict[str, object] = {"format": "onnx", "inputs": ({"x": sample()},), **more}
        return EngineJob(model=model, soc=chip, work=work, **settings)  # type: ignore[arg-type]

    return make


def classes(
    model: Path, job: Callable[..., EngineJob], shape: Sequence[int], **more: object
) -> set[frozenset[str]]:
    """The sets of Hexagons whose outputs are the same bits."""
    found: dict[bytes, set[str]] = {}
    for hexagon in CHIPS:
        result = run_htp(job(model, soc(hexagon), inputs=({"x": sample(shape)},), **more))
        assert {node.unit for node in result.placement} == {"htp"}
        found.setdefault(result.outputs[0]["y"].tobytes(), set()).add(hexagon)
    return {frozenset(members) for members in found.values()}


@pytest.mark.parametrize("op", ["Conv", "MatMul"])
def test_int8_products_part_between_v69_and_v73(op: str, build: Build, job: Callable[..., EngineJob]) -> None:
    assert classes(build(op, np.uint8), job, operator(op)[2]) == OLD_AND_NEW


@pytest.mark.parametrize("op", ["Add", "Softmax", "Sigmoid", "AveragePool"])
def test_other_int8_operators_agree_on_every_chip(
    op: str, build: Build, job: Callable[..., EngineJob]
) -> None:
    assert classes(build(op, np.uint8), job, operator(op)[2]) == ALL_EQUAL


def test_16_bit_activations_set_v81_apart_when_the_edges_are_on_the_npu(
    build: Build, job: Callable[..., EngineJob]
) -> None:
    assert classes(build("Conv", np.uint16), job, SHAPE) == V81_APART


def test_outputs_are_not_the_cpu_s(build: Build, job: Callable[..., EngineJob]) -> None:
    model = build("Conv", np.uint8)
    npu = run_htp(job(model, soc("V68"))).outputs[0]["y"]
    cpu = run_cpu(job(model, soc("V68"))).outputs[0]["y"]
    assert npu.shape == cpu.shape
    assert not np.array_equal(npu, cpu)
    np.testing.assert_allclose(npu.astype(float), cpu.astype(float), atol=0.1)


@pytest.mark.parametrize("hexagon", ["V68", "V75", "V81"])
def test_a_context_binary_computes_what_the_model_computes(
    hexagon: str, build: Build, job: Callable[..., EngineJob], tmp_path: Path
) -> None:
    model = build("Conv", np.uint8)
    compiled = compile_context(model, soc(hexagon), {}, tmp_path / "cache")
    direct = run_htp(job(model, soc(hexagon)))
    loaded = run_htp(job(compiled.path, soc(hexagon), format="context_binary"))
    assert loaded.outputs[0]["y"].tobytes() == direct.outputs[0]["y"].tobytes()
    assert {node.unit for node in loaded.placement} == {"htp"}


@pytest.mark.parametrize("codes", [np.uint8, np.uint16])
def test_a_context_binary_with_quantized_edges_says_how_they_are_quantized(
    codes: type[np.unsignedinteger[Any]], job: Callable[..., EngineJob], tmp_path: Path
) -> None:
    constants = [
        numpy_helper.from_array(np.asarray(np.float32(0.5)), "scale"),
        numpy_helper.from_array(np.asarray(codes(3)), "zero"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["a"], name="dq"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("QuantizeLinear", ["b", "scale", "zero"], ["y"], name="q"),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(codes))
    edges = [helper.make_tensor_value_info(name, kind, [1, 8]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", edges[:1], edges[1:], constants)
    path = tmp_path / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    compiled = compile_context(path, soc("V75"), {}, tmp_path / "cache")
    how = Quantization(scale=0.5, zero_point=3, dtype=np.dtype(codes).name)
    (tensor,) = compiled.info.graphs[0].inputs
    assert (tensor.dtype, tensor.shape, tensor.quantization) == (np.dtype(codes).name, (1, 8), how)
    values = np.arange(8, dtype=codes).reshape(1, 8)
    loaded = run_htp(job(compiled.path, soc("V75"), format="context_binary", inputs=({"x": values},)))
    direct = run_htp(job(path, soc("V75"), inputs=({"x": values},)))
    expected = np.maximum(values, codes(3))
    np.testing.assert_array_equal(loaded.outputs[0]["y"], expected)
    np.testing.assert_array_equal(direct.outputs[0]["y"], expected)
    assert loaded.quantization == direct.quantization == {"y": how}


def test_a_context_binary_for_another_hexagon_is_refused_though_the_simulator_would_load_it(
    build: Build, job: Callable[..., EngineJob], tmp_path: Path
) -> None:
    compiled = compile_context(build("Conv", np.uint8), soc("V75"), {}, tmp_path / "cache")
    with pytest.raises(EngineRefused, match=r"made for V75 .* SM8450, has V69") as refused:
        run_htp(job(compiled.path, soc("V69"), format="context_binary"))
    assert refused.value.code == 5005


def test_a_fallback_shows_in_the_placement(channel_norm: Path, job: Callable[..., EngineJob]) -> None:
    result = run_htp(job(channel_norm, soc("V75")))
    assert NodePlacement(node="norm", op="LayerNormalization", unit="cpu") in result.placement
    assert NodePlacement(node="conv", op="Conv", unit="htp") in result.placement


def test_strict_names_the_operator_and_the_runtime_s_reason(
    channel_norm: Path, job: Callable[..., EngineJob]
) -> None:
    with pytest.raises(EngineRefused, match=r"LayerNormalization norm: .*last axis") as refused:
        run_htp(job(channel_norm, soc("V75"), strict=True, log_level="verbose"))
    assert any("Validation FAILED" in line.message for line in refused.value.log)


def test_compiling_names_the_operator_and_the_runtime_s_reason(channel_norm: Path, tmp_path: Path) -> None:
    with pytest.raises(CompileRefused, match="LayerNormalization norm") as refused:
        compile_context(channel_norm, soc("V75"), {}, tmp_path / "cache")
    (op,) = refused.value.evidence["ops"]
    assert (op["op"], op["node"]) == ("LayerNormalization", "norm")
    assert "last axis" in op["reason"]
    assert not list((tmp_path / "cache").glob("*/context.bin"))


def test_the_profile_names_the_onnx_nodes(build: Build, job: Callable[..., EngineJob]) -> None:
    result = run_htp(job(build("Conv", np.uint8), soc("V75"), profile=True, inputs=({"x": sample()},) * 3))
    sources = [source for row in result.ops for source in row.sources]
    assert "Conv:op" in sources
    assert len({row.name for row in result.ops}) == len(result.ops)
    assert sum(row.cycles for row in result.ops) > 0
    assert result.profile_csv.startswith(b"Msg Timestamp,")


def test_log_levels_and_tags(build: Build, job: Callable[..., EngineJob]) -> None:
    model = build("Conv", np.uint8)
    logs: dict[str, EngineResult] = {
        level: run_htp(job(model, soc("V75"), log_level=level))
        for level in ("off", "error", "warn", "verbose")
    }
    assert logs["off"].log == ()
    assert {line.priority for line in logs["error"].log} <= {"E", "F"}
    assert {line.priority for line in logs["warn"].log} <= {"W", "E", "F"}
    verbose = logs["verbose"].log
    assert {line.tag for line in verbose} == {"onnxruntime", "QnnDsp"}
    assert any(line.tag == "QnnDsp" and line.message.startswith(" <I> ") for line in verbose)
    assert ("QnnDsp", "V") not in {(line.tag, line.priority) for line in verbose}
    assert any("Number of partitions" in line.message or "placed on" in line.message for line in verbose)
    assert not any("\x1b" in line.message for line in verbose)
    assert len(logs["warn"].log) < len(verbose)


def test_later_inferences_do_not_flood_the_log(build: Build, job: Callable[..., EngineJob]) -> None:
    model = build("Add", np.uint8)
    one, many = (
        run_htp(job(model, soc("V75"), log_level="verbose", inputs=({"x": sample()},) * count))
        for count in (1, 20)
    )
    assert len(many.outputs) == 20
    assert len(many.log) <= len(one.log) + 20


@pytest.mark.parametrize(
    ("chip", "why"),
    [
        (Soc(name="NEW1", hexagon="V85", qnn_id=999), "Hexagon of NEW1 is V85"),
        (Soc(name="OLD1", hexagon="V66", qnn_id=21), "Hexagon of OLD1 is V66"),
        (Soc(name="ODD1"), "Hexagon of ODD1 is unknown"),
        (Soc(name="ODD2", hexagon="V69"), "QNN id .* of ODD2 is unknown"),
        (Soc(name="G4", has_hexagon=False), "G4 has no Hexagon"),
        (Soc(name="LIE1", hexagon="V75", qnn_id=30), "belongs to a V68, not to a V75"),
        (Soc(name="LIE2", hexagon="V75", qnn_id=9999), "could not be set up for this chip"),
    ],
)
def test_a_chip_that_is_not_simulated_is_refused_and_never_run_on_the_cpu(
    chip: Soc, why: str, build: Build, job: Callable[..., EngineJob], tmp_path: Path
) -> None:
    model = build("Add", np.uint8)
    with pytest.raises(EngineRefused, match=why) as refused:
        run_htp(job(model, chip))
    assert refused.value.code == 14001
    with pytest.raises(CompileRefused, match=why):
        compile_context(model, chip, {}, tmp_path / "cache")


def test_an_unknown_option_is_named(build: Build, job: Callable[..., EngineJob], tmp_path: Path) -> None:
    model, options = build("Add", np.uint8), {"enable_htp_fp61_precision": "1"}
    with pytest.raises(EngineRefused, match="enable_htp_fp61_precision"):
        run_htp(job(model, soc("V75"), options=options))
    with pytest.raises(UserError, match="enable_htp_fp61_precision"):
        compile_context(model, soc("V75"), options, tmp_path / "cache")


def test_fp16_gelu_does_not_finalize_on_v68(job: Callable[..., EngineJob], tmp_path: Path) -> None:
    model = save([helper.make_node("Gelu", ["x"], ["y"], name="gelu")], [], [1, 64], tmp_path / "gelu.onnx")
    settings = {"options": {"enable_htp_fp16_precision": "1"}, "inputs": ({"x": sample([1, 64])},)}
    with pytest.raises(EngineRefused, match="finalize") as refused:
        run_htp(job(model, soc("V68"), **settings))
    assert refused.value.code == 1002
    assert run_htp(job(model, soc("V75"), **settings)).outputs[0]["y"].shape == (1, 64)


def test_what_is_not_a_model_is_refused(job: Callable[..., EngineJob], tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for content in (b"", b"not a model at all", b"\x00" * 64):
        path.write_bytes(content)
        for run in (run_htp, run_cpu):
            with pytest.raises(EngineRefused, match="not an ONNX model"):
                run(job(path, soc("V75")))
        with pytest.raises(EngineRefused, match="not a QNN context binary") as refused:
            run_htp(job(path, soc("V75"), format="context_binary"))
        assert refused.value.code == 5005
        with pytest.raises(ModelError, match="not an ONNX model"):
            compile_context(path, soc("V75"), {}, tmp_path / "cache")


def test_the_cpu_engine_places_every_node_on_the_cpu(
    channel_norm: Path, job: Callable[..., EngineJob]
) -> None:
    chip = find_soc("Tensor G4")[0]
    first, second = (run_cpu(job(channel_norm, chip)) for _ in range(2))
    assert {node.unit for node in first.placement} == {"cpu"}
    assert len(first.placement) == len(onnx.load(channel_norm).graph.node)
    assert first.outputs[0]["y"].tobytes() == second.outputs[0]["y"].tobytes()
    with pytest.raises(EngineRefused, match="engine: cpu"):
        run_cpu(job(channel_norm, chip, strict=True))
    with pytest.raises(EngineRefused, match="context binary cannot run"):
        run_cpu(job(channel_norm, chip, format="context_binary"))


def test_compiling_twice_compiles_once(build: Build, tmp_path: Path) -> None:
    model, cache = build("Conv", np.uint8), tmp_path / "cache"

    def compiled(**options: str) -> CompiledContext:
        return compile_context(model, soc("V75"), options, cache)

    first, second = compiled(), compiled()
    assert (first.cached, second.cached) == (False, True)
    assert second.path == first.path
    assert second.sha256 == first.sha256
    assert "Conv:op" in {source for sources in first.sources.values() for source in sources}
    assert not compiled(htp_graph_finalization_optimization_mode="1").cached
    assert not compile_context(model, soc("V79"), {}, cache).cached
    first.path.write_bytes(b"damaged")
    repaired = compiled()
    assert not repaired.cached
    assert repaired.info.hexagon == "V75"
    assert not [entry for entry in cache.iterdir() if entry.name.startswith(".new-")]


def test_compiling_at_once_compiles_once(build: Build, tmp_path: Path) -> None:
    model = build("Add", np.uint8)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(compile_context, model, soc("V75"), {}, tmp_path / "cache") for _ in range(3)]
        found = [future.result() for future in waiting]
    assert sorted(context.cached for context in found) == [False, True, True]
    assert len({context.sha256 for context in found}) == 1


def test_a_graph_whose_edges_stay_on_the_cpu_under_other_names_is_refused(
    build: Build, tmp_path: Path
) -> None:
    with pytest.raises(CompileRefused, match="offload_graph_io_quantization to 0"):
        compile_context(
            build("Conv", np.uint8), soc("V75"), {"offload_graph_io_quantization": "1"}, tmp_path / "cache"
        )


def test_a_compiler_that_takes_too_long_is_stopped(build: Build, tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceeded, match=r"0\.01 s"):
        compile_context(build("Conv", np.uint8), soc("V75"), {}, tmp_path / "cache", timeout_s=0.01)


def test_resolve_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert resolve_engine("htp") is run_htp
    assert resolve_engine("cpu") is run_cpu
    (tmp_path / "my_engine_module.py").write_text("def run(job): return job\nnumber = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve_engine("my_engine_module:run") is not None
    for name, why in (
        ("my_engine_module:number", "not callable"),
        ("my_engine_module:nothing", "cannot be imported"),
        ("no_such_module_here:run", "cannot be imported"),
        ("htpp", "is not known"),
    ):
        with pytest.raises(UserError, match=why):
            resolve_engine(name)


def test_a_missing_simulator_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)
    with pytest.raises(UserError, match=r"pip install 'pytest-devicelab\[virtual\]'.*engine: cpu"):
        resolve_engine("htp")
