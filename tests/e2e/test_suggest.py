"""`devicelab suggest` against an adb server with virtual devices, one of them offline."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
import yaml

from pytest_devicelab.cli import main
from pytest_devicelab.devices.adb_server import AdbServer
from pytest_devicelab.devices.adb_stream import list_attached
from pytest_devicelab.matrix.decode import load_matrix
from tests.e2e.virtual_lab import VirtualLab

FIXTURES = Path(__file__).parents[2] / "fixtures"
MODELS = "schema: devicelab.matrix/1\nmodels:\n- {id: m, path: fixtures/digits_cnn/int8.onnx}\n"


def test_what_it_prints_is_a_matrix(
    virtual_lab: VirtualLab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["suggest", "--adb-port", str(virtual_lab.server.port)]) == 0
    said = capsys.readouterr().out
    (tmp_path / "fixtures").symlink_to(FIXTURES)
    (tmp_path / "m.yaml").write_text(MODELS + said)
    matrix = load_matrix(tmp_path / "m.yaml")
    assert matrix.lab.adb is not None
    assert matrix.lab.adb.port == virtual_lab.server.port
    chips = {spec.serial: spec.soc.name if spec.soc else None for spec in matrix.devices}
    assert chips[virtual_lab.serial("s24")] == "SM8650"
    assert chips[virtual_lab.serial("s21")] == "SM8350"
    assert chips[virtual_lab.serial("pixel")] == "Tensor G4"
    assert said.count("a virtual device, not silicon") == len(chips) == 5


def test_a_device_that_is_offline_gets_a_comment(
    virtual_lab: VirtualLab, capsys: pytest.CaptureFixture[str]
) -> None:
    port, serial = virtual_lab.server.port, virtual_lab.serial("twin")
    virtual_lab.tell("twin", "offline")
    virtual_lab.tell("twin", "drop")
    try:
        deadline = time.monotonic() + 20
        while (serial, "device") in list_attached("127.0.0.1", port) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert main(["suggest", "--adb-port", str(port)]) == 0
    finally:
        virtual_lab.tell("twin", "online")
        virtual_lab.device("twin").reconnect()
    said = capsys.readouterr().out
    serials = [device["serial"] for device in yaml.safe_load(said)["devices"]]
    assert serial not in serials
    assert len(serials) == 4


def test_without_a_device_it_shows_a_virtual_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with AdbServer(tmp_path / "adb") as server:
        assert main(["suggest", "--adb-port", str(server.port)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("# No device is attached")
    (tmp_path / "fixtures").symlink_to(FIXTURES)
    (tmp_path / "m.yaml").write_text(MODELS + said)
    assert [spec.kind for spec in load_matrix(tmp_path / "m.yaml").devices] == ["virtual"]


def test_no_server_is_started(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert main(["suggest", "--adb-port", str(port)]) == 0
    assert f"No adb server answers at 127.0.0.1:{port}" in capsys.readouterr().out
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
