"""Determinism: does the same device give the same bits twice?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pytest_devicelab.errors import TensorMismatch
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.tensors.diff import TensorDiff, diff_bitwise
from pytest_devicelab.verdicts.evidence import evidence_of, why_not_ok
from pytest_devicelab.verdicts.verdict import Outcome, Verdict

Arrays = Mapping[str, npt.NDArray[np.generic]]


def judge_determinism(
    evaluate: RunRecord, repeat: RunRecord, outputs: Arrays, repeat_outputs: Arrays
) -> Verdict:
    """Say whether a second run of the same model on the same device gave the same bits.

    Args:
        evaluate: the run that is judged.
        repeat: another run of it; it may have fewer samples.
        outputs: of `evaluate`, each `[N, ...]`.
        repeat_outputs: of `repeat`, each `[M, ...]`; the first `min(N, M)` samples are compared.

    Returns:
        `pass` when no bit differs, `fail` when one does, `inconclusive` when there is nothing to compare.
    """
    problem = _not_comparable(evaluate, repeat, outputs, repeat_outputs)
    if problem:
        return _verdict(evaluate, repeat, "inconclusive", problem)
    samples = min(
        *(len(array) for array in outputs.values()), *(len(array) for array in repeat_outputs.values())
    )
    if samples == 0:
        return _verdict(evaluate, repeat, "inconclusive", "the two runs have no sample in common")
    diffs: dict[str, TensorDiff] = {}
    for name, array in outputs.items():
        try:
            diffs[name] = diff_bitwise(array[:samples], repeat_outputs[name][:samples])
        except TensorMismatch as error:
            return _verdict(
                evaluate, repeat, "fail", f"output {name} changed its form: {error.what}", samples
            )
    different = sum(diff.elements_different for diff in diffs.values())
    if different:
        named = ", ".join(name for name, diff in diffs.items() if not diff)
        total = sum(diff.elements for diff in diffs.values())
        reason = (
            f"{different:,} of {total:,} elements changed between two runs of {samples} samples, in {named}"
        )
        return _verdict(evaluate, repeat, "fail", reason, samples, different)
    return _verdict(evaluate, repeat, "pass", f"the same bits twice on {samples} samples", samples)


def _not_comparable(evaluate: RunRecord, repeat: RunRecord, outputs: Arrays, repeat_outputs: Arrays) -> str:
    """Say why the two runs say nothing about each other; empty when they do."""
    for record in (evaluate, repeat):
        if record.status != "ok":
            return why_not_ok(record)
    if evaluate.id == repeat.id:
        return "a run was compared with itself, which shows nothing"
    if _subject(evaluate) != _subject(repeat):
        return f"runs {evaluate.id} and {repeat.id} are not of the same model, device, backend and options"
    # A virtual device is found at another port each time the lab comes up, as it does when a session is resumed.
    if evaluate.device.kind != "virtual" and evaluate.device.serial != repeat.device.serial:
        return (
            f"device {evaluate.device.id} was {evaluate.device.serial} first and {repeat.device.serial} then"
        )
    if not outputs:
        return f"run {evaluate.id} has no outputs"
    if outputs.keys() != repeat_outputs.keys():
        return f"the runs name different outputs: {sorted(outputs)} and {sorted(repeat_outputs)}"
    if any(array.ndim == 0 for array in (*outputs.values(), *repeat_outputs.values())):
        return "an output has no axis of samples"
    empty = [name for name, array in outputs.items() if len(array) and array.size == 0]
    if empty:
        return f"output {', '.join(empty)} holds no elements"
    return ""


def _subject(record: RunRecord) -> tuple[object, ...]:
    device, model = record.device.id, record.model.sha256
    return (device, model, record.runtime, record.backend, dict(record.options))


def _verdict(
    evaluate: RunRecord,
    repeat: RunRecord,
    outcome: Outcome,
    reason: str,
    samples: int = 0,
    different: int = 0,
) -> Verdict:
    return Verdict(
        check="determinism",
        model=evaluate.model.id,
        devices=(evaluate.device.id,),
        outcome=outcome,
        reason=reason,
        evidence=evidence_of(evaluate, repeat),
        details={"samples": samples, "elements_different": different},
    )
