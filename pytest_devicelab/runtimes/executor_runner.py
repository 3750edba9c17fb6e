"""ExecuTorch's executor_runner in the place of qnn_executor_runner: for programs lowered for the CPU.

Source: pytorch/executorch, examples/portable/executor_runner/executor_runner.cpp, of which xnn_executor_runner is built,
too: `--inputs` are files by their place, `--output_file=BASE` gets `BASE-<index>.bin`, and recent versions log each
iteration. Other flags are left alone: gflags ends a program that does not know one.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from pathlib import Path

from pytest_devicelab.evidence.measurements import duration, summarize_times
from pytest_devicelab.matrix.specs import MeasureSpec
from pytest_devicelab.runtimes.runtime import Job
from pytest_devicelab.runtimes.sample_loop import each_sample, first_sample
from pytest_devicelab.runtimes.timing import Timing, no_timing

_PROGRAMS = ("executor_runner", "xnn_executor_runner")
_LOGS = ("stdout.txt", "stderr.txt", "logcat.txt")
_ITERATION = re.compile(r"\bIteration (\d{1,9}) of (\d{1,9}): ([0-9.]{1,32}) ms", re.ASCII)
_LOADED = re.compile(r"\bModel loaded in ([0-9.]{1,32}) ms", re.ASCII)
_ALL = re.compile(r"\bModel executed successfully \d{1,9} time\(s\)", re.ASCII)


def is_executor_runner(program: str) -> bool:
    """Say whether a runner of the matrix is this one, by its file's name."""
    return posixpath.basename(program) in _PROGRAMS


def evaluate(job: Job) -> tuple[str, ...]:
    """Return the command that runs each sample once and names the outputs as qnn_executor_runner does."""
    return each_sample(
        job,
        [
            f'{_words(job)} "--output_file=$out/part" < /dev/null',
            "index=0",
            'while [ -e "$out/part-$index.bin" ]; do',
            'mv "$out/part-$index.bin" "$out/output_${n}_$index.raw"',
            "index=$((index+1))",
            "done",
        ],
    )


def measure(job: Job, plan: MeasureSpec) -> tuple[str, ...]:
    """Return the command that runs the first sample again and again."""
    return first_sample(job, [], f"{_words(job)} --num_executions={plan.warm_up + plan.inferences}")


def read_times(folder: Path, plan: MeasureSpec) -> Timing | None:
    """Read the iterations it logged, to whatever log; None where nothing of it is there."""
    said = "\n".join(
        (folder / name).read_text("utf-8", "replace") for name in _LOGS if (folder / name).exists()
    )
    found = {(int(number), int(of), text) for number, of, text in _ITERATION.findall(said)}
    if not found:
        return (
            no_timing("executor_runner is of a version that logs no iterations")
            if _ALL.search(said)
            else None
        )
    try:
        times = [1000 * float(text) for _, _, text in sorted(found)]
        loaded = [1000 * float(text) for text in _LOADED.findall(said)[:1]]
    except ValueError:
        return no_timing("executor_runner logged a time that is no number")
    if [number for number, _, _ in sorted(found)] != list(range(1, len(found) + 1)):
        return no_timing("executor_runner's iterations are not one after another")
    return Timing(
        latency=summarize_times(
            times,
            warm_up=plan.warm_up,
            expected=plan.warm_up + plan.inferences,
            source="iterations logged by executor_runner",
        ),
        load_us=duration(
            next(iter(loaded), None),
            "logged by executor_runner",
            "executor_runner does not say how long loading takes",
        ),
    )


def _words(job: Job) -> str:
    """Return shell text of its command line; the files of a sample are the shell's arguments."""
    return f'{shlex.join((job.program, f"--model_path={job.model}"))} --inputs="$(IFS=,; printf %s "$*")"'
