"""Take the fingerprint of a device: run every probe on it, check where each ran, and read the answers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pytest_devicelab.audit.fingerprint.classify import classify
from pytest_devicelab.audit.fingerprint.fingerprint import Answer, Fingerprint
from pytest_devicelab.audit.fingerprint.pack import pack_inputs, pack_model
from pytest_devicelab.audit.fingerprint.placement import off_the_npu
from pytest_devicelab.audit.fingerprint.probe import Array, Probe
from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.evidence.arrays import tensor_sha256
from pytest_devicelab.evidence.record import DeviceIdentity, RunRecord
from pytest_devicelab.lab.request import hoped_identity
from pytest_devicelab.lab.session import LabSession
from pytest_devicelab.matrix.specs import DeviceSpec, ModelSpec, RuntimeName, Source
from pytest_devicelab.runtimes.registry import find_runtime

_ASKED_DIGITS = 8
_BITS_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    """What one group of probes gave: answers by name, and the runs they came from."""

    answers: Mapping[str, Answer]
    records: tuple[RunRecord, ...]


def take_fingerprint(
    session: LabSession, spec: DeviceSpec, probes: Sequence[Probe], *, runtime: RuntimeName, date: str
) -> Fingerprint:
    """Ask a device every probe, and return what it answers.

    Args:
        session: the lab, with the device in it.
        spec: the device; its own runtime in the matrix comes before `runtime`.
        probes: what to ask.
        runtime: `ort`, which says where each node ran, or `qnn`, which runs on the NPU or not at all.
        date: the day, for the record.

    Raises:
        InfrastructureError: the lab could not carry a run out: such a device has no fingerprint, not half of one.
    """
    runtime = spec.runtime or runtime
    groups: dict[object, list[Probe]] = {}
    for probe in probes:
        # Floats apart: where a chip refuses a float32 model, finding which one takes a few runs of a small group.
        kind = probe.dtype if probe.dtype.startswith("float") else "codes"
        groups.setdefault((probe.options, kind), []).append(probe)
    soc = session.chip(spec)
    if find_runtime(runtime).backend(spec, soc) == "cpu":
        answers = {
            probe.name: _without(probe, "not_on_npu", "this device has no NPU the runtime uses")
            for probe in probes
        }
        return _fingerprint(hoped_identity(replace(spec, soc=soc)), runtime, date, {}, probes, answers)
    taken = [_ask(session, spec, group, runtime) for group in groups.values()]
    answers = {name: answer for part in taken for name, answer in part.answers.items()}
    records = [record for part in taken for record in part.records]
    if spec.simulated and spec.engine == "htp" and runtime == "ort":
        # The context binary of one probe says which QAIRT is behind the simulator; ONNX Runtime does not.
        records.append(_run(session, spec, probes[:1], "qnn"))
    versions = {name: version for record in records for name, version in record.versions.items()}
    return _fingerprint(records[0].device, runtime, date, versions, probes, answers)


def _fingerprint(
    device: DeviceIdentity,
    runtime: str,
    date: str,
    versions: Mapping[str, str],
    probes: Sequence[Probe],
    answers: Mapping[str, Answer],
) -> Fingerprint:
    return Fingerprint(
        device=replace(device, serial="", properties={}),  # which unit it was is nobody's business
        runtime=runtime,
        date=date,
        versions=dict(sorted(versions.items())),
        probes=tuple(answers[probe.name] for probe in probes),
    )


def _ask(session: LabSession, spec: DeviceSpec, group: Sequence[Probe], runtime: RuntimeName) -> _Taken:
    """Run a group of probes in one model; without those the chip refuses, again."""
    record = _run(session, spec, group, runtime)
    if record.status == "ok":
        outputs = session.outputs(record)
        answers = {probe.name: _answer(probe, record, outputs[probe.output]) for probe in group}
        return _Taken(answers=answers, records=(record,))
    if record.status == "failed":
        raise InfrastructureError(f"device {spec.id}: no fingerprint could be taken", why=record.error)
    parts = _without_refused(group, record)
    taken = [_ask(session, spec, part, runtime) for part in parts.again if part]
    return _Taken(
        answers={**parts.refused, **{name: found for part in taken for name, found in part.answers.items()}},
        records=(record, *(again for part in taken for again in part.records)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What to do about a refused group: the probes found guilty, and groups of the others to ask again."""

    refused: Mapping[str, Answer]
    again: tuple[Sequence[Probe], ...]


def _without_refused(group: Sequence[Probe], record: RunRecord) -> _Parts:
    """Take the probes out that the compiler named; where it named none, halve the group until it is alone."""
    reasons = {node: f"{op}: {reason}" for op, node, reason in record.refused_ops}
    guilty = {
        probe.name: _without(probe, "refused", reasons[node])
        for probe in group
        for node in probe.computes
        if node in reasons
    }
    if not guilty and len(group) == 1:
        guilty = {group[0].name: _without(group[0], "refused", _reason(record))}
    if guilty:
        return _Parts(refused=guilty, again=([probe for probe in group if probe.name not in guilty],))
    middle = len(group) // 2
    return _Parts(refused={}, again=(group[:middle], group[middle:]))


def _reason(record: RunRecord) -> str:
    """Return what the runtime said of a refusal: the same words every time, so no line with a clock in it."""
    said = [event.fields for event in record.events if event.kind == "load_error"]
    return " ".join((said[0].get("stage", "load"), "error", said[0].get("code", ""))).strip() if said else ""


def _run(session: LabSession, spec: DeviceSpec, group: Sequence[Probe], runtime: RuntimeName) -> RunRecord:
    content = pack_model(group)
    name = f"fingerprint_{hashlib.sha256(content).hexdigest()[:8]}"
    path = session.keep_model(f"{name}.onnx", content)
    model = ModelSpec(
        id=name,
        variant=f"{len(group)} probes",
        path=path,
        source=Source(file=str(path), line=1, column=1),
        runtime=runtime,
        options=dict(group[0].options),
    )
    return session.run(spec, model, pack_inputs(group), "evaluate")


def _answer(probe: Probe, record: RunRecord, outputs: Array) -> Answer:
    if reason := off_the_npu(probe, record):
        return _without(probe, "not_on_npu", reason)
    repeats = [outputs[index].reshape(probe.output_shape) for index in range(len(outputs))]
    reading = classify(probe.candidates, repeats)
    return Answer(
        name=probe.name,
        op=probe.op,
        dtype=probe.dtype,
        asked=_asked(probe),
        status=reading.status,
        sha256="" if reading.status == "unstable" else tensor_sha256(repeats[0])[:_BITS_DIGITS],
        facts=reading.facts,
        open=reading.open,
        note=reading.nearest,
    )


def _without(probe: Probe, status: Literal["not_on_npu", "refused"], reason: str) -> Answer:
    return Answer(
        name=probe.name, op=probe.op, dtype=probe.dtype, asked=_asked(probe), status=status, note=reason
    )


def _asked(probe: Probe) -> str:
    digest = hashlib.sha256(pack_model([probe]))
    for name, array in probe.inputs.items():
        digest.update(name.encode() + tensor_sha256(array).encode())
    return digest.hexdigest()[:_ASKED_DIGITS]
