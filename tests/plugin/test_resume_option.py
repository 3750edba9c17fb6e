"""`--devicelab-resume`: a session goes on in its folder, from the records it has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.plugin.projects import Project, cpu, one_message


def records(project: Project) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in project.folder.resolve().glob("runs/*/record.json")}


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_a_session_goes_on_from_its_records(workers: tuple[str, ...], project: Project) -> None:
    project.write(cpu("one"))
    project.run("-k", "placement")
    before, session = records(project), project.session()
    assert len(before) == 1
    # As a kill leaves it: no result, and a start without an end.
    (project.folder / "session.json").unlink()
    start = project.folder / "starts" / "000001.json"
    start.write_text(json.dumps(json.loads(start.read_bytes()) | {"ended": None}))

    result = project.run("--devicelab-resume=latest", *workers)

    result.assert_outcomes(passed=3)
    resumed = project.session()
    assert resumed["id"] == session["id"]
    assert resumed["started"] == session["started"]
    assert [(start["number"], start["interrupted"]) for start in resumed["starts"]] == [(1, True), (2, False)]
    assert len({entry["nodeid"] for entry in resumed["verdicts"]}) == len(resumed["verdicts"]) == 3
    assert before.items() <= records(project).items()
    assert len(records(project)) == 2


def test_a_run_the_lab_failed_is_made_again(project: Project) -> None:
    project.write(cpu("one"))
    project.run("-k", "placement")
    (path,) = records(project)
    record = json.loads(path.read_bytes()) | {"status": "failed", "error": "the cable", "outputs": []}
    path.write_text(json.dumps(record))

    project.run("--devicelab-resume=latest", "-k", "placement").assert_outcomes(passed=1)

    assert project.record("one")["status"] == "ok"
    assert json.loads(path.with_name("record.failed.json").read_bytes())["error"] == "the cable"


def test_another_matrix_is_refused(project: Project) -> None:
    project.write(cpu("one"))
    project.run("-k", "placement")
    project.write(cpu("two"))
    assert "began with another device matrix" in one_message(project.run("--devicelab-resume=latest"))


def test_no_session_is_a_users_mistake(project: Project) -> None:
    project.write(cpu("one"))
    assert "there is no session to go on with" in one_message(project.run("--devicelab-resume=latest"))


def test_a_test_that_is_left_out_is_no_longer_green(project: Project) -> None:
    project.write(cpu("one"))
    project.run("-k", "placement or accuracy").assert_outcomes(passed=2, deselected=1)

    result = project.run("--devicelab-resume=latest", "-k", "placement")

    result.assert_outcomes(passed=1, deselected=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert project.verdicts() == {("placement", "one"): "pass", ("accuracy", "one"): "inconclusive"}
    assert project.session()["outcome"] == "inconclusive"
    result.stdout.fnmatch_lines(["*not checked again in start 2*"])

    project.run("--devicelab-resume=latest").assert_outcomes(passed=3)
    assert set(project.verdicts().values()) == {"pass"}
