"""litert-run: a .tflite model under LiteRT on a virtual device, on its CPU.

Its command line and files are a contract, `docs/reference/litert-run.md`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pytest_devicelab.errors import ModelError, UserError
from pytest_devicelab.matrix.options import LITERT_KERNELS
from pytest_devicelab.virtual.engine import EngineJob, EngineRefused, EngineResult, LogLine, Tensors
from pytest_devicelab.virtual.litert_model import litert_versions, load_litert
from pytest_devicelab.virtual.runtime_log import captured
from pytest_devicelab.virtual.tools.command_line import RunnerParser
from pytest_devicelab.virtual.tools.device_path import host_path
from pytest_devicelab.virtual.tools.raw_files import (
    RunnerError,
    load_sample,
    read_input_list,
    results_folder,
    told_files,
    write_contract,
    write_result,
    write_timing,
)
from pytest_devicelab.virtual.tools.runner import open_station, run_job, work_folder

_PROGRAM = "litert-run"
_OURS = ("Result_*", "outputs.json", "placement.json", "versions.json", "timing.json")
_TAG = "tflite"  # what LiteRT's own messages bear in logcat
_PRIORITIES = {"VERBOSE": "V", "INFO": "I", "WARNING": "W", "ERROR": "E", "FATAL": "F"}


def _parser() -> argparse.ArgumentParser:
    parser = RunnerParser(_PROGRAM, "Run a .tflite model under LiteRT.")
    parser.add_argument("--kernels", choices=LITERT_KERNELS, default="xnnpack", help="what computes")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run litert-run with its command line, program name first; returns the exit status."""
    try:
        _run(_parser().parse_args(argv[1:]))
    except (RunnerError, ModelError) as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 1
    return 0


def _run(arguments: argparse.Namespace) -> None:
    station = open_station()
    path = Path(host_path(arguments.model))
    try:
        model = load_litert(path, kernels="reference")
    except UserError as error:
        station.log([LogLine(tag=_PROGRAM, priority="E", message=line) for line in str(error).splitlines()])
        raise RunnerError(str(error)) from error
    outputs = [output.name for output in model.outputs]
    wanted = read_input_list(Path(host_path(arguments.input_list)), model.inputs, outputs)
    native = {tensor.name for tensor in model.inputs}
    samples = tuple(load_sample(files, model.inputs, native) for files in wanted.samples)
    level = station.logcat_level(arguments.log_level)
    with work_folder() as work:
        job = EngineJob(
            model=path,
            format="tflite",
            inputs=samples * arguments.repeat,
            soc=station.facts.soc,
            work=work,
            options={"kernels": arguments.kernels},
            log_level=level,
        )
        result = run_job(station, run_litert, job, logcat=level, program=_PROGRAM)
    files = told_files(wanted.outputs)
    with results_folder(Path(host_path(arguments.output_dir)), _OURS) as folder:
        kept = len(samples) if arguments.timing else len(result.outputs)
        for number, tensors in enumerate(result.outputs[:kept]):
            write_result(folder, number, tensors, files)
        if arguments.timing:
            write_timing(folder, result)
        write_contract(folder, result, files)


def run_litert(job: EngineJob) -> EngineResult:
    """Run a job with LiteRT on the CPU, as an app that asks for no other delegate.

    Raises:
        EngineRefused: LiteRT does not run the model.
    """
    log_file = job.work / "runtime.log"
    try:
        with captured(log_file):
            began_ns = time.monotonic_ns()
            model = load_litert(job.model, kernels=job.options["kernels"])
            load_us = (time.monotonic_ns() - began_ns) / 1000
            outputs: list[Tensors] = []
            times_us: list[float] = []
            for sample in job.inputs:
                began_ns = time.monotonic_ns()
                outputs.append(model.run(sample))
                times_us.append((time.monotonic_ns() - began_ns) / 1000)
    except (ModelError, RuntimeError, ValueError) as error:
        raise EngineRefused(str(error), log=_spoken(log_file.read_bytes())) from error
    return EngineResult(
        outputs=tuple(outputs),
        quantization={tensor.name: tensor.quantization for tensor in model.outputs if tensor.quantization},
        log=_spoken(log_file.read_bytes()),
        placement=model.nodes(),
        versions=litert_versions(),
        load_us=load_us,
        inference_us=tuple(times_us),
    )


def _spoken(raw: bytes) -> tuple[LogLine, ...]:
    """Return what LiteRT printed as its lines for logcat: `INFO: text` at priority I."""
    lines = []
    for text in raw.decode("utf-8", "replace").splitlines():
        level, colon, message = text.partition(": ")
        known = colon and level in _PRIORITIES
        lines.append(
            LogLine(
                tag=_TAG,
                priority=_PRIORITIES[level] if known else "I",
                message=message if known else text,
            )
        )
    return tuple(line for line in lines if line.message.strip())


if __name__ == "__main__":
    sys.exit(main(sys.argv))
