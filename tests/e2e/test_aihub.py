"""The real qai_hub client against a loopback AI Hub, whose inference is the HTP simulator's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("qai_hub")

from pytest_devicelab.cli import main
from pytest_devicelab.errors import UserError
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.lab import Lab
from pytest_devicelab.lab.session import LabSession
from pytest_devicelab.matrix.decode import load_matrix
from pytest_devicelab.verdicts.placement import judge_placement
from pytest_devicelab.virtual.onnx_model import load_model, op_types
from tests.e2e.aihub_double.server import TOKEN, Double, serve
from tests.e2e.aihub_lab import FIXTURES, cloud_session, evaluate, write_matrix
from tests.e2e.hostile_models import FILE_NAMES, INPUT, OUTPUT, rename_onnx
from tests.e2e.virtual_lab import VirtualLab

REPO = Path(__file__).parents[2]
S24 = "id: hub_s24, kind: aihub, name: Samsung Galaxy S24"
S21 = "id: hub_s21, kind: aihub, chipset: qualcomm-snapdragon-888"


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the double compiled: once for all tests."""
    return tmp_path_factory.mktemp("contexts")


@pytest.fixture
def double(tmp_path: Path, contexts: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Double]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "double"
    folder.mkdir()
    with serve(folder, contexts) as served:
        monkeypatch.setenv("QAIHUB_CLIENT_INI", str(served.write_ini(tmp_path / "client.ini")))
        yield served


Run = Callable[..., RunRecord]


@pytest.fixture
def run(double: Double, tmp_path: Path) -> Run:
    """Evaluate on one device; a second call resumes the session, its failed record set aside."""

    def evaluated(device: str = f"{S24}, timeout_s: 30", options: str = "") -> RunRecord:
        for path in (tmp_path / "session" / "runs").glob("*/record.json"):
            path.unlink()
        matrix = write_matrix(tmp_path, device, options=options)
        (record,) = evaluate(tmp_path / "session", tmp_path / "cache", matrix).values()
        return record

    return evaluated


def test_the_bits_of_virtual_devices_of_those_chips(
    double: Double, virtual_lab: VirtualLab, tmp_path: Path
) -> None:
    matrix = load_matrix(
        write_matrix(
            tmp_path, "id: s24, kind: virtual, soc: SM8650", "id: s21, kind: virtual, soc: SM8350", S24, S21
        )
    )
    (tmp_path / "session").mkdir()
    session = LabSession(
        matrix=matrix,
        devices=matrix.devices,
        store=SessionStore.open(tmp_path / "session"),
        lab=Lab(virtual_lab.address, holder="test"),
        cache=tmp_path / "cache",
        progress=lambda text: None,
    )
    records = session.evaluate_all(matrix.models[0])
    session.close()
    assert list(records) == ["s24", "s21", "hub_s24", "hub_s21"]
    assert {record.status for record in records.values()} == {"ok"}
    bits = {name: [tensor.sha256 for tensor in record.outputs] for name, record in records.items()}
    assert bits["hub_s24"] == bits["s24"] != bits["s21"] == bits["hub_s21"]
    for name, chip, hexagon in (("hub_s24", "SM8650", "V75"), ("hub_s21", "SM8350", "V68")):
        device = records[name].device
        assert (device.kind, device.soc, device.hexagon) == ("aihub", chip, hexagon)
        assert device.simulated
        assert device.engine == "htp"
        assert device.properties["aihub.simulated_because"] == "http://127.0.0.1 is not Qualcomm's service"
        assert records[name].telemetry["aihub.inference.queue_s"]
        measured = records[name].measured
        assert measured is not None
        assert measured.simulated
        assert (measured.latency.min_us, measured.latency.inferences) == (1234.0, 3)
        assert (measured.load_us.value, measured.peak_rss_kib.value) == (56789.0, 3072.0)
        assert records[name].log_sources["logcat"] > 0
        verdict = judge_placement(records[name], matrix.models[0])
        assert (verdict.outcome, verdict.details["grade"]) == ("pass", "profile")
    assert len(double.account.names("compile_job")) == len(double.account.names("inference_job")) == 2
    # One model, two chips: uploaded once.
    assert double.requests.count("POST /api/v1/models/") == 1
    assert double.requests.count("POST /api/v1/datasets/") == 1
    assert not (tmp_path.parent / "escaped.log").exists()


