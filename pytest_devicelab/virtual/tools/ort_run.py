"""ort-run: a model under ONNX Runtime on a virtual device, standing for an app that uses it.

Its command line and files are a contract, `docs/reference/ort-run.md`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pytest_devicelab.errors import ModelError
from pytest_devicelab.virtual.context_binary import TensorInfo
from pytest_devicelab.virtual.engine import EngineJob, EngineResult
from pytest_devicelab.virtual.onnx_model import load_model, signature
from pytest_devicelab.virtual.tools.command_line import RunnerParser
from pytest_devicelab.virtual.tools.device_path import host_path
from pytest_devicelab.virtual.tools.raw_files import (
    InputList,
    RunnerError,
    load_sample,
    read_input_list,
    results_folder,
    told_files,
    write_contract,
    write_json,
    write_result,
    write_timing,
)
from pytest_devicelab.virtual.tools.runner import Station, open_station, run_job, work_folder

_PROGRAM = "ort-run"
_OURS = (
    "Result_*",
    "outputs.json",
    "placement.json",
    "versions.json",
    "ops.json",
    "profile.csv",
    "timing.json",
)


def _parser() -> argparse.ArgumentParser:
    parser = RunnerParser(_PROGRAM, "Run an ONNX model under ONNX Runtime.")
    parser.add_argument("--ep", choices=("qnn", "cpu"), help="default: qnn on a device with an NPU")
    parser.add_argument(
        "--ep_option", action="append", default=[], metavar="K=V", help="option of the QNN EP"
    )
    parser.add_argument("--profile", action="store_true", help="write the op profile")
    parser.add_argument("--placement", metavar="FILE", help="default: DIR/placement.json")
    parser.add_argument("--strict", action="store_true", help="refuse instead of falling back to the CPU")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run ort-run with its command line, program name first; returns the exit status."""
    try:
        _run(_parser().parse_args(argv[1:]))
    except (RunnerError, ModelError) as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 1
    return 0


def _run(arguments: argparse.Namespace) -> None:
    options = _options(arguments.ep_option)
    station = open_station()
    model = Path(host_path(arguments.model))
    inputs, outputs = signature(load_model(model))
    wanted = read_input_list(
        Path(host_path(arguments.input_list)), inputs, [output.name for output in outputs]
    )
    # A model's file says what its inputs are: there is nothing to convert, as in an app.
    native = {tensor.name for tensor in inputs}
    samples = tuple(load_sample(files, inputs, native) for files in wanted.samples)
    level = station.logcat_level(arguments.log_level)
    with work_folder() as work:
        job = EngineJob(
            model=model,
            format="onnx",
            inputs=samples * arguments.repeat,
            soc=station.facts.soc,
            work=work,
            options=options,
            log_level=level,
            profile=arguments.profile,
            strict=arguments.strict,
        )
        engine = station.engine(_engine_name(station, arguments.ep))
        result = run_job(station, engine, job, logcat=level, program=_PROGRAM)
    _write(arguments, wanted, outputs, result)


def _options(assignments: Sequence[str]) -> Mapping[str, str]:
    options = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not key or not equals:
            raise RunnerError(f"--ep_option takes KEY=VALUE, not {assignment!r}")
        options[key] = value
    return options


def _engine_name(station: Station, ep: str | None) -> str:
    if ep == "cpu":
        return "cpu"
    if ep == "qnn" and station.facts.engine == "cpu":
        raise RunnerError(f"--ep qnn: {station.facts.soc.name} has no NPU here (engine: cpu)")
    return station.facts.engine


def _write(
    arguments: argparse.Namespace,
    wanted: InputList,
    outputs: Sequence[TensorInfo],
    result: EngineResult,
) -> None:
    files = told_files(wanted.outputs)
    with results_folder(Path(host_path(arguments.output_dir)), _OURS) as folder:
        kept = len(wanted.samples) if arguments.timing else len(result.outputs)
        for number, tensors in enumerate(result.outputs[:kept]):
            write_result(folder, number, tensors, files)
        if arguments.timing:
            write_timing(folder, result)
        placement = write_contract(folder, result, files)
        if arguments.profile:
            write_json(folder / "ops.json", [asdict(row) for row in result.ops])
            (folder / "profile.csv").write_bytes(result.profile_csv)
        if arguments.placement:
            write_json(Path(host_path(arguments.placement)), placement)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
