"""Network: does one network answer alike in all the forms a matrix has of it, and if not, which form is worse?

Other runtimes, backends and precisions are laid side by side on one device, as devices are for one model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations

import numpy as np

from pytest_devicelab.tensors.classes import equivalence_classes
from pytest_devicelab.tensors.metrics import is_classification, top_k
from pytest_devicelab.verdicts.agreement import pair_of
from pytest_devicelab.verdicts.comparison import PairDiff
from pytest_devicelab.verdicts.contest import Contest, contest_of, outdone
from pytest_devicelab.verdicts.evidence import evidence_of, finite
from pytest_devicelab.verdicts.form import Form, Values, fitting, other_questions
from pytest_devicelab.verdicts.verdict import Outcome, Verdict


def judge_network(network: str, device: str, forms: Sequence[Form]) -> Verdict:
    """Say whether a network gives the same answers on a device in every form.

    The rule is that between devices: with `agreement: bitwise` for any of them the values must be the same to the bit;
    with `three_run` they may differ where each form holds its own gates against its float model. Beyond that, no form
    may be less accurate than another by more than `accuracy_drop` with 95 % confidence.

    Args:
        network: its name.
        device: where all of them ran.
        forms: in the order of the matrix; figures are against the first that ran.

    Returns:
        `fail` when something is known to be wrong, even if other evidence is missing; `inconclusive` when a form did
        not run, was asked something else, or has no verdict of its own to rest on; else `pass`.
    """
    there = [form for form in forms if not form.why_missing]
    gaps = [f"{form.model.id}: {form.why_missing}" for form in forms if form.why_missing]
    named = _by_first_names(there, gaps)
    gaps += other_questions(there)
    pairs, contests = _measure(named, there)
    parted = any(pair.bits_different for found in pairs.values() for pair in found)
    bitwise = any(form.model.gates.agreement == "bitwise" for form in forms)
    # A difference between answers to different questions shows nothing.
    comparable = not other_questions(there)
    wrong = _violations(there, contests, parted=parted, bitwise=bitwise) if comparable else []
    if parted and not bitwise:
        gaps += [
            f"{form.model.id} has no accuracy verdict to rest on: {form.accuracy.reason}"
            for form in there
            if form.accuracy.outcome == "inconclusive"
        ]
    if len(named) < 2:
        gaps.append("fewer than two forms have outputs to compare")
    outcome: Outcome = "fail" if wrong else "inconclusive" if gaps else "pass"
    reason = "; ".join([*wrong, *gaps, *_describe(pairs, contests)])
    return Verdict(
        check="network",
        model=network,
        devices=(device,),
        outcome=outcome,
        reason=reason,
        evidence=evidence_of(*(form.record for form in forms)),
        details={
            "gate": "bitwise" if bitwise else "three_run",
            "forms": [_figures(form) for form in forms],
            "classes": [list(models) for models in _classes(named)],
            "pairs": [
                {"output": output, **_plain(asdict(pair))}
                for output, found in pairs.items()
                for pair in found
            ],
            "contests": [asdict(contest) for contest in contests],
        },
    )


def _by_first_names(there: Sequence[Form], gaps: list[str]) -> dict[str, Values]:
    """Return the outputs of each form under the names of the first; what cannot be laid beside it is a gap."""
    found: dict[str, Values] = {}
    for form in there:
        outputs, problem = fitting(there[0], form)
        if problem:
            gaps.append(problem)
        else:
            found[form.model.id] = outputs
    return found


def _measure(
    named: Mapping[str, Values], there: Sequence[Form]
) -> tuple[Mapping[str, tuple[PairDiff, ...]], tuple[Contest, ...]]:
    """Measure each form against the first, output by output, and the accuracy of every two."""
    if len(named) < 2:
        return {}, ()
    first, *others = named
    steps = _steps(there)
    pairs = {
        name: tuple(
            pair_of(first, other, array, named[other][name].astype(array.dtype), steps.get(name))
            for other in others
        )
        for name, array in named[first].items()
    }
    labels = next((form.labels for form in there if form.labels is not None), None)
    scored = next((name for name, array in named[first].items() if is_classification(array)), None)
    if labels is None or scored is None or len(labels) < len(named[first][scored]):
        return pairs, ()
    right = {
        model: top_k(outputs[scored], 1)[:, 0] == labels[: len(outputs[scored])]
        for model, outputs in named.items()
    }
    family = math.comb(len(named), 2)
    return pairs, tuple(contest_of(one, other, right, family) for one, other in combinations(named, 2))


def _steps(there: Sequence[Form]) -> dict[str, float]:
    """Return the quantization step of each output: that of the first form that has one."""
    found: dict[str, float] = {}
    only = next(iter(there[0].outputs))
    for form in there:
        for tensor in form.record.outputs:
            if tensor.quantization is not None:
                found.setdefault(
                    tensor.name if tensor.name in there[0].outputs else only, tensor.quantization.scale
                )
    return found


def _violations(
    there: Sequence[Form], contests: Sequence[Contest], *, parted: bool, bitwise: bool
) -> list[str]:
    if not parted:
        return []  # forms that give the same wrong answers agree; that they are wrong is the accuracy check's to say
    if bitwise:
        return ["the gate is bitwise, and values differ"]
    wrong = [
        f"{form.model.id} fails its own accuracy check here"
        for form in there
        if form.accuracy.outcome == "fail"
    ]
    allowed = min(form.model.gates.accuracy_drop for form in there)
    return [*wrong, *outdone(contests, allowed)]


def _classes(named: Mapping[str, Values]) -> tuple[tuple[str, ...], ...]:
    """Return the forms that give the same values to the bit in every output."""
    if not named:
        return ()
    hashes = {
        model: tuple(
            hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for array in outputs.values()
        )
        for model, outputs in named.items()
    }
    return equivalence_classes(hashes)


def _describe(pairs: Mapping[str, Sequence[PairDiff]], contests: Sequence[Contest]) -> list[str]:
    """Say of each form how far it is from the first."""
    accuracy = {(each.reference, each.observed): each for each in contests}
    told = []
    for output, found in pairs.items():
        for pair in found:
            text = f"{pair.observed} against {pair.reference}: "
            if pair.elements_different:
                text += f"{pair.elements_different:,} of {pair.elements:,} values of {output} differ"
                text += f", up to {pair.max_lsb:.3g} steps" if pair.max_lsb is not None else ""
                text += f", {pair.top1_flips} top-1 flips" if pair.top1_flips is not None else ""
            else:
                text += f"the same values of {output}"
            if (contest := accuracy.pop((pair.reference, pair.observed), None)) is not None:
                text += f", accuracy {_points(-contest.loss)} points"
                text += f" ({_points(-contest.high)} to {_points(-contest.low)}, p = {contest.p_value:.2g})"
            told.append(text)
    return told


def _points(share: float) -> str:
    return f"{100 * share:+z.2f}"


def _figures(form: Form) -> dict[str, object]:
    """Return what is to be known of one form, whatever became of it."""
    details = form.accuracy.details
    shares = form.placement.details.get("shares")
    on_npu = shares.get("nodes") if isinstance(shares, Mapping) else None
    return {
        "model": form.model.id,
        "variant": form.model.variant,
        "runtime": form.record.runtime,
        "backend": form.record.backend,
        "run": form.record.id,
        "status": form.record.status,
        "missing": form.why_missing,
        "placement": form.placement.outcome,
        "npu_share": float(on_npu.get("htp", 0.0)) if isinstance(on_npu, Mapping) else None,
        "accuracy": form.accuracy.outcome,
        "top1": details.get("top1_device"),
        "top1_float": details.get("top1_float"),
        "sqnr_db": details.get("sqnr_device_db"),
    }


def _plain(data: Mapping[str, object]) -> dict[str, object]:
    return {key: finite(value) if isinstance(value, float) else value for key, value in data.items()}
