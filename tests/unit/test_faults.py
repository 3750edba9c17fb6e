from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from pytest_devicelab.errors import MatrixError, UserError
from pytest_devicelab.evidence import codec
from pytest_devicelab.matrix.decode import load_matrix
from pytest_devicelab.matrix.faults import FAULTS, parse_fault, write_fault
from pytest_devicelab.matrix.specs import DeviceSpec, FaultSpec
from pytest_devicelab.virtual.device import _phase
from pytest_devicelab.virtual.faults.board import FaultBoard
from pytest_devicelab.virtual.faults.link import Cut, Link, Valve
from pytest_devicelab.virtual.faults.registry import make_fault
from pytest_devicelab.virtual.faults.storage import Storage
from pytest_devicelab.virtual.logd import LogDaemon
from pytest_devicelab.virtual.serve import read_specs, write_specs
from pytest_devicelab.virtual.tools import trouble
from pytest_devicelab.virtual.tools.raw_files import results_folder

MATRIX = """\
schema: devicelab.matrix/1
devices:
  - id: s24
    kind: virtual
    soc: SM8650
    faults: {faults}
models:
  - {{id: net, path: m.onnx}}
"""


def load(folder: Path, faults: str) -> tuple[FaultSpec, ...]:
    (folder / "m.onnx").touch()
    path = folder / "matrix.yaml"
    path.write_text(MATRIX.format(faults=faults))
    return load_matrix(path).devices[0].faults


def test_faults_arrive_in_the_spec(tmp_path: Path) -> None:
    drop, slow = load(
        tmp_path,
        "[{fault: drop, at_byte: 1000, during: push}, {fault: slow_link, after_s: 0.5, lasts_s: 2}]",
    )
    assert (drop.fault, drop.during, drop.after_s, drop.lasts_s) == ("drop", "push", 0.0, None)
    assert drop.values == {"at_byte": "1000"}
    assert (slow.after_s, slow.lasts_s, slow.values) == (0.5, 2.0, {"bytes_per_s": "65536"})
    assert str(slow.source).endswith("matrix.yaml:6:58")
    assert hash(drop) != hash(slow)


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        ("drop", "6:13: devices[0].faults: must be a list"),
        ("[drop]", "6:14: devices[0].faults[0]: must be a mapping"),
        ("[{during: push}]", "6:14: devices[0].faults[0]: has no 'fault': add one of drop, stall"),
        ("[{fault: dorp}]", "6:22: devices[0].faults[0].fault: 'dorp' is not one of"),
        ("[{fault: dorp}]", "did you mean 'drop'?"),
        ("[{fault: drop, at_bite: 1}]", "6:28: unknown key 'at_bite' in devices[0].faults[0]"),
        ("[{fault: drop, at_byte: 0}]", "6:37: devices[0].faults[0].at_byte: 0 is out of range"),
        ("[{fault: drop, at_byte: 1.5}]", "6:37: devices[0].faults[0].at_byte: '1.5' is not a whole number"),
        (
            "[{fault: drop, during: pusch}]",
            "6:36: devices[0].faults[0].during: 'pusch' is not one of connect, push",
        ),
        ("[{fault: reboot, after_s: -1}]", "6:39: devices[0].faults[0].after_s: -1 is out of range"),
        ("[{fault: wrong_soc, soc: a;b}]", "6:38: devices[0].faults[0].soc: 'a;b' is not a part number"),
    ],
)
def test_a_mistake_has_its_place(tmp_path: Path, faults: str, says: str) -> None:
    with pytest.raises(MatrixError) as caught:
        load(tmp_path, faults)
    assert says in str(caught.value)


