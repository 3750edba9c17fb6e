"""`transport: ppadb` in a matrix: the same session over another client, and what is told where it cannot be."""

from __future__ import annotations

import sys

import pytest

from tests.plugin.projects import Project, cpu, npu, one_message


def test_a_session_over_ppadb_judges_the_same(project: Project) -> None:
    project.write(*({**npu(name, name), "transport": "ppadb"} for name in ("wrong", "crashing")), cpu("g4"))
    assert project.run("-k", "not agreement").ret == pytest.ExitCode.TESTS_FAILED
    over_ppadb = project.verdicts()
    project.write(*(npu(name, name) for name in ("wrong", "crashing")), cpu("g4"))
    project.run("-k", "not agreement")
    assert over_ppadb == project.verdicts()
    assert over_ppadb["accuracy", "wrong"] == "fail"


def test_without_the_package_the_extra_is_named(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write({**cpu("g4"), "transport": "ppadb"})
    monkeypatch.delitem(sys.modules, "pytest_devicelab.devices.ppadb_transport", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "ppadb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ppadb", None)
    message = one_message(project.run_inprocess())
    assert "device g4 is to be reached over ppadb, which is not installed" in message
    assert "pip install 'pytest-devicelab[ppadb]'" in message


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ({"id": "hub", "kind": "aihub", "name": "x", "transport": "ppadb"}, "this one is aihub: remove it"),
        ({"id": "far", "kind": "cluster", "soc": "SM8650", "transport": "adb"}, "this one is cluster"),
        ({**cpu("g4"), "transport": "adbutils"}, "adb, ppadb"),
    ],
)
def test_a_transport_that_cannot_be(project: Project, device: dict[str, object], says: str) -> None:
    project.write(device)
    assert says in one_message(project.run())
