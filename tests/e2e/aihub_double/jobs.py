"""The double's account: models, datasets and jobs, and the thread that works the jobs off."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from onnxruntime import quantization
from qai_hub import public_api_pb2 as pb
from qai_hub.util.dataset_entries_converters import dataset_entries_to_h5, h5_to_dataset_entries

from pytest_devicelab.errors import DevicelabError
from pytest_devicelab.matrix.soc import Soc, find_soc
from pytest_devicelab.runtimes.compile import compile_context

REPO = Path(__file__).parents[3]
# A part of AI Hub's fleet; its own attributes, and two that say who computes here.
FLEET = (
    ("Samsung Galaxy S21", ("11", "12"), "SM8350", "qualcomm-snapdragon-888"),
    ("Samsung Galaxy S24", ("14",), "SM8650", "qualcomm-snapdragon-8gen3"),
    ("Xiaomi 14", ("14",), "SM8650", "qualcomm-snapdragon-8gen3"),
    ("Samsung Galaxy S25", ("15",), "SM8750", "qualcomm-snapdragon-8-elite"),
)


@dataclass(slots=True, kw_only=True)
class Trouble:
    """What is to go wrong. Numbers count down, each time it did.

    Attributes:
        lose_submit: make the job, and close the connection without an answer.
        rate_limit: answer a submit with 429.
        hold: let jobs stay in the queue until it is cleared.
        compile_fails, inference_fails: reason a job fails with, and its `JobFailureType`.
        quota: how a submit over quota is answered: `status` (no id), or `403`.
        upload: what an upload is answered with beside an id; then it is not taken.
        profiled_as: `profile`, where inference jobs that also profile are listed as that.
        outputs: `missing`, `short`, `renamed`, `dtype` or `none`.
        truncate: downloads that break off half way.
        moods: statuses the next requests are answered with, 0 for a connection closed unanswered.
        drop_from: the number of the request from which on connections are closed unanswered.
        cpu_layer: a layer the profile shows on the CPU.
        new_unit: give every layer of the profile a compute unit that the client does not know.
        echo: put this into what failed jobs, logs, versions, profiles and lists of devices say.
    """

    lose_submit: int = 0
    rate_limit: int = 0
    hold: bool = False
    compile_fails: tuple[str, int] | None = None
    inference_fails: tuple[str, int] | None = None
    quota: str = ""
    upload: str = ""
    profiled_as: str = "inference"
    outputs: str = ""
    truncate: int = 0
    moods: list[int] = field(default_factory=list)
    drop_from: int = 0
    cpu_layer: str = ""
    new_unit: bool = False
    echo: str = ""


@dataclass(slots=True, kw_only=True)
class Account:
    """All that was uploaded and asked for; guarded by `guard`."""

    root: Path
    contexts: Path
    trouble: Trouble = field(default_factory=Trouble)
    models: dict[str, Path] = field(default_factory=dict)
    datasets: dict[str, Path] = field(default_factory=dict)
    jobs: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    logs: dict[str, bytes] = field(default_factory=dict)
    uploads: int = 0
    guard: threading.RLock = field(default_factory=threading.RLock)
    todo: queue.Queue[str | None] = field(default_factory=queue.Queue)

    def new_id(self, kind: str) -> str:
        with self.guard:
            self.uploads += 1
            return f"{kind}{self.uploads:06d}"

    def submit(self, job: Any) -> str:
        kind = job.WhichOneof("job")
        inner = getattr(job, kind)
        job_id = self.new_id("j")
        with self.guard:
            setattr(inner, f"{kind}_id", job_id)
            inner.job_state = pb.JOB_STATE_CREATED
            inner.creation_time.GetCurrentTime()
            job.hub_version = f"double {self.trouble.echo}".strip()
            if kind != "inference_job":
                inner.target_model.model_id = self.new_id("m")
            self.jobs[job_id] = job
        self.todo.put(job_id)
        return job_id

    def names(self, kind: str) -> list[str]:
        with self.guard:
            return [getattr(job, kind).name for job in self.jobs.values() if job.WhichOneof("job") == kind]

    def work(self) -> None:
        """Work jobs off until told to stop."""
        while (job_id := self.todo.get()) is not None:
            while self.trouble.hold:
                time.sleep(0.02)
            self._work(self.jobs[job_id])

    def _work(self, job: Any) -> None:
        kind = job.WhichOneof("job")
        inner = getattr(job, kind)
        with self.guard:
            inner.job_state = (
                pb.JOB_STATE_OPTIMIZING_MODEL if kind == "compile_job" else pb.JOB_STATE_RUNNING_INFERENCE
            )
            inner.start_time.GetCurrentTime()
        fails = self.trouble.inference_fails if kind == "inference_job" else self.trouble.compile_fails
        try:
            if fails is not None:
                raise _Fails(*fails)
            if kind == "compile_job":
                self._compile(inner)
            elif kind == "quantize_job":
                self._quantize(inner)
            else:
                self._infer(job, inner)
            state = pb.JOB_STATE_DONE
        except _Fails as failure:
            job.failure_type = failure.kind
            inner.failure_reason = f"{failure} {self.trouble.echo}".strip()
            state = pb.JOB_STATE_FAILED
        with self.guard:
            inner.completion_time.GetCurrentTime()
            inner.job_state = state

    def _compile(self, job: Any) -> None:
        try:
            made = compile_context(
                self.models[job.model.model_id], chip(job.devices.devices[0].name), {}, self.contexts
            )
        except DevicelabError as error:
            raise _Fails(str(error), pb.JOB_FAILURE_TYPE_UNSUPPORTED) from None
        with self.guard:
            self.models[job.target_model.model_id] = made.path

    def _quantize(self, job: Any) -> None:
        with h5py.File(self.datasets[job.calibration_dataset.dataset_id], "r") as file:
            entries = h5_to_dataset_entries(file)
        samples = [
            dict(zip(entries, batches, strict=True)) for batches in zip(*entries.values(), strict=True)
        ]
        made = self.root / f"{job.target_model.model_id}.onnx"
        quantization.quantize_static(
            self.models[job.model.model_id],
            made,
            _Samples(samples),
            extra_options={"ForceQuantizeNoInputCheck": False},
        )
        with self.guard:
            self.models[job.target_model.model_id] = made

    def _infer(self, job: Any, inner: Any) -> None:
        folder = self.root / inner.inference_job_id
        folder.mkdir()
        (folder / "job.json").write_text(json.dumps(asdict(chip(inner.device.name))))
        (folder / "model.bin").write_bytes(self.models[inner.model.model_id].read_bytes())
        with h5py.File(self.datasets[inner.dataset.dataset_id], "r") as file:
            entries = h5_to_dataset_entries(file)
        inputs: Any = {name: np.stack(batches) for name, batches in entries.items()}
        np.savez(folder / "inputs.npz", **inputs)
        command = [sys.executable, "-m", "tests.e2e.aihub_double.compute", str(folder)]
        ran = subprocess.run(command, cwd=REPO, capture_output=True, timeout=120, check=False)
        if ran.returncode:
            raise _Fails(ran.stderr.decode("utf-8", "replace")[-500:], pb.JOB_FAILURE_TYPE_RUNTIME_CRASH)
        if (folder / "refused.txt").exists():
            raise _Fails((folder / "refused.txt").read_text(), pb.JOB_FAILURE_TYPE_UNSUPPORTED)
        result = pb.JobResult()
        result.inference_job_result.inference_job_id = inner.inference_job_id
        if self.trouble.outputs != "none":
            result.inference_job_result.output_dataset_id = self._outputs(folder)
        if inner.is_profiling_on:
            self._profile(folder, result.inference_job_result.detail)
        log = (folder / "device.log").read_bytes() + self.trouble.echo.encode()
        with self.guard:
            self.results[inner.inference_job_id] = result
            self.logs[inner.inference_job_id] = log
            job.available_artifacts.append(pb.JOB_ARTIFACT_TYPE_DEVICE_LOG)

    def _outputs(self, folder: Path) -> str:
        with np.load(folder / "outputs.npz") as bundle:
            outputs = {name: list(bundle[name]) for name in bundle.files}
        first = next(iter(outputs))
        match self.trouble.outputs:
            case "missing":
                outputs = {"another": outputs[first]}
            case "short":
                outputs[first] = outputs[first][:-1]
            case "renamed":
                outputs[f"{first}_0"] = outputs.pop(first)
            case "dtype":
                outputs[first] = [array.astype(np.uint8) for array in outputs[first]]
        dataset_id = self.new_id("d")
        path = self.root / f"{dataset_id}.h5"
        with h5py.File(path, "w") as file:
            dataset_entries_to_h5(outputs, file)
        with self.guard:
            self.datasets[dataset_id] = path
        return dataset_id

    def _profile(self, folder: Path, detail: Any) -> None:
        detail.major_version, detail.minor_version, detail.execution_time = 1, 2, 1234
        detail.all_execution_times.extend([1234, 1300, 1266])
        detail.cold_load_time = 56789
        detail.execution_memory.peak.lower, detail.execution_memory.peak.upper = 1 << 20, 3 << 20
        for name, cycles, sources in json.loads((folder / "profile.json").read_text()):
            node = sources[0].rpartition(":")[2] if sources else name
            on_cpu = node == self.trouble.cpu_layer
            row = detail.layer_details.add(name=node, layer_type_name=name.partition(":")[0])
            row.compute_unit = pb.COMPUTE_UNIT_CPU if on_cpu else pb.COMPUTE_UNIT_NPU
            row.execution_cycles = cycles
        if self.trouble.new_unit:
            for row in detail.layer_details:
                row.compute_unit = 9
        if self.trouble.echo:
            detail.tool_versions.add(name=f"tool {self.trouble.echo}", version=self.trouble.echo)
            detail.layer_details.add(
                name=self.trouble.echo, layer_type_name=self.trouble.echo, compute_unit=pb.COMPUTE_UNIT_CPU
            )
        if self.trouble.cpu_layer:
            detail.layer_details.add(
                name=self.trouble.cpu_layer, layer_type_name="Softmax", compute_unit=pb.COMPUTE_UNIT_CPU
            )


class _Samples(quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, samples: list[dict[str, Any]]) -> None:
        self.samples = iter(samples)

    def get_next(self) -> Any:
        return next(self.samples, None)


class _Fails(Exception):
    def __init__(self, reason: str, kind: int) -> None:
        self.kind = kind
        super().__init__(reason)


def chip(device: str) -> Soc:
    return find_soc(next(soc for name, _, soc, _ in FLEET if name == device))[0]


def fleet() -> tuple[Any, ...]:
    """Every device with every os, as AI Hub lists them."""
    found = []
    for name, versions, part, chipset in FLEET:
        soc = find_soc(part)[0]
        attributes = [
            *("os:android", "format:phone", "framework:onnx", "framework:qnn", "framework:tflite"),
            *(f"chipset:{chipset}", f"hexagon:{(soc.hexagon or '').lower()}", f"soc-model:{soc.qnn_id}"),
            *("simulated:true", "engine:htp"),
        ]
        found += [pb.Device(name=name, os=version, attributes=attributes) for version in versions]
    return tuple(found)
