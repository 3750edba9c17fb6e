"""Quantize a float model in AI Hub: one job for one model and its calibration data, however often it is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from pytest_devicelab.aihub.edge import HubEdge
from pytest_devicelab.aihub.jobs import await_job
from pytest_devicelab.aihub.ledger import JobEntry, JobLedger, Patience
from pytest_devicelab.aihub.messages import Submission
from pytest_devicelab.aihub.outcome import Deadline, HubJobFailed, whose_fault
from pytest_devicelab.devices.slots import sha256_file
from pytest_devicelab.errors import CompileRefused, ModelError
from pytest_devicelab.lab.request import fingerprint_of
from pytest_devicelab.runtimes.inputs import Arrays
from pytest_devicelab.virtual.onnx_model import external_files, load_model


def quantize(
    edge: HubEdge,
    model: Path,
    calibration: Arrays,
    target: Path,
    *,
    cache: Path,
    timeout_s: float,
    say: Callable[[str], None],
) -> None:
    """Write the INT8 model (weights and activations) that AI Hub makes of a float one.

    Args:
        edge: AI Hub.
        model: a float .onnx file.
        calibration: arrays `[N, ...]` by input name.
        target: the .onnx file to write.
        cache: remembers uploads and jobs, so that a job is paid for once.
        timeout_s: our deadline, the queue included.
        say: told what is being done.

    Raises:
        ModelError: a file is no ONNX model.
        CompileRefused: AI Hub does not quantize it.
        InfrastructureError: AI Hub could not.
    """
    if model.suffix != ".onnx":
        raise ModelError(
            f"{model}: AI Hub quantizes ONNX models",
            why="its name does not end in .onnx",
            fix="give the float .onnx file",
        )
    if external_files(load_model(model), model.parent):
        raise ModelError(
            f"{model} keeps weights in files of its own, which are not uploaded",
            why="AI Hub would get a graph without them",
            fix="save the model as one file",
        )
    deadline, wait = Deadline.after(timeout_s), Patience()
    edge.check(deadline)
    ledger = JobLedger(cache / "quantize", "quantize", cache / "uploads")
    sha256, data = sha256_file(model), hashlib.sha256(fingerprint_of(calibration)).hexdigest()
    model_id = ledger.upload(
        "model",
        sha256,
        lambda: edge.upload_model(model, model.name[:60], deadline),
        lambda known: edge.has_model(known, deadline),
        deadline,
    )
    dataset_id = ledger.upload(
        "dataset",
        data,
        lambda: edge.upload_dataset(calibration, f"calibration {data[:16]}", deadline),
        lambda known: edge.has_dataset(known, deadline),
        deadline,
    )
    key = ledger.key(edge.account.api_url, sha256, data)
    entry = JobEntry(kind="quantize", name="", job_id="", asked_s=0.0, model_sha256=sha256)
    job = Submission(kind="quantize", name=model.stem, model_id=model_id, dataset_id=dataset_id)
    job_id = ledger.ensure(key, entry, job, edge, deadline, wait)
    done = await_job("quantize", job_id, edge, deadline, wait, say)
    if done.state == "failed":
        what, why = f"AI Hub: quantize job {job_id} failed", done.reason or "it gave no reason"
        if whose_fault("quantize", done.failure_type, done.reason) == "model":
            raise CompileRefused(what, why=why, ops=[])
        ledger.give_up(key)
        raise HubJobFailed(what, why=why, fix="ask again, which makes a new job")
    edge.download_model(done.target_model_id, target, deadline)
    load_model(target)
