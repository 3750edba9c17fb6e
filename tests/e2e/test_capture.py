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
from pytest_devicelab.evidence.record import ModelIdentity, RunRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.attempts import run_on_device
from pytest_devicelab.lab.request import RunRequest
from pytest_devicelab.matrix.specs import LogProfile, ModelSpec, Source
from pytest_devicelab.runtimes.inputs import load_inputs
from pytest_devicelab.verdicts.placement import judge_placement
from pytest_devicelab.virtual import logd
from pytest_devicelab.virtual.engine import LogLine
from tests.e2e.virtual_lab import VirtualLab

FIXTURES = Path(__file__).parents[2] / "fixtures"
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
    assert not spool.exists()


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


def test_each_buffer_that_overflowed_is_named(virtual_lab: VirtualLab, deaf: AdbDevice, watch: Watch) -> None:
    line = LogLine(tag="noise", priority="I", message="x" * 3000)

    def flood(count: int) -> None:
        logd.write(virtual_lab.root("pixel"), [line] * count, pid=1, tid=1, buffer="system")

    flood(1)
    window = watch(deaf, "cd33")
    deaf.exec_out(["log", "-t", "mine", "inside"])
    flood(1)
    assert watch(deaf, "cd34").close().lost == ""
    deaf.exec_out(["logcat", "-b", "system", "-G", "64K"])
    flood(100)
    found = window.close()
    assert b"mine    : inside" in found.data
    assert found.lost == "buffer system no longer held the beginning of this run"


def test_what_a_stream_brought_before_it_broke_is_kept(
    virtual_lab: VirtualLab, watch: Watch, tmp_path: Path
) -> None:
    class Breaking(AdbTransport):
        def stream(self, command: str, sink: Callable[[bytes], bool], *, timeout_s: float) -> None:
            def until_first(data: bytes) -> bool:
                return sink(data) or b"first" in data

            super().stream(command, until_first, timeout_s=timeout_s)

    server = virtual_lab.server
    cable = Breaking(host=server.host, port=server.port, serial=virtual_lab.serial("pixel"), name="pixel")
    device = AdbDevice(virtual_lab.specs["pixel"], cable)
    window = watch(device, "cf33")
    device.exec_out(["log", "-t", "mine", "first"])
    assert eventually(lambda: b"first" in (tmp_path / "logcat.part").read_bytes())
    device.exec_out(["logcat", "-c"])
    device.exec_out(["log", "-t", "mine", "second"])
    found = window.close()
    assert (messages(found.data), found.streamed) == ([b"first"], False)
    assert "no longer held the beginning" in found.lost


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
    with pytest.raises(KeyboardInterrupt), farf_file(device, DEVICE_ROOT, "qnn-net-run", "0x1f"):
        raise KeyboardInterrupt
    assert device.script(f"test -e {file}").exit_code == 1


def test_a_farf_file_that_cannot_be_written(device: AdbDevice) -> None:
    with (
        pytest.raises(InfrastructureError, match=r"qnn-net-run\.farf could not be written"),
        farf_file(device, f"{DEVICE_ROOT}/nowhere", "qnn-net-run", "0x1f"),
    ):
        pytest.fail("the block must not run")


# The demo model whose LayerNormalization the NPU refuses

CHANNELNORM = ModelSpec(
    id="channelnorm",
    path=FIXTURES / "digits_channelnorm" / "int8.onnx",
    source=Source(file="matrix.yaml", line=1, column=1),
    inputs=FIXTURES / "digits_eval.npz",
    runtime="ort",
    samples=2,
)
LOUD = LogProfile(
    level="verbose", properties={"debug.nn.vlog": "all", "debug.mine": "1"}, farf="0x1f", buffer_bytes=4 << 20
)


@pytest.fixture
def run(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunRecord]:
    store = SessionStore.create(tmp_path / "reports", "session")

    def run(device: AdbDevice, logging: LogProfile) -> RunRecord:
        assert CHANNELNORM.inputs is not None
        request = RunRequest(
            id=f"channelnorm.{logging.level}",
            model=ModelIdentity(id="channelnorm", variant="", sha256="0" * 64),
            path=CHANNELNORM.path,
            runtime="ort",
            options={"offload_graph_io_quantization": "0"},
            inputs=load_inputs(CHANNELNORM.inputs, samples=CHANNELNORM.samples),
            purpose="evaluate",
            logging=logging,
            timeout_s=60,
        )
        record = run_on_device(device, request, store, cache=tmp_path_factory.getbasetemp() / "capture-cache")
        assert (record.status, record.error) == ("ok", "")
        return record

    return run


