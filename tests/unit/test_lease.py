from __future__ import annotations

import getpass
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.lab.lease import hold, lease_folder

# Counts up in a file, slowly and without any lock of its own: two at once would lose a step.
COUNT = """
import sys, time
from pathlib import Path
from pytest_devicelab.lab.lease import hold
folder, counter, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
for _ in range(rounds):
    with hold("127.0.0.1:5555", "counter", folder=folder):
        found = int(counter.read_text())
        time.sleep(0.005)
        counter.write_text(str(found + 1))
"""
HOLD = """
import sys, time
from pathlib import Path
from pytest_devicelab.lab.lease import hold
with hold("127.0.0.1:5555", "the other session", folder=Path(sys.argv[1])):
    print("holding", flush=True)
    time.sleep(60)
"""


def start(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE)


def test_processes_never_hold_a_device_at_once(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    running = [start(COUNT, tmp_path, counter, 15) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    for process in running:
        assert process.stdout is not None
        process.stdout.close()
    assert counter.read_text() == "45"


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    reasons: list[str] = []
    with start(HOLD, tmp_path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"holding\n"
        threading.Timer(0.3, os.kill, (holder.pid, signal.SIGKILL)).start()
        started = time.monotonic()
        with hold("127.0.0.1:5555", "us", folder=tmp_path, timeout_s=20, waiting=reasons.append):
            assert 0.2 < time.monotonic() - started < 10
    assert reasons == [f"127.0.0.1:5555 is held by the other session (pid {holder.pid}, user {user()})"]


def user() -> str:
    return getpass.getuser()


def test_who_waits_in_vain_learns_for_whom(tmp_path: Path) -> None:
    with start(HOLD, tmp_path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"holding\n"
        with (
            pytest.raises(
                InfrastructureError, match=r"was not free within 0\.2 s\n  why: .* the other session \(pid"
            ),
            hold("127.0.0.1:5555", "us", folder=tmp_path, timeout_s=0.2),
        ):
            pytest.fail("two hold it")
        holder.kill()


def test_threads_exclude_each_other_too(tmp_path: Path) -> None:
    inside, seen = 0, []

    def work() -> None:
        nonlocal inside
        for _ in range(5):
            with hold("x", "thread", folder=tmp_path, timeout_s=30):
                inside += 1
                seen.append(inside)
                time.sleep(0.002)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 15


def test_other_devices_are_free(tmp_path: Path) -> None:
    with hold("a", "us", folder=tmp_path), hold("b", "us", folder=tmp_path, timeout_s=0):
        pass


def test_an_exception_frees_the_device(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), hold("a", "us", folder=tmp_path):
        raise KeyboardInterrupt
    with hold("a", "us", folder=tmp_path, timeout_s=0):
        pass


@pytest.mark.parametrize("note", ["", "{", "[]", "null", '{"holder": 1}', "\x00"])
def test_a_note_that_says_nothing_is_no_obstacle(tmp_path: Path, note: str) -> None:
    with start(HOLD, tmp_path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"holding\n"
        next(tmp_path.glob("*.json")).write_text(note)
        with (
            pytest.raises(InfrastructureError, match="is held by another process"),
            hold("127.0.0.1:5555", "us", folder=tmp_path, timeout_s=0),
        ):
            pytest.fail("two hold it")
        holder.kill()


def test_a_hostile_serial_stays_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "leases"
    folder.mkdir()
    for serial in ("../../escaped", "/etc/x", "a\nb", "", "..", "x" * 500):
        with hold(serial, "us", folder=folder, timeout_s=0):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["leases"]


def test_two_serials_never_share_a_lock(tmp_path: Path) -> None:
    with hold("a:1", "us", folder=tmp_path), hold("a_1", "us", folder=tmp_path, timeout_s=0.1):
        pass


def test_the_folder_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = lease_folder()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert lease_folder() == folder


def test_a_folder_somebody_else_put_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"devicelab-leases-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InfrastructureError, match="is not ours"):
        lease_folder()
