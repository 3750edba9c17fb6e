"""Lay a whole fleet side by side: accuracy of each device, classes, and the first layer at which they part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from pytest_devicelab.audit.bisect import bisect
from pytest_devicelab.audit.graph import output_lsb, parse_graph
from pytest_devicelab.errors import ModelError, TensorMismatch
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.lab.session import LabSession, read_labels
from pytest_devicelab.matrix.specs import ModelSpec
from pytest_devicelab.runtimes.inputs import Arrays
from pytest_devicelab.verdicts.accuracy import judge_accuracy, real_values
from pytest_devicelab.verdicts.agreement import compare_outputs, judge_agreement
from pytest_devicelab.verdicts.attribution import Attribution, attribute
from pytest_devicelab.verdicts.comparison import Comparison, Divergence
from pytest_devicelab.verdicts.verdict import Verdict
from pytest_devicelab.virtual.onnx_model import output_quantization

# Layers are laid side by side on a few samples: one differing bit is enough to find where chips part.
TAP_SAMPLES = 8


def accuracy_of(session: LabSession, model: ModelSpec, record: RunRecord) -> Verdict:
    """Judge one device's run against the float and the quantized model on the host's CPU."""
    inputs = session.inputs(model)
    outputs, lacking = session.outputs(record), ""
    try:
        quantized: Arrays | None = session.on_host(model.path, inputs)
    except ModelError as error:
        if model.path.suffix == ".onnx":
            raise
        # Such as a program lowered for an NPU: a device runs it, this machine does not, and so there is no yardstick.
        quantized, lacking = None, f" ({error.brief})"
    verdict = judge_accuracy(
        record,
        model,
        outputs,
        quantized,
        _float_outputs(session, model, outputs),
        read_labels(model.labels) if model.labels else None,
    )
    return replace(verdict, reason=f"{verdict.reason}{lacking}")


def _float_outputs(session: LabSession, model: ModelSpec, outputs: Arrays) -> Arrays | None:
    """Return what the float model gives, named as the device names it where each has one output.

    Exporters to other formats name outputs anew: the only one of each is the same one, whatever it is called.
    """
    if model.reference is None:
        return None
    found = session.on_host(model.reference, session.reference_inputs(model))
    if model.path.suffix == ".onnx" or len(found) != 1 or len(outputs) != 1:
        return found
    return dict(zip(outputs, found.values(), strict=True))


def judge_fleet(session: LabSession, model: ModelSpec, records: Mapping[str, RunRecord]) -> Verdict:
    """Compare all devices, write the comparisons down, and judge whether they agree as the gate asks."""
    compared = compare_fleet(session, model, records)
    comparisons = tuple(
        replace(comparison, attribution=attribute_loss(session, model, comparison, records))
        for comparison in compared
    )
    for comparison in comparisons:
        session.store.write_comparison(comparison)
    accuracy = tuple(accuracy_of(session, model, record) for record in records.values())
    return judge_agreement(model, tuple(records.values()), comparisons, accuracy)


def compare_fleet(
    session: LabSession, model: ModelSpec, records: Mapping[str, RunRecord]
) -> tuple[Comparison, ...]:
    """Compare all devices output by output, down to the first layer at which their classes part."""
    ordered = tuple(records.values())
    arrays = {record.device.id: session.outputs(record) for record in ordered if record.status == "ok"}
    comparisons = compare_outputs(model.id, ordered, arrays, lsb=_steps(model, ordered))
    return tuple(
        replace(comparison, divergences=_divergences(session, model, comparison, records))
        # Layers are tapped in ONNX; of another file's, the classes are all there is to say.
        if len(comparison.classes) > 1 and model.path.suffix == ".onnx"
        else comparison
        for comparison in comparisons
    )


def _steps(model: ModelSpec, records: Sequence[RunRecord]) -> Mapping[str, float]:
    """Return one quantization step of each output: by the ONNX model, or by what the runs of another file recorded."""
    if model.path.suffix == ".onnx":
        return output_lsb(model.path.read_bytes())
    return {
        tensor.name: tensor.quantization.scale
        for record in records
        for tensor in record.outputs
        if tensor.quantization
    }


def attribute_loss(
    session: LabSession, model: ModelSpec, comparison: Comparison, records: Mapping[str, RunRecord]
) -> Attribution | None:
    """Say whose the loss of one output is; None without a float model, or when nothing can be compared with it."""
    if model.reference is None or not comparison.classes:
        return None
    name, inputs = comparison.output, session.inputs(model)
    speaking = {devices: records[devices[0]] for devices in comparison.classes}
    first = speaking[comparison.classes[0]]
    chips = {
        device: record.device.hexagon or record.device.soc or device for device, record in records.items()
    }
    try:
        quantized = real_values(first, session.on_host(model.path, inputs))
        outputs = session.outputs(first)
        reference = _float_outputs(session, model, outputs) or {}
        return attribute(
            reference[name].astype(np.float64),
            quantized[name],
            {
                devices: real_values(record, session.outputs(record))[name]
                for devices, record in speaking.items()
            },
            chips=chips,
            # Fixed, so that the same records always give the same figures.
            rng=np.random.default_rng(0),
            step=_quantization_steps(model, first).get(name),
            labels=read_labels(model.labels) if model.labels else None,
            material_share=model.gates.accuracy_drop,
        )
    except (TensorMismatch, KeyError, ModelError):
        return None  # the accuracy verdicts say what is wrong with the yardstick


def _quantization_steps(model: ModelSpec, record: RunRecord) -> Mapping[str, float]:
    if model.path.suffix != ".onnx":
        return _steps(model, (record,))
    grids = output_quantization(parse_graph(model.path.read_bytes()).model)
    return {name: grid.scale for name, grid in grids.items()}


def _divergences(
    session: LabSession, model: ModelSpec, comparison: Comparison, records: Mapping[str, RunRecord]
) -> tuple[Divergence, ...]:
    """Walk through the model on one device of each class, and find where each class parts from the first."""
    classes = {devices[0]: devices for devices in comparison.classes}
    found = bisect(
        session,
        model,
        [session.matrix.device(id_) for id_ in classes],
        samples=TAP_SAMPLES,
        untapped=records,
        against_float=False,
    )
    return tuple(
        replace(each, reference=classes[each.reference[0]], observed=classes[each.observed[0]])
        for each in found.divergences
    )
