"""Pools: any unit that is free, a visible reason when none is, and the one unit that is asked for by name."""

from __future__ import annotations

import contextvars
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pytest_devicelab.errors import DeviceLost
from pytest_devicelab.lab.address import LabAddress
from pytest_devicelab.lab.lab import Lab
from pytest_devicelab.lab.recovery import Limits
from pytest_devicelab.matrix.specs import DeviceSpec, Source
from tests.e2e.virtual_lab import VirtualLab

HERE = Source(file="matrix.yaml", line=1, column=1)


def lab_of(virtual_lab: VirtualLab, told: list[str]) -> Lab:
    server = virtual_lab.server
    address = LabAddress(host=server.host, port=server.port, ports={})
    return Lab(address, holder="a test", waiting=told.append)


@pytest.fixture(autouse=True)
def leases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "leases").mkdir()
    monkeypatch.setenv("DEVICELAB_LEASES", str(tmp_path / "leases"))


def test_who_comes_third_waits_for_two(virtual_lab: VirtualLab) -> None:
    told: list[str] = []
    lab = lab_of(virtual_lab, told)
    serials = (virtual_lab.serial("s24"), virtual_lab.serial("s21"))
    pool = DeviceSpec(id="pool", kind="adb", source=HERE, serials=serials)
    assert lab.units(pool) == serials
    third: list[str] = []

    def take() -> None:
        with lab.lease(pool) as device:
            third.append(device.serial)

    def take_second() -> str:
        with lab.lease(pool) as second:
            waiter = threading.Thread(target=contextvars.Context().run, args=(take,))
            waiter.start()
            waiter.join(2.0)
            assert waiter.is_alive(), "three hold two devices"
            found = second.serial
        waiter.join(30.0)
        return found

    with ThreadPoolExecutor(1) as threads, lab.lease(pool) as first:
        second = threads.submit(contextvars.Context().run, take_second).result()
        assert {first.serial, second} == set(serials)
    assert third == [second]
    (reason,) = told
    assert reason.startswith("no unit of pool is free: ")
    assert all(f"{serial} is held by a test" in reason for serial in serials)


def test_the_unit_of_the_first_run_is_taken_when_it_is_there(virtual_lab: VirtualLab) -> None:
    lab = lab_of(virtual_lab, [])
    serials = (virtual_lab.serial("s24"), virtual_lab.serial("s21"))
    pool = DeviceSpec(id="pool", kind="adb", source=HERE, serials=serials)
    for wanted, expected in ((serials[1], serials[1]), ("gone", serials[0])):
        with lab.lease(pool, unit=wanted) as device:
            assert device.serial == expected


def test_a_unit_that_is_lost_leaves_its_work_to_its_equals(
    virtual_lab: VirtualLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(reconnect_s=1, restart_s=1, power_cycle_s=1, reboot_s=1)
    monkeypatch.setattr("pytest_devicelab.lab.recovery.PHONE_LIMITS", limits)
    told: list[str] = []
    lab = lab_of(virtual_lab, told)
    alive = virtual_lab.serial("s24")
    for _ in range(2):
        with lab.lease(DeviceSpec(id="pool", kind="adb", source=HERE, serials=("away", alive))) as device:
            assert device.serial == alive
    assert [line.partition(": ")[0] for line in told] == ["unit away of pool is left out"]
    assert "is not attached" in told[0]
    none = DeviceSpec(id="none", kind="adb", source=HERE, serials=("away", "gone"))
    with pytest.raises(DeviceLost), lab.lease(none):
        pass


def test_a_selector_finds_every_device_that_matches(virtual_lab: VirtualLab) -> None:
    lab = lab_of(virtual_lab, [])
    chip = DeviceSpec(id="any", kind="adb", source=HERE, selector={"ro.soc.model": "SM8650"})
    assert lab.units(chip) == (virtual_lab.serial("s24"),)
    release = DeviceSpec(id="any", kind="adb", source=HERE, selector={"ro.build.version.sdk": "34"})
    assert {virtual_lab.serial("s24"), virtual_lab.serial("s21")} <= set(lab.units(release))


def test_a_selector_does_not_wait_for_devices_that_hang(
    virtual_lab: VirtualLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_devicelab.lab.lab._ASKED_S", 0.5)
    chip = DeviceSpec(id="any", kind="adb", source=HERE, selector={"ro.soc.model": "SM8650"})
    process = virtual_lab.farms["plain"].pid
    started = time.monotonic()
    os.kill(process, signal.SIGSTOP)
    try:
        assert lab_of(virtual_lab, []).units(chip) == (virtual_lab.serial("s24"),)
    finally:
        os.kill(process, signal.SIGCONT)
    assert time.monotonic() - started < 20
    virtual_lab.device("plain").reconnect()
