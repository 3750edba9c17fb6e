from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.adb_transport import AdbTransport
from pytest_devicelab.devices.slots import DEVICE_ROOT, deploy_archive, deploy_file
from pytest_devicelab.devices.toggles import restore_toggles, toggled
from pytest_devicelab.errors import (
    DeviceLost,
    InfrastructureError,
    TransferError,
)
from pytest_devicelab.matrix.specs import DeviceSpec, Source
from pytest_devicelab.runtimes.inputs import pack_inputs
from tests.e2e.hostile_names import HOSTILE
from tests.e2e.virtual_lab import VirtualLab

TMP = "/data/local/tmp"
KIB = 1024
MIB = 1024 * KIB


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


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


# Slots


def test_an_unchanged_file_is_not_pushed_again(device: AdbDevice, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(content(100_000))
    first = deploy_file(device, tmp_path / "model.bin", "model.bin")
    assert device.pushed_bytes == 100_000
    assert deploy_file(device, tmp_path / "model.bin", "model.bin") == first
    assert device.pushed_bytes == 100_000
    (tmp_path / "model.bin").write_bytes(content(100_001))
    assert deploy_file(device, tmp_path / "model.bin", "model.bin") != first
    assert device.pushed_bytes == 200_001


def test_a_slot_that_was_damaged_is_filled_again(device: AdbDevice, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(content(1000))
    path = deploy_file(device, tmp_path / "model.bin", "model.bin")
    device.exec_out(["truncate", "-s", "999", path])
    assert deploy_file(device, tmp_path / "model.bin", "model.bin") == path
    assert device.exec_out(["cat", path]) == content(1000)


class FlippingTransport(AdbTransport):
    """A cable that flips one bit of what is pushed."""

    def push(self, local: Path, remote: str, *, timeout_s: float) -> int:
        damaged = bytearray(local.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        other = local.with_name("damaged")
        other.write_bytes(damaged)
        return super().push(other, remote, timeout_s=timeout_s)


def on_device(device: AdbDevice) -> list[str]:
    """Every file below the folder of the slots."""
    return device.exec_out(["find", f"{DEVICE_ROOT}", "-type", "f"]).decode().splitlines()


def test_a_corrupted_push_is_noticed_and_leaves_nothing(virtual_lab: VirtualLab, tmp_path: Path) -> None:
    virtual_lab.device("twin").exec_out(["rm", "-rf", DEVICE_ROOT])
    server = virtual_lab.server
    cable = FlippingTransport(
        host=server.host, port=server.port, serial=virtual_lab.serial("twin"), name="twin"
    )
    device = AdbDevice(virtual_lab.specs["twin"], cable)
    (tmp_path / "model.bin").write_bytes(content(70_000))
    with pytest.raises(TransferError, match=r"push of model\.bin was corrupted") as caught:
        deploy_file(device, tmp_path / "model.bin", "model.bin")
    assert caught.value.evidence["found"] != caught.value.evidence["expected"]
    assert on_device(device) == []


class CutTransport(AdbTransport):
    """A cable that is pulled after a part of the file."""

    def push(self, local: Path, remote: str, *, timeout_s: float) -> int:
        half = local.with_name("half")
        half.write_bytes(local.read_bytes()[: local.stat().st_size // 2])
        super().push(half, remote, timeout_s=timeout_s)
        raise DeviceLost("the cable was pulled")


def test_a_half_pushed_file_never_has_its_name(virtual_lab: VirtualLab, tmp_path: Path) -> None:
    virtual_lab.device("twin").exec_out(["rm", "-rf", DEVICE_ROOT])
    server = virtual_lab.server
    cut = CutTransport(host=server.host, port=server.port, serial=virtual_lab.serial("twin"), name="twin")
    device = virtual_lab.device("twin")
    (tmp_path / "model.bin").write_bytes(content(70_000))
    with pytest.raises(DeviceLost):
        deploy_file(AdbDevice(virtual_lab.specs["twin"], cut), tmp_path / "model.bin", "model.bin")
    (left,) = on_device(device)
    assert "/.part-" in left
    path = deploy_file(device, tmp_path / "model.bin", "model.bin")
    assert on_device(device) == [path]
    assert device.exec_out(["cat", path]) == content(70_000)
    device.exec_out(["rm", "-rf", DEVICE_ROOT])


@pytest.mark.parametrize(
    "hostile",
    [*HOSTILE, "../../../../escaped", "..", ".", ".hidden", "/etc/passwd", "a/b", "x" * 200, "files"],
)
def test_a_file_of_any_name_stays_in_its_slot(virtual_lab: VirtualLab, tmp_path: Path, hostile: str) -> None:
    device = virtual_lab.device("pixel")
    (tmp_path / "model").write_bytes(hostile.encode("utf-8", "surrogateescape"))
    path = deploy_file(device, tmp_path / "model", hostile)
    slot, _, file = path.rpartition("/")
    assert slot.rpartition("/")[0] == f"{DEVICE_ROOT}/slots"
    assert file
    assert not file.startswith(".")
    assert device.exec_out(["cat", path]) == hostile.encode("utf-8", "surrogateescape")
    pushed = device.pushed_bytes
    assert deploy_file(device, tmp_path / "model", hostile) == path
    assert device.pushed_bytes == pushed
    device.exec_out(["rm", "-rf", DEVICE_ROOT])


def test_an_archive_is_pushed_once_and_unpacked_every_time(device: AdbDevice, tmp_path: Path) -> None:
    archive = pack_inputs({"x": np.arange(6, dtype=np.float32).reshape(3, 2)}, tmp_path)
    folder = deploy_archive(device, archive.path)
    assert device.exec_out(["cat", f"{folder}/1_0.raw"]) == np.array([2, 3], np.float32).tobytes()
    assert device.exec_out(["cat", f"{folder}/input_list.txt"]) == b"x:=0_0.raw\nx:=1_0.raw\nx:=2_0.raw\n"
    pushed = device.pushed_bytes
    device.script(f"echo changed > {folder}/1_0.raw; echo more > {folder}/extra")
    assert deploy_archive(device, archive.path) == folder
    assert device.pushed_bytes == pushed
    assert device.exec_out(["cat", f"{folder}/1_0.raw"]) == np.array([2, 3], np.float32).tobytes()
    assert device.hash(f"{folder}/extra") is None


def test_an_archive_that_does_not_unpack_leaves_no_folder(device: AdbDevice, tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_bytes(b"this is no archive" * 100)
    for _ in range(2):
        with pytest.raises(TransferError, match="could not unpack"):
            deploy_archive(device, tmp_path / "bad.tar")
    assert [path for path in on_device(device) if "/files/" in path] == []


# Properties


def test_the_device_says_what_it_is(device: AdbDevice, virtual_lab: VirtualLab, name: str) -> None:
    identity = device.identity()
    assert (identity.soc, identity.hexagon, identity.simulated) == ("Tensor G4", None, True)
    assert (identity.engine, identity.serial) == ("cpu", virtual_lab.serial(name))
    assert identity.properties["ro.soc.model"] == "Tensor G4"
    assert identity.properties["ro.build.version.sdk"] == "34"


def test_a_device_that_is_another_chip_than_the_matrix_says(virtual_lab: VirtualLab) -> None:
    wrong = AdbDevice(virtual_lab.specs["s21"], virtual_lab.transport("s24"))
    with pytest.raises(InfrastructureError, match=r"says SM8350, the device says SM8650"):
        wrong.identity()


def test_a_chip_the_matrix_leaves_open_is_the_devices_own(virtual_lab: VirtualLab) -> None:
    place = Source(file="matrix.yaml", line=1, column=1)
    spec = DeviceSpec(id="any", kind="adb", source=place, serial=virtual_lab.serial("s24"))
    device = AdbDevice(spec, virtual_lab.transport("s24"))
    identity = device.identity()
    # Simulated, whatever the matrix took it for: the device itself says so.
    assert (identity.soc, identity.hexagon, identity.simulated) == ("SM8650", "V75", True)
    chip = device.chip(identity.properties)
    assert chip is not None
    assert chip.qnn_id is not None


def test_a_property_that_cannot_be_set_is_an_error(device: AdbDevice) -> None:
    with pytest.raises(InfrastructureError, match=r"ro\.soc\.model could not be set to 'SM1'"):
        device.setprop("ro.soc.model", "SM1")
    for hostile in ("", "a b", "$(id)", "-x", "a/b", "a\nb"):
        with pytest.raises(InfrastructureError, match="is not a property name"):
            device.setprop(hostile, "1")
        with (
            pytest.raises(InfrastructureError, match="is not a property name"),
            toggled(device, {hostile: "1"}),
        ):
            pass
    assert device.getprop("ro.soc.model") == "Tensor G4"


@pytest.mark.parametrize("value", ["", "all", 'it\'s $(id) `id` \\ "x"', "  spaces  ", "ключ", "*"])
def test_toggles_are_put_back(device: AdbDevice, value: str) -> None:
    device.setprop("debug.mine", value)
    with toggled(device, {"debug.mine": "in the block", "debug.other": "2"}):
        assert device.getprop("debug.mine") == "in the block"
        assert device.getprop("debug.other") == "2"
    assert device.getprop("debug.mine") == value
    assert device.getprop("debug.other") == ""
    assert on_device(device) == []
    device.setprop("debug.mine", "")


def test_toggles_are_put_back_after_an_exception(device: AdbDevice) -> None:
    with pytest.raises(KeyboardInterrupt), toggled(device, {"debug.mine": "1"}):
        raise KeyboardInterrupt
    assert device.getprop("debug.mine") == ""
    assert on_device(device) == []


def test_a_block_in_a_block_puts_back_what_it_found(device: AdbDevice) -> None:
    with toggled(device, {"debug.mine": "outer", "debug.outer": "1"}):
        with toggled(device, {"debug.mine": "inner"}):
            assert device.getprop("debug.mine") == "inner"
            assert device.getprop("debug.outer") == "1"
        assert device.getprop("debug.mine") == "outer"
    assert device.getprop("debug.mine") == ""
    assert on_device(device) == []


def test_a_refused_toggle_undoes_those_before_it(device: AdbDevice) -> None:
    asked = {"debug.mine": "1", "ro.soc.model": "SM1", "debug.later": "1"}
    with (
        pytest.raises(InfrastructureError, match=r"ro\.soc\.model reads otherwise after setprop"),
        toggled(device, asked),
    ):
        pytest.fail("the block must not run")
    assert device.getprop("debug.mine") == ""
    assert device.getprop("debug.later") == ""
    assert on_device(device) == []


def test_toggles_of_a_killed_holder_are_put_back_by_the_next(
    virtual_lab: VirtualLab, name: str, device: AdbDevice
) -> None:
    device.setprop("debug.mine", "before")
    code = (
        "import sys, time\n"
        "from pytest_devicelab.devices.adb import AdbDevice\n"
        "from pytest_devicelab.devices.adb_transport import AdbTransport\n"
        "from pytest_devicelab.devices.toggles import toggled\n"
        "from tests.e2e.virtual_lab import virtual_spec\n"
        "host, port, serial = sys.argv[1:]\n"
        "transport = AdbTransport(host=host, port=int(port), serial=serial, name='x')\n"
        "with toggled(AdbDevice(virtual_spec('x', 'Tensor G4'), transport), {'debug.mine': 'a', 'debug.new': 'b'}):\n"
        "    print('holding', flush=True)\n"
        "    time.sleep(60)\n"
    )
    where = [virtual_lab.server.host, str(virtual_lab.server.port), virtual_lab.serial(name)]
    with subprocess.Popen(
        [sys.executable, "-c", code, *where], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"holding\n"
        holder.kill()
    assert device.getprop("debug.mine") == "a"
    assert sorted(restore_toggles(device)) == ["debug.mine", "debug.new"]
    assert device.getprop("debug.mine") == "before"
    assert device.getprop("debug.new") == ""
    assert restore_toggles(device) == ()
    device.setprop("debug.mine", "")


def test_notes_that_are_not_ours_are_left_alone(device: AdbDevice) -> None:
    notes = f"{DEVICE_ROOT}/restore"
    device.exec_out(["mkdir", "-p", notes])
    for name in ("$(reboot)", "-n", "; id", ".debug.half"):
        device.exec_out(["touch", "--", f"{notes}/{name}"])
    assert restore_toggles(device) == ()