@pytest.fixture
def without_placement(virtual_lab: VirtualLab) -> Iterator[None]:
    """Make `ort-run` on `s24` a runtime that gives no graph assignment and no op profile."""
    path = virtual_lab.root("s24") / "system/bin/ort-run"
    genuine = path.read_bytes()
    path.with_name("ort-run-genuine").write_bytes(genuine)
    path.with_name("ort-run-genuine").chmod(0o755)
    path.write_text(
        "#!/bin/sh\n"
        'for word in "$@"; do case $word in --output_dir=*) out=${word#*=} ;; esac; done\n'
        'ort-run-genuine "$@" || exit\n'
        'rm "$out/placement.json" "$out/ops.json" "$out/profile.csv"\n'
    )
    yield
    path.write_bytes(genuine)
    path.with_name("ort-run-genuine").unlink()


def test_three_independent_sources_find_the_fallback(
    virtual_lab: VirtualLab, run: Callable[..., RunRecord], tmp_path: Path
) -> None:
    device = virtual_lab.device("s24")
    record = run(device, LOUD)
    verdict = judge_placement(record, CHANNELNORM)
    assert verdict.outcome == "fail"
    assert verdict.details["fallbacks"] == [
        {
            "op": "LayerNormalization",
            "node": "channel_norm",
            "reason": "QNN LayerNorm on HTP only supports normalization along the last axis.",
            "expected": False,
            "expected_reason": "",
            "sources": ["graph assignment", "op profile", "logcat"],
        }
    ]
    assert verdict.details["agreeing"] == ["graph assignment", "op profile", "logcat"]
    assert verdict.details["log_switch"] == "worked"
    shares = verdict.details["shares"]
    assert isinstance(shares, dict)
    assert (shares["macs"], shares["time"]) == ({"cpu": 0.0, "htp": 1.0}, None)
    capture = record.capture
    assert (capture.level, capture.streamed, capture.lost) == ("verbose", True, "")
    assert capture.buffers["main"] >= capture.buffer_bytes == 4 << 20
    assert capture.pid is not None
    assert {event.pid for event in record.events if event.source == "logcat"} == {capture.pid}
    assert capture.heard["V"] > 100
    assert device.getprop("debug.mine") == device.getprop("debug.nn.vlog") == ""
    assert device.script(f"find {DEVICE_ROOT} -name '*.farf'").text == ""
    assert not list((tmp_path / "reports").rglob("*.part"))


def test_with_logging_off_the_assignment_still_stands(
    virtual_lab: VirtualLab, run: Callable[..., RunRecord]
) -> None:
    device = virtual_lab.device("s24")
    verdict = judge_placement(run(device, LogProfile(level="off")), CHANNELNORM)
    assert verdict.outcome == "fail"
    assert verdict.details["agreeing"] == ["graph assignment", "op profile"]
    assert verdict.details["log_switch"] == "not asked"
    assert verdict.reason.endswith("The logs are silent because logging is off.")


@pytest.mark.usefixtures("without_placement")
def test_with_logging_off_and_nothing_else_there_is_no_evidence(
    virtual_lab: VirtualLab, run: Callable[..., RunRecord]
) -> None:
    verdict = judge_placement(run(virtual_lab.device("s24"), LogProfile(level="off")), CHANNELNORM)
    assert (verdict.outcome, verdict.details["grade"]) == ("inconclusive", "none")
    assert verdict.reason.startswith("no evidence: ")
    assert verdict.reason.endswith("The logs are silent because logging is off.")
    loud = judge_placement(run(virtual_lab.device("s24"), LOUD), CHANNELNORM)
    assert (loud.outcome, loud.details["grade"]) == ("fail", "logcat"), "the log alone finds it"
    assert loud.details["log_switch"] == "worked"


def test_a_log_switch_that_a_killed_holder_left_is_removed(
    virtual_lab: VirtualLab, run: Callable[..., RunRecord]
) -> None:
    device = virtual_lab.device("s24")
    run(device, LogProfile(level="off"))
    lists = device.script(f"find {DEVICE_ROOT}/slots -name input_list.txt").text.split()
    left = [f"{Path(file).parent}/ort-run.farf" for file in lists]
    assert left
    device.exec_out(["touch", *left])
    run(device, LogProfile(level="off"))
    remaining = device.script(f"find {DEVICE_ROOT}/slots -name ort-run.farf").text.split()
    device.exec_out(["rm", "-f", *left])
    assert len(remaining) == len(left) - 1, "that of the inputs this run is about"
