"""Agreement: do all devices say the same, and if not, does the difference matter?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

from pytest_devicelab.errors import TensorMismatch
from pytest_devicelab.evidence.record import RunRecord, TensorRecord
from pytest_devicelab.matrix.specs import ModelSpec
from pytest_devicelab.tensors.classes import equivalence_classes
from pytest_devicelab.tensors.diff import diff_bitwise
from pytest_devicelab.tensors.metrics import is_classification, sqnr_db, top1_flips
from pytest_devicelab.verdicts.comparison import Comparison, Distance, PairDiff
from pytest_devicelab.verdicts.evidence import evidence_of, why_not_ok
from pytest_devicelab.verdicts.verdict import Outcome, Verdict

Array = npt.NDArray[np.generic]


def compare_outputs(
    model: str,
    records: Sequence[RunRecord],
    arrays: Mapping[str, Mapping[str, Array]],
    *,
    lsb: Mapping[str, float],
) -> tuple[Comparison, ...]:
    """Lay the outputs of one model side by side.

    Args:
        model: its id.
        records: one run a device, in matrix order.
        arrays: for at least one device of every class, output name -> `[N, ...]`.
        lsb: for each output whose quantization is known, one step of it in the output's own units.

    Returns:
        One `Comparison` for each output that any run has, in the order of the runs; without divergences.

    Raises:
        TensorMismatch: no device of a class has its array here, or arrays contradict the recorded hashes.
    """
    names = dict.fromkeys(tensor.name for record in records for tensor in record.outputs)
    return tuple(_compare_output(model, name, records, arrays, lsb.get(name)) for name in names)


def _compare_output(
    model: str,
    name: str,
    records: Sequence[RunRecord],
    arrays: Mapping[str, Mapping[str, Array]],
    lsb: float | None,
) -> Comparison:
    present: dict[str, TensorRecord] = {}
    missing: list[tuple[str, str]] = []
    for record in records:
        tensor = next((tensor for tensor in record.outputs if tensor.name == name), None)
        if record.status != "ok":
            missing.append((record.device.id, why_not_ok(record)))
        elif tensor is None:
            missing.append((record.device.id, f"the run has no output {name}"))
        else:
            present[record.device.id] = tensor
    forms = {device: f"{tensor.dtype} {list(tensor.shape)}" for device, tensor in present.items()}
    for others in equivalence_classes({device: (form,) for device, form in forms.items()})[1:]:
        for device in others:
            missing.append((device, f"its output is {forms[device]}, unlike that of most devices"))
            del present[device]
    classes = equivalence_classes({device: (tensor.sha256,) for device, tensor in present.items()})
    pairs = {
        (row, column): _pair(name, classes[row], classes[column], arrays, lsb)
        for row, column in combinations(range(len(classes)), 2)
    }
    return Comparison(
        model=model,
        output=name,
        classes=classes,
        pairs=tuple(pair for (row, _), pair in pairs.items() if row == 0),
        distances=_distances(name, classes, pairs, arrays),
        missing=tuple(missing),
    )


def _distances(
    name: str,
    classes: tuple[tuple[str, ...], ...],
    pairs: Mapping[tuple[int, int], PairDiff],
    arrays: Mapping[str, Mapping[str, Array]],
) -> tuple[tuple[Distance | None, ...], ...]:
    """Lay the pairs out as a matrix; only the SQNR depends on which of two classes is the signal."""

    def cell(row: int, column: int) -> Distance | None:
        if row == column:
            return None
        pair = pairs[min(row, column), max(row, column)]
        sqnr = pair.sqnr_db
        if row > column:
            sqnr = sqnr_db(_array_of(name, classes[row], arrays), _array_of(name, classes[column], arrays))
        return Distance(elements_different=pair.elements_different, max_lsb=pair.max_lsb, sqnr_db=sqnr)

    every = range(len(classes))
    return tuple(tuple(cell(row, column) for column in every) for row in every)


def _pair(
    name: str,
    reference: tuple[str, ...],
    observed: tuple[str, ...],
    arrays: Mapping[str, Mapping[str, Array]],
    lsb: float | None,
) -> PairDiff:
    left, right = _array_of(name, reference, arrays), _array_of(name, observed, arrays)
    pair = pair_of(reference[0], observed[0], left, right, lsb)
    if not pair.bits_different:
        raise TensorMismatch(
            f"output {name} of {reference[0]} and {observed[0]} has different hashes and the same bits",
            why="the arrays at hand are not the ones that were hashed on the devices",
            fix="pull the outputs again",
            output=name,
        )
    return pair


def pair_of(reference: str, observed: str, left: Array, right: Array, lsb: float | None) -> PairDiff:
    """Measure how far `right`, of `observed`, is from `left`, of `reference`: one shape, `[N, ...]`."""
    diff = diff_bitwise(left, right, lsb=lsb)
    return PairDiff(
        reference=reference,
        observed=observed,
        elements=diff.elements,
        elements_different=diff.elements_different,
        bits_different=diff.bits_different,
        max_abs=diff.max_abs,
        max_lsb=diff.max_lsb,
        sqnr_db=diff.sqnr_db,
        top1_flips=top1_flips(left, right) if is_classification(left) else None,
    )


def _array_of(name: str, devices: tuple[str, ...], arrays: Mapping[str, Mapping[str, Array]]) -> Array:
    """Return the one array that stands for a class."""
    for device in devices:
        if name in arrays.get(device, {}):
            return arrays[device][name]
    raise TensorMismatch(
        f"output {name}: no array of any of {', '.join(devices)} is at hand",
        why="one copy per class must be pulled before classes are compared",
        output=name,
    )


def judge_agreement(
    model: ModelSpec,
    records: Sequence[RunRecord],
    comparisons: Sequence[Comparison],
    accuracy: Sequence[Verdict],
) -> Verdict:
    """Say whether a model behaves the same on all devices.

    Args:
        model: for its gate: `bitwise` wants one class, `three_run` wants the three-run rule to hold on
            every device when there are several.
        records: one run a device, in matrix order.
        comparisons: one an output.
        accuracy: the accuracy verdicts of this model.

    Returns:
        `fail` when something is known to be wrong, even if other evidence is missing; `inconclusive` when a
        device, a run or a yardstick is missing; else `pass`.
    """
    gate = model.gates.agreement
    wrong = _violations(gate, comparisons, accuracy)
    gaps = _gaps(gate, records, comparisons, accuracy)
    outcome: Outcome = "fail" if wrong else "inconclusive" if gaps else "pass"
    held = "three-run rule holds on every device"
    parted = any(len(comparison.classes) > 1 for comparison in comparisons)
    remarks = [*wrong, *gaps] or [held] * (parted and gate == "three_run")
    reason = "; ".join([*(_describe(comparison) for comparison in comparisons), *remarks])
    return Verdict(
        check="agreement",
        model=model.id,
        devices=tuple(record.device.id for record in records),
        outcome=outcome,
        reason=reason,
        evidence=evidence_of(*records),
        details={
            "classes": [list(devices) for devices in _classes_over(comparisons)],
            "gate": gate,
            "attribution": [_attributed(comparison) for comparison in comparisons if comparison.attribution],
        },
    )


def _attributed(comparison: Comparison) -> dict[str, object]:
    assert comparison.attribution is not None
    signal, accuracy = comparison.attribution.signal, comparison.attribution.accuracy
    return {
        "output": comparison.output,
        "line": comparison.attribution.line,
        "cause": signal.cause,
        "reason": signal.reason,
        "accuracy_cause": accuracy.cause if accuracy else None,
    }


def _classes_over(comparisons: Sequence[Comparison]) -> tuple[tuple[str, ...], ...]:
    """Return the devices that are in one class for every output."""
    membership: dict[str, tuple[str, ...]] = {}
    for comparison in comparisons:
        for number, devices in enumerate(comparison.classes):
            for device in devices:
                membership[device] = (*membership.get(device, ()), str(number))
    whole = {device: own for device, own in membership.items() if len(own) == len(comparisons)}
    return equivalence_classes(whole)


def _violations(gate: str, comparisons: Sequence[Comparison], accuracy: Sequence[Verdict]) -> list[str]:
    parted = any(len(comparison.classes) > 1 for comparison in comparisons)
    if gate == "bitwise":
        return ["the gate is bitwise, and bits differ"] if parted else []
    broken = [
        id_ for verdict in accuracy if verdict.details.get("three_run") == "fail" for id_ in verdict.devices
    ]
    # Devices that give the same wrong bits agree; that they are wrong is the accuracy check's to say.
    return [f"three-run rule broken on {', '.join(broken)}"] if parted and broken else []


def _gaps(
    gate: str, records: Sequence[RunRecord], comparisons: Sequence[Comparison], accuracy: Sequence[Verdict]
) -> list[str]:
    """Name what is missing for a pass."""
    gaps = [why_not_ok(record) for record in records if record.status != "ok"]
    down = {record.device.id for record in records if record.status != "ok"}
    for comparison in comparisons:
        gaps += [f"{device}: {why}" for device, why in comparison.missing if device not in down]
    gaps += _emptiness(records) + _aliases(records)
    if not comparisons:
        gaps.append("no output was compared")
    if len(records) < 2:
        gaps.append("one device alone has nothing to agree with")
    if gate == "three_run" and any(len(comparison.classes) > 1 for comparison in comparisons):
        judged = {
            id_
            for verdict in accuracy
            if verdict.details.get("three_run") in ("pass", "fail")
            for id_ in verdict.devices
        }
        unknown = [record.device.id for record in records if record.device.id not in judged | down]
        gaps += [f"three-run rule not shown on {', '.join(unknown)}"] if unknown else []
    return gaps


def _emptiness(records: Sequence[RunRecord]) -> list[str]:
    """Name the outputs that hold nothing: equal hashes of no bytes show no agreement."""
    empty = dict.fromkeys(
        tensor.name for record in records for tensor in record.outputs if math.prod(tensor.shape) == 0
    )
    return [f"output {', '.join(empty)} holds no elements"] if empty else []


def _aliases(records: Sequence[RunRecord]) -> list[str]:
    """Name entries of the matrix that turned out to be one device: it agrees with itself whatever it computes."""
    by_serial: dict[str, list[str]] = {}
    for record in records:
        by_serial.setdefault(record.device.serial, []).append(record.device.id)
    return [
        f"{' and '.join(devices)} are one device ({serial})"
        for serial, devices in by_serial.items()
        if serial and len(devices) > 1
    ]


def _describe(comparison: Comparison) -> str:
    classes = " | ".join("{" + ", ".join(devices) + "}" for devices in comparison.classes)
    if not comparison.classes:
        return f"{comparison.output}: no device has it"
    if len(comparison.classes) == 1:
        return f"{comparison.output}: the same bits on {classes}"
    text = f"{comparison.output}: {len(comparison.classes)} classes {classes}"
    first = comparison.first_divergence
    if first is not None:
        hint = ", a hint only: tapping changed the output" if first.taps_changed_output else ""
        text += f", first apart at {first.op} {first.node} (layer {first.depth} of {first.layers}{hint})"
    flips = max((pair.top1_flips or 0 for pair in comparison.pairs), default=0)
    return f"{text}, {flips} top-1 flips" if flips else text
