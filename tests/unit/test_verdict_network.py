"""One network in several forms: what passes, what fails, and what nobody can say."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.evidence.measurements import Latency, Measurements, absent
from pytest_devicelab.evidence.record import ModelIdentity, Quantization, RunRecord
from pytest_devicelab.matrix.specs import Gates
from pytest_devicelab.report.networks import find_networks
from pytest_devicelab.verdicts.form import Form
from pytest_devicelab.verdicts.network import judge_network
from pytest_devicelab.verdicts.verdict import Outcome, Verdict
from tests.unit.verdict_builders import model_spec, run_record

Floats = npt.NDArray[np.float32]

SAMPLES = 300
LABELS = np.arange(SAMPLES) % 3
GRID = Quantization(scale=0.5, zero_point=0, dtype="int8")


def scores(wrong: int = 0, shift: float = 0.0) -> Floats:
    """Class scores `[300, 3]` of which the first `wrong` are wrong."""
    answers = np.where(np.arange(SAMPLES) < wrong, (LABELS + 1) % 3, LABELS)
    return np.eye(3, dtype=np.float32)[answers] * 4 + np.float32(shift)


def form(
    model: str,
    array: Floats | None,
    *,
    accuracy: Outcome = "pass",
    gates: Gates | None = None,
    output: str = "y",
    device: str = "s24",
    runtime: str = "qnn",
    npu: float | None = 1.0,
    **changes: Any,
) -> Form:
    outputs = {} if array is None else {output: array}
    record = run_record(
        device,
        outputs,
        id=f"{model}.{device}",
        model=ModelIdentity(id=model, variant="int8", sha256="0" * 64),
        runtime=runtime,
    )
    record = replace(record, outputs=tuple(replace(tensor, quantization=GRID) for tensor in record.outputs))
    shares = {"nodes": None if npu is None else {"htp": npu}}
    usual: dict[str, Any] = {
        "model": replace(model_spec(gates=gates), id=model),
        "record": record,
        "outputs": outputs,
        "asked": "the same",
        "labels": LABELS,
        "accuracy": Verdict(
            check="accuracy",
            model=model,
            devices=(device,),
            outcome=accuracy,
            reason="as it says",
            details={"top1_device": 0.9, "sqnr_device_db": 30.0},
        ),
        "placement": Verdict(
            check="placement",
            model=model,
            devices=(device,),
            outcome="pass",
            reason="",
            details={"shares": shares},
        ),
    }
    return Form(**(usual | changes))


def judged(*forms: Form) -> Verdict:
    verdict = judge_network("net", "s24", forms)
    json.dumps(dict(verdict.details), allow_nan=False)
    return verdict


def entries(verdict: Verdict, name: str) -> list[dict[str, Any]]:
    found: Any = verdict.details[name]
    return list(found)


def test_the_same_values_agree_whatever_the_form_is_called() -> None:
    verdict = judged(form("qnn", scores()), form("lite", scores(), output="StatefulPartitionedCall:0"))
    assert verdict.outcome == "pass"
    assert verdict.details["classes"] == [["qnn", "lite"]]
    assert "lite against qnn: the same values of y" in verdict.reason


def test_other_values_pass_where_each_form_holds_its_own_gates() -> None:
    verdict = judged(form("qnn", scores()), form("lite", scores(shift=1.0)))
    assert verdict.outcome == "pass"
    (pair,) = entries(verdict, "pairs")
    assert (pair["elements_different"], pair["max_lsb"], pair["top1_flips"]) == (900, 2.0, 0)
    assert verdict.evidence == ("runs/qnn.s24/record.json", "runs/lite.s24/record.json")


def test_bitwise_wants_the_same_bits() -> None:
    bitwise = Gates(agreement="bitwise")
    assert judged(form("qnn", scores()), form("lite", scores(), gates=bitwise)).outcome == "pass"
    verdict = judged(form("qnn", scores()), form("lite", scores(shift=1.0), gates=bitwise))
    assert (verdict.outcome, "the gate is bitwise" in verdict.reason) == ("fail", True)


def test_a_form_that_fails_its_own_gates_fails_the_network() -> None:
    verdict = judged(form("qnn", scores()), form("lite", scores(shift=1.0), accuracy="fail"))
    assert verdict.outcome == "fail"
    assert "lite fails its own accuracy check here" in verdict.reason


def test_a_form_that_is_surely_less_accurate_than_another_fails() -> None:
    """Each may hold its gate against its own float model, one above it and one below."""
    verdict = judged(form("qnn", scores()), form("lite", scores(wrong=30)))
    assert verdict.outcome == "fail"
    assert "lite is less accurate than qnn: 10.00% of the samples" in verdict.reason
    better = judged(form("qnn", scores(wrong=30)), form("lite", scores()))
    assert (better.outcome, "qnn is less accurate than lite" in better.reason) == ("fail", True)


def test_a_loss_that_chance_may_have_made_does_not() -> None:
    verdict = judged(form("qnn", scores()), form("lite", scores(wrong=3)))
    assert verdict.outcome == "pass"
    (contest,) = entries(verdict, "contests")
    assert (contest["loss"], contest["reference_only"], contest["p_value"]) == (0.01, 3, 0.25)


def test_what_is_missing_is_no_pass() -> None:
    down = form("lite", None)
    failed = replace(down, record=replace(down.record, status="failed", error="gone\n  why: unplugged"))
    refused = replace(down, record=replace(down.record, status="refused", error="no such op"))
    for missing in (failed, refused, form("lite", None, lacking="integers without scale")):
        verdict = judged(form("qnn", scores()), missing)
        assert verdict.outcome == "inconclusive", verdict.reason
    assert judged(failed, form("qnn", scores())).outcome == "inconclusive"
    assert judged(failed, refused).outcome == "inconclusive"
    assert judged(
        form("qnn", scores()), form("lite", scores(shift=1.0), accuracy="inconclusive")
    ).outcome == ("inconclusive")


def test_other_questions_have_other_answers() -> None:
    """Neither a pass nor a fail: nothing is known of either."""
    for other in (
        form("lite", scores(wrong=100), asked="something else", accuracy="fail"),
        form("lite", scores(wrong=100), labels=(LABELS + 1) % 3, accuracy="fail"),
        form("lite", scores()[:, :2]),
        form("lite", scores()[:0]),
        form("lite", scores(), outputs={"a": scores(), "b": scores()}),
    ):
        assert judged(form("qnn", scores()), other).outcome == "inconclusive"


@given(st.permutations(["a", "b", "c"]), st.lists(st.integers(0, 60), min_size=3, max_size=3))
def test_the_order_of_the_forms_does_not_decide(order: list[str], wrong: list[int]) -> None:
    forms = {name: form(name, scores(count)) for name, count in zip("abc", wrong, strict=True)}
    assert judged(*(forms[name] for name in order)).outcome == judged(*forms.values()).outcome


@given(st.integers(0, SAMPLES), st.integers(0, SAMPLES))
def test_fail_means_that_one_form_has_lost_more_than_is_allowed(one: int, other: int) -> None:
    verdict = judged(form("qnn", scores(one)), form("lite", scores(other)))
    if verdict.outcome == "fail":
        assert abs(one - other) / SAMPLES > 0.01
    if one == other:
        assert verdict.outcome == "pass"


def test_over_all_devices() -> None:
    records, verdicts = [], []
    for device, shift in (("s21", 1.0), ("s24", 0.0)):
        forms = (
            form("qnn", scores(shift=shift), device=device),
            form("lite", scores(wrong=60), device=device, runtime="litert", npu=None),
        )
        verdicts.append(judge_network("net", device, forms))
        records += [each.record for each in forms]
    (entry,) = find_networks(verdicts, records)
    qnn, lite = entry.forms
    assert (qnn.classes, qnn.on_npu, qnn.on_cpu, lite.classes, lite.on_npu) == (2, 2, 0, 1, 0)
    (rival,) = entry.rivals
    assert (rival.devices, rival.different, rival.top1_flips) == (2, 2, 60)
    assert rival.loss is not None
    assert (rival.loss.value, rival.loss.device) == (0.2, "s21")
    told = " ".join(entry.answer)
    assert "lite (litert) against qnn: other values on 2 of 2 devices" in told
    assert "accuracy -20.00 points" in told
    assert "not told apart" not in told
    assert "lite unknown on 2" in told


def test_only_a_chips_time_is_its_time() -> None:
    def costs(device: str, model: str, took_us: float, *, simulated: bool) -> RunRecord:
        nothing = absent("nobody looked")
        cost = Measurements(
            simulated=simulated,
            latency=Latency(inferences=20, mean_us=took_us, source="a clock"),
            load_us=nothing,
            peak_rss_kib=nothing,
            peak_pss_kib=nothing,
            energy_mj=nothing,
        )
        record = run_record(device, model=ModelIdentity(id=model, variant="", sha256="0" * 64), measured=cost)
        return replace(record, device=replace(record.device, simulated=simulated))

    verdicts = [
        judge_network(
            "net", device, (form("qnn", scores(), device=device), form("lite", scores(), device=device))
        )
        for device in ("s21", "s24")
    ]
    faked = [costs("s21", "qnn", 1.0, simulated=True)]
    (entry,) = find_networks(verdicts, faked)
    assert entry.answer[-1] == "Time, memory and energy: not measured on any chip."
    (entry,) = find_networks(
        verdicts,
        [*faked, costs("s24", "qnn", 1900.0, simulated=False), costs("far", "lite", 9e9, simulated=False)],
    )
    assert entry.answer[-1] == "Time, memory and energy at most: qnn 1.9 ms (s24); lite not measured."
    assert entry.forms[0].latency_us is not None
    assert entry.forms[1].latency_us is None, "a device it was not compared on"


def test_details_of_another_form_are_passed_over() -> None:
    for details in (
        {},
        {"forms": "?"},
        {"forms": [1]},
        {"forms": [{"model": "a"}], "pairs": 3, "classes": [4]},
    ):
        verdict = Verdict(
            check="network", model="net", devices=("s24",), outcome="pass", reason="", details=details
        )
        for entry in find_networks([verdict], []):
            assert [each.model for each in entry.forms] == ["a"]
