"""Flaky verdicts and coverage holes, as pytest, JUnit, the summary and session.json show them."""

from __future__ import annotations

import pytest

from tests.plugin.projects import Project, npu

IMPATIENT = """
from pytest_devicelab.lab import recovery

recovery.VIRTUAL_LIMITS = recovery.Limits(reconnect_s=1, restart_s=1, power_cycle_s=1, reboot_s=1)
"""


def test_an_npu_that_crashed_once_and_a_chip_that_is_gone(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = project.pytester.mkdir("leases")
    monkeypatch.setenv("DEVICELAB_LEASES", str(leases))
    project.pytester.makeconftest(IMPATIENT)
    crashes = {**npu("crashes", "right"), "faults": [{"fault": "npu_crash", "during": "run", "runs": 1}]}
    gone = {**npu("gone", "right"), "soc": "SM8550", "faults": [{"fault": "offline"}]}
    project.write(crashes, gone)

    result = project.run("-k", "placement")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert project.verdicts() == {("placement", "crashes"): "flaky", ("placement", "gone"): "inconclusive"}
    record = project.record("crashes")
    assert [attempt["failure"] for attempt in record["attempts"]] == ["npu_crash", ""]
    assert record["attempts"][0]["decision"] == "tried again"
    folder = project.folder / "runs" / record["id"]
    kept = record["attempts"][0]["files"]
    assert kept["stderr.txt"] == "attempt-1/stderr.txt"
    assert b"6031" in (folder / kept["stderr.txt"]).read_bytes()
    assert set(project.junit().values()) == {"error"}
    (hole,) = project.session()["coverage_holes"]
    assert (hole["chip"], hole["devices"], hole["runs"]) == ("SM8550", ["gone"], 1)
    text = result.stdout.str()
    assert "FLAKY devicelab::test_placement[" in text
    assert "the NPU crashed in attempt 1 of 2" in text
    assert "COVERAGE HOLE SM8550: no healthy unit left of gone" in text
    assert "1 flaky" in text


def test_a_verdict_that_changed_is_not_green_when_pytest_is(project: Project) -> None:
    project.write(npu("one", "right"))
    project.pytester.makepyfile(
        """
        import pytest
        from pytest_devicelab.verdicts.verdict import Verdict

        def test_mine(conclude):
            def say(outcome):
                conclude(Verdict(check="mine", model="tiny", devices=("one",), outcome=outcome, reason=outcome))

            with pytest.raises(AssertionError):
                say("fail")
            say("pass")
        """
    )
    result = project.run("--devicelab-suite=off")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1)
    session = project.session()
    assert (session["outcome"], session["exit_status"]) == ("flaky", 1)
    assert [verdict["verdict"] for verdict in session["verdicts"]] == ["flaky"]
    result.stdout.fnmatch_lines(["FLAKY: *"])
