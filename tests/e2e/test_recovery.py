"""Devices that go away, and how the lab gets them back: real adb servers, virtual devices."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.adb_server import AdbServer
from pytest_devicelab.devices.adb_stream import open_server
from pytest_devicelab.devices.adb_transport import AdbTransport
from pytest_devicelab.devices.toggles import restore_toggles
from pytest_devicelab.errors import DeviceAbsent, DeviceLost, InfrastructureError, Quarantined
from pytest_devicelab.lab.address import LabAddress
from pytest_devicelab.lab.lab import Lab
from pytest_devicelab.lab.quarantine import Quarantine
from pytest_devicelab.lab.recovery import Limits, recover
from pytest_devicelab.lab.server_watch import ServerWatch
from tests.e2e.virtual_lab import VirtualLab


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limits = Limits(reconnect_s=1.5, restart_s=3, power_cycle_s=4, reboot_s=2)
    monkeypatch.setattr("pytest_devicelab.lab.recovery.VIRTUAL_LIMITS", limits)
    (tmp_path / "leases").mkdir()
    monkeypatch.setenv("DEVICELAB_LEASES", str(tmp_path / "leases"))


def test_a_connection_that_went_silent_is_made_anew(virtual_lab: VirtualLab) -> None:
    device = virtual_lab.device("pixel")
    virtual_lab.tell("pixel", "fault stall at_byte=1")
    with pytest.raises(InfrastructureError):
        device.shell(["true"], timeout_s=0.3)
    found = recover(device, DeviceLost("silence"))
    assert [(step.rung, step.helped) for step in found.steps] == [
        ("reconnect", False),
        ("restart_transport", True),
    ]
    assert device.shell(["echo", "back"]).text == "back\n"


def test_a_power_cycle_brings_back_what_nothing_else_does(virtual_lab: VirtualLab, tmp_path: Path) -> None:
    switched = tmp_path / "switched"
    spec = replace(virtual_lab.specs["pixel"], power_cycle=("touch", str(switched)), reboot=False)

    class Powered(AdbDevice):
        def reconnect(self, *, timeout_s: float = 20.0) -> None:
            if switched.exists():
                virtual_lab.tell("pixel", "online")
            super().reconnect(timeout_s=timeout_s)

    virtual_lab.tell("pixel", "offline")
    found = recover(Powered(spec, virtual_lab.transport("pixel")), DeviceLost("gone"))
    assert [step.rung for step in found.steps] == ["reconnect", "restart_transport", "power_cycle"]
    assert found.helped


def test_a_device_that_stays_away_is_quarantined_and_let_back(virtual_lab: VirtualLab) -> None:
    spec = virtual_lab.specs["pixel"]
    lab = Lab(virtual_lab.address, holder="a test")
    virtual_lab.tell("pixel", "offline")
    try:
        with (
            pytest.raises(DeviceLost, match="tried reconnect, restart_transport, reboot") as first,
            lab.lease(spec),
        ):
            pytest.fail("it is offline")
        cause = first.value.why.partition("; tried")[0]
    finally:
        virtual_lab.tell("pixel", "online")
    started = time.monotonic()
    # Another process, and a device that is back: the quarantine holds, and quotes the first cause.
    other = Lab(virtual_lab.address, holder="another test")
    with pytest.raises(Quarantined) as later, other.lease(spec):
        pytest.fail("it is in quarantine")
    assert time.monotonic() - started < 0.5
    assert cause[:60] in later.value.why
    other._quarantine._now = lambda: time.time() + 200
    with other.lease(spec) as device:
        assert device.recovery == () or device.recovery[-1].helped
    with lab.lease(spec):
        pass


def test_a_device_that_goes_away_while_it_is_put_in_order_is_got_back(
    virtual_lab: VirtualLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    trouble = ["drop"]

    def restore(device: AdbDevice) -> tuple[str, ...]:
        while trouble:
            virtual_lab.tell("pixel", trouble.pop())
        return restore_toggles(device)

    monkeypatch.setattr("pytest_devicelab.lab.lab.restore_toggles", restore)
    lab = Lab(virtual_lab.address, holder="a test")
    with lab.lease(virtual_lab.specs["pixel"]) as device:
        assert [(step.rung, step.helped) for step in device.recovery] == [("reconnect", True)]
    # One that stays away leaves its work to its equals, and is nobody's for a while.
    serials = (virtual_lab.serial("pixel"), virtual_lab.serial("twin"))
    pool = replace(virtual_lab.specs["pixel"], kind="adb", soc=None, serial=None, serials=serials)
    monkeypatch.setattr(
        "pytest_devicelab.lab.recovery.PHONE_LIMITS",
        Limits(reconnect_s=1, restart_s=1, power_cycle_s=1, reboot_s=1),
    )
    trouble.append("offline")
    try:
        with lab.lease(pool) as device:
            assert device.serial == virtual_lab.serial("twin")
    finally:
        virtual_lab.tell("pixel", "online")


def test_a_phone_that_is_unplugged_is_absent_and_used_again_when_it_is_back(
    virtual_lab: VirtualLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Virtual devices have no cable: this one is taken for a phone on one, and `adb disconnect` unplugs it.
    monkeypatch.setattr("pytest_devicelab.lab.presence.on_a_cable", lambda spec, serial: True)
    monkeypatch.setattr(AdbTransport, "_over_tcp", False)
    limits = Limits(reconnect_s=1, restart_s=1, power_cycle_s=1, reboot_s=1)
    monkeypatch.setattr("pytest_devicelab.lab.recovery.PHONE_LIMITS", limits)
    serial, server = virtual_lab.serial("pixel"), virtual_lab.server
    spec = replace(virtual_lab.specs["pixel"], kind="adb", serial=serial)
    lab = Lab(virtual_lab.address, holder="a test")

    def unplug() -> None:
        with open_server(server.host, server.port, "disconnect", 5.0) as stream:
            stream.command(f"host:disconnect:{serial}")

    server.connect(serial)  # whatever became of it in the test before
    try:
        with lab.lease(spec) as device:
            unplug()
            found = lab.recover(device, DeviceLost("push failed"))
            assert [step.rung for step in found.steps] == ["reconnect", "restart_transport"]
            assert not found.helped
        assert Quarantine().bans() == ()
        with pytest.raises(DeviceAbsent, match="is not attached"), lab.lease(spec):
            pytest.fail("it is unplugged")
        server.connect(serial)
        with lab.lease(spec) as device:
            assert device.shell(["echo", "back"]).text == "back\n"
    finally:
        server.connect(serial)


def server_pid(server: AdbServer) -> int:
    shell = server._process.pid
    for child in Path(f"/proc/{shell}/task/{shell}/children").read_text().split():
        if b"nodaemon" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError("no server")


def test_an_adb_server_that_is_killed_comes_back_with_its_devices(
    virtual_lab: VirtualLab, tmp_path: Path
) -> None:
    with AdbServer(tmp_path / "adb") as server:
        serial = virtual_lab.serial("pixel")
        server.connect(serial)
        key = (tmp_path / "adb/.android/adbkey").read_bytes()
        address = LabAddress(host=server.host, port=server.port, ports=virtual_lab.address.ports)
        lab = Lab(address, holder="a test")
        with (
            ServerWatch(server, lambda: server.connect(serial)),
            lab.lease(virtual_lab.specs["pixel"]) as device,
        ):
            for _ in range(2):
                former = server_pid(server)
                os.kill(former, signal.SIGKILL)
                found = lab.recover(device, DeviceLost("killed"))
                assert found.helped
                assert device.shell(["echo", "back"]).text == "back\n"
                assert server_pid(server) != former
        assert (tmp_path / "adb/.android/adbkey").read_bytes() == key
        assert server.port == address.port


def test_no_server_is_started_on_a_port_that_is_somebody_elses(tmp_path: Path) -> None:
    with AdbServer(tmp_path / "one") as server:
        os.kill(server_pid(server), signal.SIGKILL)
        server._process.wait(5)
        second = AdbServer.__new__(AdbServer)
        second._adb, second._home, second.host, second.port = (
            server._adb,
            tmp_path / "two",
            server.host,
            server.port,
        )
        second._process = second._start()
        with second, pytest.raises(InfrastructureError, match="the private adb server died, and its port"):
            server.revive()


def test_without_a_server_no_device_is_to_blame(virtual_lab: VirtualLab) -> None:
    gone = LabAddress(host="127.0.0.1", port=1, ports=virtual_lab.address.ports)
    lab = Lab(gone, holder="a test")
    for _ in range(2):
        with (
            pytest.raises(DeviceLost, match="no adb server at") as lost,
            lab.lease(virtual_lab.specs["pixel"]),
        ):
            pytest.fail("there is no server")
        assert not isinstance(lost.value, Quarantined)
