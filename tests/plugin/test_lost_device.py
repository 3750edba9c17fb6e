"""A device that goes away in the middle of a run: inconclusive, with its record; the other devices finish."""

from __future__ import annotations

import pytest

from tests.plugin.projects import Project, npu

# Seconds a device is waited for are cut short.
IMPATIENT = """
from pytest_devicelab.lab import recovery

recovery.VIRTUAL_LIMITS = recovery.Limits(reconnect_s=1, restart_s=1, power_cycle_s=1, reboot_s=1)
"""


def test_a_device_that_drops_and_one_that_vanishes(project: Project) -> None:
    project.write(npu("drops", "dropping"), npu("vanishes", "vanishing"), npu("stays", "right"))
    project.pytester.makeconftest(IMPATIENT)

    result = project.run()

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    checks = ("placement", "determinism", "accuracy")
    assert project.verdicts() == {
        **{(check, "drops"): "inconclusive" for check in checks},
        **{(check, "vanishes"): "inconclusive" for check in checks},
        **{(check, "stays"): "pass" for check in checks},
        ("agreement", "drops vanishes stays"): "inconclusive",
    }
    assert set(project.junit().values()) == {"passed", "error"}
    # Whatever was tried is kept: the one came back for a second attempt, the other did not.
    drops, vanishes = project.record("drops"), project.record("vanishes")
    assert [drops["status"], vanishes["status"]] == ["failed", "failed"]
    assert len(drops["attempts"]) == 2
    assert all(attempt["error"] for attempt in (*drops["attempts"], *vanishes["attempts"]))
    assert "drops" in drops["error"]
    rungs = [step["rung"] for step in project.session()["recoveries"] if step["device"] == "vanishes"]
    assert rungs == ["reconnect", "restart_transport", "reboot", "quarantine"]
    (comparison,) = project.session()["comparisons"]
    assert comparison["classes"] == [["stays"]]
    assert [missing["device"] for missing in comparison["missing"]] == ["drops", "vanishes"]
    # What to do about it stands where the test failed.
    result.stdout.fnmatch_lines(["  fix: check the cable or the network*; see *record.json*"])
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
