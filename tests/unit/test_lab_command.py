from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest

from pytest_devicelab.cli import main
from pytest_devicelab.errors import LeaseLost
from pytest_devicelab.lab.lease import hold, standings
from pytest_devicelab.lab.quarantine import Quarantine


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEVICELAB_LEASES", str(tmp_path))
    return tmp_path


def test_nobody_holds_anything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "status"]) == 0
    assert capsys.readouterr().out == "nobody holds a device\n"


def test_a_folder_that_cannot_be_looked_into_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(folder: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(os, "scandir", denied)
    assert main(["lab", "status"]) == 1
    assert "leases cannot be kept in" in capsys.readouterr().err


def test_status_shows_holder_and_queue(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def wait() -> None:
        with hold("R5CT", "the next session", name="phone"):
            pass

    waiter = threading.Thread(target=wait)
    with hold("R5CT", "pytest session 7", name="s24", folder=folder) as lease:
        waiter.start()
        while not standings()[0].waiting:
            time.sleep(0.005)
        assert main(["lab", "status"]) == 0
        head, below = capsys.readouterr().out.splitlines()
        assert head.startswith("R5CT (s24): held by pytest session 7 (pid ")
        assert below.startswith("  waits: the next session (pid ")
        assert main(["lab", "status", "--json"]) == 0
        (device,) = json.loads(capsys.readouterr().out)["devices"]
        assert device["device"] == "R5CT"
        assert device["holder"]["token"] == lease.token
        assert device["holder"]["lapsed"] is False
        assert [claim["holder"] for claim in device["waiting"]] == ["the next session"]
    waiter.join()


@pytest.mark.parametrize("called", ["R5CT", "s24"])
def test_release_takes_a_device_by_serial_or_id(capsys: pytest.CaptureFixture[str], called: str) -> None:
    with hold("R5CT", "pytest session 7", name="s24") as lease:
        assert main(["lab", "release", called]) == 0
        assert "R5CT is released; it was held by pytest session 7 (pid" in capsys.readouterr().out
        with pytest.raises(LeaseLost, match="released it"):
            lease.check()
        assert main(["lab", "release", called]) == 4
        assert f"nobody holds {called}" in capsys.readouterr().err


def test_an_id_two_holders_use_is_not_enough(capsys: pytest.CaptureFixture[str]) -> None:
    with hold("a", "us", name="s24") as first, hold("b", "them", name="s24") as second:
        assert main(["lab", "release", "s24"]) == 4
        assert "say which serial: a, b" in capsys.readouterr().err
        first.check()
        second.check()


def test_what_a_holder_calls_itself_does_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with hold("a\x1b[2J", "us\x1b]0;title\x07\nline", name="s\r24"):
        assert main(["lab", "status"]) == 0
        said = capsys.readouterr().out
    assert len(said.splitlines()) == 1
    assert all(char.isprintable() or char == "\n" for char in said)


def test_seats_that_say_nothing_are_passed_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    with hold("a", "us"):
        (seat,) = folder.glob("*.held")
        forged = folder / f"x{seat.name}"
        for content in (b"", b"1\n[]", b"1\n" + b"[" * 4000, seat.read_bytes()):
            forged.write_bytes(content)
            with forged.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                assert [standing.device for standing in standings()] == ["a"]


def test_a_device_in_quarantine_is_shown_and_let_back(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Quarantine(tmp_path).impose("R5", "shelf_s24", "the cable \x1b[2J broke")
    assert main(["lab", "status"]) == 0
    said = capsys.readouterr().out
    assert "R5 (shelf_s24): in quarantine for 1" in said
    assert "  first cause: the cable ?[2J broke" in said
    assert main(["lab", "status", "--json"]) == 0
    (ban,) = json.loads(capsys.readouterr().out)["quarantine"]
    assert (ban["device"], ban["strikes"]) == ("R5", 1)
    assert main(["lab", "unquarantine", "nobody"]) == 4
    assert main(["lab", "unquarantine", "shelf_s24"]) == 0
    assert "R5 is out of quarantine" in capsys.readouterr().out
    assert main(["lab", "unquarantine", "R5"]) == 4
    assert Quarantine(tmp_path).bans() == ()
