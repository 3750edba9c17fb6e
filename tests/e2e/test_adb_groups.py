"""One session, two racks: each with an adb server of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_devicelab.devices.adb_server import AdbServer
from pytest_devicelab.devices.adb_stream import list_attached
from pytest_devicelab.errors import AdbServerLost, TransferError
from pytest_devicelab.lab.address import LabAddress
from pytest_devicelab.lab.lab import Lab
from pytest_devicelab.lab.quarantine import Quarantine
from pytest_devicelab.lab.recovery import Limits
from pytest_devicelab.lab.services import LabServices
from pytest_devicelab.matrix.decode import load_matrix
from pytest_devicelab.matrix.specs import MatrixSpec
from tests.e2e.virtual_lab import VirtualLab

MODEL = Path(__file__).parents[2] / "fixtures" / "digits_cnn" / "int8.onnx"


def matrix(folder: Path, port: int) -> MatrixSpec:
    path = folder / "matrix.yaml"
    path.write_text(
        f"""schema: devicelab.matrix/1
lab:
  groups: {{rack_b: {{adb: {{host: 127.0.0.1, port: {port}}}}}}}
devices:
- {{id: near, kind: virtual, soc: Tensor G4, engine: cpu, runtime: ort}}
- {{id: far, kind: virtual, soc: Tensor G4, engine: cpu, runtime: ort, group: rack_b}}
models:
- {{id: cnn, path: "{MODEL}"}}
"""
    )
    return load_matrix(path)


def address_with(address: LabAddress, device: str, *, like: str) -> LabAddress:
    """The lab with one device more, behind the server of another."""
    return replace(
        address,
        ports={**address.ports, device: address.ports[like]},
        servers={**address.servers, device: address.server(like)},
    )


@pytest.fixture
def state() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dl-") as folder:
        yield Path(folder)


def test_each_device_is_reached_through_the_server_of_its_group(tmp_path: Path, state: Path) -> None:
    with AdbServer(state / "rack_b") as rack_b:
        found = matrix(tmp_path, rack_b.port)
        with LabServices(found, found.devices, state / "lab") as services:
            address = services.address
            assert address.server("far") == (rack_b.host, rack_b.port)
            assert address.server("near") != address.server("far")
            lab = Lab(address, holder="a test")
            for spec in found.devices:
                with lab.lease(spec) as device:
                    assert device.script("echo here").text == "here\n"
            assert list_attached(rack_b.host, rack_b.port) != ()
        # It would look for the device for a minute, and list whoever has its port next.
        assert list_attached(rack_b.host, rack_b.port) == ()


def test_a_rack_that_is_away_is_waited_for_once_and_takes_no_other_with_it(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(reconnect_s=1, restart_s=1, power_cycle_s=1, reboot_s=1)
    monkeypatch.setattr("pytest_devicelab.lab.recovery.VIRTUAL_LIMITS", limits)
    monkeypatch.setenv("DEVICELAB_LEASES", str(tmp_path))
    with AdbServer(state / "rack_b") as rack_b:
        found = matrix(tmp_path, rack_b.port)
    near, far = found.devices
    with LabServices(found, found.devices, state / "lab") as services:
        lab = Lab(address_with(services.address, "farther", like="far"), holder="a test")
        with pytest.raises(AdbServerLost, match="answers, so all of its devices"), lab.lease(far):
            pytest.fail("nothing listens there")
        assert Quarantine().bans() == ()
        with lab.lease(near) as device:
            assert device.script("echo here").text == "here\n"
        # The wait was for the server, so no other device behind it waits again.
        climbed = []
        monkeypatch.setattr("pytest_devicelab.lab.lab.recover", lambda *known: climbed.append(known))
        with pytest.raises(AdbServerLost, match=str(rack_b.port)), lab.lease(replace(far, id="farther")):
            pytest.fail("nothing listens there")
        assert climbed == []


def test_a_file_that_is_longer_than_it_may_be_is_not_kept(virtual_lab: VirtualLab, tmp_path: Path) -> None:
    device = virtual_lab.device("pixel")
    device.script("head -c 100000 /dev/zero > /data/local/tmp/long")
    local = tmp_path / "long"
    with pytest.raises(TransferError, match="long"):
        device.pull("/data/local/tmp/long", local, limit_bytes=99_999)
    assert list(tmp_path.iterdir()) == []
    device.pull("/data/local/tmp/long", local, limit_bytes=100_000)
    assert local.stat().st_size == 100_000
