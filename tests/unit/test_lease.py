from __future__ import annotations

import errno
import getpass
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_devicelab.errors import DeviceBusy, HostFailed, InfrastructureError, LeaseLost
from pytest_devicelab.lab import lease_desk, lease_seat
from pytest_devicelab.lab.lease import hold, hold_any, release, standings
from pytest_devicelab.lab.lease_desk import Desk
from pytest_devicelab.lab.lease_seat import lease_folder

BENCHMARK = Path(__file__).parents[2] / "benchmarks/lease_stress.py"

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


@pytest.mark.parametrize(
    "note", ["", "{", "[]", "null", '{"seat": 1}', '{"seat": "../x.held"}', "\x00", "[" * 4000]
)
def test_a_record_that_says_nothing_holds_nothing_and_ends_what_was_held(tmp_path: Path, note: str) -> None:
    with hold("a", "us", folder=tmp_path) as lease:
        lease.check()
        next(tmp_path.glob("*.json")).write_text(note)
        with pytest.raises(LeaseLost, match="changed or removed"):
            lease.check()
        with hold("a", "them", folder=tmp_path, timeout_s=5) as other:
            other.check()


def test_a_record_that_was_removed_ends_what_was_held(tmp_path: Path) -> None:
    with hold("a", "us", folder=tmp_path) as lease:
        next(tmp_path.glob("*.json")).unlink()  # as those do who tidy /tmp
        with hold("a", "them", folder=tmp_path, timeout_s=0) as other:
            with pytest.raises(LeaseLost, match=r"them .* took it|changed or removed"):
                lease.check()
            other.check()


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


# Says what `check` says whenever a line comes in.
ASK = """
import sys
from pathlib import Path
from pytest_devicelab.errors import LeaseLost
from pytest_devicelab.lab.lease import hold
with hold("127.0.0.1:5555", "the sleeper", folder=Path(sys.argv[1]), ttl_s=float(sys.argv[2])) as lease:
    print("holding", flush=True)
    for line in sys.stdin:
        try:
            lease.check()
            print("ours", flush=True)
        except LeaseLost as error:
            print(error.why, flush=True)
"""


