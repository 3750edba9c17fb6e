"""One form of a network, and what it takes to lay two of them side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.matrix.specs import ModelSpec
from pytest_devicelab.verdicts.evidence import why_not_ok
from pytest_devicelab.verdicts.verdict import Verdict

Values = Mapping[str, npt.NDArray[np.floating]]
Labels = npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One form of the network, as it ran on the device.

    Attributes:
        outputs: real values by output name, each `[N, ...]`; empty when there are none.
        lacking: why there are none, though the run is `ok`.
        asked: digest of what it was asked: equal for the same samples, whatever their layout.
        labels: class labels `[>= N]`, or None.
        accuracy: its own accuracy verdict on this device; `placement`: the same.
    """

    model: ModelSpec
    record: RunRecord
    outputs: Values
    asked: str
    labels: Labels | None
    accuracy: Verdict
    placement: Verdict
    lacking: str = ""

    @property
    def why_missing(self) -> str:
        """Why it has nothing to compare; empty when it has."""
        return why_not_ok(self.record) if self.record.status != "ok" else self.lacking


def _same_names(first: Values, other: Values) -> Values | None:
    """Return `other` with its outputs called as in `first`, or None when nobody can say which is which.

    Exporters to other formats name outputs anew: the only one of each is the same one, whatever it is called.
    """
    if first.keys() == other.keys():
        return other
    if len(first) != 1 or len(other) != 1:
        return None
    return dict(zip(first, other.values(), strict=True))


def fitting(first: Form, form: Form) -> tuple[Values, str]:
    """Return the outputs of a form under the names of the first, or why they cannot be laid beside it."""
    outputs = _same_names(first.outputs, form.outputs)
    if outputs is None:
        return {}, (
            f"{form.model.id} names its outputs {', '.join(sorted(form.outputs))}, {first.model.id} "
            f"{', '.join(sorted(first.outputs))}: export them under the same names"
        )
    for name, array in outputs.items():
        if array.shape != first.outputs[name].shape:
            return {}, (
                f"output {name} of {form.model.id} is {list(array.shape)}, of {first.model.id} "
                f"{list(first.outputs[name].shape)}"
            )
        if array.size == 0:
            return {}, f"output {name} of {form.model.id} holds no elements"
    return outputs, ""


def other_questions(there: Sequence[Form]) -> list[str]:
    """Name the forms that were not asked what the first was."""
    gaps = []
    for form in there[1:]:
        first = there[0]
        if form.asked != first.asked:
            gaps.append(
                f"{form.model.id} was not given the inputs of {first.model.id}: the same `inputs`, or the same "
                "`reference_inputs`, make them comparable"
            )
        elif not _same_labels(form.labels, first.labels):
            gaps.append(f"{form.model.id} has other labels than {first.model.id}")
    return gaps


def _same_labels(one: Labels | None, other: Labels | None) -> bool:
    return one is None or other is None or bool(np.array_equal(one, other))
