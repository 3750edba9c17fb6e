"""qnn-net-run: the real tool's command line, with the device's numerics engine behind it.

Source: Qualcomm AI Engine Direct documentation, qnn-net-run. `docs/reference/engines.md` says which options
a virtual device carries out, which it takes without effect, and which it refuses.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from pytest_devicelab.errors import UserError
from pytest_devicelab.virtual.context_binary import ContextBinary, GraphInfo, TensorInfo, read_context_binary
from pytest_devicelab.virtual.engine import EngineJob, EngineResult, LogLine, Tensors
from pytest_devicelab.virtual.runtime_log import priority_shown
from pytest_devicelab.virtual.simulator import versions
from pytest_devicelab.virtual.tools.device_path import host_path
from pytest_devicelab.virtual.tools.raw_files import (
    InputList,
    RunnerError,
    dequantize,
    load_sample,
    read_input_list,
    result_files,
    results_folder,
    write_result,
)
from pytest_devicelab.virtual.tools.runner import chattier, open_station, run_job, work_folder

_PROGRAM = "qnn-net-run"
_HTP = "libQnnHtp.so"
_PROFILE = "qnn-profiling-data_0"
_LOG_LEVELS = ("error", "warn", "info", "debug", "verbose")
_PROFILING_LEVELS = ("basic", "detailed", "client", "backend")
_PERF_PROFILES = (
    "low_balanced",
    "balanced",
    "default",
    "high_performance",
    "sustained_high_performance",
    "burst",
    "low_power_saver",
    "power_saver",
    "high_power_saver",
    "extreme_power_saver",
    "system_settings",
)
_HEADS = {"E": " ERROR ", "W": "WARNING", "I": " INFO  ", "D": " DEBUG ", "V": "VERBOSE", "F": " ERROR "}

# Options of the real tool that would change what runs here, with why they are not carried out.
_REFUSED = {
    "--model": "a virtual device runs context binaries; use --retrieve_context",
    "--dlc_path": "a virtual device runs context binaries; use --retrieve_context",
    "--op_packages": "custom operator packages are not simulated",
    "--debug": "it cannot be used with --retrieve_context",
    "--duration": "time on a virtual device is not a phone's; use --num_inferences",
    "--batch_multiplier": "the simulator runs one batch at a time",
    "--set_output_tensors": "name the outputs in the first line of the input list instead",
    "--input_list_multi": "one graph at a time",
    "--binary_updates": "the simulator cannot update a context",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(self.format_help())
        raise RunnerError(message)


class _Refuse(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        option = self.option_strings[0]
        raise RunnerError(f"{option} is not supported on a virtual device: {_REFUSED[option]}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=_PROGRAM, allow_abbrev=False, description="Run a context binary on the NPU.")
    parser.add_argument("--retrieve_context", metavar="FILE", help="the context binary")
    parser.add_argument("--backend", metavar="FILE", help=f"path of {_HTP}")
    parser.add_argument("--input_list", metavar="FILE", help="a line of files an inference")
    parser.add_argument("--output_dir", default="./output", metavar="DIR", help="default: ./output")
    parser.add_argument(
        "--num_inferences", type=int, metavar="N", help="go round the input list N times in all"
    )
    parser.add_argument("--keep_num_outputs", type=int, metavar="N", help="write the first N results only")
    parser.add_argument(
        "--use_native_input_files", action="store_true", help="inputs are in the graph's dtypes"
    )
    parser.add_argument(
        "--native_input_tensor_names", default="", metavar="GRAPH:A,B", help="these inputs are"
    )
    parser.add_argument(
        "--use_native_output_files", action="store_true", help="outputs in the graph's dtypes"
    )
    parser.add_argument(
        "--output_data_type",
        choices=("float_only", "native_only", "float_and_native"),
        help="which of the two",
    )
    parser.add_argument("--profiling_level", choices=_PROFILING_LEVELS, help="write a profile")
    parser.add_argument("--log_level", choices=_LOG_LEVELS, default="error", help="what is printed")
    parser.add_argument("--config_file", metavar="FILE", help="checked, without effect here")
    parser.add_argument("--perf_profile", choices=_PERF_PROFILES, help="without effect here")
    for option in ("--shared_buffer", "--synchronous", "--validate_binary"):
        parser.add_argument(option, action="store_true", help="without effect here")
    parser.add_argument("--system_library", metavar="FILE", help="without effect here")
    parser.add_argument("--version", action="store_true", help="print the version")
    for option in _REFUSED:
        parser.add_argument(option, action=_Refuse, nargs="?", help=argparse.SUPPRESS)
    return parser


@dataclass(frozen=True, slots=True, kw_only=True)
class _Console:
    """Standard output in the real tool's form: milliseconds since the start, level, text."""

    level: str
    started_s: float = field(default_factory=time.monotonic)

    def show(self, line: LogLine) -> None:
        self.say(line.priority, line.message)

    def say(self, priority: str, text: str) -> None:
        if priority_shown(priority, "verbose" if self.level == "debug" else self.level):
            elapsed_ms = (time.monotonic() - self.started_s) * 1000
            for line in text.splitlines():
                print(f"{elapsed_ms:8.1f}ms [{_HEADS[priority]}] {line}")


def main(argv: Sequence[str]) -> int:
    """Run qnn-net-run with its command line, program name first; returns the exit status."""
    print(f"{_PROGRAM} pid:{os.getpid()}")
    console = _Console(level="error")
    try:
        arguments = _parser().parse_args(argv[1:])
        if arguments.version:
            print(f"QNN SDK as simulated by onnxruntime-qnn {versions()['onnxruntime-qnn']} (virtual device)")
            return 0
        console = _Console(level=arguments.log_level)
        _run(arguments, console)
    except RunnerError as error:
        console.say("E", str(error))
        return 1
    return 0


