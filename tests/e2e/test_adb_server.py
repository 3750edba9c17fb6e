from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import adbutils
import pytest

from pytest_devicelab.devices.adb_server import AdbServer, adb_version, connect_device, find_adb
from pytest_devicelab.devices.adb_stream import list_attached
from pytest_devicelab.devices.adb_transport import AdbTransport
from pytest_devicelab.errors import AdbServerLost, InfrastructureError, UserError
from tests.e2e.virtual_lab import VirtualLab

LISTEN = "0A"  # state of a socket in /proc/net/tcp. Source: Linux, include/net/tcp_states.h


def eventually(condition: Callable[[], bool], timeout_s: float = 10) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def sockets_of(process: int) -> set[str]:
    """Inode numbers of every socket a process has open."""
    found = set()
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        target = os.readlink(descriptor)  # noqa: PTH115  (socket:[1] is no path)
        if target.startswith("socket:["):
            found.add(target[len("socket:[") : -1])
    return found


def listening(process: int) -> list[str]:
    """Addresses a process listens on, in the kernel's hexadecimal: `0100007F:1F90`; UDP sockets, too."""
    inodes, found = sockets_of(process), []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if rest[5] in inodes and (state == LISTEN or table.startswith("udp")):
                found.append(local)
    return found


def process_on(port: int) -> int:
    """The process that listens on a TCP port of this machine."""
    wanted = f":{port:04X}"
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and any(
                address.endswith(wanted) for address in listening(int(entry.name))
            ):
                return int(entry.name)
        except OSError:
            continue
    raise LookupError(port)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AdbServer]:
    with AdbServer(tmp_path / "home") as server:
        yield server


def test_it_listens_on_loopback_only(server: AdbServer) -> None:
    assert listening(process_on(server.port)) == [f"0100007F:{server.port:04X}"]


def test_so_do_the_virtual_devices(virtual_lab: VirtualLab) -> None:
    for farm in {id(farm): farm for farm in virtual_lab.farms.values()}.values():
        assert sorted(listening(farm.pid)) == sorted(f"0100007F:{port:04X}" for port in farm.ports.values())


def test_its_keys_and_its_log_stay_in_its_home(server: AdbServer, tmp_path: Path) -> None:
    assert list_attached(server.host, server.port) == ()
    assert eventually(lambda: (tmp_path / "home" / ".android" / "adbkey").exists())
    assert (tmp_path / "home" / "adb-server.log").exists()
    environment = Path(f"/proc/{process_on(server.port)}/environ").read_bytes().split(b"\0")
    assert f"HOME={tmp_path / 'home'}".encode() in environment
    assert not any(entry.startswith((b"ADB_VENDOR_KEYS=", b"ADB_TRACE=")) for entry in environment)


def test_two_servers_do_not_meet(server: AdbServer, tmp_path: Path, virtual_lab: VirtualLab) -> None:
    server.connect(virtual_lab.serial("twin"))
    with AdbServer(tmp_path / "second") as second:
        assert second.port != server.port
        assert list_attached(server.host, server.port) == ((virtual_lab.serial("twin"), "device"),)
        assert list_attached(second.host, second.port) == ()


