"""Two lab hosts on one Ray cluster, both on this machine; each joined with one virtual device of the same chip."""

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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.executor import ExecutorContext, require_executor
from pytest_devicelab.lab.request import make_request
from pytest_devicelab.matrix.decode import load_matrix
from pytest_devicelab.matrix.specs import MatrixSpec
from pytest_devicelab.runtimes.inputs import load_inputs

# Ray reads them when it is imported: whoever is in this cluster knows its token, and nobody else gets in.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
ray = pytest.importorskip("ray")

FIXTURES = Path(__file__).parents[2] / "fixtures"
HOST = """schema: devicelab.matrix/1
devices:
- {{id: {name}, kind: virtual, soc: Tensor G4, engine: cpu, runtime: ort}}
models:
- {{id: digits, path: "{fixtures}/digits_cnn/int8.onnx", runtime: ort}}
"""
CONTROLLER = """schema: devicelab.matrix/1
lab: {{cluster: "{address}"}}
devices:
- {{id: any_g4, kind: cluster, soc: Tensor G4, runtime: ort}}
- {{id: any_8gen3, kind: cluster, soc: SM8650}}
models:
- {{id: digits, path: "{fixtures}/digits_cnn/int8.onnx", inputs: "{fixtures}/digits_eval.npz", runtime: ort, samples: 4}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A head, and lab hosts by name: the process of `devicelab lab join`."""

    address: str
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
        environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(folder / "ray")}
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
        hosts = {}
        for name in ("north", "south"):
            matrix = folder / f"{name}.yaml"
            matrix.write_text(HOST.format(name=name, fixtures=FIXTURES))
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
            _require_up(hosts[name], name)
        yield Cluster(address=address, hosts=hosts, folder=folder)
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
    matrix.write_text(HOST.format(name="north", fixtures=FIXTURES))
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
    assert "offers 1 devices" in said[0], said
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
    path.write_text(CONTROLLER.format(address=cluster.address, fixtures=FIXTURES))
    return load_matrix(path)


def _run(
    matrix: MatrixSpec,
    device: str,
    folder: Path,
    name: str = "session",
    progress: Callable[[str], None] = lambda text: None,
) -> RunRecord:
    from pytest_devicelab.cluster.executor import ClusterExecutor

    store = SessionStore.create(folder, name)
    context = ExecutorContext(matrix=matrix, store=store, cache=folder / "cache", progress=progress)
    model, spec = matrix.models[0], matrix.device(device)
    assert model.inputs is not None
    inputs = load_inputs(model.inputs, samples=model.samples)
    request = make_request(matrix, spec, model, inputs, "evaluate", model.path)
    record = ClusterExecutor(context).carry_out(spec, request)
    assert store.read_record(record.id) == record
    assert all((store.run_folder(record.id) / file).is_file() for file in record.files.values())
    for output in record.outputs:
        store.read_output(output)
    return record


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
    record = _run(matrix, "any_8gen3", tmp_path)
    assert record.status == "failed"
    assert "no unit with chip SM8650" in record.error


def test_a_cluster_that_is_away_is_said_within_seconds(matrix: MatrixSpec, tmp_path: Path) -> None:
    away = replace(matrix, lab=replace(matrix.lab, cluster=f"127.0.0.1:{_free_port()}"))
    record = _run(away, "any_g4", tmp_path)
    assert record.status == "failed"
    assert "no Ray cluster answers at" in record.error


def test_what_cluster_devices_need_is_there() -> None:
    require_executor("cluster")


def _pytest(matrix: MatrixSpec, folder: Path) -> tuple[int, dict[str, str]]:
    """Run the standard suite on one device of the matrix; return pytest's exit status and the outcomes by check."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", f"--devices={matrix.path}"),
            *("--devicelab-select", "id=any_g4", f"--devicelab-reports={folder / 'reports'}"),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = folder / "reports/latest/session.json"
    assert said.is_file(), done.stdout + done.stderr
    verdicts = json.loads(said.read_text())["verdicts"]
    return done.returncode, {verdict["check"]: verdict["verdict"] for verdict in verdicts}


def test_a_session_over_the_cluster(matrix: MatrixSpec, cluster: Cluster, tmp_path: Path) -> None:
    status, outcomes = _pytest(matrix, tmp_path)
    assert (outcomes["determinism"], outcomes["placement"]) == ("pass", "pass")
    assert outcomes["accuracy"] == "inconclusive"  # this matrix names no float model
    assert status == 1
    paths = (tmp_path / "reports/latest/runs").glob("*/record.json")
    records = [json.loads(path.read_text()) for path in paths]
    assert {record["purpose"] for record in records} == {"evaluate", "repeat"}
    assert len({record["device"]["serial"] for record in records}) == 1


# Last: the hosts do not come back.
def test_runs_of_a_lost_host_go_to_an_equal_unit_until_there_is_none(
    matrix: MatrixSpec, cluster: Cluster, tmp_path: Path
) -> None:
    before = _run(matrix, "any_g4", tmp_path, "before")
    sent: list[str] = []

    def pull_the_plug(text: str) -> None:
        if "sent to" in text and not sent:
            sent.append(text.rpartition("|")[2])
            threading.Timer(0.2, cluster.kill, sent).start()

    after = _run(matrix, "any_g4", tmp_path, "after", pull_the_plug)
    second = {"north": "south", "south": "north"}[sent[0]]
    assert after.status == "ok", after.error
    assert after.telemetry["cluster.unit"] == second
    assert [output.sha256 for output in after.outputs] == [output.sha256 for output in before.outputs]
    cluster.kill(second)
    hole = _run(matrix, "any_g4", tmp_path, "hole")
    assert hole.status == "failed"
    assert "no unit with chip Tensor G4" in hole.error
    status, outcomes = _pytest(matrix, tmp_path)
    assert set(outcomes.values()) == {"inconclusive"}
    assert status == 1
