"""Accuracy: how much of the float model's quality is left on a device, and who lost the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_devicelab.errors import TensorMismatch
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.matrix.specs import ModelSpec
from pytest_devicelab.tensors.metrics import is_classification, sqnr_db, top1_accuracy, top1_flips
from pytest_devicelab.verdicts.evidence import evidence_of, finite, why_not_ok
from pytest_devicelab.verdicts.three_run import ThreeRun, apply_three_run
from pytest_devicelab.verdicts.verdict import Outcome, Verdict

Arrays = Mapping[str, npt.NDArray[np.generic]]
Labels = npt.NDArray[np.integer]

_TOP1_FIGURES = ("top1_float", "top1_quantized_cpu", "top1_device", "drop", "flips")
_FIGURES = (
    *_TOP1_FIGURES,
    "sqnr_quantized_cpu_db",
    "sqnr_device_db",
    "three_run_worst",
    "three_run_tolerance",
    "worst_element",
    "elements_beyond",
)
_ROUNDING = 1e-12  # shares of samples are floats: 0.99 - 0.98 is a little more than 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class _Top1:
    """Top-1 accuracy in the three runs; an `outcome` of its own, and None where there are no labels."""

    outcome: Outcome
    reason: str
    figures: Mapping[str, float | int | None]


def judge_accuracy(
    record: RunRecord,
    model: ModelSpec,
    outputs: Arrays,
    quantized_cpu: Arrays | None,
    float_cpu: Arrays | None,
    labels: Labels | None,
) -> Verdict:
    """Say whether a device keeps the quality of the float model, by the three-run rule and by top-1 accuracy.

    Args:
        record: the run on the device.
        model: for its gates.
        outputs: of the device, each `[N, ...]`.
        quantized_cpu: the same model on the CPU, the same samples.
        float_cpu: the float model on the CPU, the same samples; None when the matrix names none.
        labels: class labels `[>= N]`, or None.

    Returns:
        `fail` when the rule is broken or the drop is too large, even if another part is inconclusive;
        `pass` only when every part that was asked for could be judged.
    """
    problem = _nothing_to_judge(record, outputs, quantized_cpu, float_cpu)
    if problem or quantized_cpu is None or float_cpu is None:
        return _verdict(record, "inconclusive", problem)
    try:
        device, quantized = real_values(record, outputs), real_values(record, quantized_cpu)
        runs = {
            name: apply_three_run(
                float_cpu[name].astype(np.float64),
                quantized[name],
                values,
                tolerance=model.gates.three_run_tolerance,
            )
            for name, values in device.items()
        }
    except TensorMismatch as error:
        return _verdict(record, "inconclusive", error.what)
    name, three_run = _worst(runs)
    top1 = _judge_top1(device, quantized, float_cpu, labels, model.gates.accuracy_drop)
    outcomes = {three_run.outcome, top1.outcome}
    outcome: Outcome = (
        "fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "pass"
    )
    says = {"pass": "holds", "fail": "is broken", "inconclusive": "says nothing"}[three_run.outcome]
    rule = f"three-run rule {says}: {three_run.reason}"
    if len(runs) > 1:
        rule += f" (output {name})"
    details = {
        "samples": len(device[name]),
        **top1.figures,
        "sqnr_quantized_cpu_db": finite(sqnr_db(float_cpu[name].astype(np.float64), quantized[name])),
        "sqnr_device_db": finite(sqnr_db(float_cpu[name].astype(np.float64), device[name])),
        "three_run": three_run.outcome,
        "three_run_worst": three_run.worst,
        "three_run_tolerance": three_run.tolerance,
        "worst_element": three_run.worst_element,
        "elements_beyond": three_run.elements_beyond,
    }
    return _verdict(record, outcome, f"{rule}. {top1.reason}", details)


def _nothing_to_judge(
    record: RunRecord, outputs: Arrays, quantized_cpu: Arrays | None, float_cpu: Arrays | None
) -> str:
    """Say which of the three runs is missing; empty when all are there."""
    if record.status != "ok":
        return why_not_ok(record)
    if not outputs:
        return f"run {record.id} has no outputs"
    if any(array.size == 0 for array in outputs.values()):
        return "there are no samples to judge"
    if float_cpu is None:
        return "there is no float model to hold the device against; name one as `reference:` of the model"
    if quantized_cpu is None:
        return "the quantized model was not run on the CPU, so that the chip's share of the loss is unknown"
    for run, arrays in (("float model", float_cpu), ("quantized model", quantized_cpu)):
        if arrays.keys() != outputs.keys():
            return f"the {run} on the CPU names outputs {sorted(arrays)}, the device {sorted(outputs)}"
    return ""


def real_values(record: RunRecord, arrays: Arrays) -> dict[str, npt.NDArray[np.float64]]:
    """Return the outputs as real values; integers are dequantized by what the record says of them."""
    quantizations = {tensor.name: tensor.quantization for tensor in record.outputs}
    real = {}
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            real[name] = array.astype(np.float64)
            continue
        quantization = quantizations.get(name)
        if quantization is None or array.dtype.name != quantization.dtype:
            raise TensorMismatch(
                f"output {name} holds {array.dtype} and the record does not say how that was quantized",
                why="integers cannot be compared with the float model's values without scale and zero point",
            )
        real[name] = quantization.scale * (array.astype(np.float64) - quantization.zero_point)
    return real


def _worst(runs: Mapping[str, ThreeRun]) -> tuple[str, ThreeRun]:
    """Return the output that decides: one that fails, else an inconclusive one, else the worst that holds."""
    severity = {"fail": 2, "inconclusive": 1, "pass": 0}
    return max(runs.items(), key=lambda item: (severity[item[1].outcome], item[1].enough or 0.0))


def _judge_top1(
    device: Arrays, quantized: Arrays, float_cpu: Arrays, labels: Labels | None, allowed_drop: float
) -> _Top1:
    figures: dict[str, float | int | None] = dict.fromkeys(_TOP1_FIGURES)
    name = next((name for name, array in device.items() if is_classification(array)), None)
    if name is not None:
        figures["flips"] = top1_flips(quantized[name], device[name])
    if labels is None:
        return _Top1(outcome="pass", reason="No labels: top-1 accuracy was not measured.", figures=figures)
    if name is None:
        return _Top1(
            outcome="inconclusive", reason="Labels, but no output of shape [N, classes].", figures=figures
        )
    samples = len(device[name])
    if labels.ndim != 1 or len(labels) < samples:
        reason = f"Labels of shape {list(labels.shape)} do not cover {samples} samples."
        return _Top1(outcome="inconclusive", reason=reason, figures=figures)
    classes = device[name].shape[1]
    if not 0 <= labels[:samples].min() <= labels[:samples].max() < classes:
        # Nobody can be right about these, so that all three runs would be equally good at them.
        reason = f"Some labels are not one of the {classes} classes of output {name}, counted from 0."
        return _Top1(outcome="inconclusive", reason=reason, figures=figures)
    runs = {"top1_float": float_cpu[name], "top1_quantized_cpu": quantized[name], "top1_device": device[name]}
    shares = {key: top1_accuracy(array, labels[:samples]) for key, array in runs.items()}
    drop = shares["top1_float"] - shares["top1_device"]
    figures |= {**shares, "drop": drop}
    broken = drop > allowed_drop + _ROUNDING
    reason = (
        f"Top-1 {shares['top1_float']:.2%} float, {shares['top1_quantized_cpu']:.2%} quantized on the CPU, "
        f"{shares['top1_device']:.2%} on the device: a drop of {drop:.2%}, "
        f"{'more than the' if broken else 'within'} {allowed_drop:.2%} allowed."
    )
    return _Top1(outcome="fail" if broken else "pass", reason=reason, figures=figures)


def _verdict(
    record: RunRecord, outcome: Outcome, reason: str, details: Mapping[str, object] | None = None
) -> Verdict:
    nothing = {"samples": 0, **dict.fromkeys(_FIGURES), "three_run": "inconclusive"}
    return Verdict(
        check="accuracy",
        model=record.model.id,
        devices=(record.device.id,),
        outcome=outcome,
        reason=reason,
        evidence=evidence_of(record),
        details=details or nothing,
    )
