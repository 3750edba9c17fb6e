"""A runtime of another package: ONNX Runtime on a device's CPU, also where there is an NPU to compare it with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pytest_devicelab.matrix.soc import Soc
from pytest_devicelab.matrix.specs import DeviceSpec
from pytest_devicelab.runtimes.ort import OrtRuntime
from pytest_devicelab.runtimes.runtime import Job, Prepared


class OrtOnCpu(OrtRuntime):
    """What ort does, with nothing asked of an NPU. A runtime may as well begin from nothing but the Protocol."""

    name = "ort_cpu"

    def backend(self, spec: DeviceSpec, soc: Soc | None) -> str:
        """Say `cpu`, on whatever chip."""
        return "cpu"

    def prepare(
        self, model: Path, soc: Soc | None, options: Mapping[str, str], *, backend: str, cache: Path
    ) -> Prepared:
        """Hand the model out as it is, without the options of an NPU."""
        return Prepared(file=model, outputs=None, options={})

    def command(self, prepared: Prepared, job: Job) -> tuple[str, ...]:
        """Return the runner's command line; the paths in it are the device's, and quoted by whoever runs it."""
        return (
            job.program or "ort-run",
            f"--model={job.model}",
            f"--input_list={job.input_list}",
            f"--output_dir={job.output_dir}",
            "--ep=cpu",
        )
