from __future__ import annotations

import hashlib
import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.evidence.record import ModelIdentity, RunRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.attempts import run_on_device
from pytest_devicelab.lab.request import RunRequest
from pytest_devicelab.matrix.options import LITERT_KERNELS
from pytest_devicelab.matrix.specs import MeasureSpec, ModelSpec, Source, log_profile
from pytest_devicelab.runtimes.host import run_on_host
from pytest_devicelab.runtimes.inputs import Arrays, load_inputs
from pytest_devicelab.runtimes.registry import find_runtime
from pytest_devicelab.verdicts.placement import judge_placement
from tests.e2e.virtual_lab import VirtualLab

FIXTURES = Path(__file__).parents[2] / "fixtures"
MODELS = {"qnn": "int8.onnx", "ort": "int8.onnx", "litert": "int8.tflite", "executorch": "float.pte"}
INPUTS = load_inputs(FIXTURES / "digits_eval.npz", samples=3)
HOSTILE = "a b';$(touch pwned)`touch pwned`\n\"\\&|>pwned ü"


def carry_out(
    lab: VirtualLab,
    store: SessionStore,
    cache: Path,
    path: Path,
    runtime: str,
    *,
    device: str = "s24",
    inputs: Arrays = INPUTS,
    runner: str = "",
    measure: MeasureSpec | None = None,
    **options: str,
) -> RunRecord:
    request = RunRequest(
        id=f"m.{device}.{runtime}{'.measure' if measure else ''}",
        model=ModelIdentity(id="m", variant="", sha256=hashlib.sha256(path.read_bytes()).hexdigest()),
        path=path,
        runtime=runtime,
        options=options,
        inputs={"input_0": INPUTS["image"]} if runtime == "executorch" else inputs,
        purpose="measure" if measure else "evaluate",
        logging=log_profile("verbose"),
        timeout_s=60,
        measure=measure,
    )
    spec = replace(lab.specs[device], runners={runtime: runner} if runner else {})
    return run_on_device(AdbDevice(spec, lab.transport(device)), request, store, cache=cache)


