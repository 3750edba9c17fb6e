from __future__ import annotations

import errno
import io
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pytest_devicelab.cli import main
from pytest_devicelab.lab import checkup
from pytest_devicelab.lab.checkup_devices import check_devices
from pytest_devicelab.lab.finding import Finding
from pytest_devicelab.lab.quarantine import Quarantine
from pytest_devicelab.matrix.specs import AdbServerSpec, DeviceSpec, LabSpec, MatrixSpec, Source


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_python_must_be_new_enough() -> None:
    assert checkup._python((3, 11, 0)).grade == "ok"
    old = checkup._python((3, 10, 14))
    assert (old.grade, old.fix) == ("fail", "use Python 3.11 or newer")


@pytest.mark.parametrize(
    ("machine", "libc", "grade"),
    [
        ("x86_64", ("glibc", "2.35"), "ok"),
        ("x86_64", ("glibc", "2.4"), "warn"),
        ("x86_64", ("glibc", "2.31"), "warn"),
        ("x86_64", ("", ""), "warn"),
        ("aarch64", ("glibc", "2.39"), "warn"),
    ],
)
def test_the_simulator_needs_a_machine_it_runs_on(machine: str, libc: tuple[str, str], grade: str) -> None:
    assert checkup._libc(machine, libc).grade == grade


def test_an_adb_that_is_none_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "adb").write_text("#!/bin/sh\necho Version 29.0.6\n")
    (tmp_path / "adb").chmod(0o755)
    monkeypatch.setenv("DEVICELAB_ADB", str(tmp_path / "adb"))
    old = checkup._adb()
    assert old.grade == "fail"
    assert "too old (it is version 29.0.6" in old.text
    assert "DEVICELAB_ADB" in old.fix


class FakeServer:
    """Answers one request as an adb server does, with the text given."""

    def __init__(self, answer: bytes, *, requests: int = 2) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._answer, self._requests = answer, requests
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        for _ in range(self._requests):  # one looks whether anybody listens, the other asks
            peer, _ = self._socket.accept()
            with peer:
                if peer.recv(100):
                    peer.sendall(self._answer)

    def close(self) -> None:
        self._thread.join(10)
        self._socket.close()


@pytest.mark.parametrize(
    ("answer", "grade", "text"),
    [
        (b"OKAY0014R5CT20ABCDE\tdevice\n\n", "warn", "1 devices, 1 of them on USB"),
        (b"OKAY00161.2.3.4:5555\tdevice\n\n\n\n", "ok", "1 devices, 0 of them on USB"),
        (b"OKAY0000", "ok", "0 devices"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "warn", "does not answer as adb does"),
    ],
)
def test_other_adb_servers_are_noticed(answer: bytes, grade: str, text: str) -> None:
    server = FakeServer(answer)
    try:
        found = checkup._other_server(server.port)
    finally:
        server.close()
    assert found.grade == grade
    assert text in found.text


def test_no_other_adb_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert checkup._other_server(port).grade == "ok"


def test_usb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkup._usb(tmp_path / "none").grade == "warn"
    (tmp_path / "001").mkdir()
    (tmp_path / "001/002").write_text("")
    assert checkup._usb(tmp_path).grade == "ok"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    denied = checkup._usb(tmp_path)
    assert denied.grade == "warn"
    assert "udev" in denied.fix


@pytest.mark.parametrize(("free", "grade"), [(10 << 30, "ok"), (1 << 30, "warn"), (100 << 20, "fail")])
def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, grade: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free, 0, free))
    found = checkup._disk("reports", tmp_path / "not" / "there")
    assert (found.grade, bool(found.fix)) == (grade, grade != "ok")


def test_a_simulator_that_does_not_load_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime_qnn.py").write_text("raise ImportError('GLIBC_2.99 not found')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = checkup._simulator()
    assert found.grade == "fail"
    assert "GLIBC_2.99 not found" in found.text


