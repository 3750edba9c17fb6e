from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pytest_devicelab.verdicts.determinism import judge_determinism
from tests.unit.verdict_builders import Array, run_record

VALUES = np.arange(12, dtype=np.float32).reshape(4, 3)


def judged(outputs: dict[str, Array], repeated: dict[str, Array], **changes: Any) -> tuple[str, str]:
    first, second = run_record(), run_record(id="repeat.s24", purpose="repeat", **changes)
    verdict = judge_determinism(first, second, outputs, repeated)
    assert verdict.evidence == ("runs/evaluate.s24/record.json", "runs/repeat.s24/record.json")
    return verdict.outcome, verdict.reason


def test_the_same_bits_pass() -> None:
    verdict = judge_determinism(run_record(), run_record(id="r"), {"y": VALUES}, {"y": VALUES.copy()})
    assert verdict.outcome == "pass"
    assert verdict.details == {"samples": 4, "elements_different": 0}


def test_only_samples_of_both_are_compared() -> None:
    changed = VALUES.copy()
    changed[3] += 1
    assert judged({"y": changed}, {"y": VALUES[:2]}) == ("pass", "the same bits twice on 2 samples")


def test_one_bit_fails_and_names_the_output() -> None:
    changed = VALUES.copy()
    changed[1, 1] = np.nextafter(changed[1, 1], np.float32(9))
    verdict = judge_determinism(
        run_record(), run_record(id="r"), {"x": VALUES, "y": VALUES}, {"x": VALUES, "y": changed}
    )
    assert verdict.outcome == "fail"
    assert verdict.details == {"samples": 4, "elements_different": 1}
    assert "1 of 24 elements" in verdict.reason
    assert verdict.reason.endswith("in y")


def test_another_shape_or_dtype_fails() -> None:
    assert judged({"y": VALUES}, {"y": VALUES[:, :2]})[0] == "fail"
    assert judged({"y": VALUES}, {"y": VALUES.astype(np.float64)})[0] == "fail"


@pytest.mark.parametrize(
    ("outputs", "repeated", "says"),
    [
        ({}, {}, "no outputs"),
        ({"y": VALUES}, {}, "different outputs"),
        ({"y": VALUES}, {"z": VALUES}, "different outputs"),
        ({"y": VALUES}, {"y": VALUES[:0]}, "no sample in common"),
        ({"y": np.array(1.0)}, {"y": np.array(1.0)}, "no axis of samples"),
    ],
)
def test_comparing_nothing_is_inconclusive(
    outputs: dict[str, Array], repeated: dict[str, Array], says: str
) -> None:
    outcome, reason = judged(outputs, repeated)
    assert outcome == "inconclusive"
    assert says in reason


@pytest.mark.parametrize("status", ["failed", "refused"])
def test_a_run_that_is_not_ok_is_inconclusive(status: str) -> None:
    assert judged({"y": VALUES}, {"y": VALUES}, status=status, error="gone")[0] == "inconclusive"


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "evaluate.s24"},
        {"backend": "cpu"},
        {"runtime": "qnn"},
        {"options": {"offload_graph_io_quantization": "0"}},
        {"device": run_record("s21").device},
    ],
)
def test_runs_of_different_things_say_nothing(changes: dict[str, Any]) -> None:
    second = run_record(**{"id": "repeat.s24"} | changes)
    verdict = judge_determinism(run_record(), second, {"y": VALUES}, {"y": VALUES})
    assert verdict.outcome == "inconclusive"


def test_an_output_without_elements_shows_nothing() -> None:
    nothing = np.zeros((4, 0), np.float32)
    outcome, reason = judged({"y": VALUES, "boxes": nothing}, {"y": VALUES, "boxes": nothing})
    assert (outcome, reason) == ("inconclusive", "output boxes holds no elements")


def test_another_phone_under_the_same_name_shows_nothing() -> None:
    first, second = (
        replace(run_record(id=serial), device=replace(run_record().device, kind="adb", serial=serial))
        for serial in ("AAA", "BBB")
    )
    verdict = judge_determinism(first, second, {"y": VALUES}, {"y": VALUES})
    assert (verdict.outcome, verdict.reason) == ("inconclusive", "device s24 was AAA first and BBB then")