def test_killed_between_submit_and_collect_and_resumed(double: Double, tmp_path: Path) -> None:
    matrix = write_matrix(tmp_path, S24, S21)
    double.account.trouble.hold = True
    command = [sys.executable, "-m", "tests.e2e.aihub_lab"]
    command += [str(tmp_path / name) for name in ("session", "cache", "matrix.yaml")]
    first = subprocess.Popen(command, cwd=REPO)
    try:
        _until(lambda: len(double.account.names("compile_job")) == 2)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    entries = sorted((tmp_path / "session" / "jobs").glob("*.json"))
    assert len([path for path in entries if not path.name.startswith("device-")]) == 2
    double.account.trouble.hold = False
    records = evaluate(tmp_path / "session", tmp_path / "cache", matrix)
    assert {record.status for record in records.values()} == {"ok"}
    for kind in ("compile_job", "inference_job"):
        names = double.account.names(kind)
        assert len(names) == len(set(names)) == 2, names


def test_a_killed_pytest_is_resumed(double: Double, tmp_path: Path) -> None:
    write_matrix(tmp_path, S24, S21)
    command = [sys.executable, "-m", "pytest", "--devices=matrix.yaml", "--devicelab-reports=reports"]
    # Without the comparison of the two chips, which runs the model tapped: that is a third model, with jobs of its own.
    command += ["-k", "placement or determinism"]
    double.account.trouble.hold = True
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        _until(lambda: len(double.account.names("compile_job")) == 2)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    double.account.trouble.hold = False
    resumed = [*command, "--devicelab-resume=latest", "--junitxml=junit.xml"]
    ran = subprocess.run(resumed, cwd=tmp_path, capture_output=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stdout.decode()
    assert b"simulated" in ran.stdout.lower()
    # One compile job a device; one inference job for each run: evaluate, and the repeat of the determinism check.
    assert len(double.account.names("compile_job")) == 2
    jobs = double.account.names("inference_job")
    assert len(jobs) == len(set(jobs)) == 4
    entries = [
        json.loads(path.read_text()) for path in (tmp_path / "reports" / "latest" / "jobs").glob("*.json")
    ]
    assert {entry["job_id"] for entry in entries if "job_id" in entry} == set(double.account.jobs)
    session = json.loads((tmp_path / "reports" / "latest" / "session.json").read_text())
    assert {device["simulated"] for device in session["devices"]} == {True}
    assert all(run["queued_s"] is not None for run in session["runs"])
    assert b" queued<" in (tmp_path / "reports" / "latest" / "report.html").read_bytes()


def test_killed_before_the_answer_was_written_down(run: Run, double: Double, tmp_path: Path) -> None:
    assert run().status == "ok"
    for path in (tmp_path / "session" / "jobs").glob("*.json"):
        if path.name.startswith("device-"):
            continue
        text = path.read_text()
        path.write_text(text.replace(text.split('"job_id": "')[1].split('"')[0], "", 1))
    assert run().status == "ok"
    assert len(double.account.names("compile_job")) == len(double.account.names("inference_job")) == 1


@pytest.mark.parametrize("listed", ["inference", "profile"])
def test_a_lost_answer_makes_no_second_job(run: Run, double: Double, listed: str) -> None:
    double.account.trouble.lose_submit = 2
    double.account.trouble.profiled_as = listed
    assert run().status == "ok"
    assert len(double.account.names("compile_job")) == len(double.account.names("inference_job")) == 1


def test_waits_for_queues_side_by_side(double: Double, tmp_path: Path) -> None:
    double.account.trouble.hold = True
    devices = [f"id: d{index}, kind: aihub, name: Samsung Galaxy S24, timeout_s: 60" for index in range(6)]
    write_matrix(tmp_path, *devices)
    command = [sys.executable, "-m", "tests.e2e.aihub_lab"]
    command += [str(tmp_path / name) for name in ("session", "cache", "matrix.yaml")]
    process = subprocess.Popen(command, cwd=REPO)
    try:
        _until(lambda: len(double.account.names("compile_job")) == 6)
    finally:
        process.kill()
        process.wait()


def test_rate_limits_are_waited_out(run: Run, double: Double) -> None:
    double.account.trouble.rate_limit = 2
    assert run().status == "ok"
    assert len(double.account.names("inference_job")) == 1


@pytest.mark.parametrize("moods", [[429, 429, 429], [503], [0]])
def test_a_moment_of_trouble_at_the_very_first_request_is_waited_out(
    run: Run, double: Double, moods: list[int]
) -> None:
    double.account.trouble.moods = moods
    record = run()
    assert record.status == "ok", record.error
    assert double.account.trouble.moods == []


@pytest.mark.parametrize("answer", ["403", "status"])
def test_quota(run: Run, double: Double, answer: str) -> None:
    double.account.trouble.quota = answer
    record = run()
    assert record.status == "failed"
    assert "ask Qualcomm for more" in record.error
    assert double.account.names("compile_job") == []


def test_an_upload_that_was_not_taken_is_not_remembered(run: Run, double: Double) -> None:
    double.account.trouble.upload = "storage quota exceeded"
    record = run()
    assert record.status == "failed"
    assert "storage quota exceeded" in record.error
    double.account.trouble.upload = ""
    assert run().status == "ok"


def test_a_model_that_does_not_compile_is_a_finding(run: Run, double: Double) -> None:
    double.account.trouble.compile_fails = ("Op Einsum is not supported", 3)
    record = run()
    assert (record.status, record.outputs) == ("refused", ())
    assert "Op Einsum is not supported" in record.error
    double.account.trouble.compile_fails = None
    assert run().status == "refused"  # resumed: the job's word stands, and none is paid for anew
    assert len(double.account.names("compile_job")) == 1


def test_a_job_that_failed_for_the_lab_is_asked_for_anew(run: Run, double: Double) -> None:
    double.account.trouble.inference_fails = ("Device lost", 2001)
    record = run()
    assert record.status == "failed"
    assert "Device lost" in record.error
    assert len(record.attempts) == 1
    double.account.trouble.inference_fails = None
    assert run().status == "ok"
    assert len(double.account.names("compile_job")) == 1
    assert len(double.account.names("inference_job")) == 2


def test_a_stuck_queue_ends_at_our_deadline_and_the_job_is_kept(run: Run, double: Double) -> None:
    double.account.trouble.hold = True
    began = time.monotonic()
    record = run(f"{S24}, timeout_s: 3")
    assert time.monotonic() - began < 10
    assert record.status == "failed"
    assert "is waiting" in record.error
    assert "not done after 3 s" in record.error
    double.account.trouble.hold = False
    assert run().status == "ok"
    assert len(double.account.names("compile_job")) == 1


def test_a_wrong_token(double: Double, run: Run, tmp_path: Path) -> None:
    double.write_ini(tmp_path / "client.ini", token="not-the-one")
    record = run()
    assert record.status == "failed"
    assert "does not accept the API token" in record.error
    assert "not-the-one" not in record.error


def test_nobody_there(double: Double, run: Run, tmp_path: Path) -> None:
    ini = tmp_path / "client.ini"
    ini.write_text(ini.read_text().replace(double.url, "http://127.0.0.1:9"))
    began = time.monotonic()
    record = run()
    assert record.status == "failed"
    assert "check the network" in record.error
    assert time.monotonic() - began < 10


def test_gone_half_way(double: Double, run: Run) -> None:
    double.account.trouble.drop_from = 8
    began = time.monotonic()
    record = run(f"{S24}, timeout_s: 2")
    assert record.status == "failed"
    assert time.monotonic() - began < 15
    double.account.trouble.drop_from = 0
    assert run().status == "ok"


def test_a_download_that_breaks_off_is_fetched_again(double: Double, run: Run) -> None:
    double.account.trouble.truncate = 1
    record = run()
    assert record.status == "ok", record.error


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("none", "has no outputs"),
        ("missing", "output logits is missing"),
        ("renamed", "output logits is missing"),
        ("short", "7 of 8 samples"),
        ("dtype", "uint8"),
    ],
)
def test_outputs_that_are_not_the_models(double: Double, run: Run, trouble: str, said: str) -> None:
    double.account.trouble.outputs = trouble
    record = run()
    assert (record.status, record.outputs) == ("failed", ())
    assert said in record.error


