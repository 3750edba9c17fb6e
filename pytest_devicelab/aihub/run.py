"""One run in AI Hub, step by step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_devicelab.aihub.edge import HubEdge
from pytest_devicelab.aihub.jobs import await_job
from pytest_devicelab.aihub.ledger import JobEntry, JobLedger, Patience, patiently
from pytest_devicelab.aihub.messages import HubDevice, HubJob, JobKind, Submission
from pytest_devicelab.aihub.outcome import Deadline, HubJobFailed, HubRefused, whose_fault
from pytest_devicelab.aihub.outputs import read_outputs
from pytest_devicelab.aihub.profile import measured, npu_rows, unit_events
from pytest_devicelab.aihub.selection import chip_of, identity
from pytest_devicelab.devices.slots import sha256_file
from pytest_devicelab.errors import CompileRefused, OutputIncomplete
from pytest_devicelab.evidence.atomic import whole_file
from pytest_devicelab.evidence.record import RunRecord, TensorRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.request import RunRequest, fingerprint_of
from pytest_devicelab.logs.scan import scan_log
from pytest_devicelab.matrix.soc import Soc
from pytest_devicelab.matrix.specs import DeviceSpec
from pytest_devicelab.virtual.onnx_model import external_files, load_model, op_types, output_quantization

COMPILE_OPTIONS = "--target_runtime qnn_context_binary"
# Kinds of artifacts, and the logs they are to us. Source: JobArtifactType of qai_hub's public_api_pb2.
_LOGS = {1: "logcat", 5: "hub"}


class _ModelRefused(Exception):
    """A job failed because of the model; its text is what AI Hub said."""


@dataclass(slots=True, kw_only=True)
class HubRun:
    """A run under way; `record` grows with every step, so that whatever breaks leaves what was known by then."""

    spec: DeviceSpec
    request: RunRequest
    record: RunRecord
    edge: HubEdge
    ledger: JobLedger
    folder: Path
    store: SessionStore
    cache: Path
    deadline: Deadline
    wait: Patience
    progress: Callable[[str], None]

    def carry_out(self, device: HubDevice) -> None:
        """Run the model; `record` says how it went.

        Raises:
            InfrastructureError: AI Hub could not carry it out.
        """
        soc = chip_of(self.spec, device)
        self.record = replace(self.record, device=identity(self.spec, device, soc, self.edge.account))
        try:
            model_id = (
                self._compiled_here(soc) if self.spec.compiler == "ours" else self._compiled_there(device)
            )
            job = self._infer(device, model_id)
        except _ModelRefused as refusal:
            self.record = replace(self.record, status="refused", error=str(refusal))
        except CompileRefused as error:
            ops = tuple((op["op"], op["node"], op["reason"]) for op in error.evidence.get("ops", ()))
            self.record = replace(self.record, status="refused", error=str(error), refused_ops=ops)
        else:
            self._collect(job)

    def _compiled_there(self, device: HubDevice) -> str:
        path = self.request.path
        if external_files(load_model(path), path.parent):
            raise HubRefused(
                f"{path.name} keeps weights in files of its own, which are not uploaded",
                fix="save the model as one file, or use `compiler: ours`",
            )
        sha256 = sha256_file(path)
        self.record = replace(self.record, options={"aihub.compile": COMPILE_OPTIONS})
        model_id = self._uploaded(path, sha256)
        key = self.ledger.key("compile", sha256, self.spec.id, device.name, device.os, COMPILE_OPTIONS)
        job = Submission(
            kind="compile",
            name=f"{self.request.model.id} {self.spec.id} {sha256[:8]}",
            model_id=model_id,
            device=device,
            options=COMPILE_OPTIONS,
        )
        done = self._done(key, job, sha256)
        if not done.target_model_id:
            raise HubRefused(f"AI Hub: compile job {done.id} is done and names no model")
        return done.target_model_id

    def _compiled_here(self, soc: Soc | None) -> str:
        from pytest_devicelab.runtimes.compile import compile_context

        if soc is None:
            raise HubRefused(
                f"device {self.spec.id}: nobody says which chip to compile for",
                fix=f"name it as soc: of device {self.spec.id} ({self.spec.source})",
            )
        self._say(f"compiling for {soc.name} on this host")
        compiled = compile_context(self.request.path, soc, self.request.options, self.cache / "contexts")
        self._keep("compile.log", compiled.log)
        self.record = replace(
            self.record, options=compiled.options, versions={**self.record.versions, **compiled.versions}
        )
        return self._uploaded(compiled.path, compiled.sha256)

    def _uploaded(self, path: Path, sha256: str) -> str:
        self._say("uploading the model, unless AI Hub has it")
        name = f"{self.request.model.id[:60]} {sha256[:16]}"
        return self.ledger.upload(
            "model",
            sha256,
            lambda: self.edge.upload_model(path, name, self.deadline),
            lambda known: self.edge.has_model(known, self.deadline),
            self.deadline,
        )

    def _infer(self, device: HubDevice, model_id: str) -> HubJob:
        digest = hashlib.sha256(fingerprint_of(self.request.inputs)).hexdigest()
        dataset_id = self.ledger.upload(
            "dataset",
            digest,
            lambda: self.edge.upload_dataset(self.request.inputs, f"inputs {digest[:16]}", self.deadline),
            lambda known: self.edge.has_dataset(known, self.deadline),
            self.deadline,
        )
        key = self.ledger.key("inference", self.request.id)
        job = Submission(
            kind="inference",
            name=f"{self.request.model.id} {self.spec.id} {self.request.purpose}",
            model_id=model_id,
            device=device,
            dataset_id=dataset_id,
            # Placement is judged by the first run alone, and profiling is a hundred more inferences.
            profile=self.request.purpose == "evaluate",
        )
        return self._done(key, job, self.request.model.sha256)

    def _done(self, key: str, job: Submission, sha256: str) -> HubJob:
        """Ask for a job unless that is done already, and wait for its end."""
        device = job.device
        entry = JobEntry(
            kind=job.kind,
            name=job.name,
            job_id="",
            asked_s=0.0,
            device=device.name if device else "",
            os=device.os if device else "",
            model_sha256=sha256,
        )
        job_id = self.ledger.ensure(key, entry, job, self.edge, self.deadline, self.wait)
        self._note(job.kind, job_id, None)
        found = await_job(job.kind, job_id, self.edge, self.deadline, self.wait, self._say)
        self._note(job.kind, job_id, found)
        if found.state == "done":
            return found
        self._logs(found)
        said = f"AI Hub: {job.kind} job {job_id} failed\n  why: {found.reason or 'it gave no reason'}"
        if whose_fault(job.kind, found.failure_type, found.reason) == "model":
            raise _ModelRefused(said)
        self.ledger.give_up(key)
        raise HubJobFailed(
            f"AI Hub: {job.kind} job {job_id} failed",
            why=found.reason or "it gave no reason",
            fix="ask for the run again, which makes a new job; see the job's page",
        )

    def _collect(self, job: HubJob) -> None:
        self._say("collecting")
        self._logs(job)
        model = load_model(self.request.path)
        target = self.folder / "outputs.h5"
        if not self.edge.outputs(job.id, target, self.deadline):
            raise OutputIncomplete(
                f"AI Hub: inference job {job.id} is done and has no outputs",
                why="it names no output dataset",
                fix="see the job's page",
            )
        arrays = read_outputs(target, model, self.record.samples)
        self._files("outputs.h5")
        grids = output_quantization(model)
        outputs = tuple(
            TensorRecord(
                name=name,
                dtype=array.dtype.name,
                shape=array.shape,
                sha256=self.store.arrays.write(array),
                quantization=grids.get(name),
            )
            for name, array in arrays.items()
        )
        self._profile(job)
        self.record = replace(self.record, status="ok", outputs=outputs)

    def _profile(self, job: HubJob) -> None:
        if self.request.purpose != "evaluate":
            return
        profile = patiently(lambda: self.edge.profile(job.id, self.deadline), self.deadline, self.wait)
        if profile is None:
            return
        versions = {f"aihub {name}": version for name, version in profile.versions.items()}
        self.record = replace(
            self.record,
            measured=measured(profile, simulated=self.record.device.simulated),
            ops=npu_rows(profile, op_types(load_model(self.request.path))),
            events=(*self.record.events, *unit_events(profile)),
            versions={**self.record.versions, **versions},
            telemetry={**self.record.telemetry, "aihub.inference_us": str(profile.inference_us)},
        )

    def _logs(self, job: HubJob) -> None:
        for artifact, source in _LOGS.items():
            if artifact not in job.artifacts:
                continue
            data = self.edge.log(job.id, artifact, self.deadline)
            self._keep(f"{source}.txt", data)
            scan = scan_log(data, source=source)
            self.record = replace(
                self.record,
                events=(*self.record.events, *scan.events),
                log_sources={**self.record.log_sources, source: scan.lines},
                unparsed_lines={**self.record.unparsed_lines, source: scan.unparsed},
            )

    def _note(self, kind: JobKind, job_id: str, job: HubJob | None) -> None:
        """Put into the record which job it is, how long it queued and ran."""
        facts = {f"aihub.{kind}.job": job_id}
        if job is not None:
            if job.queue_s is not None:
                facts[f"aihub.{kind}.queue_s"] = f"{job.queue_s:g}"
            if job.run_s is not None:
                facts[f"aihub.{kind}.run_s"] = f"{job.run_s:g}"
            if job.hub_version:
                versions = {**self.record.versions, "aihub": job.hub_version}
                self.record = replace(self.record, versions=versions)
        self.record = replace(self.record, telemetry={**self.record.telemetry, **facts})

    def _keep(self, name: str, data: bytes) -> None:
        with whole_file(self.folder / name) as file:
            file.write(data)
        self._files(name)

    def _files(self, name: str) -> None:
        self.record = replace(self.record, files={**self.record.files, name: name})

    def _say(self, step: str) -> None:
        self.progress(f"device={self.spec.id} model={self.request.model.id} {self.request.purpose}: {step}")
