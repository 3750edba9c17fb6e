"""Who left a device bad is named: by the test that had it, and quoted to whoever finds it so."""

from __future__ import annotations

import pytest

from tests.plugin.projects import Project, cpu

TESTS = """
def test_careless(device):
    device.exec_out(["dumpsys", "battery", "unplug"])
    device.exec_out(["dumpsys", "battery", "set", "level", "3"])
    device.exec_out(["dumpsys", "battery", "set", "status", "3"])


def test_next(device):
    assert False, "it must not begin on an empty battery"
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_a_test_that_left_a_device_bad_is_named(project: Project, workers: tuple[str, ...]) -> None:
    project.write(cpu("g4"))
    project.pytester.makepyfile(test_mine=TESTS)

    result = project.run("--devicelab-suite=off", *workers)

    careless = "test_mine.py::test_careless[g4]"
    (blame,) = project.session()["blames"]
    assert (blame["device"], blame["by"], blame["kind"]) == ("g4", careless, "battery")
    assert "battery at 3 % and not charging" in blame["text"]
    junit = project.junit()
    assert (junit["test_careless[g4]"], junit["test_next[g4]"]) == ("passed", "error")
    said = result.stdout.str()
    assert f"it was fine until {careless} (battery at 3 %" in said
    assert f"LEFT g4 not as it was found: {careless}" in said
    assert careless in (project.folder / "report.html").read_text()
