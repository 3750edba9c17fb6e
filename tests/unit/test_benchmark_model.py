"""benchmark_model as the runner of litert: its command line in a real shell, and what it prints of time."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.matrix.specs import MeasureSpec
from pytest_devicelab.runtimes.benchmark_model import (
    evaluate,
    is_benchmark_model,
    measure,
    ran_here,
    read_times,
)
from pytest_devicelab.runtimes.inputs import Arrays, pack_inputs
from pytest_devicelab.runtimes.litert import LitertRuntime
from pytest_devicelab.runtimes.runner_files import read_outputs
from pytest_devicelab.runtimes.runtime import Job
from pytest_devicelab.virtual.context_binary import TensorInfo
from pytest_devicelab.virtual.litert_model import LitertModel

PLAN = MeasureSpec(inferences=20, warm_up=3)
# The order of the model is not that of the names.
MODEL = LitertModel(
    inputs=(
        TensorInfo(name="z$(touch${IFS}pwned)", dtype="float32", shape=(1, 2)),
        TensorInfo(name="a\\c'b;*", dtype="int8", shape=(1, 3)),
    ),
    outputs=(
        TensorInfo(name="first", dtype="int16", shape=(1, 2)),
        TensorInfo(name="second;`id`", dtype="uint8", shape=(1, 3)),
    ),
    _interpreter=None,
)
# Gives the first output what the first input of the model holds, the second what the second holds.
STUB = """#!/bin/sh
for word in "$@"; do
    case $word in
        --input_layer_value_files=*) files=${word#*=} ;;
        --output_filepath=*) saved=${word#*=} ;;
        --graph=*) [ -e "${word#*=}" ] || exit 3 ;;
    esac
    echo "word $word"
