"""`measure:` of a model: a test of its own, figures in every report, simulated ones marked."""

from __future__ import annotations

import pytest

from tests.plugin.projects import Project, cpu

PLAN = {"inferences": 5, "warm_up": 1}


def test_what_the_matrix_wants_measured_is_measured_and_shown(project: Project) -> None:
    project.model["measure"] = PLAN
    project.write(cpu("g4"))
    result = project.run("-k", "measurements")
    assert result.ret == pytest.ExitCode.OK
    session = project.session()
    (entry,) = session["measurements"]
    assert (entry["model"], entry["device"], entry["simulated"]) == ("tiny", "g4", True)
    assert (entry["latency"]["inferences"], entry["latency"]["warm_up"]) == (5, 1)
    assert entry["energy_mj"]["value"] is None
    assert entry["energy_mj"]["why"]
    assert {run["purpose"] for run in session["runs"]} == {"evaluate", "measure"}
    result.stdout.fnmatch_lines(
        [
            "Measured (sim = simulated: this host's time and memory, not the chip's)",
            "tiny on g4 (sim), ort on cpu: * median of 5*",
        ]
    )
    page = (project.folder / "report.html").read_text()
    assert "Time, memory and energy" in page
    assert "timing.json of ort-run, after 1 to warm up" in page


def test_nobody_measures_what_the_matrix_does_not_ask_for(project: Project) -> None:
    project.write(cpu("g4"))
    result = project.run("--collect-only", "-q")
    assert "measurements" not in result.stdout.str()
    result.stdout.fnmatch_lines(["3 tests collected*"])  # no test is counted that is left out


def test_a_runner_that_cannot_be_timed_is_not_green(project: Project) -> None:
    project.model["measure"] = PLAN
    project.write({"id": "s24", "kind": "virtual", "soc": "SM8650", "engine": "tests.plugin.engines:untimed"})
    result = project.run("-k", "measurements")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*no latency: ort-run left no timing.json*", "*1 inconclusive*"])


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"inferences": 0}, "0 is out of range: 1 to 100000"),
        ({"warm_up": -1}, "-1 is out of range: 0 to 10000"),
        ({"runs": 3}, "unknown key 'runs'"),
        (7, "must be a mapping"),
    ],
)
def test_mistakes_are_named(project: Project, written: object, message: str) -> None:
    project.model["measure"] = written
    project.write(cpu("g4"))
    result = project.run_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in result.stderr.str()
