"""`-n`: the same verdicts with any number of workers, and a worker that crashes costs one test."""

from __future__ import annotations

import json

import pytest

from tests.plugin.projects import Project, cpu, npu


def test_any_number_of_workers_comes_to_the_same_verdicts(project: Project) -> None:
    project.write(npu("wrong", "wrong"), npu("mute", "mute"))
    found = []
    for workers in ("0", "2", "4"):
        result = project.run("-n", workers, "-k", "not determinism")
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        session = project.session()
        found.append(
            (
                {(v["nodeid"], v["verdict"], v["reason"]) for v in session["verdicts"]},
                {(run["id"], run["status"], run["attempts"]) for run in session["runs"]},
                session["comparisons"],
                project.junit(),
                # How many were deselected is known to the workers alone.
                {**result.parseoutcomes(), "deselected": 0},
            )
        )
    assert len(found[0][0]) == 5
    assert found[1] == found[0]
    assert found[2] == found[0]


def test_a_crashed_worker_costs_one_test(project: Project) -> None:
    project.write(cpu("one"), cpu("two"))
    project.pytester.makepyfile(
        """
        import os
        import pytest

        def test_crash(device):
            if device.id == "one":
                os._exit(1)

        @pytest.mark.parametrize("number", range(4))
        def test_other(number):
            pass
        """
    )

    result = project.run("-n", "2", "-k", "not determinism and not accuracy")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    # Of the user's six tests one is lost; the suite's three are all there.
    assert result.parseoutcomes() == {"failed": 1, "passed": 5 + 3}
    result.stdout.fnmatch_lines(["*worker 'gw?' crashed while running '*::test_crash[[]one]'*"])
    assert list(project.verdicts().values()) == ["pass", "pass", "pass"]
    assert project.session()["outcome"] == "fail"


def test_without_xdist(project: Project) -> None:
    project.write(cpu("one"))
    result = project.run("-p", "no:xdist", "-k", "placement")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=1)


def test_how_long_tests_took_is_kept_for_the_next_session(project: Project) -> None:
    project.write(cpu("one"))
    assert project.run("-n", "2", "-k", "placement").ret == pytest.ExitCode.OK
    kept = json.loads((project.pytester.path / "reports" / "cache" / "durations.json").read_text())
    (nodeid,) = kept
    assert nodeid.startswith("devicelab::test_placement[")
    assert kept[nodeid] > 0
