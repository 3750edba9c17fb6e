"""Lay a whole fleet side by side: accuracy of each device, classes, and the first layer at which they part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from pytest_devicelab.audit.divergence import TappedRun, first_divergence
from pytest_devicelab.audit.graph import output_lsb
from pytest_devicelab.audit.taps import Tap, tap_model
from pytest_devicelab.errors import TensorMismatch
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.lab.session import LabSession, read_labels, side_by_side
from pytest_devicelab.matrix.specs import ModelSpec
from pytest_devicelab.verdicts.accuracy import judge_accuracy
from pytest_devicelab.verdicts.agreement import compare_outputs, judge_agreement
from pytest_devicelab.verdicts.comparison import Comparison, Divergence
from pytest_devicelab.verdicts.verdict import Verdict

# Layers are laid side by side on a few samples: one differing bit is enough to find where chips part.
TAP_SAMPLES = 8


def accuracy_of(session: LabSession, model: ModelSpec, record: RunRecord) -> Verdict:
    """Judge one device's run against the float and the quantized model on the host's CPU."""
    inputs = session.inputs(model)
    return judge_accuracy(
        record,
        model,
        session.outputs(record),
        session.on_host(model.path, inputs),
        session.on_host(model.reference, inputs) if model.reference else None,
        read_labels(model.labels) if model.labels else None,
    )


def judge_fleet(session: LabSession, model: ModelSpec, records: Mapping[str, RunRecord]) -> Verdict:
    """Compare all devices, write the comparisons down, and judge whether they agree as the gate asks."""
    comparisons = compare_fleet(session, model, records)
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
    comparisons = compare_outputs(model.id, ordered, arrays, lsb=output_lsb(model.path.read_bytes()))
    return tuple(
        replace(comparison, divergences=_divergences(session, model, comparison, records))
        if len(comparison.classes) > 1
        else comparison
        for comparison in comparisons
    )


def _divergences(
    session: LabSession, model: ModelSpec, comparison: Comparison, records: Mapping[str, RunRecord]
) -> tuple[Divergence, ...]:
    """Run the tapped model on one device of each class, and find where each class parts from the first."""
    # Both runtimes keep the graph's edges on the NPU unless the matrix says otherwise.
    offloaded_io = model.options.get("offload_graph_io_quantization", "0") != "0"
    tapped = tap_model(model.path.read_bytes(), offloaded_io=offloaded_io)
    path = session.keep_model(f"{model.id}.tapped.onnx", tapped.model)
    runs = side_by_side(
        [partial(_tapped_run, session, model, devices, path, records) for devices in comparison.classes]
    )
    reference, *others = runs
    if reference is None:
        return ()
    found = (_first(tapped.taps, reference, observed) for observed in others if observed is not None)
    return tuple(divergence for divergence in found if divergence is not None)


def _tapped_run(
    session: LabSession,
    model: ModelSpec,
    devices: tuple[str, ...],
    path: Path,
    records: Mapping[str, RunRecord],
) -> TappedRun | None:
    """Return the tapped model's run on the first device of a class; None when it does not run there."""
    spec = session.matrix.device(devices[0])
    few = {name: array[:TAP_SAMPLES] for name, array in session.inputs(model).items()}
    record = session.run(spec, model, few, "taps", path=path)
    if record.status != "ok":
        return None
    return TappedRun(
        devices=devices, tapped=session.outputs(record), untapped=session.outputs(records[devices[0]])
    )


def _first(taps: tuple[Tap, ...], reference: TappedRun, observed: TappedRun) -> Divergence | None:
    try:
        return first_divergence(taps, reference, observed)
    except TensorMismatch:
        return None  # the layers cannot be laid side by side; that the outputs part is known all the same