def floats(array: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    return array.astype(np.float64)


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return SessionStore.create(tmp_path / "reports", "session")


@pytest.fixture
def litert_runner(virtual_lab: VirtualLab) -> Iterator[Path]:
    path = virtual_lab.root("pixel") / "system/bin/litert-run"
    genuine = path.read_bytes()
    yield path
    path.write_bytes(genuine)


@pytest.mark.parametrize("runtime", ["qnn", "ort", "litert"])
def test_a_file_name_is_never_shell_text(
    virtual_lab: VirtualLab, store: SessionStore, tmp_path: Path, runtime: str
) -> None:
    source = FIXTURES / "digits_cnn" / MODELS[runtime]
    path = tmp_path / f"{HOSTILE}{source.suffix}"
    shutil.copy(source, path)
    record = carry_out(virtual_lab, store, tmp_path / "cache", path, runtime)
    assert record.status == "ok", record.error
    assert not list(virtual_lab.root("s24").rglob("pwned"))
    assert not (Path.cwd() / "pwned").exists()


def test_litert_computes_on_the_cpu_and_says_so(
    virtual_lab: VirtualLab, store: SessionStore, tmp_path: Path
) -> None:
    path = FIXTURES / "digits_cnn/int8.tflite"
    record = carry_out(virtual_lab, store, tmp_path, path, "litert")
    assert (record.status, record.backend, record.options) == (
        *("ok", "cpu"),
        {"kernels": "xnnpack"},
    )
    assert [(node.op, node.unit) for node in record.placement][:3] == [
        ("QUANTIZE", "cpu"),
        ("RESHAPE", "cpu"),
        ("CONV_2D", "cpu"),
    ]
    assert "ai-edge-litert" in record.versions
    logcat = (store.run_folder(record.id) / "logcat.txt").read_text()
    assert "I tflite  : Created TensorFlow Lite XNNPACK delegate for CPU." in logcat
    (tensor,) = record.outputs
    onnx = run_on_host(FIXTURES / "digits_cnn/int8.onnx", INPUTS)["logits"]
    assert tensor.name == "logits"
    # The same integers in another runtime: no logit is further off than one step of them.
    np.testing.assert_allclose(floats(store.read_output(tensor)), floats(onnx), atol=0.0354)


def test_litert_computes_with_the_kernels_that_were_asked_for(
    virtual_lab: VirtualLab, tmp_path: Path
) -> None:
    path, inputs = FIXTURES / "digits_cnn/int8.tflite", load_inputs(FIXTURES / "digits_eval.npz", samples=64)
    bits = {}
    for kernels in LITERT_KERNELS:
        store = SessionStore.create(tmp_path, kernels)
        record = carry_out(virtual_lab, store, tmp_path, path, "litert", inputs=inputs, kernels=kernels)
        assert (record.status, record.options) == ("ok", {"kernels": kernels}), record.error
        spoken = store.run_folder(record.id) / "logcat.txt"
        assert ("XNNPACK delegate" in (spoken.read_text() if spoken.exists() else "")) == (
            kernels == "xnnpack"
        )
        bits[kernels] = store.read_output(record.outputs[0]).tobytes()
    assert len(set(bits.values())) == len(LITERT_KERNELS)
    yardstick = find_runtime("litert").run_on_host(path, inputs)["logits"]
    assert bits["reference"] == yardstick.tobytes()


# What stands in for LiteRT's own program: its flags, its lines, and the computing of litert-run.
BENCHMARK_MODEL = """#!/bin/sh
for word in "$@"; do
    case $word in
        --graph=*) graph=${word#*=} ;;
        --input_layer_value_files=x0:*) file=${word#*:} ;;
        --output_filepath=*) saved=${word#*=} ;;
        --num_runs=*) runs=${word#*=} ;;
        --input_layer=x0|--input_layer_shape=1,1,8,8|--use_xnnpack=true|--num_threads=1) ;;
        --warmup_runs=*|--min_secs=0|--warmup_min_secs=0|--max_secs=86400) ;;
        *) echo "ERROR: Unconsumed cmdline flags: $word" >&2; exit 1 ;;
    esac
done
work=$(mktemp -d) && echo "$file" > "$work/list" || exit 1
litert-run --model "$graph" --input_list "$work/list" --output_dir "$work/out" || exit 1
[ -z "$saved" ] || cp "$work/out/Result_0/logits.raw" "$saved"
rm -r "$work"
echo "INFO: count=0"
echo "INFO: count=$runs first=80 curr=71 min=70 max=80 avg=72.5 std=2"
echo "INFO: Inference timings in us: Init: 512, First inference: 80, Warmup (avg): 80, Inference (avg): 72.5"
"""


def test_benchmark_model_takes_the_place_of_litert_run(
    virtual_lab: VirtualLab, store: SessionStore, tmp_path: Path
) -> None:
    program = virtual_lab.root("s24") / "data/local/tmp/android_aarch64_benchmark_model"
    program.write_text(BENCHMARK_MODEL)
    program.chmod(0o755)
    named = "/data/local/tmp/android_aarch64_benchmark_model"
    path = tmp_path / f"{HOSTILE}.tflite"
    shutil.copy(FIXTURES / "digits_cnn/int8.tflite", path)
    try:
        record = carry_out(virtual_lab, store, tmp_path, path, "litert", runner=named)
        plan = MeasureSpec(inferences=7, warm_up=2)
        timed = carry_out(virtual_lab, store, tmp_path, path, "litert", runner=named, measure=plan)
    finally:
        program.unlink()
    assert record.status == "ok", record.error
    assert "benchmark_model" in record.versions
    plain = carry_out(virtual_lab, store, tmp_path, path, "litert")
    assert [output.sha256 for output in record.outputs] == [output.sha256 for output in plain.outputs]
    model = ModelSpec(id="m", path=path, source=Source(file="m", line=1, column=1), runtime="litert")
    assert judge_placement(record, model).outcome == "inconclusive", "it says nothing of nodes"
    assert timed.measured is not None, timed.error
    assert (timed.measured.latency.mean_us, timed.measured.latency.inferences) == (72.5, 7)
    assert timed.measured.load_us.value == 512.0
    assert not list(virtual_lab.root("s24").rglob("pwned"))


def test_a_device_without_the_runner_says_which_one_it_needs(
    litert_runner: Path, virtual_lab: VirtualLab, store: SessionStore, tmp_path: Path
) -> None:
    aside = litert_runner.rename(litert_runner.with_name("litert-run.aside"))
    try:
        path = FIXTURES / "digits_cnn/int8.tflite"
        record = carry_out(virtual_lab, store, tmp_path, path, "litert", device="pixel")
    finally:
        aside.rename(litert_runner)
    assert (record.status, record.outputs) == ("failed", ())
    assert "exited with 127" in record.error
    assert "litert-run: not found" in record.error
    assert "fix: put the runner of litert on the device" in record.error
    assert "`runners: {litert: PATH}` of device pixel" in record.error


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 0", "does not say which outputs there are"),
        ('{genuine} "$@" && rm "$out/Result_1/logits.raw"', "missing or incomplete"),
        ('{genuine} "$@" && printf x > "$out/Result_1/logits.raw"', "has the wrong size"),
    ],
)
def test_outputs_that_are_missing_or_short_are_no_result(
    virtual_lab: VirtualLab, store: SessionStore, tmp_path: Path, litert_runner: Path, script: str, said: str
) -> None:
    genuine = litert_runner.with_name("litert-run-genuine")
    shutil.copy(litert_runner, genuine)
    find_out = 'for word in "$@"; do case $word in --output_dir=*) out=${word#*=} ;; esac; done'
    text = script.replace("{genuine}", genuine.name)
    litert_runner.write_text(f'#!/bin/sh\n{find_out}\nmkdir -p "$out"\n{text}\n')
    path = FIXTURES / "digits_cnn/int8.tflite"
    record = carry_out(virtual_lab, store, tmp_path, path, "litert", device="pixel")
    assert record.status == "failed"
    assert said in record.error