def test_a_phone_has_no_faults_of_ours(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    path = tmp_path / "matrix.yaml"
    path.write_text(
        "schema: devicelab.matrix/1\ndevices:\n  - {id: p, kind: adb, serial: abc, faults: [{fault: drop}]}\n"
        "models:\n  - {id: net, path: m.onnx}\n"
    )
    with pytest.raises(MatrixError, match=r"3:45: .*faults: is for devices of kind virtual"):
        load_matrix(path)


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_can_be_made_and_survives_the_way_to_the_lab(name: str, tmp_path: Path) -> None:
    fault = parse_fault(name, ["during=run", "after_s=0.25"])
    assert make_fault(fault) is not None
    assert parse_fault(name, write_fault(fault)[1:]) == fault
    device = DeviceSpec(id="a", kind="virtual", source=fault.source, faults=(fault,))
    write_specs(tmp_path / "specs.json", [device])
    assert read_specs(tmp_path / "specs.json") == (device,)
    assert codec.encode(device)["faults"][0]["fault"] == name


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("dorp", (), "there is no fault 'dorp' (did you mean 'drop'?)"),
        ("drop", ("1000",), "does not say anything new"),
        ("drop", ("at_byte=1", "at_byte=2"), "does not say anything new"),
        ("drop", ("fault=stall",), "does not say anything new"),
        ("drop", ("at_byte=x",), "'x' is not a whole number"),
        ("drop", ("bytes=1",), "unknown key 'bytes' in drop"),
        ("wrong_soc", ("soc=$(reboot)",), "is not a part number"),
        ("drop", ('at_byte=1, "x": 2',), "is not a whole number"),
    ],
)
def test_a_command_line_has_the_rules_of_the_matrix(name: str, words: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_fault(name, words)
    assert says in str(caught.value)


class Pipe(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.paused = False
        self.ended = ""

    def write(self, data: Any) -> None:
        self.sent += bytes(data)

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def abort(self) -> None:
        self.ended = "abort"

    def close(self) -> None:
        self.ended = "close"


def test_a_cut_is_at_the_byte_in_either_direction() -> None:
    link, pipe = Link(cut=Cut(left_bytes=10, kind="drop")), Pipe()
    valve = Valve(link, pipe)
    valve.send(b"abcd")
    assert len(valve.admit(memoryview(bytearray(100)))) == 6
    assert valve.received(3)
    valve.send(b"efghij")
    assert (pipe.sent, pipe.ended, link.cut) == (b"abcdefg", "close", None)
    link, pipe = Link(cut=Cut(left_bytes=10, kind="drop")), Pipe()
    assert not Valve(link, pipe).received(10)
    assert pipe.ended == "abort"


def test_a_stall_loses_and_a_freeze_keeps() -> None:
    link, pipe = Link(cut=Cut(left_bytes=2, kind="stall")), Pipe()
    valve = Valve(link, pipe)
    valve.send(b"abcd")
    valve.send(b"ef")
    assert (pipe.sent, pipe.paused, pipe.ended) == (b"ab", True, "")
    valve.revive()
    assert pipe.ended == "abort"
    link, pipe = Link(frozen=True), Pipe()
    valve = Valve(link, pipe)
    valve.send(b"abcd")
    assert (pipe.sent, pipe.paused) == (b"", True)
    link.frozen = False
    link.changed()
    assert (pipe.sent, pipe.paused) == (b"abcd", False)


def test_a_slow_link_keeps_order_and_pace() -> None:
    async def measure() -> tuple[bytes, float]:
        link, pipe = Link(bytes_per_s=1000), Pipe()
        valve = Valve(link, pipe)
        began = asyncio.get_running_loop().time()
        valve.send(bytes(range(200)))
        valve.send(b"end")
        while not pipe.sent.endswith(b"end"):
            await asyncio.sleep(0.005)
        return pipe.sent, asyncio.get_running_loop().time() - began

    sent, took_s = asyncio.run(measure())
    assert sent == bytes(range(200)) + b"end"
    assert 0.19 < took_s < 2


def test_a_full_disk_and_a_flipped_bit() -> None:
    stored = bytearray()

    def write(piece: memoryview) -> int:  # as a file may: not all at once
        stored.extend(piece[:3])
        return len(piece[:3])

    storage = Storage(free_bytes=10, corrupt_at_byte=5, corrupt_files=1)
    store = storage.writer(write)
    assert store(memoryview(b"aaaa")) + store(memoryview(b"aaaa")) == 8
    assert stored == b"aaaaa`aa"
    with pytest.raises(OSError, match="No space left") as caught:
        store(memoryview(b"aaaa"))
    assert caught.value.errno == errno.ENOSPC
    storage.free_bytes = None
    assert storage.writer(write) is write


def test_a_crash_is_counted(tmp_path: Path) -> None:
    (tmp_path / trouble.FILE).parent.mkdir(parents=True)
    trouble.write(str(tmp_path), "npu_crash", {"runs": 2})
    trouble.write(str(tmp_path), "throttle", {"slowdown": 2})
    assert [trouble.take_crash(str(tmp_path)) for _ in range(3)] == [True, True, False]
    assert json.loads((tmp_path / trouble.FILE).read_text()) == {"throttle": {"slowdown": 2}}


class FakeDevice:
    """As much of a device as faults of the link need."""

    def __init__(self, root: Path) -> None:
        self.root, self.link, self.storage, self.log = root, Link(), Storage(), LogDaemon(root)

    def later(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        return asyncio.ensure_future(work)

    async def drop(self) -> None: ...

    async def offline(self) -> None: ...

    async def online(self) -> None: ...

    async def reboot(self, *, down_s: float) -> None: ...


def test_a_fault_waits_for_its_moment_and_ends_by_itself(tmp_path: Path) -> None:
    async def play() -> None:
        device = FakeDevice(tmp_path)
        board = FaultBoard("a", device)
        board.arm(parse_fault("slow_link", ["during=push", "after_s=0.02", "lasts_s=0.03"]))
        board.saw("pull")
        assert board.describe() == "slow_link (waits)"
        board.saw("push")
        board.saw("push")
        await asyncio.sleep(0.03)
        speeds = [device.link.bytes_per_s]
        assert board.describe() == "slow_link (begun)"
        await asyncio.sleep(0.05)
        speeds.append(device.link.bytes_per_s)
        assert speeds == [65536, None]
        assert board.describe() == ""

    asyncio.run(play())


def test_a_second_fault_of_a_name_replaces_the_first_and_clear_ends_all(tmp_path: Path) -> None:
    async def play() -> None:
        device = FakeDevice(tmp_path)
        board = FaultBoard("a", device)
        board.arm(parse_fault("slow_link", ["bytes_per_s=1000"]))
        board.arm(parse_fault("slow_link", ["bytes_per_s=2000"]))
        board.arm(parse_fault("drop", ["at_byte=7"]))
        board.arm(parse_fault("freeze", ["after_s=60"]))
        speeds = [device.link.bytes_per_s]
        board.clear("stall")
        board.clear()
        await asyncio.sleep(0)
        speeds.append(device.link.bytes_per_s)
        assert speeds == [2000, None]
        assert (device.link.cut is None, device.link.frozen) == (True, False)
        assert board.describe() == ""

    asyncio.run(play())


def test_a_fault_that_spoils_what_comes_lurks_until_something_has_come(tmp_path: Path) -> None:
    (tmp_path / trouble.FILE).parent.mkdir(parents=True)
    device = FakeDevice(tmp_path)
    board = FaultBoard("a", device)
    for name in ("corrupt_push", "npu_crash", "stale_slot", "drop"):
        board.arm(parse_fault(name, []))
    assert board.describe() == "corrupt_push (lurks) npu_crash (lurks) stale_slot (lurks) drop (lurks)"

    device.storage.writer(lambda piece: len(piece))
    assert trouble.take_crash(str(tmp_path))
    assert device.link.cut is not None
    device.link.cut.left_bytes -= 1
    slot = tmp_path / "data/local/tmp/devicelab/slots/ab"
    slot.mkdir(parents=True)
    (slot / "model.bin").write_bytes(b"m" * 2000)
    board.arm(parse_fault("stale_slot", []))
    assert board.describe() == "corrupt_push (begun) npu_crash (begun) drop (begun) stale_slot (begun)"


def test_a_result_that_was_cut_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICELAB_VDEVICE", str(tmp_path))
    (tmp_path / trouble.FILE).parent.mkdir(parents=True)
    board = FaultBoard("a", FakeDevice(tmp_path))
    board.arm(parse_fault("short_output", []))
    before = board.describe()
    with results_folder(tmp_path / "out", ours=("Result_*",)) as new:
        (new / "Result_0").mkdir()
        (new / "Result_0" / "y.raw").write_bytes(b"1234")
    assert (before, board.describe()) == ("short_output (lurks)", "short_output (begun)")
    assert (tmp_path / "out/Result_0/y.raw").read_bytes() == b"123"


@pytest.mark.parametrize(
    ("command", "phase"),
    [
        ("shell:cd /d && litert-run --model m.tflite", "run"),
        ("shell,v2,raw:qnn_executor_runner --model_path m.pte", "run"),
        ("shell:qnn-net-run --version", "run"),
        ("shell:ls qnn-net-run.log", None),
        ("shell:logcat -d", "log"),
        ("shell:rm -rf /data/local/tmp/devicelab/runs/a", "restore"),
        ("shell:getprop", None),
    ],
)
def test_what_a_host_begins_is_known_by_its_command(command: str, phase: str | None) -> None:
    assert _phase(command) == phase
