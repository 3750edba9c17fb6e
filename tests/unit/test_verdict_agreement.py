from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from pytest_devicelab.errors import TensorMismatch
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.matrix.specs import Gates, ModelSpec
from pytest_devicelab.verdicts.agreement import compare_outputs, judge_agreement
from pytest_devicelab.verdicts.attribution import attribute
from pytest_devicelab.verdicts.comparison import Comparison, Divergence
from pytest_devicelab.verdicts.verdict import Outcome, Verdict
from tests.unit.verdict_builders import Array, model_spec, run_record

OLD = np.array([[0.0, 1.0], [2.0, 0.0]], np.float32)
NEW = np.array([[0.0, 1.0], [2.0, 2.5]], np.float32)
FLEET: dict[str, Array] = {"v68": OLD, "v73": NEW, "v69": OLD, "v75": NEW, "v81": NEW}
SAME: dict[str, Array] = dict.fromkeys(FLEET, OLD)
MODEL, BITWISE = model_spec(), model_spec(gates=Gates(agreement="bitwise"))


def records(fleet: dict[str, Array]) -> list[RunRecord]:
    return [run_record(device, {"y": array}) for device, array in fleet.items()]


def compared(fleet: dict[str, Array]) -> tuple[Comparison, ...]:
    arrays = {device: {"y": array} for device, array in fleet.items()}
    return compare_outputs("digits", records(fleet), arrays, lsb={"y": 0.5})


def accuracy(device: str, three_run: Outcome = "pass", outcome: Outcome | None = None) -> Verdict:
    return Verdict(
        check="accuracy",
        model="digits",
        devices=(device,),
        outcome=outcome or three_run,
        reason="",
        details={"three_run": three_run},
    )


def judged(fleet: dict[str, Array], model: ModelSpec = MODEL, **three_run: Outcome) -> Verdict:
    verdicts = [accuracy(device, three_run.get(device, "pass")) for device in fleet]
    verdict = judge_agreement(model, records(fleet), compared(fleet), verdicts)
    json.dumps(dict(verdict.details))
    return verdict


def test_classes_and_pairs() -> None:
    (comparison,) = compared(FLEET)
    assert comparison.classes == (("v73", "v75", "v81"), ("v68", "v69"))
    (pair,) = comparison.pairs
    assert (pair.reference, pair.observed) == ("v73", "v68")
    assert (pair.elements, pair.elements_different, pair.max_abs, pair.max_lsb) == (4, 1, 2.5, 5.0)
    assert pair.top1_flips == 1
    assert comparison.missing == ()


def test_every_class_is_held_against_every_other() -> None:
    odd = OLD * 2
    (comparison,) = compared({**FLEET, "g4": odd})
    assert [devices[0] for devices in comparison.classes] == ["v73", "v68", "g4"]
    rows = comparison.distances
    assert [rows[index][index] for index in range(3)] == [None] * 3
    assert [[cell.elements_different if cell else 0 for cell in row] for row in rows] == [
        [0, 1, 3],
        [1, 0, 2],
        [3, 2, 0],
    ]
    old_to_odd, odd_to_old = rows[1][2], rows[2][1]
    assert old_to_odd is not None
    assert odd_to_old is not None
    assert (old_to_odd.max_lsb, odd_to_old.max_lsb) == (4.0, 4.0)
    # The noise is as large as the old signal, and half as large as the odd one.
    assert old_to_odd.sqnr_db == pytest.approx(0.0)
    assert odd_to_old.sqnr_db == pytest.approx(20 * math.log10(2))


def test_one_class_alone_needs_no_array() -> None:
    (comparison,) = compare_outputs("digits", records(SAME), {}, lsb={})
    assert comparison.distances == ((None,),)


