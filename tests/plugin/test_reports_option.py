"""`--devicelab-reports`, its ini setting, and what a session leaves in that folder."""

from __future__ import annotations

import json

import pytest

from tests.plugin.projects import Project, cpu


def test_what_a_session_leaves(project: Project) -> None:
    project.write(cpu("one"))

    result = project.run("-k", "placement")

    assert result.ret == pytest.ExitCode.OK
    latest = project.path / "reports" / "latest"
    assert latest.is_symlink()
    assert latest.resolve().name == project.session()["id"]
    assert "simulated" in (latest / "report.html").read_text().lower()
    assert (latest / "matrix.yaml").read_bytes() == (project.path / "m.yaml").read_bytes()
    assert {path.name for path in (project.path / "reports").iterdir()} == {
        "cache",
        "latest",
        latest.resolve().name,
    }
    folder = f"reports/{latest.resolve().name}"
    result.stdout.fnmatch_lines([f"*Read next: {folder}/report.html*"])
    assert not list(project.path.rglob("*.partial"))


def test_the_folder_can_be_chosen_in_the_ini_file(project: Project) -> None:
    project.write(cpu("one"))
    project.pytester.makeini("[pytest]\ndevicelab_reports = deep/evidence")

    result = project.run("-k", "placement")

    assert result.ret == pytest.ExitCode.OK
    elsewhere = project.path / "deep" / "evidence"
    assert json.loads((elsewhere / "latest" / "session.json").read_bytes())["outcome"] == "pass"
    assert not (project.path / "reports").exists()


def test_the_option_goes_before_and_is_relative_to_where_pytest_was_started(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write(cpu("one"))
    project.pytester.makeini("[pytest]\ndevicelab_reports = not/this")
    inner = project.path / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)

    result = project.pytester.runpytest_subprocess(
        "--devices=../m.yaml", "--devicelab-reports=../chosen", "-k", "placement", "--color=yes"
    )

    assert result.ret == pytest.ExitCode.OK
    session = (project.path / "chosen" / "latest").resolve()
    # What lies elsewhere is named by its whole path.
    result.stdout.fnmatch_lines([f"*Read next: {session}/report.html*"])
    # The headline has the colour of its verdict.
    assert "\x1b[32m\x1b[1mPASS: " in result.stdout.str()
    assert not (project.path / "not").exists()


def test_a_report_that_cannot_be_written_is_not_green(project: Project) -> None:
    project.write(cpu("one"))
    project.pytester.makeconftest(
        """
        import pytest

        @pytest.hookimpl(tryfirst=True)
        def pytest_sessionfinish(session):
            (session.config.rootpath / "reports" / "latest" / "session.json").mkdir()
        """
    )

    result = project.run("-k", "placement")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*devicelab: no report*", "*session.json cannot be written", "  fix: *"])
    result.stdout.no_fnmatch_line("*Traceback*")
