"""Lab hosts on one Ray cluster, all on this machine: both with a virtual device of one chip, one with others too."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pytest_devicelab.cluster.errand import loads, send
from pytest_devicelab.cluster.names import chip_of, serial_of
from pytest_devicelab.cluster.ray_edge import NAMESPACE, answers, connect
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.executor import ExecutorContext, require_executor
from pytest_devicelab.lab.lease import standings
from pytest_devicelab.lab.request import make_request
from pytest_devicelab.matrix.decode import load_matrix
from pytest_devicelab.matrix.specs import MatrixSpec
from pytest_devicelab.runtimes.inputs import load_inputs

# Ray reads them when it is imported: whoever is in this cluster knows its token, and nobody else gets in.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
ray = pytest.importorskip("ray")

FIXTURES = Path(__file__).parents[2] / "fixtures"
TAG = secrets.token_hex(3)
HELD = f"held_{TAG}"
DEVICES = {
    "north": ["{id: north, kind: virtual, soc: Tensor G4, engine: cpu, runtime: ort}"],
    "south": [
        "{id: south, kind: virtual, soc: Tensor G4, engine: cpu, runtime: ort}",
        "{id: gen3, kind: virtual, soc: SM8650}",
        f'{{id: {HELD}, kind: virtual, soc: SM8550, engine: "tests.e2e.cluster_engines:held", runtime: ort}}',
    ],
}
MODEL = f"""models:
- {{id: digits, path: "{FIXTURES}/digits_cnn/int8.onnx", inputs: "{FIXTURES}/digits_eval.npz", samples: 4}}
"""
CONTROLLER = """schema: devicelab.matrix/1
lab: {{cluster: "{address}"}}
devices:
- {{id: any_g4, kind: cluster, soc: Tensor G4, runtime: ort}}
- {{id: any_8gen3, kind: cluster, soc: SM8650}}
- {{id: any_8gen2, kind: cluster, soc: SM8550, runtime: ort}}
- {{id: any_8gen1, kind: cluster, soc: SM8450}}
"""
LOCAL = """schema: devicelab.matrix/1
devices:
- {id: any_g4, kind: virtual, soc: Tensor G4, engine: cpu, runtime: ort}
- {id: any_8gen3, kind: virtual, soc: SM8650}
"""


def _host(name: str) -> str:
    return "schema: devicelab.matrix/1\ndevices:\n" + "".join(f"- {each}\n" for each in DEVICES[name]) + MODEL


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A head, and lab hosts by name: the process of `devicelab lab join`."""

    address: str
    head: subprocess.Popen[bytes]
    hosts: dict[str, subprocess.Popen[str]]
    folder: Path

    def kill(self, name: str) -> None:
        """Kill a lab host and all that runs on it, as when its power fails."""
        os.killpg(self.hosts[name].pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    address = f"127.0.0.1:{_free_port()}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dl-ray-")))
        environment = os.environ | {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": str(folder / "ray"),
            "DEVICELAB_LEASES": str(folder / "leases"),
            "PYTHONPATH": str(FIXTURES.parent),
        }
        log = stack.enter_context((folder / "head.log").open("wb"))
        head = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *("--node-ip-address=127.0.0.1", f"--port={address.rpartition(':')[2]}"),
                *("--num-cpus=0", "--include-dashboard=false", "--disable-usage-stats"),
            ],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        stack.callback(_end, head)
        _until(lambda: answers(address))
        hosts = {}
        for name in DEVICES:
            matrix = folder / f"{name}.yaml"
            matrix.write_text(_host(name))
            hosts[name] = subprocess.Popen(
                [
                    *(sys.executable, "-m", "pytest_devicelab.cli", "lab", "join", f"--address={address}"),
                    *(f"--devices={matrix}", f"--cache={folder / 'cache'}"),
                ],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            stack.callback(_end, hosts[name])
            # One after another: nodes that start on one address at the same time get in each other's way.
            _require_up(hosts[name], name)
        yield Cluster(address=address, head=head, hosts=hosts, folder=folder)
        ray.shutdown()


def test_without_the_token_nobody_gets_in(cluster: Cluster) -> None:
    """Ray's ports are open to all interfaces, so this is what keeps others from running programs here."""
    asked = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", cluster.address]
    others = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    for environment, said in (
        (dict(os.environ), ""),
        (others, "InvalidAuthToken"),
        (others | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, "InvalidAuthToken"),
    ):
        done = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode == 0) == (not said), done.stderr
        assert said in done.stderr