def test_the_details_carry_whose_the_loss_is() -> None:
    draw = np.random.default_rng(0)
    truth = draw.normal(size=(60, 10))
    noisy = truth + draw.normal(scale=0.1, size=truth.shape)
    found = attribute(
        truth, noisy, {("v68",): noisy, ("v73",): truth}, chips={"v68": "V68", "v73": "V73"}, rng=draw
    )
    comparisons = [replace(comparison, attribution=found) for comparison in compared(FLEET)]
    verdict = judge_agreement(MODEL, records(FLEET), comparisons, [])
    assert verdict.details["attribution"] == [
        {
            "output": "y",
            "line": found.line,
            "cause": "quantization",
            "reason": found.signal.reason,
            "accuracy_cause": None,
        }
    ]
    json.dumps(dict(verdict.details))


def test_one_array_for_each_class_is_enough() -> None:
    arrays = {"v75": {"y": NEW}, "v69": {"y": OLD}}
    (comparison,) = compare_outputs("digits", records(FLEET), arrays, lsb={})
    assert comparison.pairs[0].elements_different == 1
    assert comparison.pairs[0].max_lsb is None


def test_a_class_without_an_array_cannot_be_compared() -> None:
    with pytest.raises(TensorMismatch, match="no array of any of v68, v69"):
        compare_outputs("digits", records(FLEET), {"v75": {"y": NEW}}, lsb={})


def test_arrays_that_contradict_their_hashes_are_refused() -> None:
    arrays = {"v75": {"y": NEW}, "v69": {"y": NEW}}
    with pytest.raises(TensorMismatch, match="different hashes and the same bits"):
        compare_outputs("digits", records(FLEET), arrays, lsb={})


def test_devices_without_the_output_are_missing_with_the_reason() -> None:
    runs = [
        *records({"v68": OLD, "v73": OLD}),
        run_record("v75", {"z": OLD}),
        run_record("v79", status="failed", error="gone"),
        run_record("v81", {"y": OLD.astype(np.float64)}),
    ]
    arrays = {run.device.id: {"y": OLD, "z": OLD} for run in runs}
    first, second = compare_outputs("digits", runs, arrays, lsb={})
    assert first.classes == (("v68", "v73"),)
    reasons = dict(first.missing)
    assert set(reasons) == {"v75", "v79", "v81"}
    assert "no output y" in reasons["v75"]
    assert "gone" in reasons["v79"]
    assert "float64" in reasons["v81"]
    assert second.classes == (("v75",),)


def test_the_same_bits_everywhere_pass_either_gate() -> None:
    for model in (MODEL, BITWISE):
        verdict = judged(SAME, model)
        assert verdict.outcome == "pass"
        assert verdict.details["classes"] == [list(SAME)]
        assert "the same bits on {v68, v73, v69, v75, v81}" in verdict.reason


def test_bits_part_but_the_rule_holds() -> None:
    verdict = judged(FLEET)
    assert verdict.outcome == "pass"
    assert "2 classes {v73, v75, v81} | {v68, v69}" in verdict.reason
    assert "1 top-1 flips" in verdict.reason
    assert "three-run rule holds on every device" in verdict.reason
    assert verdict.details == {
        "classes": [["v73", "v75", "v81"], ["v68", "v69"]],
        "gate": "three_run",
        "attribution": [],
    }


def test_parted_bits_fail_the_bitwise_gate() -> None:
    verdict = judged(FLEET, BITWISE)
    assert (verdict.outcome, verdict.details["gate"]) == ("fail", "bitwise")
    assert "bits differ" in verdict.reason


def test_a_broken_rule_fails_and_names_the_device() -> None:
    verdict = judged(FLEET, v69="fail")
    assert verdict.outcome == "fail"
    assert "three-run rule broken on v69" in verdict.reason


def test_a_loss_that_is_the_quantization_s_is_not_a_disagreement() -> None:
    verdicts = [accuracy(device, "pass", outcome="fail") for device in FLEET]
    assert judge_agreement(MODEL, records(FLEET), compared(FLEET), verdicts).outcome == "pass"


def test_an_unknown_rule_is_inconclusive_only_where_bits_part() -> None:
    verdict = judged(FLEET, v69="inconclusive")
    assert verdict.outcome == "inconclusive"
    assert "not shown on v69" in verdict.reason
    assert judged(SAME, v69="inconclusive").outcome == "pass"
    assert judge_agreement(MODEL, records(FLEET), compared(FLEET), ()).outcome == "inconclusive"


