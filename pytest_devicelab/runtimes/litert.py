"""The litert runtime: a .tflite model under LiteRT on the device's CPU, with XNNPACK unless its options say otherwise.

It drives `litert-run`, whose command line docs/reference/litert-run.md describes as a contract, or LiteRT's own
`benchmark_model` where the matrix names that as the runner.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from pytest_devicelab.evidence.events import Event
from pytest_devicelab.matrix.options import LITERT_KERNELS
from pytest_devicelab.matrix.soc import Soc
from pytest_devicelab.matrix.specs import DeviceSpec, MeasureSpec
from pytest_devicelab.runtimes import benchmark_model
from pytest_devicelab.runtimes.host import run_loaded
from pytest_devicelab.runtimes.inputs import Arrays
from pytest_devicelab.runtimes.names import require_listable
from pytest_devicelab.runtimes.runner_files import (
    OUTPUTS,
    PLACEMENT,
    VERSIONS,
    read_outputs,
    read_placement,
    read_versions,
    require_all,
)
from pytest_devicelab.runtimes.runtime import DeclaredInput, Job, Leftovers, OutputFile, Prepared
from pytest_devicelab.runtimes.timing import TIMING, Timing, read_timing_json
from pytest_devicelab.virtual.litert_model import load_litert, require_litert

_KERNELS = "kernels"


class LitertRuntime:
    """litert-run with the .tflite model as it is."""

    name = "litert"
    suffixes: tuple[str, ...] = (".tflite",)
    evidence_files: tuple[str, ...] = (OUTPUTS, PLACEMENT, VERSIONS)
    timing_files: tuple[str, ...] = (TIMING, VERSIONS)

    def require(self) -> None:
        """Ask for ai-edge-litert, which reads models and computes the yardstick."""
        require_litert()

    def declared_inputs(self, model: Path) -> Mapping[str, DeclaredInput]:
        """Return the inputs by the names of their tensors, such as `serving_default_image:0`."""
        declared = {
            tensor.name: DeclaredInput(tensor.dtype, tensor.shape)
            for tensor in load_litert(model, kernels="reference").inputs
        }
        require_listable(model, declared, (":=",))
        return declared

    def run_on_host(self, model: Path, inputs: Arrays) -> Arrays:
        """Run the model with LiteRT's reference kernels: what it means, without XNNPACK's arithmetic."""
        return run_loaded(load_litert(model, kernels="reference"), model, inputs)

    def backend(self, spec: DeviceSpec, soc: Soc | None) -> str:
        """Say `cpu`: this runtime asks LiteRT for no NPU delegate, on whatever chip."""
        return "cpu"

    def prepare(
        self, model: Path, soc: Soc | None, options: Mapping[str, str], *, backend: str, cache: Path
    ) -> Prepared:
        """Hand the model out as it is. Of the options `kernels` counts."""
        return Prepared(
            file=model, outputs=None, options={_KERNELS: options.get(_KERNELS, LITERT_KERNELS[0])}
        )

    def command(self, prepared: Prepared, job: Job) -> tuple[str, ...]:
        """Return litert-run's command line; a runner that only knows the default is not told of it."""
        kernels = prepared.options.get(_KERNELS, LITERT_KERNELS[0])
        if benchmark_model.is_benchmark_model(job.program):
            return benchmark_model.evaluate(load_litert(prepared.file, kernels="reference"), job, kernels)
        return (
            job.program or "litert-run",
            f"--model={job.model}",
            f"--input_list={job.input_list}",
            f"--output_dir={job.output_dir}",
            f"--log_level={job.log_level}",
            *([f"--kernels={kernels}"] if kernels != LITERT_KERNELS[0] else []),
        )

    def timed_command(self, prepared: Prepared, job: Job, plan: MeasureSpec) -> tuple[str, ...]:
        """Return it with every inference timed: the very program the outputs come from."""
        if benchmark_model.is_benchmark_model(job.program):
            kernels = prepared.options.get(_KERNELS, LITERT_KERNELS[0])
            return benchmark_model.measure(
                load_litert(prepared.file, kernels="reference"), job, kernels, plan
            )
        quiet = replace(job, log_level="error")
        return (*self.command(prepared, quiet), f"--repeat={plan.warm_up + plan.inferences}", "--timing")

    def read_timing(
        self, prepared: Prepared, folder: Path, events: Iterable[Event], plan: MeasureSpec
    ) -> Timing:
        """Read the times as litert-run wrote them, or as benchmark_model printed them."""
        if benchmark_model.ran_here(folder):
            return benchmark_model.read_times(folder, plan)
        return read_timing_json(folder / TIMING, plan, "litert-run")

    def read_outputs(self, prepared: Prepared, folder: Path) -> tuple[OutputFile, ...]:
        """Read what litert-run says it wrote; dtype, shape and quantization are for the model to say."""
        told = read_outputs(folder / OUTPUTS)
        declared = load_litert(prepared.file, kernels="reference").outputs
        require_all(told, [tensor.name for tensor in declared], folder / OUTPUTS, "litert-run")
        files = {output.name: output.file for output in told}
        return tuple(
            OutputFile(
                name=tensor.name,
                file=files[tensor.name],
                dtype=tensor.dtype,
                shape=tensor.shape,
                quantization=tensor.quantization,
            )
            for tensor in declared
        )

    def read_leftovers(self, prepared: Prepared, folder: Path) -> Leftovers:
        """Read placement and versions as litert-run wrote them."""
        return Leftovers(
            placement=read_placement(folder / PLACEMENT), versions=read_versions(folder / VERSIONS)
        )
