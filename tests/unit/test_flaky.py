from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_devicelab.evidence.record import (
    Attempt,
    DeviceIdentity,
    ModelIdentity,
    RecoveryStep,
    RunRecord,
    Status,
)
from pytest_devicelab.report.coverage import find_holes
from pytest_devicelab.verdicts.flaky import settle, temper
from pytest_devicelab.verdicts.verdict import Outcome, Verdict


def record(*failures: str, device: str = "s24", status: Status = "ok", started: str = "now") -> RunRecord:
    attempts = tuple(
        Attempt(number=number, started=started, duration_s=1.0, failure=failure)
        for number, failure in enumerate(failures, start=1)
    )
    return RunRecord(
        id=f"cnn.{device}.evaluate",
        session="s",
        device=DeviceIdentity(id=device, kind="virtual", soc="SM8650", hexagon="V75", simulated=True),
        model=ModelIdentity(id="cnn", variant="", sha256="0" * 64),
        runtime="qnn",
        backend="htp",
        purpose="evaluate",
        status=status,
        attempts=attempts,
        error="first cause" if status == "failed" else "",
    )


def verdict(outcome: Outcome, reason: str = "because", check: str = "accuracy") -> Verdict:
    return Verdict(
        check=check, model="cnn", devices=("s24",), outcome=outcome, reason=reason, evidence=(reason,)
    )


def test_a_pass_on_a_run_that_crashed_first_is_flaky() -> None:
    found = temper(verdict("pass"), [record(""), record("npu_crash", "")])
    assert found.outcome == "flaky"
    assert found.reason.startswith("s24: the NPU crashed in attempt 1 of 2, and did not in the last. ")
    assert found.reason.endswith("because")


@pytest.mark.parametrize("failure", ["lost", "deadline", "transfer", "adb", "disk_full", "lab"])
def test_trouble_with_the_lab_is_not_flaky(failure: str) -> None:
    assert temper(verdict("pass"), [record(failure, "")]) == verdict("pass")


def test_what_is_not_a_pass_stays_what_it_is() -> None:
    for outcome in ("fail", "inconclusive", "flaky"):
        assert temper(verdict(outcome), [record("npu_crash", "")]) == verdict(outcome)
    assert temper(verdict("pass"), [record("npu_crash", "npu_crash", status="failed")]).outcome == "pass"


def settled(*outcomes: Outcome, nodeids: str = "ttttt") -> list[tuple[Outcome, str]]:
    given = [
        (verdict(outcome, f"{number}"), nodeid)
        for number, (outcome, nodeid) in enumerate(zip(outcomes, nodeids, strict=False))
    ]
    return [(found.outcome, found.reason) for found, _ in settle(given, given)]


def test_a_test_that_passed_and_failed_is_flaky_whichever_came_first() -> None:
    said = "judged 2 times in this session, with different outcomes: "
    assert settled("fail", "pass") == [("flaky", said + "fail: 0; pass: 1")]
    assert settled("pass", "fail") == [("flaky", said + "pass: 0; fail: 1")]


def test_flaky_once_is_flaky() -> None:
    assert [outcome for outcome, _ in settled("flaky", "pass")] == ["flaky"]
    assert settled("pass", "flaky") == [("flaky", "1")]


def test_what_did_not_change_stays() -> None:
    assert settled("pass", "pass") == [("pass", "0"), ("pass", "1")]
    assert settled("inconclusive", "pass") == [("inconclusive", "0"), ("pass", "1")]
    assert settled("pass", "fail", nodeids="tu") == [("pass", "0"), ("fail", "1")]


def test_a_verdict_of_an_earlier_start_of_pytest_counts() -> None:
    failed, passed = verdict("fail", "then"), verdict("pass", "now")
    ((found, nodeid),) = settle([(failed, "t"), (passed, "t")], [(passed, "t")])
    assert (found.outcome, nodeid, found.evidence) == ("flaky", "t", ("then", "now"))


GONE = RecoveryStep(attempt=1, rung="reconnect", why="x", started="now", duration_s=1, helped=False, said="x")
UNITS = {"SM8650": ["s24", "twin"]}


def test_a_chip_without_a_healthy_unit_is_a_hole() -> None:
    lost = replace(record("lost", device="s24", status="failed"), recovery=(GONE,))
    refused = record("quarantined", device="twin", status="failed", started="")
    (hole,) = find_holes(UNITS, [refused, lost])
    assert (hole.chip, hole.devices, hole.runs, hole.reason) == ("SM8650", ("s24", "twin"), 2, "first cause")
    assert find_holes(UNITS, [refused, lost])[0].reason == lost.error
    assert find_holes(UNITS, [lost, record("", device="twin")]) == ()


def test_a_chip_of_which_all_units_are_unfit_is_a_hole() -> None:
    hot, empty = (record("unfit", device=device, status="failed") for device in UNITS["SM8650"])
    assert [hole.devices for hole in find_holes(UNITS, [hot, empty])] == [("s24", "twin")]
    assert find_holes(UNITS, [hot, record("", device="twin")]) == ()


def test_a_run_that_failed_on_a_device_that_answers_is_no_hole() -> None:
    assert find_holes(UNITS, [record("runner", status="failed")]) == ()
    assert (
        find_holes(UNITS, [replace(record("lost", status="failed"), recovery=(replace(GONE, helped=True),))])
        == ()
    )
    # Somebody else held the device for too long: it may be as healthy as can be.
    assert find_holes(UNITS, [record("lab", status="failed", started="")]) == ()
    assert find_holes(UNITS, []) == ()
