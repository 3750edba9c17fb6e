"""What is said to AI Hub and what it answers, as data of ours: no other module sees its protobuf messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

JobKind = Literal["compile", "quantize", "inference"]
JobState = Literal["waiting", "running", "done", "failed"]

# Source: JobState of qai_hub's public_api_pb2; a state it does not know yet counts as running.
_STATES: Mapping[int, JobState] = {1: "waiting", 10: "done", 30: "failed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HubDevice:
    """A device as AI Hub lists it; one of an os and a name."""

    name: str
    os: str
    attributes: tuple[str, ...] = ()

    def attribute(self, key: str) -> str:
        """Return what follows `key:` among the attributes, or nothing."""
        return next((each.partition(":")[2] for each in self.attributes if each.startswith(f"{key}:")), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A job to ask for.

    Attributes:
        name: tells this job from every other one, so that it can be found again.
        options: as on AI Hub's command line.
        dataset_id: inputs of an inference job, calibration data of a quantize job.
        profile: whether an inference job also profiles, layer by layer.
    """

    kind: JobKind
    name: str
    model_id: str
    device: HubDevice | None = None
    options: str = ""
    dataset_id: str = ""
    profile: bool = False

    def message(self) -> Any:
        """Return the client's own message for it."""
        from qai_hub import public_api_pb2 as pb

        model = pb.Model(model_id=self.model_id)
        data = pb.Dataset(dataset_id=self.dataset_id) if self.dataset_id else None
        if self.kind == "quantize":
            return pb.Job(
                quantize_job=pb.QuantizeJob(
                    model=model,
                    name=self.name,
                    options=self.options,
                    calibration_dataset=data,
                    weights_dtype=pb.QUANTIZE_DTYPE_INT8,
                    activations_dtype=pb.QUANTIZE_DTYPE_INT8,
                )
            )
        assert self.device is not None, "a compile or inference job is for a device"
        device = pb.Device(name=self.device.name, os=self.device.os, attributes=self.device.attributes)
        if self.kind == "compile":
            devices = pb.DeviceList(total_query_count=1, devices=[device])
            return pb.Job(
                compile_job=pb.CompileJob(
                    model=model,
                    name=self.name,
                    devices=devices,
                    options=self.options,
                    tensor_type_list=pb.NamedTensorTypeList(),
                )
            )
        return pb.Job(
            inference_job=pb.InferenceJob(
                model=model,
                name=self.name,
                device=device,
                options=self.options,
                dataset=data,
                is_profiling_on=self.profile,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HubJob:
    """A job as AI Hub tells of it.

    Attributes:
        queue_s: from when it was made until it began; None as long as it has not. `run_s`: from then to its end.
        failure_type: AI Hub's own class of failure, 0 when it gave none.
        target_model_id: what a compile or quantize job makes.
        artifacts: kinds of files it left, as numbers.
    """

    id: str
    state: JobState
    reason: str = ""
    failure_type: int = 0
    queue_s: float | None = None
    run_s: float | None = None
    target_model_id: str = ""
    artifacts: tuple[int, ...] = ()
    hub_version: str = ""


def read_job(message: Any, hide: Callable[[str], str]) -> HubJob:
    """Read a `Job` message; `hide` takes the token out of what the service says."""
    kind = message.WhichOneof("job")
    if kind not in ("compile_job", "quantize_job", "inference_job"):
        raise ValueError(f"AI Hub tells of a job of an unknown kind: {kind}")
    job = getattr(message, kind)
    created = _seconds(job, "queued_time") or _seconds(job, "creation_time")
    started, ended = _seconds(job, "start_time"), _seconds(job, "completion_time")
    return HubJob(
        id=getattr(job, f"{kind}_id"),
        state=_STATES.get(job.job_state, "running"),
        reason=hide(job.failure_reason)[:2000],
        failure_type=message.failure_type,
        queue_s=_span(created, started),
        run_s=_span(started, ended),
        target_model_id=job.target_model.model_id if kind != "inference_job" else "",
        artifacts=tuple(message.available_artifacts),
        hub_version=hide(message.hub_version)[:200],
    )


def _seconds(job: Any, name: str) -> float | None:
    if not job.HasField(name):
        return None
    stamp = getattr(job, name)
    return float(stamp.seconds + stamp.nanos / 1e9)


def _span(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else round(max(0.0, end - start), 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One row of a profile: `unit` is `NPU`, `GPU`, `CPU` or `UNSPECIFIED`."""

    name: str
    op: str
    unit: str
    cycles: int | None = None
    time_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The profile of an inference job.

    Attributes:
        inference_us: AI Hub's estimate of one inference; `times_us` of each it made.
        load_us: of the first, cold load; None where it does not say, as with `peak_bytes`, of memory during inference.
        versions: of the tools it names.
    """

    layers: tuple[Layer, ...]
    inference_us: int = 0
    times_us: tuple[int, ...] = ()
    load_us: int | None = None
    peak_bytes: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
