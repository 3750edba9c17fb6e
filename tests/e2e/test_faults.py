"""Every fault of a virtual device: what the real adb sees of it, and what a session makes of it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pytest_devicelab.audit.fleet import accuracy_of
from pytest_devicelab.devices.adb_server import AdbServer, find_adb, private_environment
from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.lab import Lab
from pytest_devicelab.lab.services import LabServices
from pytest_devicelab.lab.session import LabSession
from pytest_devicelab.matrix.faults import FAULTS, parse_fault
from pytest_devicelab.matrix.specs import DeviceSpec, HealthSpec, LabSpec, MatrixSpec, ModelSpec, Source
from pytest_devicelab.verdicts.determinism import judge_determinism
from pytest_devicelab.verdicts.placement import judge_placement
from pytest_devicelab.virtual.control import control
from pytest_devicelab.virtual.spawn import ServedFarm, spawn
from tests.e2e.virtual_lab import virtual_spec

FIXTURES = Path(__file__).parents[2] / "fixtures"
PLACE = Source(file="matrix.yaml", line=1, column=1)
TMP = "/data/local/tmp"
KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A device to give faults to, and `other`, which must not notice; reached by the adb binary itself."""

    server: AdbServer
    farm: ServedFarm
    home: Path

    def tell(self, *words: str) -> str:
        return control(self.farm.root("victim"), " ".join(("fault", *words)))

    def adb(
        self, *words: str, device: str = "victim", timeout_s: float = 15
    ) -> subprocess.CompletedProcess[str]:
        """Run adb; raises `subprocess.TimeoutExpired`, for adb itself waits for ever."""
        serial = f"127.0.0.1:{self.farm.ports[device]}"
        return subprocess.run(
            [str(find_adb()), "-P", str(self.server.port), "-s", serial, *words],
            env=private_environment(self.home, self.server.port),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )

    def shell(self, command: str) -> str:
        return self.adb("shell", command).stdout

    def state(self) -> str:
        listed = subprocess.run(
            [str(find_adb()), "-P", str(self.server.port), "devices"],
            env=private_environment(self.home, self.server.port),
            capture_output=True,
            text=True,
            timeout=15,
            check=True,
        ).stdout
        lines = [line.split() for line in listed.splitlines() if f":{self.farm.ports['victim']}\t" in line]
        return lines[0][1] if lines else "absent"

    def wait(self, holds: Callable[[], bool], *, timeout_s: float = 15) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline, f"not within {timeout_s} s; the device is {self.state()}"
            time.sleep(0.05)

    def answers(self) -> bool:
        try:
            return self.adb("shell", "echo here", timeout_s=2).stdout == "here\n"
        except subprocess.TimeoutExpired:
            return False

    def connected(self) -> bool:
        with suppress(InfrastructureError):  # a device that is not there yet refuses
            self.server.connect(f"127.0.0.1:{self.farm.ports['victim']}")
        return self.answers()


@pytest.fixture(scope="module")
def only_bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dl-")))
        server = stack.enter_context(AdbServer(state / "adb"))
        specs = [virtual_spec(name, "SM8650", engine="cpu") for name in ("victim", "other")]
        farm = stack.enter_context(spawn(specs, state / "v", timeout_s=60))
        for port in farm.ports.values():
            server.connect(f"127.0.0.1:{port}")
        home = state / "home"
        home.mkdir()
        yield Bench(server=server, farm=farm, home=home)


@pytest.fixture
def bench(only_bench: Bench) -> Iterator[Bench]:
    """The bench with a healthy device; afterwards the device must come back, and the other be well."""
    only_bench.wait(only_bench.answers)
    yield only_bench
    assert only_bench.adb("shell", "echo well", device="other", timeout_s=5).stdout == "well\n"
    only_bench.tell("clear")
    only_bench.wait(only_bench.connected)


