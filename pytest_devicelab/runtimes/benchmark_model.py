"""LiteRT's own benchmark_model in the place of litert-run: one inference of each sample, or many of the first, timed.

Source: google-ai-edge/LiteRT, tflite/tools/benchmark: README.md, benchmark_model.cc, benchmark_tflite_model.cc. Inputs
are told apart by their order: names on the command line are only compared with the model's. `--output_filepath` gets
the bytes of all outputs, one behind another in the model's order, when the last inference is over.
"""

from __future__ import annotations

import json
import math
import posixpath
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.evidence.measurements import Latency, duration
from pytest_devicelab.matrix.specs import MeasureSpec
from pytest_devicelab.runtimes.inputs import listed
from pytest_devicelab.runtimes.runner_files import OUTPUTS, VERSIONS, read_versions
from pytest_devicelab.runtimes.runtime import Job
from pytest_devicelab.runtimes.sample_loop import each_sample, first_sample
from pytest_devicelab.runtimes.timing import Timing, no_timing
from pytest_devicelab.virtual.context_binary import TensorInfo
from pytest_devicelab.virtual.litert_model import LitertModel

PROGRAM = "benchmark_model"
# Each run of the program has its end by number of inferences, never by time.
_UNTIMED = ("--min_secs=0", "--warmup_min_secs=0", "--max_secs=86400", "--num_threads=1")
_XNNPACK: Mapping[str, str] = {"xnnpack": "true", "builtin": "false"}
# Among the versions of a run: the program tells none of its own.
_NAME_IT = f"""printf %s '{{"{PROGRAM}": "it does not tell its version"}}' > "$out/{VERSIONS}\""""
_TIMES = re.compile(
    r"Inference timings in us: Init: (?P<load>[0-9.e+]{1,32}), First inference: [^,\n]{1,32}, "
    r"Warmup \(avg\): [^,\n]{1,32}, Inference \(avg\): (?P<mean>[0-9.e+]{1,32})\s*$",
    re.MULTILINE | re.ASCII,
)
_COUNT = re.compile(r"\bcount=(\d{1,9})\b", re.ASCII)


def is_benchmark_model(program: str) -> bool:
    """Say whether a runner of the matrix is this one, by its file's name, such as android_aarch64_benchmark_model."""
    return posixpath.basename(program).endswith(PROGRAM)


def evaluate(model: LitertModel, job: Job, kernels: str) -> tuple[str, ...]:
    """Return the command that runs each sample once and leaves what litert-run leaves, but for the placement."""
    told = json.dumps(
        [
            {
                "name": tensor.name,
                "file": f"{number}.raw",
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "quantization": None,
            }
            for number, tensor in enumerate(model.outputs)
        ]
    )
    once = ("--num_runs=1", "--warmup_runs=0")
    return each_sample(
        job,
        [
            "result=$out/Result_$n",
            'mkdir -p "$result"',
            f'{_words(model, job, kernels, once)} "--output_filepath=$result/all" < /dev/null',
            *_split(model.outputs),
        ],
        then=[f'printf %s {shlex.quote(told)} > "$out/{OUTPUTS}"', _NAME_IT],
    )


def measure(model: LitertModel, job: Job, kernels: str, plan: MeasureSpec) -> tuple[str, ...]:
    """Return the command that runs the first sample again and again, and nothing beside it."""
    rounds = (f"--num_runs={plan.inferences}", f"--warmup_runs={plan.warm_up}")
    return first_sample(job, [_NAME_IT], _words(model, job, kernels, rounds))


def ran_here(folder: Path) -> bool:
    """Say whether what was pulled into a folder came from this program."""
    return PROGRAM in read_versions(folder / VERSIONS)


def read_times(folder: Path, plan: MeasureSpec) -> Timing:
    """Read the average that benchmark_model prints of its inferences, and how long it took to be ready."""
    said = "".join(
        path.read_text("utf-8", "replace")
        for path in (folder / "stdout.txt", folder / "stderr.txt")
        if path.exists()
    )
    found, counts = _TIMES.findall(said), _COUNT.findall(said)
    if len(found) != 1 or not counts:
        return no_timing(f"{PROGRAM} printed no times")
    if int(counts[-1]) != plan.inferences:
        return no_timing(f"{PROGRAM}: {counts[-1]} inferences where {plan.inferences:,} were asked for")
    source = f"average printed by {PROGRAM}"
    try:
        load_us, mean_us = (float(text) for text in found[0])
    except ValueError:
        return no_timing(f"{PROGRAM} printed a time that is no number")
    mean = duration(mean_us, source, "")
    return Timing(
        latency=Latency(why=mean.why)
        if mean.value is None
        else Latency(inferences=plan.inferences, warm_up=plan.warm_up, mean_us=mean.value, source=source),
        load_us=duration(load_us, f"Init, printed by {PROGRAM}", ""),
    )


def _words(model: LitertModel, job: Job, kernels: str, more: Sequence[str]) -> str:
    """Return shell text of its command line, but for the outputs; `$1`, `$2`, ... are the files of a sample.

    Raises:
        InfrastructureError: it has no such kernels.
    """
    if kernels not in _XNNPACK:
        raise InfrastructureError(
            f"{PROGRAM} has no {kernels} kernels",
            why=f"it computes with {' or '.join(_XNNPACK)}",
            fix="name other `kernels`, or a litert-run as the runner of litert: docs/reference/litert-run.md",
        )
    place = {name: number for number, name in enumerate(listed(each.name for each in model.inputs), 1)}
    files = [f'x{number}:"${{{place[each.name]}}}"' for number, each in enumerate(model.inputs)]
    names = [f"x{number}" for number in range(len(model.inputs))]
    shapes = [",".join(str(extent) for extent in each.shape) for each in model.inputs]
    words = (
        job.program,
        f"--graph={job.model}",
        f"--input_layer={','.join(names)}",
        f"--input_layer_shape={':'.join(shapes)}",
        f"--use_xnnpack={_XNNPACK[kernels]}",
        *_UNTIMED,
        *more,
    )
    return f"{shlex.join(words)} --input_layer_value_files={','.join(files)}"


def _split(outputs: Sequence[TensorInfo]) -> list[str]:
    """Return shell text that gives each output a file of its own; the last gets all that is left, too much included."""
    sizes = [np.dtype(each.dtype).itemsize * math.prod(each.shape) for each in outputs]
    steps = []
    for number, size in enumerate(sizes):
        kept = f" | head -c {size}" if number < len(sizes) - 1 else ""
        begin = 1 + sum(sizes[:number])
        steps.append(f'tail -c +{begin} "$result/all"{kept} > "$result/{number}.raw"')
    return [*steps, 'rm "$result/all"']
