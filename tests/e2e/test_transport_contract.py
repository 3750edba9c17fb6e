"""What every transport promises, whoever speaks to the adb server: one suite over all of them.

The devices are virtual ones behind the real adb server; `devices/transport.py` says what is promised.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.adb_server import adb_version, find_adb
from pytest_devicelab.devices.adb_stream import list_attached
from pytest_devicelab.devices.adb_transport import AdbTransport
from pytest_devicelab.devices.device import Device
from pytest_devicelab.devices.ppadb_transport import PpadbTransport
from pytest_devicelab.devices.slots import DEVICE_ROOT
from pytest_devicelab.errors import (
    AdbServerLost,
    DeadlineExceeded,
    DeviceLost,
    InfrastructureError,
    TransferError,
)
from pytest_devicelab.evidence.record import ModelIdentity
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.attempts import run_on_device
from pytest_devicelab.lab.request import RunRequest
from pytest_devicelab.matrix.specs import log_profile
from pytest_devicelab.runtimes.inputs import load_inputs
from tests.e2e.hostile_names import HOSTILE
from tests.e2e.virtual_lab import VirtualLab

FIXTURES = Path(__file__).parents[2] / "fixtures"
TMP = "/data/local/tmp"
KIB = 1024
MIB = 1024 * KIB

Transport = type[AdbTransport]


@pytest.fixture(params=[AdbTransport, PpadbTransport], ids=["adb", "ppadb"])
def transport(request: pytest.FixtureRequest) -> Transport:
    chosen: Transport = request.param
    return chosen


@pytest.fixture(params=["pixel", "plain"], ids=["namespace", "rewriting"])
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def device(virtual_lab: VirtualLab, name: str, transport: Transport) -> Iterator[AdbDevice]:
    device = over(transport, virtual_lab, name)
    device.exec_out(["mkdir", "-p", DEVICE_ROOT])
    yield device
    device.exec_out(["rm", "-rf", DEVICE_ROOT])


def over(transport: Transport, lab: VirtualLab, name: str) -> AdbDevice:
    return AdbDevice(lab.specs[name], lab.transport(name, transport))


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


# Shell


def test_exit_status_and_both_outputs_come_apart(device: AdbDevice) -> None:
    done = device.script("printf out; printf err >&2; exit 7")
    assert (done.stdout, done.stderr, done.exit_code) == (b"out", b"err", 7)
    assert device.script("kill -9 $$").exit_code == 137
    assert device.script("exit 255").exit_code == 255
    assert isinstance(device, Device)


@pytest.mark.parametrize("word", HOSTILE)
def test_no_word_is_interpreted(virtual_lab: VirtualLab, transport: Transport, word: str) -> None:
    device = over(transport, virtual_lab, "pixel")
    done = device.shell(["printf", "<%s>", word, word])
    assert done.stdout == f"<{word}><{word}>".encode("utf-8", "surrogateescape")
    assert done.stderr == b""


def test_no_folder_name_is_interpreted(device: AdbDevice) -> None:
    for number, word in enumerate(word for word in HOSTILE if word and "/" not in word):
        folder = f"{DEVICE_ROOT}/folders/{number}/{word}"
        device.exec_out(["mkdir", "-p", "--", folder])
        assert device.shell(["touch", "here"], cwd=folder).exit_code == 0
        assert device.shell(["test", "-e", f"{folder}/here"]).exit_code == 0


def test_what_adb_cannot_carry_is_an_error_and_no_other_command(device: AdbDevice) -> None:
    with pytest.raises(InfrastructureError, match="cannot be sent"):
        device.shell(["echo", "x\0; echo y"])
    with pytest.raises(InfrastructureError, match="push long input as a file"):
        device.shell(["echo", "x" * 70_000])
    assert device.shell(["echo", "x" * 60_000]).stdout == b"x" * 60_000 + b"\n"


def test_a_missing_program_and_a_missing_folder(device: AdbDevice) -> None:
    assert device.shell(["no-such-program"]).exit_code == 127
    done = device.shell(["touch", "made"], cwd=f"{TMP}/nowhere")
    assert done.exit_code != 0
    with pytest.raises(InfrastructureError, match=r"`false` failed\n  why: exit status 1") as caught:
        device.exec_out(["false"])
    assert f"adb -s {device.identity().serial} shell false" in caught.value.fix


def test_large_output_comes_whole(device: AdbDevice) -> None:
    device.exec_out(["dd", "if=/dev/urandom", f"of={DEVICE_ROOT}/big", "bs=1M", "count=20"])
    blob = device.exec_out(["cat", f"{DEVICE_ROOT}/big"])
    assert len(blob) == 20 * MIB
    assert device.script(f"cat {DEVICE_ROOT}/big >&2").stderr == blob


# Deadlines and lost devices


@pytest.mark.parametrize(
    "command",
    ["sleep 60", "while :; do echo drip; sleep 0.1; done", "while :; do echo drip >&2; sleep 0.1; done"],
)
def test_a_deadline_holds_however_a_command_drips(device: AdbDevice, command: str) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"no end after 0\.7 s") as caught:
        device.script(command, timeout_s=0.7)
    assert time.monotonic() - started < 2.5
    assert caught.value.evidence == {"timeout_s": 0.7}
    assert device.shell(["echo", "alive"]).stdout == b"alive\n"


def test_a_device_that_goes_away_in_mid_command(
    virtual_lab: VirtualLab, transport: Transport, name: str
) -> None:
    device = over(transport, virtual_lab, name)
    trouble = threading.Timer(0.4, virtual_lab.tell, (name, "drop"))
    trouble.start()
    started = time.monotonic()
    with pytest.raises(DeviceLost, match="went away"):
        device.script("echo begin; sleep 30; echo end", timeout_s=20)
    assert time.monotonic() - started < 10
    trouble.join()
    device.reconnect()
    assert device.shell(["echo", "back"]).stdout == b"back\n"


def test_a_device_that_is_offline_and_comes_back(virtual_lab: VirtualLab, transport: Transport) -> None:
    device = over(transport, virtual_lab, "twin")
    virtual_lab.tell("twin", "offline")
    try:
        started = time.monotonic()
        with pytest.raises(DeviceLost):
            device.reconnect(timeout_s=1)
        assert time.monotonic() - started < 5
    finally:
        virtual_lab.tell("twin", "online")
    device.reconnect()
    assert device.identity().soc == "Tensor G4"


def test_a_frozen_device_runs_into_our_deadline(
    virtual_lab: VirtualLab, transport: Transport, tmp_path: Path
) -> None:
    device = over(transport, virtual_lab, "plain")
    (tmp_path / "blob").write_bytes(content(8 * MIB))
    process = virtual_lab.farms["plain"].pid
    os.kill(process, signal.SIGSTOP)
    try:
        with pytest.raises(DeadlineExceeded):
            device.shell(["true"], timeout_s=0.5)
        with pytest.raises(DeadlineExceeded):
            device.push(tmp_path / "blob", f"{TMP}/blob", timeout_s=0.5)
        with pytest.raises(DeadlineExceeded):
            device.pull(f"{TMP}/x", tmp_path / "x", timeout_s=0.5)
        with pytest.raises(DeadlineExceeded):
            device.reconnect(timeout_s=0.5)
    finally:
        os.kill(process, signal.SIGCONT)
    device.reconnect()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blob"]


def test_no_server_is_a_lost_device_and_none_is_started(
    virtual_lab: VirtualLab, transport: Transport
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    away = transport(host="127.0.0.1", port=port, serial="x", name="s24")
    with pytest.raises(AdbServerLost, match=f"no adb server at 127.0.0.1:{port}"):
        away.shell("true", timeout_s=5)
    with pytest.raises(DeviceLost, match=f"no adb server at 127.0.0.1:{port}"):
        list_attached("127.0.0.1", port)
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=1):
        pass
    serials = [serial for serial, _ in list_attached(virtual_lab.server.host, virtual_lab.server.port)]
    assert virtual_lab.serial("s24") in serials
    assert serials == sorted(serials)


def test_the_server_says_its_version_also_for_a_device_that_is_not_there(
    virtual_lab: VirtualLab, transport: Transport
) -> None:
    server = virtual_lab.server
    version = transport(host=server.host, port=server.port, serial="nobody", name="x").adb_version(
        timeout_s=5
    )
    assert version == ".".join(map(str, adb_version(find_adb())))
    assert transport(host="127.0.0.1", port=1, serial="x", name="x").adb_version(timeout_s=5) is None


def test_a_server_whose_name_is_none_is_one_that_is_not_there(transport: Transport) -> None:
    with pytest.raises(AdbServerLost, match=r"no adb server at lab\.\.local:1"):
        transport(host="lab..local", port=1, serial="x", name="s24").shell("true", timeout_s=5)


def test_an_unknown_serial_is_a_lost_device(virtual_lab: VirtualLab, transport: Transport) -> None:
    server = virtual_lab.server
    nobody = transport(host=server.host, port=server.port, serial="nobody", name="s24")
    with pytest.raises(DeviceLost, match="device 'nobody' not found"):
        nobody.shell("true", timeout_s=5)


class LyingServer:
    """Something on a port that is no adb server."""

    def __init__(self, reply: bytes) -> None:
        self._reply = reply
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.sendall(self._reply)
            with suppress(OSError):  # who asked may have heard enough and gone
                connection.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                while connection.recv(4096):
                    pass

    def close(self) -> None:
        self._thread.join()
        self._listener.close()


@pytest.mark.parametrize(
    ("reply", "error", "says"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", DeviceLost, r"b'HTTP'"),
        (b"FAILzzzz", DeviceLost, r"b'zzzz' for a length"),
        (b"", DeviceLost, "ended early"),
        (b"OKAYOKAY" + b"\3\0\0\0\0", DeviceLost, "ended early"),  # an exit packet without a status
        (b"OKAYOKAY" + b"\1\xff\xff\xff\xff", TransferError, "printed too much"),
    ],
)
def test_a_server_or_device_that_talks_nonsense(
    transport: Transport, reply: bytes, error: type[Exception], says: str
) -> None:
    liar = LyingServer(reply)
    lied_to = transport(host="127.0.0.1", port=liar.port, serial="x", name="s24")
    with pytest.raises(error, match=says):
        lied_to.shell("true", timeout_s=5)
    liar.close()


# Push and pull


@pytest.mark.parametrize(
    "size", [0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, MIB, 16 * 64 * KIB + 1, 50 * MIB]
)
def test_pushed_and_pulled_bytes_are_the_same(device: AdbDevice, tmp_path: Path, size: int) -> None:
    (tmp_path / "there").write_bytes(content(size))
    device.push(tmp_path / "there", f"{DEVICE_ROOT}/blob")
    device.pull(f"{DEVICE_ROOT}/blob", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "there").read_bytes()
    assert (device.pushed_bytes, device.pulled_bytes) == (size, size)
    assert device.exec_out(["stat", "-c", "%s", f"{DEVICE_ROOT}/blob"]) == f"{size}\n".encode()


@pytest.mark.parametrize("size", [10, 50 * MIB])
def test_a_refused_push_says_what_the_device_says(device: AdbDevice, tmp_path: Path, size: int) -> None:
    (tmp_path / "blob").write_bytes(content(size))
    with pytest.raises(TransferError, match=r"blob was refused\n  why: the device says.*: .*Read-only"):
        device.push(tmp_path / "blob", "/readonly/blob")
    assert device.pushed_bytes == 0
    assert device.shell(["echo", "alive"]).stdout == b"alive\n"


def test_a_failed_pull_leaves_what_was_there(device: AdbDevice, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"older")
    with pytest.raises(TransferError, match="No such file"):
        device.pull(f"{DEVICE_ROOT}/missing", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_bytes() == b"older"


def test_a_device_that_goes_away_in_mid_push(
    virtual_lab: VirtualLab, transport: Transport, name: str, tmp_path: Path
) -> None:
    device = over(transport, virtual_lab, name)
    with (tmp_path / "blob").open("wb") as file:
        file.truncate(3000 * MIB)
    trouble = threading.Timer(0.3, virtual_lab.tell, (name, "drop"))
    trouble.start()
    with pytest.raises(DeviceLost):
        device.push(tmp_path / "blob", f"{TMP}/huge", timeout_s=60)
    trouble.join()
    device.reconnect()
    device.exec_out(["rm", "-rf", f"{TMP}/huge"])


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (b"OKAYOKAY" + b"DATA\xff\xff\xff\x7f", "DATA|a piece of"),
        (b"OKAYOKAY" + b"DATA\4\0\0\0abc", "ended early"),
        (b"OKAYOKAY" + b"DATA\4\0\0\0abcd", "ended early"),
        (b"OKAYOKAY" + b"FAIL\4\0\0\0\xff\xfe\xfd\xfc", "device says|UTF-8"),
        (b"OKAYOKAY" + b"NEWSDONE\0\0\0\0", "NEWS"),
        (b"OKAYOKAY" + b"\xff\xff\xff\xff\0\0\0\0", "device says"),
        (b"OKAYOKAY" + b"DATA\4\0\0\0abcdDATA\4\0\0\0abcdDONE\0\0\0\0", "after 7 bytes"),
    ],
)
def test_a_pull_that_goes_wrong_leaves_nothing(
    transport: Transport, tmp_path: Path, reply: bytes, says: str
) -> None:
    liar = LyingServer(reply)
    lied_to = transport(host="127.0.0.1", port=liar.port, serial="x", name="s24")
    with pytest.raises((TransferError, DeviceLost), match=says):
        lied_to.pull("/x", tmp_path / "x", timeout_s=5, limit_bytes=7)
    assert list(tmp_path.iterdir()) == []
    liar.close()


def test_names_that_are_not_utf_8(device: AdbDevice, transport: Transport, tmp_path: Path) -> None:
    """One transport takes them; the other says that it does not, and what does."""
    (tmp_path / "blob").write_bytes(b"x")
    remote = f"{DEVICE_ROOT}/caf\udce9"
    if transport is AdbTransport:
        device.push(tmp_path / "blob", remote)
        device.pull(remote, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == b"x"
    else:
        with pytest.raises(TransferError, match=r"UTF-8 only(.|\n)*transport: adb"):
            device.push(tmp_path / "blob", remote)
        with pytest.raises(TransferError, match="UTF-8 only"):
            device.pull(remote, tmp_path / "back")


def test_no_name_of_a_file_is_interpreted(
    virtual_lab: VirtualLab, transport: Transport, tmp_path: Path
) -> None:
    device = over(transport, virtual_lab, "pixel")
    folder = f"{DEVICE_ROOT}/names"
    device.exec_out(["mkdir", "-p", folder])
    words = [word for word in (*HOSTILE, "a,33188", ",") if word and "/" not in word and word.isprintable()]
    words.append("a\nb")
    for number, word in enumerate(words):
        (tmp_path / word).write_bytes(b"%d" % number)
        device.push(tmp_path / word, f"{folder}/{word}")
    for number, word in enumerate(words):
        device.pull(f"{folder}/{word}", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == b"%d" % number
    kept = {path.name for path in (virtual_lab.root("pixel") / folder[1:]).iterdir()}
    assert kept == set(words)
    device.exec_out(["rm", "-rf", DEVICE_ROOT])


def test_a_folder_in_place_of_a_file(device: AdbDevice, tmp_path: Path) -> None:
    device.exec_out(["mkdir", "-p", f"{DEVICE_ROOT}/folder"])
    (tmp_path / "blob").write_bytes(b"x")
    with pytest.raises(TransferError, match=r"blob was refused\n  why: the device says"):
        device.push(tmp_path / "blob", f"{DEVICE_ROOT}/folder")
    with pytest.raises(TransferError, match="the device says"):
        device.pull(f"{DEVICE_ROOT}/folder", tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["blob"]


def test_a_full_disk(virtual_lab: VirtualLab, transport: Transport, tmp_path: Path) -> None:
    device = over(transport, virtual_lab, "pixel")
    (tmp_path / "blob").write_bytes(content(MIB))
    virtual_lab.tell("pixel", "fault disk_full")
    try:
        with pytest.raises(TransferError, match=r"blob was refused\n  why: .*No space left on device"):
            device.push(tmp_path / "blob", f"{TMP}/blob")
    finally:
        virtual_lab.tell("pixel", "fault clear")


def test_a_device_that_goes_away_in_mid_pull(
    virtual_lab: VirtualLab, transport: Transport, name: str, tmp_path: Path
) -> None:
    device = over(transport, virtual_lab, name)
    device.exec_out(["mkdir", "-p", DEVICE_ROOT])
    (tmp_path / "blob").write_bytes(content(8 * MIB))
    device.push(tmp_path / "blob", f"{DEVICE_ROOT}/blob")
    virtual_lab.tell(name, f"fault drop during=pull at_byte={2 * MIB}")
    try:
        with pytest.raises(DeviceLost):
            device.pull(f"{DEVICE_ROOT}/blob", tmp_path / "back")
    finally:
        virtual_lab.tell(name, "fault clear")
    assert [path.name for path in tmp_path.iterdir()] == ["blob"]
    device.reconnect()
    with pytest.raises(TransferError, match="8,388,607 bytes"):
        device.pull(f"{DEVICE_ROOT}/blob", tmp_path / "back", limit_bytes=8 * MIB - 1)
    device.pull(f"{DEVICE_ROOT}/blob", tmp_path / "back", limit_bytes=8 * MIB)
    assert (tmp_path / "back").read_bytes() == (tmp_path / "blob").read_bytes()


def test_a_stream_ends_when_the_reader_has_heard_enough(device: AdbDevice) -> None:
    heard = bytearray()

    def sink(piece: bytes) -> bool:
        heard.extend(piece)
        return len(heard) > 1000

    device.stream("while :; do echo tick; done", sink, timeout_s=20)
    assert heard.startswith(b"tick\ntick\n")
    assert device.shell(["echo", "alive"]).stdout == b"alive\n"


def test_a_connection_that_is_made_anew_and_a_reboot(virtual_lab: VirtualLab, transport: Transport) -> None:
    reached = virtual_lab.transport("twin", transport)
    reached.restart(timeout_s=10)
    reached.reconnect(timeout_s=10)
    reached.shell("setprop debug.devicelab.contract 1", timeout_s=10)
    reached.reboot(timeout_s=10)
    reached.reconnect(timeout_s=60)
    assert reached.shell("getprop debug.devicelab.contract", timeout_s=10).stdout == b"\n"


def test_a_run_over_either_has_the_same_bits(virtual_lab: VirtualLab, tmp_path: Path) -> None:
    path = FIXTURES / "digits_cnn/int8.onnx"
    records = {}
    for transport in (AdbTransport, PpadbTransport):
        request = RunRequest(
            id="m.s24.evaluate",
            model=ModelIdentity(id="m", variant="", sha256=hashlib.sha256(path.read_bytes()).hexdigest()),
            path=path,
            runtime="qnn",
            options={"offload_graph_io_quantization": "0"},
            inputs=load_inputs(FIXTURES / "digits_eval.npz", samples=2),
            purpose="evaluate",
            logging=log_profile("verbose"),
            timeout_s=60,
        )
        store = SessionStore.create(tmp_path / transport.__name__, "session")
        records[transport] = run_on_device(
            over(transport, virtual_lab, "s24"), request, store, cache=tmp_path
        )
    one, other = records.values()
    assert (one.status, one.error) == (other.status, other.error) == ("ok", "")
    assert one.outputs == other.outputs
    assert [op.name for op in one.ops] == [op.name for op in other.ops]
    assert {event.kind for event in one.events} == {event.kind for event in other.events}