def test_a_lab_host_does_not_open_itself_to_everybody(tmp_path: Path) -> None:
    matrix = tmp_path / "rack.yaml"
    matrix.write_text(_host("north"))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest_devicelab.cli", "lab", "join"),
            *("--address=127.0.0.1:1", f"--devices={matrix}"),
        ],
        env={key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "would run the programs of whoever reaches its ports" in done.stderr
    assert "--without-token" in done.stderr


def _require_up(process: subprocess.Popen[str], name: str) -> None:
    assert process.stdout is not None
    said = [process.stdout.readline(), process.stdout.readline()]
    assert f"offers {len(DEVICES[name])} devices" in said[0], said
    assert name in said[1], said


def _end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)
    if process.stdout is not None:
        process.stdout.close()


@pytest.fixture
def matrix(cluster: Cluster, tmp_path: Path) -> MatrixSpec:
    path = tmp_path / "matrix.yaml"
    path.write_text(CONTROLLER.format(address=cluster.address) + MODEL)
    return load_matrix(path)


def _run(
    matrix: MatrixSpec,
    device: str,
    folder: Path,
    name: str = "session",
    progress: Callable[[str], None] = lambda text: None,
    unit: str = "",
) -> RunRecord:
    from pytest_devicelab.cluster.executor import ClusterExecutor

    store = SessionStore.create(folder, name)
    context = ExecutorContext(matrix=matrix, store=store, cache=folder / "cache", progress=progress)
    model, spec = matrix.models[0], matrix.device(device)
    assert model.inputs is not None
    inputs = load_inputs(model.inputs, samples=model.samples)
    request = make_request(matrix, spec, model, inputs, "evaluate", model.path)
    executor = ClusterExecutor(context)
    record = executor.carry_out(spec, replace(request, unit=unit))
    executor.close()
    assert store.read_record(record.id) == record
    assert all((store.run_folder(record.id) / file).is_file() for file in record.files.values())
    for output in record.outputs:
        store.read_output(output)
    return record


def _units(cluster: Cluster, chip: str) -> dict[str, Any]:
    """Return the units of a chip in the cluster, by name."""
    connect(cluster.address)
    named = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True)]
    return {name: ray.get_actor(name, namespace=NAMESPACE) for name in named if chip_of(name) == chip}


def test_a_run_is_carried_out_beside_the_lab_host_and_comes_back_whole(
    matrix: MatrixSpec, cluster: Cluster, tmp_path: Path
) -> None:
    record = _run(matrix, "any_g4", tmp_path)
    assert record.status == "ok", record.error
    assert record.device.id == "any_g4"
    assert record.device.simulated
    assert record.telemetry["cluster.unit"] in {"north", "south"}
    assert record.log_sources["logcat"] > 0
    assert "stdout.txt" in record.files or "logcat.txt" in record.files


def test_a_chip_nobody_has_is_a_hole_and_not_a_pass(
    matrix: MatrixSpec, cluster: Cluster, tmp_path: Path
) -> None:
    record = _run(matrix, "any_8gen1", tmp_path)
    assert record.status == "failed"
    assert "no unit with chip SM8450" in record.error


def test_a_cluster_that_is_away_is_said_within_seconds(matrix: MatrixSpec, tmp_path: Path) -> None:
    away = replace(matrix, lab=replace(matrix.lab, cluster=f"127.0.0.1:{_free_port()}"))
    record = _run(away, "any_g4", tmp_path)
    assert record.status == "failed"
    assert "no Ray cluster answers at" in record.error


