from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pytest_devicelab.evidence.record import Quantization, RunRecord
from pytest_devicelab.matrix.specs import Gates
from pytest_devicelab.verdicts.accuracy import judge_accuracy
from pytest_devicelab.verdicts.verdict import Verdict
from tests.unit.verdict_builders import Array, model_spec, run_record

N = 200
LABELS = np.arange(N) % 4
FLOAT = np.eye(4)[LABELS].astype(np.float32)


def noisy(seed: int) -> npt.NDArray[np.float32]:
    return (FLOAT + np.random.default_rng(seed).normal(0, 0.003, FLOAT.shape)).astype(np.float32)


CPU, DEVICE = noisy(1), noisy(2)


def judged(device: Array = DEVICE, record: RunRecord | None = None, **changes: Any) -> Verdict:
    arguments: dict[str, Any] = {
        "quantized_cpu": {"y": CPU},
        "float_cpu": {"y": FLOAT},
        "labels": LABELS,
        "outputs": {"y": device},
        "model": model_spec(),
    }
    outputs = (arguments | changes)["outputs"]
    verdict = judge_accuracy(record or run_record(arrays=outputs), **(arguments | changes))
    json.dumps(dict(verdict.details), allow_nan=False)
    return verdict


def test_a_sound_device_passes_with_all_figures() -> None:
    verdict = judged()
    assert verdict.outcome == "pass"
    details = verdict.details
    assert (details["samples"], details["flips"], details["drop"], details["top1_device"]) == (N, 0, 0.0, 1.0)
    assert details["three_run"] == "pass"
    assert isinstance(details["sqnr_device_db"], float)
    assert "three-run rule holds" in verdict.reason
    assert "within 1.00% allowed" in verdict.reason


def test_a_drop_beyond_the_gate_fails_even_where_the_three_run_rule_holds() -> None:
    wrong = FLOAT.copy()
    wrong[:3] = wrong[:3, ::-1]  # the quantized model is as wrong on the CPU: the loss is quantization's
    verdict = judged(wrong, quantized_cpu={"y": wrong})
    assert verdict.outcome == "fail"
    assert verdict.details["three_run"] == "pass"
    assert verdict.details["drop"] == pytest.approx(0.015)
    assert "more than the 1.00% allowed" in verdict.reason


def test_a_drop_of_exactly_the_gate_passes() -> None:
    wrong = FLOAT.copy()
    wrong[:2] = wrong[:2, ::-1]
    assert judged(wrong, quantized_cpu={"y": wrong}).outcome == "pass"


def test_a_broken_rule_fails_even_where_accuracy_holds() -> None:
    verdict = judged(DEVICE * np.float32(1.1))
    assert verdict.outcome == "fail"
    assert verdict.details["drop"] == 0.0
    assert "three-run rule is broken" in verdict.reason


def test_the_tolerance_is_the_matrix_s() -> None:
    loose = model_spec(gates=Gates(three_run_tolerance=0.2))
    assert judged(DEVICE * np.float32(1.1), model=loose).outcome == "pass"


def test_without_labels_the_rule_alone_decides_and_it_says_so() -> None:
    verdict = judged(labels=None)
    assert verdict.outcome == "pass"
    assert "No labels" in verdict.reason
    assert verdict.details["top1_device"] is None
    assert verdict.details["flips"] == 0


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_nan_fails(wrong: float) -> None:
    device = DEVICE.copy()
    device[0, 0] = wrong
    verdict = judged(device)
    assert verdict.outcome == "fail"
    assert verdict.details["sqnr_device_db"] is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"float_cpu": None}, "no float model"),
        ({"quantized_cpu": None}, "not run on the CPU"),
        ({"outputs": {}}, "no outputs"),
        ({"float_cpu": {"z": FLOAT}}, "names outputs ['z']"),
        ({"float_cpu": {"y": FLOAT[:5]}}, "three runs cannot be compared"),
        ({"float_cpu": {"y": np.ones_like(FLOAT)}}, "no range"),
        ({key: {"y": FLOAT[:0]} for key in ("outputs", "quantized_cpu", "float_cpu")}, "no samples to judge"),
        ({"labels": LABELS[:5]}, "do not cover"),
        ({"labels": LABELS.reshape(-1, 1)}, "do not cover"),
        ({"outputs": {"y": CPU.astype(np.int8)}}, "does not say how"),
    ],
)  # fmt: skip
def test_a_missing_yardstick_is_inconclusive(changes: dict[str, Any], says: str) -> None:
    verdict = judged(**changes)
    assert verdict.outcome == "inconclusive"
    assert says in verdict.reason


def test_labels_without_class_scores_are_inconclusive() -> None:
    runs = {"outputs": DEVICE, "float_cpu": FLOAT, "quantized_cpu": CPU}
    changes: dict[str, Any] = {run: {"y": array.reshape(N, 2, 2)} for run, array in runs.items()}
    verdict = judged(**changes)
    assert (verdict.outcome, "no output of shape" in verdict.reason) == ("inconclusive", True)


def test_a_failure_is_not_hidden_by_missing_evidence() -> None:
    assert judged(DEVICE * np.float32(1.1), labels=LABELS[:5]).outcome == "fail"


@pytest.mark.parametrize("status", ["failed", "refused"])
def test_a_run_that_is_not_ok_is_inconclusive(status: str) -> None:
    verdict = judged(record=run_record(status=status, error="gone"))
    assert verdict.outcome == "inconclusive"
    assert "gone" in verdict.reason
    assert verdict.details["three_run"] == "inconclusive"


def test_quantized_outputs_are_dequantized_by_their_record() -> None:
    scale, zero_point = 1 / 128, 10
    integers = np.round(DEVICE / scale + zero_point).astype(np.int16)
    outputs = {"y": integers}
    record = run_record(arrays=outputs)
    quantization = Quantization(scale=scale, zero_point=zero_point, dtype="int16")
    known = replace(record, outputs=(replace(record.outputs[0], quantization=quantization),))
    verdict = judged(record=known, outputs=outputs, quantized_cpu=outputs)
    assert verdict.outcome == "pass"


def test_the_worst_of_several_outputs_decides_and_is_named() -> None:
    runs: dict[str, Any] = {
        "outputs": {"y": DEVICE, "z": DEVICE * np.float32(1.1)},
        "quantized_cpu": {"y": CPU, "z": CPU},
        "float_cpu": {"y": FLOAT, "z": FLOAT},
    }
    verdict = judged(**runs)
    assert verdict.outcome == "fail"
    assert "(output z)" in verdict.reason


@pytest.mark.parametrize("label", [-1, 4, 99])
def test_labels_that_name_no_class_are_no_yardstick(label: int) -> None:
    labels = LABELS.copy()
    labels[7] = label
    verdict = judged(labels=labels)
    assert verdict.outcome == "inconclusive"
    assert "not one of the 4 classes of output y" in verdict.reason
    # What lies beyond the samples that were run does not count.
    assert judged(labels=np.append(LABELS, label)).outcome == "pass"