class Sleeper:
    """A process that holds the device and can be asked whether it does."""

    def __init__(self, folder: Path, ttl_s: float) -> None:
        command = [sys.executable, "-c", ASK, str(folder), str(ttl_s)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.heard() == "holding"

    def heard(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip()

    def ask(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        return self.heard()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Sleeper]:
    found = Sleeper(tmp_path, 0.6)
    yield found
    found.close()


def test_a_stopped_holder_loses_the_device_and_knows(tmp_path: Path, sleeper: Sleeper) -> None:
    assert sleeper.ask() == "ours"
    sleeper.process.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    with hold("127.0.0.1:5555", "us", folder=tmp_path, timeout_s=20) as lease:
        assert 0.3 < time.monotonic() - started < 10
        sleeper.process.send_signal(signal.SIGCONT)
        assert sleeper.ask() == (
            f"our heartbeat had stopped for more than 0.6 s; us (pid {os.getpid()}, user {user()}) has it now"
        )
        lease.check()
    assert sleeper.ask() != "ours"  # not even when its new holder is gone
    with hold("127.0.0.1:5555", "us again", folder=tmp_path, timeout_s=0):
        pass


def test_a_stopped_holder_goes_on_when_nobody_wanted_the_device(tmp_path: Path, sleeper: Sleeper) -> None:
    sleeper.process.send_signal(signal.SIGSTOP)
    time.sleep(1.0)
    (standing,) = standings(tmp_path)
    assert standing.holding is not None
    assert standing.holding.lapsed
    sleeper.process.send_signal(signal.SIGCONT)
    assert sleeper.ask() == "ours"


def test_a_heart_goes_on_beating(tmp_path: Path, sleeper: Sleeper) -> None:
    with (
        pytest.raises(InfrastructureError, match="held by the sleeper"),
        hold("127.0.0.1:5555", "us", folder=tmp_path, timeout_s=1.5),
    ):
        pytest.fail("two hold it")
    assert sleeper.ask() == "ours"


def test_an_operator_releases_a_device(tmp_path: Path, sleeper: Sleeper) -> None:
    claim = release("127.0.0.1:5555", tmp_path)
    assert claim is not None
    assert (claim.holder, claim.pid) == ("the sleeper", sleeper.process.pid)
    assert sleeper.ask() == f"user {user()} released it"
    assert release("127.0.0.1:5555", tmp_path) is None
    with hold("127.0.0.1:5555", "us", folder=tmp_path, timeout_s=0) as lease:
        lease.check()
        # Also to one that asks only when somebody else has it: its heart never stopped.
        assert sleeper.ask() == f"user {user()} released it; us (pid {os.getpid()}, user {user()}) has it now"
    with hold("127.0.0.1:5555", "us again", folder=tmp_path, timeout_s=0):
        assert sleeper.ask().startswith("its record was changed or removed by somebody else; us again (pid ")


def test_tokens_grow(tmp_path: Path) -> None:
    tokens = []
    for number in range(5):
        with hold("a", "us", folder=tmp_path) as lease:
            tokens.append(lease.token)
        if number == 2:
            next(tmp_path.glob("*.json")).unlink()
    assert tokens == sorted(set(tokens))


def test_a_lease_ends_with_its_block(tmp_path: Path) -> None:
    with hold("a", "us", name="s24", folder=tmp_path) as lease:
        pass
    with pytest.raises(LeaseLost, match=r"s24 is not ours any more\n  why: the block"):
        lease.check()


def test_who_asked_first_is_served_first_and_is_seen_waiting(tmp_path: Path) -> None:
    served: list[str] = []

    def take(name: str) -> None:
        with hold("a", name, folder=tmp_path, timeout_s=30):
            served.append(name)

    names = ["first", "second", "third"]
    threads = [threading.Thread(target=take, args=(name,)) for name in names]
    with hold("a", "us", folder=tmp_path):
        for number, thread in enumerate(threads):
            thread.start()
            deadline = time.monotonic() + 20
            while len(standings(tmp_path)[0].waiting) == number:
                assert time.monotonic() < deadline
        (standing,) = standings(tmp_path)
        assert standing.holding is not None
        assert standing.holding.claim.holder == "us"
        assert [claim.holder for claim in standing.waiting] == names
    for thread in threads:
        thread.join()
    assert served == names
    assert standings(tmp_path) == ()


def test_who_takes_any_waits_for_each_and_is_overtaken_at_none(tmp_path: Path) -> None:
    served: list[str] = []
    told: list[str] = []

    def take_any() -> None:
        with hold_any(("a", "b"), "first", name="pool", folder=tmp_path, waiting=told.append) as lease:
            served.append(f"first has {lease.device}")

    def take(device: str) -> None:
        with hold(device, "second", folder=tmp_path):
            served.append(f"second has {device}")

    with hold("a", "us", folder=tmp_path):
        with hold("b", "us", folder=tmp_path):
            threads = [threading.Thread(target=take_any)]
            threads[0].start()
            _await_waiting(tmp_path, {"a": ["first"], "b": ["first"]})
            threads.append(threading.Thread(target=take, args=("b",)))
            threads[1].start()
            _await_waiting(tmp_path, {"a": ["first"], "b": ["first", "second"]})
        for thread in threads:
            thread.join(30)
    assert served == ["first has b", "second has b"]
    (reason,) = told
    assert reason.startswith("no unit of pool is free: a is held by us (pid ")
    assert "; b is held by us (pid " in reason
    assert standings(tmp_path) == ()


def test_who_takes_any_takes_what_is_free_and_says_who_has_the_rest(tmp_path: Path) -> None:
    with hold_any(("a", "b"), "us", name="pool", folder=tmp_path) as first:
        with hold_any(("a", "b"), "us", name="pool", folder=tmp_path) as second:
            assert (first.device, second.device) == ("a", "b")
            busy = hold_any(("a", "b"), "late", name="pool", folder=tmp_path, timeout_s=0.1)
            with (
                pytest.raises(DeviceBusy, match=r"no unit of pool was free within 0.1 s\n  why: a is held"),
                busy,
            ):
                pytest.fail("a third")
        assert [standing.device for standing in standings(tmp_path)] == ["a"]


def test_a_record_that_cannot_be_locked_keeps_nobody_from_its_equals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_desk, "_LOCK_TIMEOUT_S", 0.1)
    with Desk(tmp_path, "a").locked():
        with hold_any(("a", "b"), "us", name="pool", folder=tmp_path) as lease:
            assert lease.device == "b"
        with (
            pytest.raises(InfrastructureError, match="lease record of a cannot be locked"),
            hold("a", "us", folder=tmp_path),
        ):
            pytest.fail("held without its lock")


def _await_waiting(folder: Path, expected: dict[str, list[str]]) -> None:
    deadline = time.monotonic() + 20
    while (
        found := {each.device: [claim.holder for claim in each.waiting] for each in standings(folder)}
    ) != expected:
        assert time.monotonic() < deadline, found


@pytest.mark.parametrize("room", range(3))
def test_a_full_disk_is_this_hosts_failure_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Room for so many writes: the seat's claim, its heartbeat, and the record."""
    write, written = os.pwrite, 0

    def until_full(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal written
        written += 1
        if written <= room:
            return write(descriptor, data, offset)
        if written == room + 1 == 3:
            return write(descriptor, data[: len(data) // 2], offset)  # as a disk that gets full does
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", until_full)
    full = pytest.raises(HostFailed, match=r"leases cannot be kept in .*\n  why: .*No space")
    with full, hold("a", "us", folder=tmp_path):
        pytest.fail("held without a record")
    monkeypatch.undo()
    assert not [path for path in tmp_path.iterdir() if path.suffix not in (".json", ".lock")]
    with hold("a", "us", folder=tmp_path) as lease:
        lease.check()


def test_to_look_does_not_disturb_a_seat_in_the_making(tmp_path: Path) -> None:
    (tmp_path / f".{Desk(tmp_path, 'a').stem}.1{lease_seat.WAITING}").write_text("")
    assert standings(tmp_path) == ()
    assert len(list(tmp_path.iterdir())) == 1


def test_nothing_is_left_behind_but_record_and_lock(tmp_path: Path) -> None:
    with hold("a", "us", folder=tmp_path):
        pass
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".lock"]


@pytest.mark.parametrize("ending", ["json", "lock"])
def test_no_link_is_followed(tmp_path: Path, ending: str) -> None:
    folder, victim = tmp_path / "leases", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("mine")
    (folder / f"{Desk(folder, 'a').stem}.{ending}").symlink_to(victim)
    with pytest.raises(InfrastructureError, match="cannot be"), hold("a", "us", folder=folder, timeout_s=1):
        pytest.fail("held by way of a link")
    assert victim.read_text() == "mine"
    assert victim.stat().st_mode & 0o777 == 0o644


def test_a_record_with_two_names_is_refused(tmp_path: Path) -> None:
    folder, victim = tmp_path / "leases", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("mine")
    (folder / f"{Desk(folder, 'a').stem}.json").hardlink_to(victim)
    with pytest.raises(InfrastructureError, match="one name"), hold("a", "us", folder=folder):
        pytest.fail("held by way of a link")
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_all_users_of_the_host_share_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    monkeypatch.setattr(lease_seat, "_SHARED_FOLDER", tmp_path / "shared")
    monkeypatch.delenv("DEVICELAB_LEASES", raising=False)
    before = os.umask(umask)
    try:
        folder = lease_folder()
        with hold("a", "us", folder=folder):
            modes = {path.suffix: path.stat().st_mode & 0o7777 for path in folder.iterdir()}
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o7777 == 0o1777
    # Everybody may change the record; only its owner may write or remove a seat.
    assert modes == {".json": 0o666, ".lock": 0o666, ".held": 0o644}
    assert lease_folder() == folder


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "shared").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(lease_seat, "_SHARED_FOLDER", tmp_path / "shared")
    monkeypatch.delenv("DEVICELAB_LEASES", raising=False)
    with pytest.raises(InfrastructureError, match="it is a link"):
        lease_folder()


def test_the_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICELAB_LEASES", str(tmp_path / "mine"))
    assert lease_folder() == tmp_path / "mine"
    with hold("a", "us"):
        assert list((tmp_path / "mine").glob("*.held"))


@pytest.mark.skipif(os.getuid() != 0, reason="takes another user's part, which only root can")
def test_another_user_waits_takes_over_and_releases(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    for parent in list(folder.parents)[:-2]:
        if not parent.stat().st_mode & 0o005:
            parent.chmod(0o755)
    code = (
        "import os, sys; from pathlib import Path\n"
        "from pytest_devicelab.lab.lease import hold, release\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "folder = Path(sys.argv[1])\n"
        "try:\n"
        "    with hold('a', 'nobody', folder=folder, timeout_s=0.1): print('held')\n"
        "except Exception as error: print(error.why)\n"
        "if len(sys.argv) > 2: print(release('a', folder).holder)\n"
    )

    def nobody(*arguments: object) -> list[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    with hold("a", "us", folder=folder) as lease:
        assert nobody(folder) == [f"a is held by us (pid {os.getpid()}, user {user()})"]
        lease.check()
        assert nobody(folder, "release")[1] == "us"
        with pytest.raises(LeaseLost, match="user nobody released it"):
            lease.check()
    assert nobody(folder) == ["held"]
    with hold("a", "us", folder=folder, timeout_s=0) as lease:  # the record is as anybody left it
        lease.check()


@pytest.mark.parametrize("units", [1, 2])
def test_under_fire_nobody_holds_a_device_twice(units: int) -> None:
    command = [sys.executable, str(BENCHMARK), "--processes", "3", "--devices", "2", "--acquisitions", "40"]
    done = subprocess.run(
        [*command, "--units", str(units), "--kill-every", "0.3", "--json"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["acquisitions"] >= 120
    assert (found["double_holds"], found["tokens_repeated"]) == (0, 0)
    assert found["kills"] >= 1