def test_what_cluster_devices_need_is_there() -> None:
    require_executor("cluster")


def _pytest(matrix: Path, folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run the standard suite in a folder of its own; return pytest's exit status and what its session.json says."""
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", f"--devices={matrix}"),
            *(f"--devicelab-reports={folder / 'reports'}", *arguments),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    said = folder / "reports/latest/session.json"
    assert said.is_file(), done.stdout + done.stderr
    session: dict[str, Any] = json.loads(said.read_text())
    return done.returncode, session


def _outcomes(session: dict[str, Any]) -> dict[str, str]:
    return {verdict["check"]: verdict["verdict"] for verdict in session["verdicts"]}


def _verdicts(session: dict[str, Any]) -> list[tuple[str, ...]]:
    keys = ("check", "model", "devices", "verdict", "reason")
    return sorted(tuple(str(verdict.get(key)) for key in keys) for verdict in session["verdicts"])


def _records(folder: Path) -> dict[str, dict[str, Any]]:
    paths = (folder / "reports/latest/runs").glob("*/record.json")
    return {record["id"]: record for record in (json.loads(path.read_text()) for path in paths)}


def _lasting(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record without what differs from one run to the next: when, how long, in which process, on which unit."""
    passing = {
        "time",
        "pid",
        "offset",
        "raw",
        "cycles",
        "started",
        "duration_s",
        "spared_bytes",
        "pulled_bytes",
    }

    def lasting(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: lasting(each) for key, each in value.items() if key not in passing}
        return [lasting(each) for each in value] if isinstance(value, list) else value

    kept: dict[str, Any] = lasting(record)
    del kept["session"], kept["transfers"], kept["device"]["kind"], kept["device"]["serial"]
    telemetry = kept["telemetry"]
    kept["telemetry"] = sorted(key for key in telemetry if not key.startswith("cluster."))
    return kept


def test_a_session_over_the_cluster_is_the_one_beside_the_devices(
    matrix: MatrixSpec, cluster: Cluster, tmp_path: Path
) -> None:
    local = tmp_path / "local.yaml"
    local.write_text(LOCAL + MODEL)
    chosen = ("--devicelab-select", "soc!=SM8550,soc!=SM8450")
    status_here, session_here = _pytest(local, tmp_path / "here", *chosen)
    status_there, session_there = _pytest(matrix.path, tmp_path / "there", *chosen, "-n", "2")
    assert status_there == status_here
    assert _verdicts(session_there) == _verdicts(session_here)
    here, there = _records(tmp_path / "here"), _records(tmp_path / "there")
    assert len(here) >= 4
    assert there.keys() == here.keys()
    for name, record in here.items():
        assert _lasting(there[name]) == _lasting(record)
        assert there[name]["device"]["kind"] == "cluster"
        assert there[name]["telemetry"]["cluster.unit"] in {"north", "south", "gen3"}
    # What determinism rests on is a repeat on the very unit of the first run.
    units = {
        (each["device"]["id"], each["device"]["serial"])
        for each in there.values()
        if each["purpose"] in {"evaluate", "repeat"}
    }
    assert len(units) == 2


def _until(what: Callable[[], bool], limit_s: float = 90.0) -> float:
    """Wait for a condition; return how long it took, in seconds."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < limit_s
        time.sleep(0.1)
    return time.monotonic() - began


def _runners() -> set[int]:
    """Return the processes of the device HELD that run a model."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (
                HELD.encode() in (process / "environ").read_bytes()
                and b"ort-run" in (process / "cmdline").read_bytes()
            ):
                found.add(int(process.name))
    return found


def _is_let_go(cluster: Cluster) -> bool:
    """Say whether nothing runs on the device HELD, and nobody holds it."""
    held = [
        each
        for each in standings(cluster.folder / "leases")
        if each.holding and each.holding.claim.name == HELD
    ]
    return not _runners() and not held


def test_two_controllers_have_equal_units_work_at_the_same_time(
    matrix: MatrixSpec, cluster: Cluster, tmp_path: Path
) -> None:
    records = []
    first = threading.Thread(target=lambda: records.append(_run(matrix, "any_g4", tmp_path / "first")))
    units = _units(cluster, "Tensor G4")
    assert len(units) == 2
    first.start()
    _until(lambda: 1.0 in loads(ray, units).values())
    records.append(_run(matrix, "any_g4", tmp_path / "second"))  # an executor that knows nothing of the first
    first.join()
    assert [record.status for record in records] == ["ok", "ok"]
    assert {record.telemetry["cluster.unit"] for record in records} == {"north", "south"}


def test_a_run_past_its_deadline_is_ended_on_its_host(
    matrix: MatrixSpec, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = threading.Event()

    def allowed(*arguments: Any, **words: Any) -> Any:
        return send(*arguments, **{**words, "allowed_s": 8.0})

    monkeypatch.setattr("pytest_devicelab.cluster.executor.send", allowed)

    def watch() -> None:
        _until(lambda: bool(_runners()))
        began.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    record = _run(matrix, "any_8gen2", tmp_path)
    watcher.join()
    assert began.is_set()
    assert record.status == "failed"
    assert record.attempts[-1].failure == "deadline"
    assert "the run was ended there" in record.error
    _until(lambda: _is_let_go(cluster))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_whose_controller_ends_is_ended_on_its_host(
    matrix: MatrixSpec, cluster: Cluster, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    controller = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            f"--devices={matrix.path}",
            "--devicelab-select",
            "id=any_8gen2",
        ],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _until(lambda: bool(_runners()))
        assert not _is_let_go(cluster)
        controller.send_signal(number)
        # The held run would end after ten minutes.
        assert controller.wait(60) == (-number if number == signal.SIGKILL else pytest.ExitCode.INTERRUPTED)
    finally:
        _end(controller)
    _until(lambda: _is_let_go(cluster))
    assert not list(tmp_path.glob("reports/*/runs/*/record.json"))


# From here on: the hosts do not come back.
def test_runs_of_a_lost_host_go_to_an_equal_unit_until_there_is_none(
    matrix: MatrixSpec, cluster: Cluster, tmp_path: Path
) -> None:
    before = _run(matrix, "any_g4", tmp_path, "before")
    units = _units(cluster, "Tensor G4")
    north, south = sorted(units, key=lambda name: name.rpartition("|")[2])
    sent: list[str] = []

    def pull_the_plug(text: str) -> None:
        if "sent to" in text and not sent:
            sent.append(text)
            threading.Timer(0.2, cluster.kill, ["north"]).start()

    after = _run(matrix, "any_g4", tmp_path, "after", pull_the_plug, unit=serial_of(north, ""))
    assert north in sent[0]
    assert after.status == "ok", after.error
    assert after.telemetry["cluster.unit"] == "south"
    assert [attempt.failure for attempt in after.attempts] == ["lost", ""]
    assert [output.sha256 for output in after.outputs] == [output.sha256 for output in before.outputs]
    ray.kill(units[south])
    hole = _run(matrix, "any_g4", tmp_path, "hole")
    assert hole.status == "failed"
    assert "no unit with chip Tensor G4" in hole.error


def test_a_head_that_is_lost_ends_runs_and_not_the_session(
    matrix: MatrixSpec, cluster: Cluster, tmp_path: Path
) -> None:
    def behead() -> None:
        _until(lambda: bool(_runners()))
        os.killpg(cluster.head.pid, signal.SIGKILL)

    killer = threading.Thread(target=behead)
    killer.start()
    status, session = _pytest(matrix.path, tmp_path / "there", "--devicelab-select", "id=any_8gen2")
    killer.join()
    assert status == 1
    assert set(_outcomes(session).values()) == {"inconclusive"}
    errors = [record["error"] for record in _records(tmp_path / "there").values()]
    assert any("the head of the Ray cluster" in error for error in errors), errors
    assert cluster.hosts["south"].wait(90) != 0
    _until(lambda: _is_let_go(cluster))