@pytest.mark.parametrize("model", [MODEL, BITWISE])
def test_a_missing_device_is_inconclusive_but_does_not_hide_a_failure(model: ModelSpec) -> None:
    runs = [*records(SAME), run_record("v79", status="failed", error="gone")]
    arrays = {device: {"y": array} for device, array in SAME.items()}
    verdict = judge_agreement(model, runs, compare_outputs("digits", runs, arrays, lsb={}), ())
    assert verdict.outcome == "inconclusive"
    assert verdict.reason.count("gone") == 1

    runs = [*records(FLEET), run_record("v79", status="failed", error="gone")]
    arrays = {device: {"y": array} for device, array in FLEET.items()}
    comparisons = compare_outputs("digits", runs, arrays, lsb={})
    broken = [accuracy(device, "fail") for device in FLEET]
    verdict = judge_agreement(model, runs, comparisons, broken)
    assert verdict.outcome == "fail"
    assert "gone" in verdict.reason


def test_nothing_to_agree_with_is_inconclusive() -> None:
    assert judged({"v68": OLD}).outcome == "inconclusive"
    assert judge_agreement(MODEL, records(FLEET), (), ()).outcome == "inconclusive"
    assert judge_agreement(MODEL, (), (), ()).outcome == "inconclusive"
    empty = [run_record(device) for device in FLEET]
    assert judge_agreement(MODEL, empty, compare_outputs("digits", empty, {}, lsb={}), ()).outcome == (
        "inconclusive"
    )


def test_classes_are_those_over_all_outputs() -> None:
    runs = [
        run_record("v68", {"y": OLD, "z": OLD}),
        run_record("v73", {"y": OLD, "z": NEW}),
        run_record("v75", {"y": OLD, "z": NEW}),
    ]
    arrays: dict[str, dict[str, Array]] = {"v68": {"y": OLD, "z": OLD}, "v73": {"y": OLD, "z": NEW}}
    comparisons = compare_outputs("digits", runs, arrays, lsb={})
    verdict = judge_agreement(BITWISE, runs, comparisons, ())
    assert verdict.outcome == "fail"
    assert verdict.details["classes"] == [["v73", "v75"], ["v68"]]


@pytest.mark.parametrize(("changed", "hint"), [(False, False), (True, True)])
def test_the_first_divergence_is_named(changed: bool, hint: bool) -> None:
    divergence = Divergence(
        node="conv1",
        op="Conv",
        tensor="c",
        depth=2,
        layers=9,
        reference=("v73",),
        observed=("v68",),
        samples=8,
        elements=1,
        elements_different=1,
        max_lsb=1.0,
        taps_changed_output=changed,
    )
    comparisons = tuple(replace(each, divergences=(divergence,)) for each in compared(FLEET))
    verdicts = [accuracy(device) for device in FLEET]
    reason = judge_agreement(MODEL, records(FLEET), comparisons, verdicts).reason
    assert "first apart at Conv conv1 (layer 2 of 9" in reason
    assert ("hint only" in reason) is hint


def test_equal_hashes_of_nothing_are_no_agreement() -> None:
    nothing: dict[str, Array] = dict.fromkeys(FLEET, np.zeros((3, 0), np.float32))
    verdict = judge_agreement(BITWISE, records(nothing), compared(nothing), [])
    assert verdict.outcome == "inconclusive"
    assert "output y holds no elements" in verdict.reason


def test_a_phone_does_not_agree_with_itself() -> None:
    runs = [
        replace(
            record, device=replace(record.device, serial="R5CT" if record.device.id in ("v68", "v81") else "")
        )
        for record in records(SAME)
    ]
    verdict = judge_agreement(BITWISE, runs, compared(SAME), [])
    assert verdict.outcome == "inconclusive"
    assert "v68 and v81 are one device (R5CT)" in verdict.reason
