from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.device import ShellResult
from pytest_devicelab.errors import AdbServerLost, DeadlineExceeded, DeviceLost, LeaseLost
from pytest_devicelab.lab.recovery import PHONE_LIMITS, VIRTUAL_LIMITS, Rung, clean, climb, recover, rungs_of
from pytest_devicelab.matrix.specs import DeviceSpec, Source

PHONE = DeviceSpec(id="s24", kind="adb", source=Source(file="m", line=1, column=1), serial="R5")
ALL = replace(PHONE, power_cycle=("true",), reboot=True)


class Cable:
    """A transport to a device that answers once a certain thing was done to it."""

    serial = "R5"

    def __init__(self, cured_by: str) -> None:
        self.cured_by = cured_by
        self.done: list[str] = []
        self.limits: list[float] = []

    def shell(self, command: str, *, timeout_s: float) -> ShellResult:
        self.done.append(command)
        return ShellResult(stdout=b"", stderr=b"", exit_code=0)

    def stream(self, command: str, sink: Callable[[bytes], bool], *, timeout_s: float) -> None:
        raise AssertionError

    def push(self, local: Path, remote: str, *, timeout_s: float) -> int:
        raise AssertionError

    def pull(self, remote: str, local: Path, *, timeout_s: float, limit_bytes: int = 0) -> int:
        raise AssertionError

    def reconnect(self, *, timeout_s: float) -> None:
        self.done.append("proof")
        self.limits.append(timeout_s)
        if self.cured_by not in self.done:
            raise DeadlineExceeded("the device does not answer", why="silence")

    def restart(self, *, timeout_s: float) -> None:
        self.done.append("restart")

    def adb_version(self, *, timeout_s: float) -> str | None:
        return None

    def reboot(self, *, timeout_s: float) -> None:
        self.done.append("reboot")


def test_the_ladder_is_climbed_in_order_until_the_device_proves_itself() -> None:
    cable = Cable("reboot")
    found = recover(AdbDevice(ALL, cable), DeviceLost("push failed", why="cable"))
    assert found.helped
    assert cable.done == ["proof", "restart", "proof", "proof", "reboot", "proof"]
    assert [step.rung for step in found.steps] == ["reconnect", "restart_transport", "power_cycle", "reboot"]
    assert [step.helped for step in found.steps] == [False, False, False, True]
    assert [step.why for step in found.steps] == ["push failed", *["the device does not answer: silence"] * 3]
    assert [bool(step.said) for step in found.steps] == [True, True, True, False]
    assert cable.limits[0] <= PHONE_LIMITS.reconnect_s


def test_the_first_rung_that_helps_is_the_last() -> None:
    cable = Cable("restart")
    found = recover(AdbDevice(ALL, cable), DeviceLost("gone"))
    assert (found.helped, len(found.steps), cable.done[-1]) == (True, 2, "proof")


def test_nothing_the_matrix_does_not_allow_is_done() -> None:
    def names(spec: DeviceSpec) -> list[str]:
        return [rung.name for rung in rungs_of(AdbDevice(spec, Cable("")))]

    gentle = ["reconnect", "restart_transport"]
    assert names(PHONE) == gentle
    assert names(replace(PHONE, reboot=True)) == [*gentle, "reboot"]
    assert names(replace(PHONE, kind="virtual")) == [*gentle, "reboot"]
    assert names(replace(PHONE, kind="virtual", reboot=False)) == gentle
    assert rungs_of(AdbDevice(PHONE, Cable("")))[0].limit_s == PHONE_LIMITS.reconnect_s
    assert (
        rungs_of(AdbDevice(replace(PHONE, kind="virtual"), Cable("")))[0].limit_s
        == VIRTUAL_LIMITS.reconnect_s
    )


def test_a_device_nothing_helps_is_given_up_after_the_last_rung() -> None:
    cable = Cable("magic")
    found = recover(AdbDevice(ALL, cable), DeviceLost("gone"))
    assert not found.helped
    assert len(found.steps) == 4


def test_no_phone_is_rebooted_because_an_adb_server_is_away() -> None:
    class NoServer(Cable):
        def reconnect(self, *, timeout_s: float) -> None:
            raise AdbServerLost("no adb server")

    cable = NoServer("")
    found = recover(AdbDevice(ALL, cable), DeviceLost("gone"))
    assert [step.rung for step in found.steps] == ["reconnect", "restart_transport"]
    assert isinstance(found.last, AdbServerLost)
    assert "reboot" not in cable.done


def test_a_rung_and_its_proof_share_one_limit() -> None:
    now = [0.0]
    limits: list[float] = []

    def act(limit_s: float) -> None:
        now[0] += 7.0

    def prove(limit_s: float) -> None:
        limits.append(limit_s)

    climb([Rung(name="reboot", act=act, limit_s=10.0)], prove, "why", clock=lambda: now[0])
    assert limits == [3.0]


def test_a_device_that_is_not_ours_any_more_is_not_ours_to_recover() -> None:
    def held() -> None:
        raise LeaseLost("somebody took it")

    cable = Cable("")
    with pytest.raises(LeaseLost):
        recover(AdbDevice(ALL, cable, require_held=held), DeviceLost("gone"))
    assert cable.done == []


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("no-such-program",), "no-such-program is not on this host"),
        (("sh", "-c", "echo no hub >&2; exit 3"), "sh exited with 3: no hub"),
        (("sleep", "30"), "sleep did not end in 0.2 s"),
    ],
)
def test_a_power_cycle_that_fails_says_why(
    command: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pytest_devicelab.lab.recovery.PHONE_LIMITS", replace(PHONE_LIMITS, power_cycle_s=0.4)
    )
    cable = Cable("reboot")
    found = recover(AdbDevice(replace(ALL, power_cycle=command), cable), DeviceLost("gone"))
    assert says in found.steps[2].said
    assert found.helped


def test_what_a_late_power_cycle_started_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pytest_devicelab.lab.recovery.PHONE_LIMITS", replace(PHONE_LIMITS, power_cycle_s=1.0)
    )
    command = ("sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; wait")
    recover(AdbDevice(replace(ALL, power_cycle=command), Cable("reboot")), DeviceLost("gone"))
    child, deadline = int((tmp_path / "pid").read_text()), time.monotonic() + 20
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    odd = tmp_path / "a b; touch c"
    recover(AdbDevice(replace(ALL, power_cycle=("touch", str(odd))), Cable("x")), DeviceLost("gone"))
    assert [path.name for path in tmp_path.iterdir()] == [odd.name]


def test_a_full_device_is_emptied_of_what_is_ours_alone() -> None:
    cable = Cable("rm -rf /data/local/tmp/devicelab/slots /data/local/tmp/devicelab/runs")
    step = clean(AdbDevice(PHONE, cable), "no space")
    assert (step.rung, step.helped) == ("clean", True)


def test_errors_that_are_not_the_labs_are_not_swallowed() -> None:
    def act(limit_s: float) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        climb([Rung(name="reconnect", act=act, limit_s=1)], lambda limit_s: None, "why")
