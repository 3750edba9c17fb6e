"""qnn_executor_runner: a stand-in for ExecuTorch's runner on a virtual device. It says that it is one.

It has the real program's flags and files, and ExecuTorch's own runtime computes; on this host's CPU, so a program that
was lowered for QNN is refused.

Source: pytorch/executorch, examples/qualcomm/executor_runner/qnn_executor_runner.cpp.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pytest_devicelab.errors import ModelError, UserError
from pytest_devicelab.virtual.engine import EngineJob, EngineRefused, EngineResult, LogLine
from pytest_devicelab.virtual.executorch_model import executorch_versions, load_executorch
from pytest_devicelab.virtual.runtime_log import captured
from pytest_devicelab.virtual.tools.device_path import host_path
from pytest_devicelab.virtual.tools.raw_files import RunnerError, results_folder, write_json
from pytest_devicelab.virtual.tools.runner import open_station, run_job, work_folder

_PROGRAM = "qnn_executor_runner"
_TAG = "ExecuTorch"
_STAND_IN = "a stand-in: ExecuTorch's Python runtime on the host's CPU"
_RECORD = "stand_in.json"


def main(argv: Sequence[str]) -> int:
    """Run it with its command line, program name first; returns the exit status."""
    parser = argparse.ArgumentParser(prog=_PROGRAM, allow_abbrev=False)
    parser.add_argument("--model_path", default="model.pte")
    parser.add_argument("--input_list_path", default="input_list.txt")
    parser.add_argument("--output_folder_path", default="outputs")
    parser.add_argument("--iteration", type=int, default=1)
    parser.add_argument("--warm_up", type=int, default=0)
    parser.add_argument("--etdump_path", default="etdump.etdp")  # taken, and nothing is dumped
    print(f"{_PROGRAM}: this is {_STAND_IN}", file=sys.stderr)
    try:
        _run(parser.parse_args(argv[1:]))
    except (RunnerError, ModelError, UserError, OSError) as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 1
    return 0


def _run(arguments: argparse.Namespace) -> None:
    if arguments.iteration < 1 or arguments.warm_up < 0:
        raise RunnerError("--iteration takes a number of at least 1, --warm_up of at least 0")
    station = open_station()
    path = Path(host_path(arguments.model_path))
    try:
        with work_folder() as work, captured(work / "load.log"):
            model = load_executorch(path)
    except ModelError as error:
        station.log([LogLine(tag=_TAG, priority="E", message=line) for line in str(error).splitlines()])
        raise
    samples = []
    for line in Path(host_path(arguments.input_list_path)).read_text("utf-8").splitlines():
        files = line.split(" ")
        if len(files) != len(model.inputs):
            raise RunnerError(
                f"Number of inputs ({len(model.inputs)}) mismatch with input files ({len(files)})"
            )
        sample = {}
        for number, (tensor, file) in enumerate(zip(model.inputs, files, strict=True)):
            content = Path(host_path(file)).read_bytes()
            dtype = np.dtype(tensor.dtype).newbyteorder("<")
            if len(content) != (wanted := int(np.prod(tensor.shape, dtype=np.int64)) * dtype.itemsize):
                raise RunnerError(
                    f"Input({number}) size mismatch. file bytes: {len(content)}, tensor bytes: {wanted}"
                )
            sample[tensor.name] = np.frombuffer(content, dtype).reshape(tensor.shape)
        samples.append(sample)

    def run(job: EngineJob) -> EngineResult:
        log, outputs, all_ms = [], [], 0.0
        try:
            with captured(job.work / "runtime.log"):
                for sample in job.inputs:
                    for _ in range(arguments.warm_up):
                        model.run(sample)
                    began_s = time.monotonic()
                    for _ in range(arguments.iteration):
                        computed = model.run(sample)
                    took_ms = 1000 * (time.monotonic() - began_s)
                    outputs.append(computed)
                    all_ms += took_ms
                    log.append(_took(arguments.iteration, took_ms))
        except (RuntimeError, ValueError) as error:
            raise EngineRefused(str(error)) from error
        # As the real one does: samples for inferences.
        log.append(_took(len(job.inputs), all_ms))
        return EngineResult(outputs=tuple(outputs), log=tuple(log))

    with work_folder() as work:
        job = EngineJob(model=path, format="pte", inputs=tuple(samples), soc=station.facts.soc, work=work)
        result = run_job(station, run, job, logcat=station.logcat_level("info"), program=_TAG)
    record = {**executorch_versions(), "qnn_executor_runner": _STAND_IN}
    with results_folder(Path(host_path(arguments.output_folder_path)), ("output_*.raw", _RECORD)) as folder:
        for number, tensors in enumerate(result.outputs):
            for index, tensor in enumerate(model.outputs):
                array = np.ascontiguousarray(tensors[tensor.name])
                (folder / f"output_{number}_{index}.raw").write_bytes(array.tobytes())
        write_json(folder / _RECORD, record)


def _took(runs: int, took_ms: float) -> LogLine:
    text = f"{runs} inference took {took_ms:f} ms, avg {took_ms / runs:f} ms"
    return LogLine(tag=_TAG, priority="I", message=text)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
