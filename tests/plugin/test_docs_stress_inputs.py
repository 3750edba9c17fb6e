"""The tests shown on the page of the stress inputs pass."""

from __future__ import annotations

from tests.plugin.projects import Project
from tests.plugin.test_docs import ROOT, blocks, write_project


def test_the_tests_of_the_page_pass(project: Project) -> None:
    page = ROOT / "docs/reference/stress-inputs.md"
    write_project(project, page)
    modules = [block.text for block in blocks("python", "test") if block.page == page]
    for number, text in enumerate(modules):
        (project.path / f"test_{number}.py").write_text(text, encoding="utf-8")
    result = project.run("-k", "not devicelab", "-W", "error")
    devices, cases = 2, 7
    result.assert_outcomes(passed=devices * cases + 1, deselected=7)
