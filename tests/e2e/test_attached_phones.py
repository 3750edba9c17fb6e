"""Experiments on phones the matrix names by serial alone: what chip they have, and what is said when they are away."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_devicelab.audit.fingerprint.catalogue import all_probes
from pytest_devicelab.audit.fingerprint.take import take_fingerprint
from pytest_devicelab.cli import main
from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.lab.open import open_session
from pytest_devicelab.lab.recovery import Limits
from pytest_devicelab.matrix.decode import load_matrix
from pytest_devicelab.matrix.soc import Soc, soc_from_properties
from tests.e2e.audit_lab import FIXTURES
from tests.e2e.virtual_lab import VirtualLab

_MATRIX = """
schema: devicelab.matrix/1
lab: {{adb: {{host: 127.0.0.1, port: {port}}}}}
devices:
  - {{id: desk, kind: adb, serial: "{s24}"}}
  - {{id: shelf, kind: adb, serial: "{s21}"}}
  - {{id: away, kind: adb, serial: nobody}}
  - {{id: gone, kind: adb, serial: nobody_either}}
models:
  - id: cnn
    path: {fixtures}/digits_cnn/int8.onnx
    reference: {fixtures}/digits_cnn/float.onnx
    inputs: {fixtures}/digits_eval.npz
"""


@pytest.fixture
def matrix(virtual_lab: VirtualLab, tmp_path: Path) -> Path:
    path = tmp_path / "matrix.yaml"
    path.write_text(
        _MATRIX.format(
            port=virtual_lab.server.port,
            s24=virtual_lab.serial("s24"),
            s21=virtual_lab.serial("s21"),
            fixtures=FIXTURES,
        )
    )
    return path


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Phones that are away are not waited for as long as one that is starting, and each test finds that out."""
    (tmp_path / "leases").mkdir()
    monkeypatch.setenv("DEVICELAB_LEASES", str(tmp_path / "leases"))
    limits = Limits(reconnect_s=2, restart_s=1, power_cycle_s=1, reboot_s=1)
    monkeypatch.setattr("pytest_devicelab.lab.recovery.PHONE_LIMITS", limits)


def experiment(command: str, devices: str, matrix: Path, *more: str) -> int:
    reports = str(matrix.parent / "reports")
    arguments = [command, "cnn", "--devices", devices, "--matrix", str(matrix), "--samples", "2"]
    return main([*arguments, "--reports", reports, *more])


def test_a_phone_says_its_chip_to_fingerprint(matrix: Path, tmp_path: Path) -> None:
    loaded = load_matrix(matrix)
    desk = loaded.device("desk")
    probes = [probe for probe in all_probes() if probe.name == "quantize_precision_uint8"]
    with open_session(loaded, (desk,), reports=tmp_path / "reports", progress=lambda text: None) as session:
        for runtime in ("ort", "qnn"):
            taken = take_fingerprint(session, desk, probes, runtime=runtime, date="2026-11-21")
            assert (taken.device.soc, taken.device.hexagon) == ("SM8650", "V75")
            assert taken.probes[0].sha256


@pytest.mark.usefixtures("impatient")
def test_a_phone_that_is_away_has_no_fingerprint(matrix: Path, tmp_path: Path) -> None:
    loaded = load_matrix(matrix)
    away = loaded.device("away")
    with (
        open_session(loaded, (away,), reports=tmp_path / "reports", progress=lambda text: None) as session,
        pytest.raises(InfrastructureError, match="away"),
    ):
        take_fingerprint(session, away, all_probes()[:1], runtime="ort", date="2026-11-21")
    command = ["fingerprint", "--devices", "away", "--matrix", str(matrix)]
    assert main([*command, "--reports", str(tmp_path / "reports")]) == 1


def test_phones_say_their_chips_to_bisect_and_repro(
    matrix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment("bisect", "shelf,desk", matrix) == 1
    assert "desk against shelf: parts first at " in capsys.readouterr().out
    session = (tmp_path / "reports/experiments/latest").resolve()
    out = tmp_path / "bundle.zip"
    assert experiment("repro", "shelf,desk", matrix, "--out", str(out), "--resume", str(session)) == 0
    with zipfile.ZipFile(out) as archive:
        shelf, desk = json.loads(archive.read("manifest.json"))["devices"]
        assert {"contexts/shelf.bin", "contexts/desk.bin"} <= set(archive.namelist())
    assert (shelf["hexagon"], desk["hexagon"]) == ("V68", "V75")
    assert (shelf["chip"]["htp_arch"], desk["chip"]["htp_arch"]) == ("68", "75")


def without_fp16(properties: Mapping[str, str]) -> Soc:
    """The chip some properties tell of, as one without fp16: the simulator computes for none of those."""
    soc = soc_from_properties(properties)
    assert soc is not None
    return replace(soc, htp_fp16=False)


def test_a_phone_says_to_sensitivity_that_its_npu_has_no_fp16(
    matrix: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pytest_devicelab.audit.sensitivity.soc_from_properties", without_fp16)
    assert experiment("sensitivity", "shelf", matrix) in (0, 1)
    assert "not tried: the NPU of SM8350 has no fp16" in capsys.readouterr().out


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("command", ["bisect", "repro"])
def test_without_any_phone_it_cannot_be_said(
    matrix: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--out", str(tmp_path / "none.zip")] if command == "repro" else []
    assert experiment(command, "away,gone", matrix, *more) == 2
    captured = capsys.readouterr()
    said = captured.out + captured.err
    for word in ("away", "gone", "did not take part", "why: ", "fix: "):
        assert word in said
    assert "Traceback" not in said


@pytest.mark.usefixtures("impatient")
def test_without_any_phone_the_json_of_bisect_says_so(
    matrix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment("bisect", "away,gone", matrix, "--json") == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["devices"], found["curves"]) == ([], [])
    assert [device for device, _ in found["missing"]] == ["away", "gone"]