def test_a_layer_on_the_cpu_is_a_fallback(double: Double, run: Run, tmp_path: Path) -> None:
    double.account.trouble.cpu_layer = "a_layer"
    record = run()
    model = load_matrix(tmp_path / "matrix.yaml").models[0]
    verdict = judge_placement(record, model)
    assert verdict.outcome == "fail"
    assert "Softmax (a_layer): AI Hub's profile shows it on the CPU" in verdict.reason
    # A profile without one layer on the NPU is no evidence at all.
    silent = replace(record, ops=(), events=())
    assert judge_placement(silent, model).outcome == "inconclusive"


def test_a_compute_unit_of_tomorrow_is_no_evidence_and_no_failure(
    double: Double, run: Run, tmp_path: Path
) -> None:
    double.account.trouble.new_unit = True
    record = run()
    assert (record.status, record.ops) == ("ok", ()), record.error
    verdict = judge_placement(record, load_matrix(tmp_path / "matrix.yaml").models[0])
    # The device's log still says where it ran; the profile says nothing.
    assert verdict.details["grade"] == "logcat"


def test_compiled_here(double: Double, run: Run) -> None:
    record = run(f"{S24}, compiler: ours, timeout_s: 30", ", options: {offload_graph_io_quantization: 0}")
    assert record.status == "ok"
    assert record.options["offload_graph_io_quantization"] == "0"
    assert double.account.names("compile_job") == []
    assert (record.versions["aihub"], "qairt" in record.versions) == ("double", True)