def test_it_ends_when_it_is_closed(tmp_path: Path) -> None:
    server = AdbServer(tmp_path / "home")
    process = process_on(server.port)
    server.close()
    server.close()
    assert not answers(server.port)
    assert not Path(f"/proc/{process}").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_its_parent_however_that_ends(tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "import sys, time, pathlib\n"
        "from pytest_devicelab.devices.adb_server import AdbServer\n"
        "print(AdbServer(pathlib.Path(sys.argv[1])).port, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        assert answers(port)
        parent.send_signal(number)
    assert eventually(lambda: not answers(port))


def test_a_server_started_from_a_thread_outlives_the_thread(tmp_path: Path) -> None:
    made: list[AdbServer] = []
    thread = threading.Thread(target=lambda: made.append(AdbServer(tmp_path / "home")))
    thread.start()
    thread.join()
    time.sleep(0.3)
    try:
        assert answers(made[0].port)
    finally:
        made[0].close()


def test_a_device_that_does_not_listen(server: AdbServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(InfrastructureError, match=f"adb could not connect to {address}\n  why: .*refused"):
        server.connect(address)


def test_a_device_that_listens_and_says_nothing(server: AdbServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(InfrastructureError, match=r"no answer within 1 s"):
            server.connect(address, timeout_s=1)
        assert time.monotonic() - started < 5


def program(folder: Path, script: str) -> Path:
    path = folder / "adb"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_the_adb_inside_adbutils_is_new_enough() -> None:
    assert adb_version(find_adb()) >= (36,)


def test_an_adb_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = program(tmp_path, "echo 'Android Debug Bridge version 1.0.41'; echo 'Version 29.0.6-debian'")
    monkeypatch.setenv("DEVICELAB_ADB", str(old))
    with pytest.raises(
        UserError, match=r"too old\n  why: it is version 29\.0\.6; 31\.0 or newer is needed\n  fix: unset"
    ):
        find_adb()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo hello", r"is not adb\n  why: `adb version` printed 'hello\\n'"),
        ("exit 1", "is not adb"),
        ("printf '\\377\\376'", "is not adb"),
    ],
)
def test_a_program_that_is_not_adb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, says: str
) -> None:
    monkeypatch.setenv("DEVICELAB_ADB", str(program(tmp_path, script)))
    with pytest.raises(UserError, match=says):
        find_adb()


def test_a_file_that_is_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "adb").write_bytes(b"\x7fELF nonsense")
    (tmp_path / "adb").chmod(0o755)
    monkeypatch.setenv("DEVICELAB_ADB", str(tmp_path / "adb"))
    with pytest.raises(UserError, match=r"does not run\n  why: .*Exec format error"):
        find_adb()
    (tmp_path / "adb").chmod(0o644)
    with pytest.raises(UserError, match="does not run"):
        find_adb()


def test_an_adb_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICELAB_ADB", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"not found at .*nowhere\n  why: \$DEVICELAB_ADB names no file"):
        find_adb()


def test_no_adb_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEVICELAB_ADB", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(adbutils, "__file__", str(tmp_path / "adbutils" / "__init__.py"))
    with pytest.raises(UserError, match=r"adb was not found\n  why: neither adbutils nor PATH has it"):
        find_adb()
    program(tmp_path, "echo Version 35.0.2")
    assert find_adb() == tmp_path / "adb"


def test_an_adb_that_cannot_serve(tmp_path: Path) -> None:
    fake = program(tmp_path, "echo 'error: could not install *smartsocket* listener' >&2; exit 1")
    with pytest.raises(InfrastructureError, match=r"did not start\n  why: error: could not install"):
        AdbServer(tmp_path / "home", adb=fake)


def test_the_servers_okay_is_not_yet_a_connection(tmp_path: Path) -> None:
    said = b"failed to authenticate to 127.0.0.1:1"
    with socket.create_server(("127.0.0.1", 0)) as fake:

        def serve() -> None:
            peer, _ = fake.accept()
            with peer:
                peer.recv(100)
                peer.sendall(b"OKAY%04x%s" % (len(said), said))

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(InfrastructureError, match="failed to authenticate"):
            connect_device("127.0.0.1", fake.getsockname()[1], "127.0.0.1:1")
        thread.join()


def test_connecting_starts_no_server(tmp_path: Path) -> None:
    """`adb -H localhost connect` does, and nobody ends it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(AdbServerLost):
        connect_device("localhost", port, "127.0.0.1:1")
    assert not answers(port)


def test_it_says_its_version(server: AdbServer) -> None:
    transport = AdbTransport(host=server.host, port=server.port, serial="none", name="none")
    assert transport.adb_version(timeout_s=10) == ".".join(map(str, adb_version(find_adb())))


@pytest.mark.parametrize(
    ("answer", "version"), [(b"OKAY00040029", "41"), (b"OKAY0004wxyz", None), (b"FAIL0000", None)]
)
def test_a_server_that_is_older_says_that_of_its_protocol(answer: bytes, version: str | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as fake:

        def serve() -> None:
            for said in (b"FAIL0014unknown host service", answer):
                peer, _ = fake.accept()
                with peer:
                    peer.recv(100)
                    peer.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        transport = AdbTransport(host="127.0.0.1", port=fake.getsockname()[1], serial="none", name="none")
        assert transport.adb_version(timeout_s=10) == version
        thread.join()