@pytest.mark.parametrize(("folder", "status"), [("digits_cnn", "ok"), ("digits_channelnorm", "refused")])
def test_strict_refuses_what_would_run_on_the_cpu(
    virtual_lab: VirtualLab, store: SessionStore, tmp_path: Path, folder: str, status: str
) -> None:
    path = FIXTURES / folder / "int8.onnx"
    options: dict[str, Any] = {"offload_graph_io_quantization": "0", "strict": "1"}
    record = carry_out(virtual_lab, store, tmp_path, path, "ort", **options)
    assert record.status == status, record.error
    if status == "refused":
        assert "not the whole graph runs on the NPU: LayerNormalization channel_norm" in record.error
        assert [op[:2] for op in record.refused_ops] == [("LayerNormalization", "channel_norm")]
    else:
        loose = SessionStore.create(tmp_path / "loose", "session")
        options.pop("strict")
        other = carry_out(virtual_lab, loose, tmp_path, path, "ort", **options)
        assert [tensor.sha256 for tensor in other.outputs] == [tensor.sha256 for tensor in record.outputs]


@pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None,
    reason="needs pytest-devicelab[executorch]: PyTorch is too large for every run of these tests",
)
def test_executorch_runs_by_a_stand_in_that_says_so(
    virtual_lab: VirtualLab, store: SessionStore, tmp_path: Path
) -> None:
    path = tmp_path / f"{HOSTILE}.pte"
    shutil.copy(FIXTURES / "digits_cnn/float.pte", path)
    record = carry_out(virtual_lab, store, tmp_path, path, "executorch")
    assert (record.status, record.backend) == ("ok", "cpu"), record.error
    assert record.versions["qnn_executor_runner"].startswith("a stand-in")
    onnx = run_on_host(FIXTURES / "digits_cnn/float.onnx", INPUTS)["logits"]
    np.testing.assert_allclose(floats(store.read_output(record.outputs[0])), floats(onnx), atol=1e-4)
    virtual_lab.tell("s24", "fault short_output missing_bytes=1")
    try:
        other = SessionStore.create(tmp_path / "reports", "short")
        short = carry_out(virtual_lab, other, tmp_path, path, "executorch")
    finally:
        virtual_lab.tell("s24", "fault clear short_output")
    assert "output output_0 has the wrong size" in short.error