def test_drop_cuts_a_push_at_the_byte(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(bytes(5000 * KIB))
    bench.tell("drop", "during=push", f"at_byte={2000 * KIB}")
    done = bench.adb("push", str(tmp_path / "blob"), f"{TMP}/blob")
    assert done.returncode == 1
    assert "failed to" in done.stdout + done.stderr
    bench.wait(bench.answers)
    assert bench.shell(f"ls {TMP}/blob 2>&1").endswith("No such file or directory\n")


def test_a_dropped_shell_is_status_255_and_no_message(bench: Bench) -> None:
    bench.tell("drop", "after_s=0.3")
    done = bench.adb("shell", "while :; do echo x; sleep 0.05; done")
    assert (done.returncode, done.stderr) == (255, "")


def test_stall_is_silent_until_the_host_reconnects(bench: Bench) -> None:
    bench.tell("stall")
    with pytest.raises(subprocess.TimeoutExpired):
        bench.adb("shell", "echo x", timeout_s=1.5)
    assert bench.state() == "device"
    bench.adb("reconnect")
    bench.wait(bench.connected)


def test_freeze_stops_everything_and_loses_nothing(bench: Bench) -> None:
    counting = "for n in 1 2 3 4 5; do echo $n; sleep 0.2; done"
    bench.tell("freeze", "after_s=0.3", "lasts_s=2")
    started = time.monotonic()
    done = bench.adb("shell", counting)
    assert done.stdout == "1\n2\n3\n4\n5\n"
    assert time.monotonic() - started > 2.5
    bench.tell("freeze")
    with pytest.raises(subprocess.TimeoutExpired):
        bench.adb("shell", "echo x", timeout_s=1)
    assert bench.state() == "device"
    assert bench.adb("shell", "echo well", device="other", timeout_s=5).stdout == "well\n"


def test_a_slow_link_takes_as_long_as_it_must(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(bytes(100 * KIB))
    bench.tell("slow_link", f"bytes_per_s={50 * KIB}")
    for words in (
        ("push", str(tmp_path / "blob"), f"{TMP}/slow"),
        ("pull", f"{TMP}/slow", str(tmp_path / "b")),
    ):
        started = time.monotonic()
        assert bench.adb(*words).returncode == 0
        assert 1.8 < time.monotonic() - started < 6
    assert (tmp_path / "b").read_bytes() == bytes(100 * KIB)


def test_offline_and_back_by_itself(bench: Bench) -> None:
    bench.tell("offline", "lasts_s=1")
    bench.wait(lambda: bench.state() != "device")
    assert bench.adb("shell", "echo x").returncode == 1
    bench.wait(bench.connected)


def test_unauthorized_until_somebody_taps_allow(bench: Bench) -> None:
    bench.tell("unauthorized")
    bench.wait(lambda: bench.state() == "unauthorized")
    done = bench.adb("shell", "echo x")
    assert done.returncode == 1
    assert "device unauthorized" in done.stderr
    bench.tell("clear", "unauthorized")
    bench.wait(bench.answers)


def test_reboot_ends_what_runs_and_keeps_files(bench: Bench) -> None:
    bench.shell(f"echo kept > {TMP}/kept; setprop debug.x 1; log -t before hello")
    bench.tell("reboot", "after_s=0.3", "down_s=1")
    assert bench.adb("shell", "echo begin; sleep 20; echo end").stdout == "begin\n"
    bench.wait(bench.connected)
    assert (
        bench.shell(f"cat {TMP}/kept; getprop debug.x; logcat -d -s before | grep -c hello") == "kept\n\n0\n"
    )


def test_a_corrupt_push_is_reported_as_good(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(bytes(300 * KIB))
    bench.tell("corrupt_push", f"at_byte={200 * KIB}")
    assert bench.adb("push", str(tmp_path / "blob"), f"{TMP}/blob").returncode == 0
    bench.adb("pull", f"{TMP}/blob", str(tmp_path / "back"))
    wrong = [at for at, byte in enumerate((tmp_path / "back").read_bytes()) if byte]
    assert wrong == [200 * KIB]
    assert bench.adb("push", str(tmp_path / "blob"), f"{TMP}/blob").returncode == 0
    bench.adb("pull", f"{TMP}/blob", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == bytes(300 * KIB)


def test_a_full_disk_refuses_a_push(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(bytes(300 * KIB))
    bench.tell("disk_full", f"free_bytes={100 * KIB}")
    assert bench.shell("df /data").splitlines()[1].split()[3] == "100"
    done = bench.adb("push", str(tmp_path / "blob"), f"{TMP}/blob")
    assert done.returncode == 1
    assert "No space left on device" in done.stdout + done.stderr


def test_a_stale_slot_has_the_old_name_and_other_bytes(bench: Bench) -> None:
    slot = f"{TMP}/devicelab/slots/abc"
    look = f"stat -c '%s %Y' {slot}/model.bin; sha256sum < {slot}/model.bin"
    bench.shell(f"mkdir -p {slot}; echo model > {slot}/model.bin")
    before = bench.shell(look).splitlines()
    bench.tell("stale_slot")
    after = bench.shell(look).splitlines()
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_a_log_overflow_breaks_a_reader_off(bench: Bench) -> None:
    bench.shell("log -t mine here")
    bench.tell("log_overflow", "after_s=0.5", "mib=4")
    done = bench.adb("shell", "logcat -b main -v brief")
    assert "mine" in done.stdout
    assert "Unexpected EOF" in done.stderr
    assert done.returncode == 1
    assert "mine" not in bench.shell("logcat -d -s mine -v brief")


def test_a_clock_jump_moves_date_and_log(bench: Bench) -> None:
    now = int(bench.shell("date +%s"))
    assert abs(now - time.time()) < 5
    bench.tell("clock_jump", "seconds=-86400")
    assert abs(int(bench.shell("date +%s")) - now + 86400) < 60
    bench.shell("log -t jumped x")
    stamped = bench.shell("logcat -d -s jumped -v epoch | tail -n 1").split()[0]
    assert abs(float(stamped) - now + 86400) < 60
    assert bench.shell("date -u -d @0 +%Y") == "1970\n"
    bench.tell("clear", "clock_jump")
    assert abs(int(bench.shell("date +%s")) - time.time()) < 5


def test_throttling_climbs_its_curve_and_cools(bench: Bench) -> None:
    bench.tell("throttle", "peak_c=44", "over_s=1")
    seen: set[str] = set()

    def hot() -> bool:
        seen.add(bench.shell("dumpsys thermalservice | grep -m 1 'Thermal Status'").strip()[-1])
        return "3" in seen

    bench.wait(hot)
    assert len(seen) > 1
    assert "mValue=44.0, mType=3, mName=skin" in bench.shell("dumpsys thermalservice")
    assert "[skin,3,44.0,3,3]" in bench.shell("logcat -d -b events")
    bench.tell("clear")
    assert "Thermal Status: 0" in bench.shell("dumpsys thermalservice")


def test_a_battery_drains_until_the_device_is_off(bench: Bench) -> None:
    bench.tell("battery_drain", "percent_per_s=40")
    drained = bench.shell("sleep 0.6; dumpsys battery")
    assert "USB powered: false" in drained
    assert "level: 85" not in drained
    bench.wait(lambda: bench.state() != "device")
    bench.tell("clear")
    bench.wait(bench.connected)
    assert "level: 85" in bench.shell("dumpsys battery")


def test_a_wrong_chip_is_what_the_device_says(bench: Bench) -> None:
    bench.tell("wrong_soc", "soc='Tensor G4'")
    assert bench.shell("getprop ro.soc.model") == "Tensor G4\n"
    bench.tell("clear")
    assert bench.shell("getprop ro.soc.model") == "SM8650\n"


def test_faults_from_the_command_line(bench: Bench) -> None:
    def fault(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest_devicelab.cli", "virtual", "fault", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    lab = ("--lab", str(bench.farm.state.parent))
    done = fault("victim", "wrong_soc", "soc=Tensor G4", *lab)
    assert (done.returncode, done.stdout) == (0, "victim: wrong_soc is done\n"), done.stderr
    assert bench.shell("getprop ro.soc.model") == "Tensor G4\n"
    assert fault("victim", "drop", "during=pull", *lab).returncode == 0
    assert fault("victim", "list", *lab).stdout == "wrong_soc (begun) drop (waits)\n"
    assert fault("victim", "clear", "wrong_soc", *lab).returncode == 0
    assert bench.shell("getprop ro.soc.model") == "SM8650\n"
    wrong = fault("victim", "drop", "at_byte=x", *lab)
    assert (wrong.returncode, "is not a whole number" in wrong.stderr) == (4, True)
    absent = fault("nobody", "drop", *lab)
    assert (absent.returncode, "no virtual device nobody is up" in absent.stderr) == (4, True)


# What a session makes of them.

RUN_TIMEOUT_S = 8.0
# The longest a run that fails may take: two attempts, each with its deadline, its way back and its log.
WHOLE_RUN_S = 110.0
# A fault, the phase it comes in, and what a session must make of it. SOUND: the verdicts of the healthy device,
# for the run was carried out whole, at a second attempt or in spite of the fault, and its bits are the same.
SOUND, INCONCLUSIVE = "sound", "inconclusive"
CASES = {
    "drop": ("at_byte=60000", SOUND),
    "stall": ("during=run", SOUND),  # a new connection works, and the run is made again
    "freeze": ("during=run", INCONCLUSIVE),
    "slow_link": ("bytes_per_s=20000 during=push", SOUND),
    "offline": ("during=run", INCONCLUSIVE),
    "unauthorized": ("during=run", INCONCLUSIVE),
    "reboot": ("during=run down_s=1", SOUND),
    "corrupt_push": ("at_byte=700 files=1", SOUND),
    "disk_full": ("free_bytes=1000 during=push", INCONCLUSIVE),
    "stale_slot": ("during=pull", SOUND),  # the second run finds it, and pushes again
    "log_overflow": (
        "during=run after_s=0.5",
        SOUND,
    ),  # the bits do not rest on the log; its loss is recorded
    "clock_jump": ("during=run seconds=-3600", SOUND),
    "throttle": ("during=push over_s=0", INCONCLUSIVE),  # a run that throttled does not count
    "battery_drain": ("during=push percent_per_s=100", INCONCLUSIVE),
    "wrong_soc": ("soc=SM8550", INCONCLUSIVE),
    "npu_crash": ("runs=9", INCONCLUSIVE),
    "short_output": ("missing_bytes=1", INCONCLUSIVE),
}


# A device whose files change after they were checked, and before the runner reads them.
CHANGED = "changed_in_run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one device: its records, the verdicts on them, and how long it took."""

    device: str
    records: tuple[RunRecord, RunRecord]
    verdicts: dict[str, str]
    took_s: float

    def row(self) -> str:
        statuses = "/".join(f"{record.status}x{len(record.attempts)}" for record in self.records)
        errors = [attempt.error for attempt in self.records[0].attempts] + [self.records[0].error]
        cause = next((error for error in errors if error), self.records[0].capture.lost)
        words = " ".join(f"{check}={outcome}" for check, outcome in self.verdicts.items())
        said = cause.partition("\n")[0][:90]
        return f"{self.device:14} {statuses:18} {self.took_s:5.1f}s {words:66} {said}"


def play(session: LabSession, spec: DeviceSpec, model: ModelSpec) -> Outcome:
    started = time.monotonic()
    first, again = session.evaluate(spec, model), session.repeat(spec, model)
    took_s = time.monotonic() - started
    assert [session.store.read_record(record.id) for record in (first, again)] == [first, again]
    verdicts = (
        judge_placement(first, model),
        judge_determinism(first, again, session.outputs(first), session.outputs(again)),
        accuracy_of(session, model, first),
    )
    return Outcome(
        device=spec.id,
        records=(first, again),
        verdicts={verdict.check: verdict.outcome for verdict in verdicts},
        took_s=took_s,
    )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """One device with each fault from its matrix, and one without, all evaluated at once in one session."""
    assert set(CASES) == set(FAULTS)
    plain = virtual_spec("healthy", "SM8650", engine="cpu")
    devices = [replace(plain, runtime="ort")]
    cases = {name: (name, words) for name, (words, _) in CASES.items()} | {
        CHANGED: ("stale_slot", "during=run")
    }
    for name, (fault, words) in cases.items():
        devices.append(replace(devices[0], id=name, faults=(parse_fault(fault, words.split()),)))
    model = ModelSpec(
        id="digits",
        path=FIXTURES / "digits_cnn/int8.onnx",
        reference=FIXTURES / "digits_cnn/float.onnx",
        source=PLACE,
        inputs=FIXTURES / "digits_eval.npz",
        runtime="ort",
        labels=FIXTURES / "digits_labels.npy",
        samples=16,
    )
    matrix = MatrixSpec(
        path=Path("matrix.yaml"),
        lab=LabSpec(run_timeout_s=RUN_TIMEOUT_S, health=HealthSpec(cool_wait_s=0)),
        devices=tuple(devices),
        models=(model,),
    )
    folder = tmp_path_factory.mktemp("faults")
    with (
        tempfile.TemporaryDirectory(prefix="dl-") as state,
        LabServices(matrix, matrix.devices, Path(state)) as services,
    ):
        session = LabSession(
            matrix=matrix,
            devices=matrix.devices,
            store=SessionStore.create(folder, "session"),
            lab=Lab(services.address, holder="test"),
            cache=folder / "cache",
            progress=lambda text: None,
        )
        with ThreadPoolExecutor(len(devices)) as pool:
            played = pool.map(lambda spec: play(session, spec, model), devices)
            return {outcome.device: outcome for outcome in played}


def test_the_table_of_faults_and_outcomes(
    outcomes: dict[str, Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(outcome.row() for outcome in outcomes.values()) + "\n")
    assert set(outcomes) == {"healthy", CHANGED, *FAULTS}


@pytest.mark.parametrize("name", CASES)
def test_no_fault_makes_a_green_run_of_a_spoilt_one(outcomes: dict[str, Outcome], name: str) -> None:
    outcome, healthy = outcomes[name], outcomes["healthy"]
    for record, sound in zip(outcome.records, healthy.records, strict=True):
        if record.status == "ok":
            assert [tensor.sha256 for tensor in record.outputs] == [tensor.sha256 for tensor in sound.outputs]
    if CASES[name][1] == INCONCLUSIVE:
        assert "pass" not in outcome.verdicts.values(), outcome.row()
        assert "fail" not in outcome.verdicts.values(), outcome.row()
    else:
        assert outcome.verdicts == healthy.verdicts


def test_no_record_speaks_of_a_model_that_was_not_the_one_that_ran(outcomes: dict[str, Outcome]) -> None:
    outcome, healthy = outcomes[CHANGED], outcomes["healthy"]
    ran, sound = outcome.records[0], healthy.records[0]
    assert ran.status != "ok" or [it.sha256 for it in ran.outputs] == [it.sha256 for it in sound.outputs]


def test_what_was_lost_or_crashed_is_in_the_record(outcomes: dict[str, Outcome]) -> None:
    first, _ = outcomes["log_overflow"].records
    assert first.capture.lost
    assert "lost_records" in {event.kind for event in first.events}
    for record in outcomes["npu_crash"].records:
        assert "npu_crash" in {event.kind for event in record.events}
    assert outcomes["drop"].records[0].attempts[0].error
    assert not outcomes["healthy"].records[0].capture.lost


@pytest.mark.parametrize("name", CASES)
def test_nothing_hangs_past_the_deadline(outcomes: dict[str, Outcome], name: str) -> None:
    for record in outcomes[name].records:
        assert sum(attempt.duration_s for attempt in record.attempts) < WHOLE_RUN_S
    assert outcomes[name].took_s < 2 * WHOLE_RUN_S


def test_a_device_beside_them_is_unaffected(outcomes: dict[str, Outcome]) -> None:
    healthy = outcomes["healthy"]
    assert [(record.status, len(record.attempts)) for record in healthy.records] == [("ok", 1), ("ok", 1)]
    assert set(healthy.verdicts.values()) == {"pass"}
