"""Servers that are away and phones that are not plugged in: found out once, and used again when they are back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_devicelab.errors import AdbServerLost, DeadlineExceeded, DeviceAbsent, DeviceLost
from pytest_devicelab.lab.presence import Presence
from pytest_devicelab.matrix.specs import DeviceSpec, Source

PHONE = DeviceSpec(id="s24", kind="adb", source=Source(file="m", line=1, column=1), serial="R5")
OVER_TCP = replace(PHONE, serial="10.0.0.9:5555")
VIRTUAL = replace(PHONE, kind="virtual", serial=None)
RACK, DESK = ("10.0.0.5", 5037), ("127.0.0.1", 5037)
GONE = AdbServerLost("shell failed: no adb server", why="timed out")


class Rack:
    """Adb servers and a clock: what they list, whether they answer, and how long it takes to find out."""

    def __init__(self) -> None:
        self.now = 100.0
        self.listed: dict[tuple[str, int], tuple[tuple[str, str], ...] | None] = {RACK: (), DESK: ()}
        self.silence_s = 1.0
        self.asked = 0
        self.presence = Presence(self.ask, clock=lambda: self.now, sleep=self.sleep)

    def ask(self, host: str, port: int, timeout_s: float) -> tuple[tuple[str, str], ...]:
        self.asked += 1
        found = self.listed[host, port]
        if found is None:
            self.now += min(self.silence_s, timeout_s)
            raise GONE
        return found

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def rack() -> Rack:
    return Rack()


def test_only_the_first_device_behind_a_server_that_is_away_pays(rack: Rack) -> None:
    rack.listed[RACK] = None
    rack.presence.require_server(RACK)  # nobody knows yet
    assert isinstance(rack.presence.explain(PHONE, "R5", RACK, GONE), AdbServerLost)
    begun = rack.now
    for _ in range(256):
        with pytest.raises(AdbServerLost, match=r"10.0.0.5:5037 answers, so all") as lost:
            rack.presence.require_server(RACK)
    assert rack.now - begun <= 1.0
    assert lost.value.why == "timed out"
    rack.presence.require_server(DESK)


def test_a_server_that_is_back_is_used_again(rack: Rack) -> None:
    rack.listed[RACK] = None
    rack.presence.explain(PHONE, "R5", RACK, GONE)
    with pytest.raises(AdbServerLost):
        rack.presence.require_server(RACK)
    rack.listed[RACK] = (("R5", "device"),)
    asked = rack.asked
    with pytest.raises(AdbServerLost):  # it was looked at a moment ago, which took a second
        rack.presence.require_server(RACK)
    assert rack.asked == asked
    rack.now += 11
    rack.presence.require_server(RACK)
    rack.presence.require_server(RACK)
    assert rack.asked == asked + 1


def test_a_port_that_refuses_is_asked_each_time(rack: Rack) -> None:
    rack.silence_s, rack.listed[RACK] = 0.0, None
    rack.presence.explain(PHONE, "R5", RACK, GONE)
    with pytest.raises(AdbServerLost):
        rack.presence.require_server(RACK)
    rack.listed[RACK] = ()
    rack.presence.require_server(RACK)


def test_a_server_that_hangs_is_not_its_devices_fault(rack: Rack) -> None:
    rack.listed[RACK] = None
    last = DeadlineExceeded("device s24: `echo` took longer than its deadline")
    assert isinstance(rack.presence.explain(OVER_TCP, "10.0.0.9:5555", RACK, last), AdbServerLost)
    with pytest.raises(AdbServerLost):
        rack.presence.attached(RACK)


def test_a_selector_behind_a_server_that_is_away_pays_once(rack: Rack) -> None:
    rack.listed[RACK] = None
    with pytest.raises(AdbServerLost):
        rack.presence.attached(RACK)
    with pytest.raises(AdbServerLost, match="out of reach"):
        rack.presence.require_server(RACK)
    rack.listed[DESK] = (("R5", "device"), ("R6", "unauthorized"))
    assert rack.presence.attached(DESK) == ("R5",)


def test_a_phone_that_is_not_plugged_in_is_absent_and_soon_said_to_be(rack: Rack) -> None:
    begun = rack.now
    with pytest.raises(DeviceAbsent, match=r"s24 \(R5\) is not attached") as absent:
        rack.presence.require_phone(PHONE, "R5", RACK)
    assert 3.0 <= rack.now - begun < 3.5  # a server that was just started may not have found it yet
    assert "not in quarantine" in absent.value.why
    begun = rack.now
    with pytest.raises(DeviceAbsent):
        rack.presence.require_phone(PHONE, "R5", RACK)
    assert rack.now == begun
    rack.listed[RACK] = (("R5", "device"),)
    rack.presence.require_phone(PHONE, "R5", RACK)


@pytest.mark.parametrize("state", ["device", "offline", "unauthorized"])
def test_a_phone_that_is_there_and_does_not_answer_is_broken(rack: Rack, state: str) -> None:
    rack.listed[RACK] = (("R5", state),)
    rack.presence.require_phone(PHONE, "R5", RACK)
    assert rack.presence.explain(PHONE, "R5", RACK, DeviceLost("silence")) is None


@pytest.mark.parametrize("spec", [OVER_TCP, VIRTUAL], ids=["tcp", "virtual"])
def test_no_list_tells_whether_a_device_over_tcp_is_there(rack: Rack, spec: DeviceSpec) -> None:
    serial = spec.serial or "127.0.0.1:40001"
    rack.presence.require_phone(spec, serial, RACK)
    assert rack.presence.explain(spec, serial, RACK, DeviceLost("refused")) is None


def test_power_is_cycled_once_for_a_phone_the_hub_may_have_lost(rack: Rack) -> None:
    powered = replace(PHONE, power_cycle=("uhubctl",))
    rack.presence.require_phone(powered, "R5", RACK)  # so the ladder is climbed
    assert isinstance(rack.presence.explain(powered, "R5", RACK, DeviceLost("gone")), DeviceAbsent)
    with pytest.raises(DeviceAbsent):
        rack.presence.require_phone(powered, "R5", RACK)


def test_a_server_that_is_away_is_left_to_the_ladder(rack: Rack) -> None:
    rack.listed[RACK] = None
    rack.presence.require_phone(PHONE, "R5", RACK)
