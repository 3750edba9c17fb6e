"""The executorch runtime: a .pte program, run by ExecuTorch's own qnn_executor_runner, or by its executor_runner.

Source: pytorch/executorch, examples/qualcomm/executor_runner/qnn_executor_runner.cpp: flags, input list (bare paths,
one space between them) and `output_<sample>_<index>.raw`, all in one folder that must exist.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.evidence.events import Event
from pytest_devicelab.evidence.measurements import absent
from pytest_devicelab.matrix.soc import Soc
from pytest_devicelab.matrix.specs import DeviceSpec, MeasureSpec
from pytest_devicelab.runtimes import executor_runner
from pytest_devicelab.runtimes.host import run_loaded
from pytest_devicelab.runtimes.inputs import Arrays
from pytest_devicelab.runtimes.kit import Kit, Place
from pytest_devicelab.runtimes.runner_files import read_versions
from pytest_devicelab.runtimes.runtime import DeclaredInput, Job, Leftovers, OutputFile, Prepared
from pytest_devicelab.runtimes.timing import Timing, read_average
from pytest_devicelab.virtual.executorch_model import load_executorch, require_executorch
from pytest_devicelab.virtual.pte_file import read_pte

_RUNNER = "qnn_executor_runner"
_STAND_IN = "stand_in.json"


class ExecutorchRuntime:
    """qnn_executor_runner with the program as it is."""

    name = "executorch"
    suffixes: tuple[str, ...] = (".pte",)
    evidence_files: tuple[str, ...] = (_STAND_IN,)
    timing_files: tuple[str, ...] = ()

    def require(self) -> None:
        """Ask for executorch and torch, which read programs and compute the yardstick."""
        require_executorch()

    def declared_inputs(self, model: Path) -> Mapping[str, DeclaredInput]:
        """Return the arguments of `forward`; a program names none, so they are `input_0`, `input_1`, ..."""
        declared = read_pte(model)
        if declared.qnn is None:
            load_executorch(model)  # what does not load here would not load on a device either
        return {tensor.name: DeclaredInput(tensor.dtype, tensor.shape) for tensor in declared.inputs}

    def run_on_host(self, model: Path, inputs: Arrays) -> Arrays:
        """Run the program with ExecuTorch's runtime on this machine."""
        return run_loaded(load_executorch(model), model, inputs)

    def backend(self, spec: DeviceSpec, soc: Soc | None) -> str:
        """Say `cpu`, where programs run that were lowered for it; one that was lowered for QNN says so in `prepare`."""
        return "cpu"

    def prepare(
        self, model: Path, soc: Soc | None, options: Mapping[str, str], *, backend: str, cache: Path
    ) -> Prepared:
        """Hand the program out as it is. Options of the matrix are QNN's, and none of them counts here."""
        program = read_pte(model)
        outputs = tuple(
            OutputFile(
                name=tensor.name,
                file=f"{index}.raw",
                dtype=tensor.dtype,
                shape=tensor.shape,
                folder="output_{}_",
            )
            for index, tensor in enumerate(program.outputs)
        )
        if program.qnn is None:
            return Prepared(file=model, outputs=outputs, options={})
        made_with = {"qairt": program.qnn.qairt} if program.qnn.qairt else {}
        return Prepared(file=model, outputs=outputs, options={}, versions=made_with, backend="htp")

    def kit(self, prepared: Prepared, place: Place) -> Kit | None:
        """Return None: the device has the runner. What a program was lowered for must be what it has.

        Raises:
            InfrastructureError: it was lowered for QNN, and the device is another chip's, or has no NPU.
        """
        qnn = read_pte(prepared.file).qnn
        if qnn is None:
            return None
        if place.spec.simulated:
            raise InfrastructureError(
                f"device {place.spec.id}: {prepared.file.name} is lowered for QNN, which a virtual device does not run",
                why=f"it was lowered to {qnn}; a virtual device has ExecuTorch's runtime for the CPU",
                fix="run it on a phone of `kind: adb`, or name a program lowered for XNNPACK here",
            )
        hexagon = place.soc.hexagon if place.soc is not None else None
        if qnn.context and qnn.hexagon and qnn.hexagon != hexagon:
            chip = (
                f"{place.soc.name}, Hexagon {hexagon or 'none'}"
                if place.soc is not None
                else "a chip nobody knows"
            )
            raise InfrastructureError(
                f"device {place.spec.id}: {prepared.file.name} is lowered for another NPU",
                why=f"it was lowered to {qnn}; the device is {chip}. A context binary belongs to one Hexagon",
                fix="export the program for this chip, or run it on the one it was lowered for",
            )
        return None

    def command(self, prepared: Prepared, job: Job) -> tuple[str, ...]:
        """Return shell text that readies list and folder and then becomes the runner.

        Our list names each file's input, and the runner wants bare paths, in the order of the arguments: that of names.
        """
        if executor_runner.is_executor_runner(job.program):
            return executor_runner.evaluate(job)
        return _command(job)

    def timed_command(self, prepared: Prepared, job: Job, plan: MeasureSpec) -> tuple[str, ...]:
        """Return it with the runner's own warm-up and repetition."""
        if executor_runner.is_executor_runner(job.program):
            return executor_runner.measure(job, plan)
        return _command(job, f"--warm_up={plan.warm_up}", f"--iteration={plan.inferences}")

    def read_timing(
        self, prepared: Prepared, folder: Path, events: Iterable[Event], plan: MeasureSpec
    ) -> Timing:
        """Read the average the runner logs, all it says of time; executor_runner logs each iteration."""
        if told := executor_runner.read_times(folder, plan):
            return told
        return Timing(
            latency=read_average(events, plan, _RUNNER),
            load_us=absent(f"{_RUNNER} does not say how long loading takes"),
        )

    def read_outputs(self, prepared: Prepared, folder: Path) -> tuple[OutputFile, ...]:
        """Return what the program itself says it gives."""
        assert prepared.outputs is not None
        return prepared.outputs

    def read_leftovers(self, prepared: Prepared, folder: Path) -> Leftovers:
        """Read what a stand-in says of itself; the real runner leaves no such file, and no placement either."""
        return Leftovers(versions=read_versions(folder / _STAND_IN))


def _command(job: Job, *flags: str) -> tuple[str, ...]:
    bare = f"{job.output_dir}/input_list.bare"
    runner = (
        job.program or _RUNNER,
        f"--model_path={job.model}",
        f"--input_list_path={bare}",
        f"--output_folder_path={job.output_dir}",
        # Where it is built to dump events, it would dump them into the folder of the inputs, which is not this run's.
        f"--etdump_path={job.output_dir}/etdump.etdp",
        *flags,
    )
    ready = f"sed 's/[^ ]*:=//g' {shlex.quote(job.input_list)} > {shlex.quote(bare)}"
    text = f"mkdir -p {shlex.quote(job.output_dir)} && {ready} && exec {shlex.join(runner)}"
    # The shell's own name is that of the program it becomes: DSP messages are switched on by it.
    return ("sh", "-c", text, runner[0])