done
first=${files%%,*} second=${files#*,}
[ -z "$saved" ] || { head -c 4 "${first#x0:}"; head -c 3 "${second#x1:}"; } > "$saved"
"""
PRINTED = """INFO: STARTING!
INFO: Running benchmark for at least 3 iterations and at least 0 seconds but terminate if exceeding 86400 seconds.
INFO: count=3 first=117 curr=75 min=75 max=117 avg=91 std=18

INFO: Running benchmark for at least 20 iterations and at least 0 seconds but terminate if exceeding 86400 seconds.
INFO: count=20 first=80 curr=71 min=70 max=80 avg=72.45 std=2 p5=70 median=72 p95=80

INFO: Inference timings in us: Init: 5120, First inference: 117, Warmup (avg): 91, Inference (avg): 72.45
INFO: Memory footprint delta from the start of the tool (MB): init=1.1 overall=1.9
"""


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Inputs of two samples in the working directory, and a stub in the program's place."""
    program = tmp_path / "a b" / "android_aarch64_benchmark_model"
    program.parent.mkdir()
    program.write_text(STUB)
    program.chmod(0o755)
    arrays: Arrays = {
        "z$(touch${IFS}pwned)": np.frombuffer(b"ABCDEFGHIJKLMNOP", np.float32).reshape(2, 2),
        "a\\c'b;*": np.frombuffer(b"uvwxyz", np.int8).reshape(2, 3),
    }
    (tmp_path / "inputs").mkdir()
    shutil.unpack_archive(pack_inputs(arrays, tmp_path).path, tmp_path / "inputs", filter="data")
    (tmp_path / "m'; $(touch pwned).tflite").touch()
    return Job(
        model=str(tmp_path / "m'; $(touch pwned).tflite"),
        input_list="input_list.txt",
        output_dir=str(tmp_path / "out dir"),
        log_level="warn",
        backend="cpu",
        program=str(program),
    )


def run(command: tuple[str, ...], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    before = set((tmp_path / "inputs").iterdir())
    done = subprocess.run(
        command, cwd=tmp_path / "inputs", capture_output=True, text=True, timeout=60, check=False
    )
    assert set((tmp_path / "inputs").iterdir()) == before
    return done


def test_each_sample_is_run_once_and_each_output_has_a_file(job: Job, tmp_path: Path) -> None:
    done = run(evaluate(MODEL, job, "xnnpack"), tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out dir"
    found = {output.name: output for output in read_outputs(out / "outputs.json")}
    assert set(found) == {"first", "second;`id`"}
    bits = [
        [(out / f"Result_{n}" / found[name].file).read_bytes() for name in ("first", "second;`id`")]
        for n in (0, 1)
    ]
    assert bits == [[b"ABCD", b"uvw"], [b"IJKL", b"xyz"]]
    assert ran_here(out)
    words = [line.removeprefix("word ") for line in done.stdout.splitlines()]
    assert {"--input_layer=x0,x1", "--input_layer_shape=1,2:1,3", "--num_runs=1", "--warmup_runs=0"} <= set(
        words
    )
    assert {"--min_secs=0", "--warmup_min_secs=0", "--num_threads=1", "--use_xnnpack=true"} <= set(words)
    assert len([word for word in words if word.startswith("--graph=")]) == 1, "the first sample's words only"


def test_a_sample_that_fails_ends_the_run(job: Job, tmp_path: Path) -> None:
    Path(job.model).unlink()
    done = run(evaluate(MODEL, job, "builtin"), tmp_path)
    assert done.returncode == 3
    assert not (tmp_path / "out dir/outputs.json").exists()


def test_too_many_bytes_are_seen(job: Job, tmp_path: Path) -> None:
    Path(job.program).write_text(STUB.replace("head -c 3", "cat").replace("head -c 4", "cat"))
    assert run(evaluate(MODEL, job, "xnnpack"), tmp_path).returncode == 0
    assert (tmp_path / "out dir/Result_0/1.raw").stat().st_size == 7


def test_times_are_of_the_first_sample(job: Job, tmp_path: Path) -> None:
    done = run(measure(MODEL, job, "xnnpack", PLAN), tmp_path)
    assert done.returncode == 0, done.stderr
    words = [line.removeprefix("word ") for line in done.stdout.splitlines()]
    assert {"--num_runs=20", "--warmup_runs=3", "--input_layer_value_files=x0:0_1.raw,x1:0_0.raw"} <= set(
        words
    )
    assert ran_here(tmp_path / "out dir")


def test_kernels_it_does_not_have(job: Job) -> None:
    assert "--use_xnnpack=false" in evaluate(MODEL, job, "builtin")[2]
    with pytest.raises(InfrastructureError, match="benchmark_model has no reference kernels"):
        evaluate(MODEL, job, "reference")


def test_the_name_of_the_runner_decides() -> None:
    assert is_benchmark_model("/data/local/tmp/android_aarch64_benchmark_model")
    assert not is_benchmark_model("")
    assert not is_benchmark_model("/data/local/tmp/benchmark_model/litert-run")


def test_the_average_is_read(tmp_path: Path) -> None:
    (tmp_path / "stdout.txt").write_text(PRINTED)
    (tmp_path / "versions.json").write_text(json.dumps({"benchmark_model": ""}))
    found = LitertRuntime().read_timing(None, tmp_path, (), PLAN)  # type: ignore[arg-type]  # not looked at
    assert (found.latency.mean_us, found.latency.inferences, found.latency.warm_up) == (72.45, 20, 3)
    assert found.latency.median_us is None
    assert found.load_us.value == 5120.0
    fewer = read_times(tmp_path, replace(PLAN, inferences=21))
    assert "20 inferences where 21 were asked for" in fewer.latency.why
    (tmp_path / "stdout.txt").write_text(PRINTED.replace("72.45", "1e999"))
    assert read_times(tmp_path, PLAN).latency.mean_us is None


@given(st.text(alphabet="Inferce timgsu:(av)0123456789.,+-\n=", max_size=200))
@example(
    "count=20\nInference timings in us: Init: 1, First inference: 1, Warmup (avg): 1, Inference (avg): .."
)
def test_nonsense_is_no_time(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("said")
    (folder / "stdout.txt").write_text(text)
    assert read_times(folder, PLAN).latency.mean_us is None
