"""How logs are taken: switched on, streamed to disk, cut, and what is noticed when lines are missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.adb_transport import AdbTransport
from pytest_devicelab.devices.logcat import LogWatch
from pytest_devicelab.devices.slots import DEVICE_ROOT
from pytest_devicelab.devices.toggles import farf_file
from pytest_devicelab.errors import DeviceLost, InfrastructureError
from tests.e2e.virtual_lab import VirtualLab

BUFFER_BYTES = 1 << 20
NOISE = f"yes {'x' * 3000} | head -n 200 | log -t noise"


class Deaf(AdbTransport):
    """A cable over which nothing can be streamed."""

    def stream(self, command: str, sink: Callable[[bytes], bool], *, timeout_s: float) -> None:
        raise DeviceLost(f"{command} failed", why="no streams here", fix="none")


@pytest.fixture(params=["pixel", "plain"], ids=["namespace", "rewriting"])
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def device(virtual_lab: VirtualLab, name: str) -> Iterator[AdbDevice]:
    device = virtual_lab.device(name)
    device.exec_out(["mkdir", "-p", DEVICE_ROOT])
    yield device
    device.exec_out(["rm", "-rf", DEVICE_ROOT])


@pytest.fixture
def deaf(virtual_lab: VirtualLab) -> AdbDevice:
    server = virtual_lab.server
    cable = Deaf(host=server.host, port=server.port, serial=virtual_lab.serial("pixel"), name="pixel")
    return AdbDevice(virtual_lab.specs["pixel"], cable)


@pytest.fixture
def watch(tmp_path: Path) -> Callable[[AdbDevice, str], LogWatch]:
    return lambda device, token: LogWatch(
        device, token, tmp_path / "logcat.part", buffer_bytes=BUFFER_BYTES, timeout_s=30
    )


Watch = Callable[[AdbDevice, str], LogWatch]


def messages(data: bytes) -> list[bytes]:
    return [line.partition(b" mine    : ")[2] for line in data.splitlines()]


def eventually(true: Callable[[], bool], timeout_s: float = 10) -> bool:
    deadline = time.monotonic() + timeout_s
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return true()


def test_a_window_holds_what_was_logged_in_it(device: AdbDevice, watch: Watch, tmp_path: Path) -> None:
    device.exec_out(["log", "-t", "mine", "before"])
    open_window = watch(device, "0123abcd")
    device.exec_out(["log", "-t", "mine", "inside one"])
    device.exec_out(["log", "-p", "e", "-t", "mine", "inside two"])
    window = open_window.close()
    device.exec_out(["log", "-t", "mine", "after"])
    assert messages(window.data) == [b"inside one", b"inside two"]
    assert (window.streamed, window.lost) == (True, "")
    assert all(window.buffers[buffer] >= BUFFER_BYTES for buffer in ("main", "system", "crash"))
    assert not (tmp_path / "logcat.part").exists()


def test_lines_are_on_disk_while_the_run_goes_on(device: AdbDevice, watch: Watch, tmp_path: Path) -> None:
    spool = tmp_path / "logcat.part"
    window = watch(device, "ab12")
    device.exec_out(["log", "-t", "mine", "so far"])
    assert eventually(lambda: spool.exists() and b"so far" in spool.read_bytes())
    assert window.abandon().endswith(b"so far\n")
    assert b"so far" in spool.read_bytes(), "evidence of a run that broke off stays"


def test_the_stream_ends_on_the_device_too(device: AdbDevice, watch: Watch) -> None:
    following = "pidof logcat | wc -w"
    window = watch(device, "ac12")
    assert eventually(lambda: device.script(following).text.strip() == "1")
    window.close()
    assert eventually(lambda: device.script(following).text.strip() == "0")


def test_windows_follow_each_other(device: AdbDevice, watch: Watch) -> None:
    for token in ("aa11", "bb22"):
        window = watch(device, token)
        device.exec_out(["log", "-t", "mine", f"in {token}"])
        assert messages(window.close().data) == [f"in {token}".encode()]


def test_without_a_stream_the_buffers_are_read(deaf: AdbDevice, watch: Watch) -> None:
    window = watch(deaf, "da11")
    deaf.exec_out(["log", "-t", "mine", "inside"])
    found = window.close()
    assert messages(found.data) == [b"inside"]
    assert (found.streamed, found.lost) == (False, "")


def test_without_a_stream_an_overflow_is_lost_evidence(deaf: AdbDevice, watch: Watch) -> None:
    window = watch(deaf, "cc33")
    deaf.exec_out(["logcat", "-G", "64K"])
    deaf.script(NOISE)
    found = window.close()
    assert (found.data, found.streamed) == (b"", False)
    assert "no longer held the beginning" in found.lost
    assert watch(deaf, "dd44").close().lost == ""


def test_a_stream_keeps_what_the_buffer_cannot(device: AdbDevice, watch: Watch) -> None:
    window = watch(device, "ce33")
    device.exec_out(["logcat", "-G", "64K"])
    for part in range(40):  # more than the buffer takes, and never faster than it is read
        device.script(f"yes {'x' * 1500} | head -n 15 | log -t part{part}")
    found = window.close()
    assert (found.streamed, found.data.count(b"x" * 1500)) == (True, 600)


def test_a_log_that_was_cleared_is_lost_evidence(device: AdbDevice, deaf: AdbDevice, watch: Watch) -> None:
    for cable in (device, deaf):
        window = watch(cable, "ee55")
        cable.exec_out(["logcat", "-c"])
        assert window.close().lost


def test_a_buffer_that_cannot_grow_is_noticed(virtual_lab: VirtualLab, tmp_path: Path) -> None:
    device = virtual_lab.device("pixel")
    device.exec_out(["logcat", "-G", "256K"])
    asked = 1 << 30  # more than logd takes
    window = LogWatch(device, "fa11", tmp_path / "part", buffer_bytes=asked, timeout_s=30).close()
    assert window.buffers == {"main": 256 << 10, "system": 256 << 10, "crash": 256 << 10}
    assert window.streamed


def test_a_farf_file_is_there_for_the_run_only(device: AdbDevice) -> None:
    file = f"{DEVICE_ROOT}/qnn-net-run.farf"
    with farf_file(device, DEVICE_ROOT, "qnn-net-run", "0x1f"):
        assert device.exec_out(["cat", file]) == b"0x1f"
    assert device.script(f"test -e {file}").exit_code == 1
    device.exec_out(["touch", file])
    with farf_file(device, DEVICE_ROOT, "qnn-net-run", None):
        assert device.script(f"test -e {file}").exit_code == 1, "left behind by a killed holder"


def test_a_farf_file_that_cannot_be_written(device: AdbDevice) -> None:
    with (
        pytest.raises(InfrastructureError, match=r"qnn-net-run\.farf could not be written"),
        farf_file(device, f"{DEVICE_ROOT}/nowhere", "qnn-net-run", "0x1f"),
    ):
        pytest.fail("the block must not run")
