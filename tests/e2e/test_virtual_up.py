"""`devicelab virtual up` leaves devices that any adb client of the user's sees, from another shell."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_devicelab.devices.adb_server import find_adb

MATRIX = Path(__file__).parents[2] / "device_matrix.yaml"


def adb(port: int, *words: str, home: Path) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "ADB_MDNS": "0"}
    command = [str(find_adb()), "-P", str(port), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=True)
    return done.stdout


@pytest.fixture
def adb_port(tmp_path: Path) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    yield port
    if listens(port):
        adb(port, "kill-server", home=tmp_path)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True


@pytest.fixture
def lab(request: pytest.FixtureRequest, adb_port: int, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    select = ["--select", getattr(request, "param", "hexagon>=V79")]
    command = [
        sys.executable,
        "-m",
        "pytest_devicelab.cli",
        "virtual",
        "up",
        "--matrix",
        str(MATRIX),
        *select,
    ]
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "ADB_MDNS": "0",
        "ADB_LOCAL_TRANSPORT_MAX_PORT": "5553",
    }
    process = subprocess.Popen(
        [*command, "--adb-port", str(adb_port)], stdout=subprocess.PIPE, text=True, env=environment
    )
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def said_until_up(lab: subprocess.Popen[str]) -> list[str]:
    assert lab.stdout is not None
    lines = []
    for line in lab.stdout:
        lines.append(line)
        if " up; " in line:
            return lines
    raise AssertionError(f"it ended with {lab.wait()} after saying {lines}")


def test_another_shell_sees_and_uses_the_devices(
    lab: subprocess.Popen[str], adb_port: int, tmp_path: Path
) -> None:
    said = said_until_up(lab)
    assert [line.split()[0] for line in said[:-1]] == ["v79_sm8750", "v81_sm8850"]
    serials = [line.split()[1] for line in said[:-1]]
    listed = adb(adb_port, "devices", "-l", home=tmp_path).splitlines()
    assert sorted(line.split()[0] for line in listed if "model:" in line) == sorted(serials)
    assert adb(adb_port, "-s", serials[1], "shell", "getprop ro.soc.model", home=tmp_path) == "SM8850\n"

    lab.send_signal(signal.SIGINT)
    assert lab.wait(timeout=30) == 0
    assert not listens(adb_port)  # nobody else had an adb server there


@pytest.fixture
def running_server(adb_port: int, tmp_path: Path) -> None:
    adb(adb_port, "start-server", home=tmp_path)


@pytest.mark.usefixtures("running_server")
@pytest.mark.parametrize("lab", ["soc=SM8750"], indirect=True)
def test_an_adb_server_that_ran_before_goes_on(
    lab: subprocess.Popen[str], adb_port: int, tmp_path: Path
) -> None:
    *_, hint = said_until_up(lab)
    assert hint == f"1 virtual device is up; try `{find_adb()} -P {adb_port} devices -l`. Ctrl-C ends it.\n"
    lab.send_signal(signal.SIGINT)
    assert lab.wait(timeout=30) == 0
    assert listens(adb_port)
    assert "model:" not in adb(adb_port, "devices", "-l", home=tmp_path)


def test_a_selection_without_virtual_devices_is_the_users_mistake(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest_devicelab.cli", "virtual", "up", "--select", "kind=adb"]
    done = subprocess.run(
        [*command, "--matrix", str(MATRIX)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 4
    assert "Traceback" not in done.stderr
    assert "kind=adb" in done.stderr