def test_a_python_that_does_not_start_is_not_one_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    found = checkup._simulator()
    assert (found.grade, "No such file" in found.text) == ("fail", True)


def test_a_lease_folder_that_cannot_be_used_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEVICELAB_LEASES", str(tmp_path / "file"))
    assert checkup._leases().grade == "fail"


def test_a_lease_folder_on_a_full_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("DEVICELAB_LEASES", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: Full())
    found = checkup._leases()
    assert (found.grade, "No space left" in found.text) == ("fail", True)


def test_a_file_where_reports_should_go_fails(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("")
    found = checkup._disk("reports", tmp_path / "reports" / "sessions")
    assert (found.grade, "it is a file" in found.text) == ("fail", True)


def test_no_place_for_temporary_files_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    found = checkup._temporary()
    assert (found.grade, "No usable temporary" in found.text, "TMPDIR" in found.fix) == ("fail", True, True)
    assert checkup._namespaces().grade == "warn"


@pytest.fixture
def rack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MatrixSpec]:
    """Two servers, one of which is away; the other knows one of three phones."""
    monkeypatch.setenv("DEVICELAB_LEASES", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        away = probe.getsockname()[1]
    server = FakeServer(b"OKAY001cR5A\tdevice\nR5B\tunauthorized\n", requests=1)
    servers = {
        "b": AdbServerSpec(host="127.0.0.1", port=server.port),
        "c": AdbServerSpec(host="localhost", port=away),
    }
    source = Source(file="m.yaml", line=1, column=1)
    devices = (
        DeviceSpec(id="one", kind="adb", source=source, serial="R5A", group="b"),
        DeviceSpec(id="pool", kind="adb", source=source, serials=("R5B", "R5C"), group="b"),
        DeviceSpec(
            id="far", kind="adb", source=source, serial="R5D", group="c", power_cycle=("no-such-program",)
        ),
    )
    yield MatrixSpec(path=tmp_path / "m.yaml", lab=LabSpec(groups=servers), devices=devices, models=())
    server.close()


def test_what_the_matrix_names_is_looked_for_behind_its_servers(rack: MatrixSpec, tmp_path: Path) -> None:
    Quarantine(tmp_path).impose("R5A", "other name", "the cable broke")
    Quarantine(tmp_path).impose("R5X", "not ours", "x")
    here, away, power, quarantine = check_devices(rack)
    assert {each.grade for each in (here, away, power, quarantine)} == {"warn"}
    assert here.text.endswith(
        "has 1 of 3 phones that the matrix names; pool (R5B): unauthorized; pool (R5C): not attached"
    )
    assert "Allow USB debugging" in here.fix
    assert "plug it in" in here.fix
    assert "none answers at localhost:" in away.text
    assert away.text.endswith("far out of reach")
    assert "no-such-program, which cycles the power of far, is not on this host" in power.text
    assert quarantine.text == "one (R5A) is left alone for now; first cause: the cable broke"


def test_a_matrix_with_a_mistake_fails(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("schema: devicelab.matrix/1\ndevices: []\n")
    (found,) = checkup._matrix(tmp_path / "m.yaml")
    assert found.grade == "fail"
    assert found.fix


@pytest.mark.parametrize(("grade", "status"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_the_command_says_each_thing_and_its_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], grade: str, status: int
) -> None:
    findings = [
        Finding(name="adb", grade="ok", text="36"),
        Finding(name="USB", grade=grade, text="as said", fix="so"),  # type: ignore[arg-type]
    ]
    monkeypatch.setattr(checkup, "check_up", lambda *, reports, matrix: iter(findings))
    assert main(["doctor"]) == status
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["ok   adb         36", f"{grade:4} USB         as said", " " * 17 + "fix: so"]
    assert main(["doctor", "--json"]) == status
    said = json.loads(capsys.readouterr().out)
    assert [finding["grade"] for finding in said["findings"]] == ["ok", grade]
