"""executor_runner as the runner of executorch: its command line in a real shell, and what it logs of time."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pytest_devicelab.matrix.specs import MeasureSpec
from pytest_devicelab.runtimes.executor_runner import is_executor_runner
from pytest_devicelab.runtimes.executorch import ExecutorchRuntime
from pytest_devicelab.runtimes.inputs import pack_inputs
from pytest_devicelab.runtimes.runtime import Job, Prepared

PLAN = MeasureSpec(inferences=2, warm_up=1)
PREPARED = Prepared(file=Path("m"), outputs=(), options={})
# Two outputs: the first bytes of the first and of the last file; it fails on a file that begins with X.
STUB = """#!/bin/sh
for word in "$@"; do
    case $word in
        --model_path=*) [ -e "${word#*=}" ] || exit 3 ;;
        --inputs=*) files=${word#*=} ;;
        --output_file=*) base=${word#*=} ;;
        --num_executions=*) ;;
        *) echo "ERROR: unknown command line flag" >&2; exit 1 ;;
    esac
    echo "word $word"
done
[ "$(head -c 1 "${files%%,*}")" != X ] || exit 7
[ -z "$base" ] || { head -c 1 "${files%%,*}" > "$base-0.bin"; head -c 1 "${files##*,}" > "$base-1.bin"; }
"""


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Twelve inputs of two samples in the working directory, and a stub in the program's place."""
    program = tmp_path / "a b" / "executor_runner"
    program.parent.mkdir()
    program.write_text(STUB)
    program.chmod(0o755)
    (tmp_path / "m'; $(touch pwned).pte").touch()
    return Job(
        model=str(tmp_path / "m'; $(touch pwned).pte"),
        input_list="input_list.txt",
        output_dir=str(tmp_path / "out dir"),
        log_level="warn",
        backend="cpu",
        program=str(program),
    )


def run(command: tuple[str, ...], tmp_path: Path, first: bytes = b"AB") -> subprocess.CompletedProcess[str]:
    arrays = {
        f"input_{number}": np.frombuffer(
            first if number == 0 else bytes([97 + number, 65 + number]), np.uint8
        ).reshape(2, 1)
        for number in range(12)
    }
    (tmp_path / "inputs").mkdir()
    shutil.unpack_archive(pack_inputs(arrays, tmp_path).path, tmp_path / "inputs", filter="data")
    before = set((tmp_path / "inputs").iterdir())
    done = subprocess.run(
        command, cwd=tmp_path / "inputs", capture_output=True, text=True, timeout=60, check=False
    )
    assert set((tmp_path / "inputs").iterdir()) == before
    return done


def test_each_sample_is_run_with_its_files_in_order(job: Job, tmp_path: Path) -> None:
    done = run(ExecutorchRuntime().command(PREPARED, job), tmp_path)
    assert done.returncode == 0, done.stderr
    files = {path.name: path.read_bytes() for path in (tmp_path / "out dir").glob("*.raw")}
    assert files == {
        "output_0_0.raw": b"A",
        "output_0_1.raw": b"l",
        "output_1_0.raw": b"B",
        "output_1_1.raw": b"L",
    }
    assert not list((tmp_path / "out dir").glob("part-*"))


def test_a_sample_that_fails_ends_the_run(job: Job, tmp_path: Path) -> None:
    assert run(ExecutorchRuntime().command(PREPARED, job), tmp_path, b"AX").returncode == 7


def test_the_first_sample_is_timed(job: Job, tmp_path: Path) -> None:
    done = run(ExecutorchRuntime().timed_command(PREPARED, job, PLAN), tmp_path)
    assert done.returncode == 0, done.stderr
    files = ",".join(f"0_{number}.raw" for number in range(12))
    assert {"word --num_executions=3", f"word --inputs={files}"} <= set(done.stdout.splitlines())


def test_only_its_own_names_are_known() -> None:
    assert is_executor_runner("/data/local/tmp/xnn_executor_runner")
    assert not is_executor_runner("/data/local/tmp/qnn_executor_runner")
    assert not is_executor_runner("")


@pytest.mark.parametrize(
    ("lines", "mean_us", "why"),
    [
        (["Model loaded in 4.0 ms.", *(f"Iteration {n} of 3: {n}.5 ms" for n in (1, 2, 3))], 3000.0, ""),
        ([f"Iteration {n} of 2: {n}.5 ms" for n in (1, 2)], None, "2 inferences where 3"),
        ([f"Iteration {n} of 3: 1.5 ms" for n in (1, 2, 4)], None, "not one after another"),
        (["Iteration 1 of 3: 1.2.3 ms"], None, "no number"),
        (["Model executed successfully 3 time(s) in 7.5 ms."], None, "logs no iterations"),
        (["hello"], None, "logged no time"),
    ],
)
def test_times_are_those_of_the_iterations(
    tmp_path: Path, lines: list[str], mean_us: float | None, why: str
) -> None:
    said = "".join(f"I 00:00:01.204311 executorch:executor_runner.cpp:331] {line}\n" for line in lines)
    # The same lines in two logs are one set of iterations.
    for name in ("stderr.txt", "logcat.txt"):
        (tmp_path / name).write_text(said)
    found = ExecutorchRuntime().read_timing(PREPARED, tmp_path, (), PLAN)
    assert found.latency.mean_us == mean_us
    assert why in found.latency.why
    assert found.load_us.value == (4000.0 if mean_us else None)