@pytest.mark.parametrize(
    ("device", "options", "said"),
    [
        ("id: a, kind: aihub, name: Nokia 3310", "", "AI Hub has no such device now"),
        (f"{S24}, soc: SM8350", "", "is not what the matrix says"),
        (f"{S24}, runtime: ort", "", "runtime ort is not run in AI Hub"),
        (S24, ", options: {vtcm_mb: 4}", "compiler: ours"),
    ],
)
def test_what_cannot_be_asked_of_it(double: Double, run: Run, device: str, options: str, said: str) -> None:
    record = run(device, options)
    assert record.status == "failed"
    assert said in record.error
    assert not any("POST" in request for request in double.requests)


def test_quantized_there_once(double: Double, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "int8.onnx"
    arguments = ["quantize", f"{FIXTURES}/digits_cnn/float.onnx", f"--inputs={FIXTURES}/digits_eval.npz"]
    arguments += ["--samples=4", f"--out={out}", f"--reports={tmp_path}", "--timeout=30"]
    double.account.trouble.lose_submit = 1
    for _ in range(2):
        out.unlink(missing_ok=True)
        assert main(arguments) == 0
        assert capsys.readouterr().out.strip() == str(out)
        assert "QuantizeLinear" in op_types(load_model(out)).values()
    assert len(double.account.names("quantize_job")) == 1
    double.account.trouble.compile_fails = ("no such dtype", 3)
    assert main([*arguments, "--samples=5"]) == 1
    assert "no such dtype" in capsys.readouterr().err


def test_suggests_the_sets(double: Double, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suggest", "--aihub=all"]) == 0
    every = yaml.safe_load(capsys.readouterr().out)["devices"]
    assert [each["name"] for each in every] == [
        "Samsung Galaxy S21",
        "Samsung Galaxy S24",
        "Samsung Galaxy S25",
        "Xiaomi 14",
    ]
    assert every[0] == {
        "id": "samsung_galaxy_s21",
        "kind": "aihub",
        "name": "Samsung Galaxy S21",
        "os": "12",
        "runtime": "qnn",
    }
    assert main(["suggest", "--aihub=canary"]) == 0
    assert len(yaml.safe_load(capsys.readouterr().out)["devices"]) == 3


def test_no_settings(double: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(tmp_path / "none.ini"))
    with (
        cloud_session(tmp_path / "session", tmp_path / "cache", write_matrix(tmp_path, S24)) as session,
        pytest.raises(UserError, match="does not say how to reach"),
    ):
        session.evaluate_all(session.matrix.models[0])


def test_the_token_is_nowhere(double: Double, tmp_path: Path) -> None:
    """A service that says the token back, a job that fails, every log on, and locals of every frame shown."""
    double.account.trouble.echo = f"Authorization: token {TOKEN}"
    double.account.trouble.inference_fails = (f"denied for token {TOKEN}", 2001)
    folder = tmp_path / "project"
    folder.mkdir()
    write_matrix(folder, S24, f"{S21}, compiler: ours")
    (folder / "test_own.py").write_text(
        "def test_own(run_model, model):\n    run = run_model(model)\n    assert run is None\n"
        "def test_all(fleet, model):\n    records = fleet.records(model)\n    assert records is None\n"
        "def test_held(device):\n    assert device is None\n"
    )
    double.account.trouble.lose_submit = 1
    command = [sys.executable, "-m", "pytest", "--devices=matrix.yaml", "--devicelab-reports=reports"]
    command += ["--showlocals", "--tb=long", "-vv", "-rA", "--log-level=DEBUG", "--junitxml=junit.xml"]
    environment = {**os.environ, "HOME": str(folder), "PYTEST_ADDOPTS": ""}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=120, check=False)
    assert ran.returncode not in (0, 4, 5), ran.stdout.decode()
    said = ran.stdout + ran.stderr
    assert b"denied for token ***" in said
    assert b"cannot be held in a test's hands" in said
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "record.json" for path in written)
    leaks = [str(path) for path in written if TOKEN.encode() in path.read_bytes()]
    assert leaks == []
    assert TOKEN.encode() not in said