def _run(arguments: argparse.Namespace, console: _Console) -> None:
    station = open_station()
    _check(arguments)
    binary = Path(host_path(arguments.retrieve_context))
    graph = _graph(_read(binary))
    wanted = read_input_list(
        Path(host_path(arguments.input_list)), graph.inputs, [tensor.name for tensor in graph.outputs]
    )
    samples = _samples(arguments, graph, wanted)
    logcat = station.logcat_level("warn")
    printed = "verbose" if arguments.log_level == "debug" else arguments.log_level
    with work_folder() as work:
        job = EngineJob(
            model=binary,
            format="context_binary",
            inputs=samples,
            soc=station.facts.soc,
            work=work,
            log_level=chattier(logcat, printed),
            profile=arguments.profiling_level is not None,
        )
        result = run_job(station, station.engine(), job, logcat=logcat, program=_PROGRAM, show=console.show)
        _write(arguments, graph, wanted, result, work)
    console.say("I", f"{len(samples)} inferences, results in {arguments.output_dir}")


def _check(arguments: argparse.Namespace) -> None:
    for name in ("retrieve_context", "backend", "input_list"):
        if not getattr(arguments, name):
            _parser().error(f"missing required argument --{name}")
    if Path(arguments.backend).name != _HTP:
        raise RunnerError(f"--backend {arguments.backend}: a virtual device has {_HTP} only")
    for name in ("num_inferences", "keep_num_outputs"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise RunnerError(f"--{name} takes a number of at least 1")
    if arguments.config_file:
        path = Path(host_path(arguments.config_file))
        try:
            json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise RunnerError(f"Failed to read config file {path}: {error}") from error


def _read(binary: Path) -> ContextBinary:
    try:
        return read_context_binary(binary)
    except UserError as error:
        raise RunnerError(f"Could not create context from binary: {error} (error code 5005)") from error


def _graph(info: ContextBinary) -> GraphInfo:
    if len(info.graphs) != 1:
        raise RunnerError(f"the context binary holds {len(info.graphs)} graphs; one is supported here")
    return info.graphs[0]


def _samples(arguments: argparse.Namespace, graph: GraphInfo, wanted: InputList) -> tuple[Tensors, ...]:
    native = _native_inputs(arguments, graph)
    loaded = [load_sample(files, graph.inputs, native) for files in wanted.samples]
    return tuple(islice(cycle(loaded), arguments.num_inferences or len(loaded)))


def _native_inputs(arguments: argparse.Namespace, graph: GraphInfo) -> Collection[str]:
    inputs = {tensor.name for tensor in graph.inputs}
    if arguments.use_native_input_files:
        return inputs
    if not arguments.native_input_tensor_names:
        return ()
    owner, _, names = arguments.native_input_tensor_names.rpartition(":")
    if owner != graph.name:
        raise RunnerError(f"--native_input_tensor_names takes GRAPH:A,B; the graph is {graph.name}")
    named = {name for name in names.split(",") if name}
    if unknown := sorted(named - inputs):
        raise RunnerError(f"--native_input_tensor_names: the graph has no input {', '.join(unknown)}")
    return named


def _write(
    arguments: argparse.Namespace, graph: GraphInfo, wanted: InputList, result: EngineResult, work: Path
) -> None:
    kinds = _output_kinds(arguments)
    tensors = {tensor.name: tensor for tensor in graph.outputs}
    files = {
        native: result_files(
            wanted.outputs,
            native=[name for name in wanted.outputs if native and tensors[name].dtype != "float32"],
        )
        for native in kinds
    }
    with results_folder(Path(host_path(arguments.output_dir)), ("Result_*", f"{_PROFILE}.*")) as folder:
        for number, outputs in enumerate(result.outputs[: arguments.keep_num_outputs]):
            for native in kinds:
                values = {name: _value(outputs[name], tensors[name], native) for name in wanted.outputs}
                write_result(folder, number, values, files[native])
        if arguments.profiling_level:
            _write_profile(folder, arguments.profiling_level, result.profile_csv, work)


def _output_kinds(arguments: argparse.Namespace) -> tuple[bool, ...]:
    """Return which files an output gets: False for float32, True for the graph's own dtype."""
    chosen: Mapping[str | None, tuple[bool, ...]] = {
        None: (arguments.use_native_output_files,),
        "float_only": (False,),
        "native_only": (True,),
        "float_and_native": (False, True),
    }
    return chosen[arguments.output_data_type]


def _value(codes: npt.NDArray[np.generic], tensor: TensorInfo, native: bool) -> npt.NDArray[np.generic]:
    if native:
        return codes
    if tensor.quantization is not None:
        return dequantize(codes, tensor.quantization)
    return codes.astype(np.float32)


def _write_profile(folder: Path, level: str, profile_csv: bytes, work: Path) -> None:
    """Write the profile: operators only where `detailed` asks for them, and the vendor's own log of them."""
    lines = profile_csv.decode("utf-8", "replace").splitlines(keepends=True)
    kept = lines if level == "detailed" else [line for line in lines if line.split(",")[1] != "NODE"]
    (folder / f"{_PROFILE}.csv").write_text("".join(kept), "utf-8")
    for log in work.glob("*_qnn.log"):
        shutil.copyfile(log, folder / f"{_PROFILE}.log")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
