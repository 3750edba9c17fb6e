"""One session with two racks, each behind an adb server of its own: with workers, and with one of them away."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pytest_devicelab.devices.adb_server import AdbServer
from tests.plugin.projects import Project, cpu
from tests.plugin.test_lost_device import IMPATIENT

WHERE = """
from pytest_devicelab.devices.adb_stream import list_attached

def test_where(device):
    behind_rack_b = device.serial in dict(list_attached("127.0.0.1", {port}))
    assert behind_rack_b == (device.id == "far")
    assert device.script("echo here").text == "here\\n"
"""


def add_rack(project: Project, port: int) -> None:
    lab = {"lab": {"groups": {"rack_b": {"adb": {"host": "127.0.0.1", "port": port}}}}}
    with (project.path / "m.yaml").open("a") as file:
        file.write(yaml.safe_dump(lab))


def test_workers_reach_each_device_through_its_own_server(project: Project, temporary: Path) -> None:
    project.write(cpu("near"), {**cpu("far"), "group": "rack_b"})
    with AdbServer(temporary / "rack_b") as rack_b:
        add_rack(project, rack_b.port)
        project.pytester.makepyfile(WHERE.format(port=rack_b.port))
        result = project.run("-n", "2", "-k", "where or agreement")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=3)
    session = project.session()
    assert {run["device"]: run["status"] for run in session["runs"]} == {"near": "ok", "far": "ok"}
    assert session["recoveries"] == []


def test_a_rack_that_is_away_leaves_the_other_as_it_is(project: Project, temporary: Path) -> None:
    far = {**cpu("far"), "group": "rack_b"}
    project.write(cpu("near"), far, {**far, "id": "farther"})
    with AdbServer(temporary / "rack_b") as rack_b:
        add_rack(project, rack_b.port)
    project.pytester.makeconftest(IMPATIENT)
    result = project.run("-n", "2", "-k", "placement")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    outcomes = {devices: verdict for (_, devices), verdict in project.verdicts().items()}
    assert outcomes == {"near": "pass", "far": "inconclusive", "farther": "inconclusive"}
    for device in ("far", "farther"):
        record = project.record(device)
        assert [attempt["failure"] for attempt in record["attempts"]] == ["adb"]
        assert f"no adb server at 127.0.0.1:{rack_b.port} answers" in record["error"]
    # Nobody is to blame, and whoever looks at the report sees which rung was waited on.
    assert {step["rung"] for step in project.session()["recoveries"]} == {"reconnect", "restart_transport"}