@pytest.mark.parametrize("fails", [False, True])
def test_a_token_that_the_service_says_back(double: Double, run: Run, tmp_path: Path, fails: bool) -> None:
    double.account.trouble.echo = f"Authorization: token {TOKEN}"
    double.account.trouble.compile_fails = ("not supported", 3) if fails else None
    record = run()
    assert record.status == ("refused" if fails else "ok")
    assert "token ***" in record.versions["aihub"]
    assert "note:Authorization: token ***" in record.device.properties["aihub.attributes"]
    if not fails:
        assert b"token ***" in (tmp_path / "session" / "runs" / record.id / "logcat.txt").read_bytes()
    folders = (tmp_path / "session", tmp_path / "cache")
    written = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []


def test_a_bundle_for_a_vendor_has_no_token(double: Double, tmp_path: Path) -> None:
    double.account.trouble.echo = f"Authorization: token {TOKEN}"
    matrix, out = write_matrix(tmp_path, S24, S21), tmp_path / "repro.zip"
    arguments = ["repro", "cnn", f"--matrix={matrix}", "--devices=hub_s24,hub_s21", "--samples=2"]
    assert main([*arguments, f"--reports={tmp_path / 'reports'}", f"--out={out}"]) == 0
    with zipfile.ZipFile(out) as bundle:
        contents = {name: bundle.read(name) for name in bundle.namelist()}
    assert b"token " in contents["logs/hub_s21/logcat.txt"]
    assert [name for name, content in contents.items() if TOKEN.encode() in content] == []


def _until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def test_hostile_names_of_model_input_and_output(
    double: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    # A matrix takes no control characters in a path.
    name = "".join(char for char in FILE_NAMES[0] if char.isprintable())
    model = rename_onnx(FIXTURES / "digits_cnn/int8.onnx", tmp_path / f"{name}.onnx")
    with np.load(FIXTURES / "digits_eval.npz") as images:
        np.savez(tmp_path / "inputs.npz", **{INPUT: images["image"][:2]})
    entry = {"id": "cnn", "path": model.name, "inputs": "inputs.npz", "runtime": "qnn"}
    device = {"id": "hub_s24", "kind": "aihub", "name": "Samsung Galaxy S24", "timeout_s": 60}
    matrix = tmp_path / "matrix.yaml"
    matrix.write_text(
        yaml.safe_dump(
            {"schema": "devicelab.matrix/1", "devices": [device], "models": [entry]}, allow_unicode=True
        )
    )
    (record,) = evaluate(tmp_path / "session", tmp_path / "cache", matrix).values()
    assert record.status == "ok", record.error
    assert [output.name for output in record.outputs] == [OUTPUT]
    assert list(here.iterdir()) == []
    assert not [path for path in tmp_path.rglob("*pwned*") if "touch" not in path.name]
