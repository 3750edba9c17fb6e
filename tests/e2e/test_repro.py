from __future__ import annotations

import getpass
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_devicelab.cli import main
from pytest_devicelab.devices.adb_server import find_adb
from tests.e2e.audit_lab import digits_matrix
from tests.e2e.virtual_lab import VirtualLab

# Runs a script as if this project were not installed.
_ALONE = """
import runpy, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pytest_devicelab":
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Block())
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which `devicelab repro` left `bundle.zip`."""
    folder = tmp_path_factory.mktemp("repro")
    assert repro(folder, digits_matrix(folder), "v69,v75,v79", "bundle.zip") == 0
    return folder


def repro(folder: Path, matrix: Path, devices: str, out: str, *more: str) -> int:
    arguments = ["repro", "transformer", "--devices", devices, "--matrix", str(matrix), "--samples", "4"]
    return main([*arguments, "--reports", str(folder / "reports"), "--out", str(folder / out), *more])


@pytest.fixture
def unpacked(made: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    with zipfile.ZipFile(made / "bundle.zip") as archive:
        archive.extractall(folder)
    return folder


def run_alone(folder: Path) -> subprocess.CompletedProcess[str]:
    script = str(folder / "reproduce_simulator.py")
    command = [sys.executable, "-I", "-c", _ALONE, script]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def manifest(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())


def test_the_bundle_shows_the_difference_by_itself(unpacked: Path) -> None:
    done = run_alone(unpacked)
    assert done.returncode == 0, done.stdout + done.stderr
    said = manifest(unpacked)
    assert (said["op"], said["node"]) == ("MatMul", "embed_matmul")
    assert len(said["nodes"]) == 4
    count = said["differences"]["v75"]["elements_different"]
    assert count > 0
    name = "embed_matmul_QuantizeLinear_Output"
    assert f"v75 against v69, {name}: {count} of " in done.stdout
    assert "v79 (SM8750, V79): the recorded bits" in done.stdout


def test_the_script_notices_when_bits_are_not_the_recorded_ones(unpacked: Path) -> None:
    path = unpacked / "outputs/v75/0.npy"
    array = np.load(path)
    array.flat[0] += 1
    np.save(path, array)
    done = run_alone(unpacked)
    assert done.returncode == 1
    assert "v75 (SM8650, V75): NOT the recorded bits" in done.stdout


def test_the_script_does_not_report_a_difference_that_is_gone(unpacked: Path) -> None:
    said = manifest(unpacked)
    said["devices"] = [device for device in said["devices"] if device["id"] != "v69"]
    (unpacked / "manifest.json").write_text(json.dumps(said))
    done = run_alone(unpacked)
    assert done.returncode == 1
    assert "v79 against v75, embed_matmul_QuantizeLinear_Output: 0 of " in done.stdout


def run_on_phone(folder: Path, lab: VirtualLab, device: str, serial: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ADB": str(find_adb()), "ANDROID_ADB_SERVER_PORT": str(lab.server.port)}
    command = ["sh", "reproduce_phone.sh", device, serial]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_phone_script_shows_the_recorded_bits_through_adb(
    unpacked: Path, virtual_lab: VirtualLab
) -> None:
    done = run_on_phone(unpacked, virtual_lab, "v75", virtual_lab.serial("s24"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "v75, output 0: the recorded bits" in done.stdout


def test_the_phone_script_fails_on_another_chip(unpacked: Path, virtual_lab: VirtualLab) -> None:
    assert run_on_phone(unpacked, virtual_lab, "v69", virtual_lab.serial("s24")).returncode != 0
    assert run_on_phone(unpacked, virtual_lab, "v99", virtual_lab.serial("s24")).returncode == 1


def test_the_same_records_give_the_same_bytes(made: Path) -> None:
    session = (made / "reports/experiments/latest").resolve()
    assert repro(made, made / "matrix.yaml", "v69,v75,v79", "again.zip", "--resume", str(session)) == 0
    assert (made / "again.zip").read_bytes() == (made / "bundle.zip").read_bytes()


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            yield entry.filename, archive.read(entry)


def test_the_bundle_says_nothing_of_the_host(made: Path) -> None:
    secrets = {str(made), str(Path.home()), sys.prefix, str(Path(__file__).parents[2]), socket.gethostname()}
    secrets |= {f"/{getpass.getuser()}/", "127.0.0.1:"}
    found = [
        (name, secret)
        for name, content in members(made / "bundle.zip")
        for secret in secrets
        if secret.encode() in content
    ]
    assert found == []


def test_names_stay_in_their_folder_and_logs_are_there(made: Path) -> None:
    names = [name for name, _ in members(made / "bundle.zip")]
    assert names == sorted(names)
    assert not [name for name in names if name.startswith("/") or ".." in name or "\\" in name]
    assert {"README.md", "model.onnx", "contexts/v69.bin", "logs/v79/compile.log", "inputs/0.raw"} <= set(
        names
    )


def test_a_fingerprint_goes_into_the_bundle(made: Path) -> None:
    session = (made / "reports/experiments/latest").resolve()
    (made / "print.json").write_text("{}")
    more = ["--resume", str(session), "--fingerprint", f"v75={made / 'print.json'}"]
    assert repro(made, made / "matrix.yaml", "v69,v75,v79", "with.zip", *more) == 0
    assert dict(members(made / "with.zip"))["fingerprints/v75.json"] == b"{}"


def test_devices_that_agree_give_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert repro(tmp_path, digits_matrix(tmp_path), "v75,v79", "none.zip") == 2
    assert "so there is nothing to reproduce" in capsys.readouterr().err
    assert not (tmp_path / "none.zip").exists()


def test_one_device_has_nothing_to_part_from(tmp_path: Path) -> None:
    assert repro(tmp_path, digits_matrix(tmp_path), "v75", "none.zip") == 4


def test_the_phone_script_says_how_it_is_called(unpacked: Path) -> None:
    for words in ([], ["v75", "serial", "more"], ["--help"]):
        done = subprocess.run(
            ["sh", str(unpacked / "reproduce_phone.sh"), *words],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith("usage: sh reproduce_phone.sh DEVICE [SERIAL]\n")
        assert [line.strip() for line in done.stderr.splitlines()[2:-1]] == ["v69", "v75", "v79"]


def test_the_readme_installs_the_versions_that_were_used(unpacked: Path) -> None:
    pins = [
        f"{name}=={importlib.metadata.version(name)}" for name in ("numpy", "onnxruntime", "onnxruntime-qnn")
    ]
    assert f"    pip install {' '.join(pins)}\n" in (unpacked / "README.md").read_text()
