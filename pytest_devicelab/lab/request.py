"""What a session asks of a lab: one model file on some inputs on one device, and the record of a device out of reach."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pytest_devicelab.devices.slots import sha256_file
from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.evidence.record import Attempt, DeviceIdentity, ModelIdentity, Purpose, RunRecord
from pytest_devicelab.lab.retry import failure_class
from pytest_devicelab.matrix.specs import (
    DeviceSpec,
    HealthSpec,
    LogProfile,
    MatrixSpec,
    MeasureSpec,
    ModelSpec,
    Retries,
)
from pytest_devicelab.runtimes.inputs import Arrays
from pytest_devicelab.runtimes.qairt import find_sdk
from pytest_devicelab.runtimes.registry import choose_runtime
from pytest_devicelab.virtual.onnx_model import external_files, load_model


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What to run: one model file on some inputs, for one purpose.

    Attributes:
        model: the model as the matrix knows it; `path` may be another file made from it, such as a tapped one.
        inputs: arrays `[N, ...]` by input name.
        retries: how often it may be tried again when the lab fails.
        health: when the device is fit for it.
        fixed_performance: whether the device is to hold its clocks meanwhile, if it can.
        unit: serial of the unit of a pool it has to be made on, where that is still there; empty for any.
        qairt_sdk: Qualcomm's SDK on this machine, for devices that have no runner of their own; None for none.
        measure: how time, memory and energy are measured; None for a run that gives outputs.
    """

    id: str
    model: ModelIdentity
    path: Path
    runtime: str
    options: Mapping[str, str]
    inputs: Arrays
    purpose: Purpose
    logging: LogProfile
    timeout_s: float
    unit: str = ""
    qairt_sdk: Path | None = None
    retries: Retries = field(default_factory=Retries)
    health: HealthSpec = field(default_factory=HealthSpec)
    fixed_performance: bool = False
    measure: MeasureSpec | None = None


def make_request(
    matrix: MatrixSpec, spec: DeviceSpec, model: ModelSpec, inputs: Arrays, purpose: Purpose, path: Path
) -> RunRequest:
    """Return the request for a run; equal content has an equal id, whoever asks.

    Args:
        matrix: says what is logged, and how long a run may take.
        spec: the device.
        model: what the matrix says of the model.
        inputs: arrays `[N, ...]` by input name.
        purpose: why it is run.
        path: the model's own file, or one made from it.
    """
    sha256 = model_sha256(path)
    runtime = choose_runtime(spec, model)
    # Ids may hold dots, so that `a.b` on `c` and `a` on `b.c` begin alike: only the digest tells them apart.
    parts = (model.id, spec.id, purpose, sha256, runtime, sorted(model.options.items()))
    digest = hashlib.sha256(repr(parts).encode())
    digest.update(fingerprint_of(inputs))
    measure = model.measure if purpose == "measure" else None
    if measure is not None:
        digest.update(f"{measure.inferences} {measure.warm_up}".encode())
    return RunRequest(
        id=f"{model.id}.{spec.id}.{purpose}.{digest.hexdigest()[:8]}",
        model=ModelIdentity(id=model.id, variant=model.variant, sha256=sha256),
        path=path,
        runtime=runtime,
        options=model.options,
        inputs=inputs,
        purpose=purpose,
        # Logs take time, of which none is the model's.
        logging=matrix.logging if measure is None else LogProfile(level="off"),
        timeout_s=matrix.lab.run_timeout_s,
        retries=matrix.lab.retries,
        health=matrix.lab.health,
        fixed_performance=matrix.lab.fixed_performance,
        measure=measure,
        qairt_sdk=find_sdk(matrix.qairt_sdk, os.environ) if spec.kind == "adb" else None,
    )


def model_sha256(path: Path) -> str:
    """Return a hash of all that a model is made of: the sha256 of its file, or of that and its files of weights.

    Raises:
        ModelError: the model cannot be read, or names a file of weights that is missing or outside its folder.
    """
    sha256 = sha256_file(path)
    if path.suffix != ".onnx":
        return sha256
    folder = path.resolve().parent
    weights = external_files(load_model(path), folder)
    if not weights:
        return sha256
    digest = hashlib.sha256(sha256.encode())
    for file in weights:
        digest.update(f" {file.relative_to(folder)} {sha256_file(file)}".encode())
    return digest.hexdigest()


def fingerprint_of(inputs: Arrays) -> bytes:
    """Return a hash of inputs that differs where names, dtypes, shapes or bytes do."""
    digest = hashlib.sha256()
    for name in sorted(inputs):
        array = inputs[name]
        digest.update(f"{len(name)} {name} {array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()


def hoped_identity(spec: DeviceSpec) -> DeviceIdentity:
    """Return what the matrix says a device is, for a record of a device that never answered."""
    return DeviceIdentity(
        id=spec.id,
        kind=spec.kind,
        soc=spec.soc.name if spec.soc else None,
        hexagon=spec.soc.hexagon if spec.soc else None,
        simulated=spec.simulated,
        serial=spec.serial or "",
        engine=spec.engine if spec.simulated else None,
    )


def unreached(
    spec: DeviceSpec, request: RunRequest, session_id: str, error: InfrastructureError
) -> RunRecord:
    """Return the record of a run that never began, because the lab could not reach the device."""
    return RunRecord(
        id=request.id,
        session=session_id,
        device=hoped_identity(spec),
        model=request.model,
        runtime=request.runtime,
        backend="",
        purpose=request.purpose,
        status="failed",
        options=request.options,
        attempts=(
            Attempt(number=1, started="", duration_s=0.0, error=str(error), failure=failure_class(error)),
        ),
        recovery=error.evidence.get("recovery", ()),
        error=str(error),
    )
