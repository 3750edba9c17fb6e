"""`devicelab logs`: JSON lines, a table, standard input, a growing log."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path

import pytest

from pytest_devicelab.cli import main
from pytest_devicelab.commands.logs import _following

HIT = b"11-20 09:20:00.100  4021  4030 W QNN     : Fallback to CPU for op Gelu\n"
LOOSE = b"half a line\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "phone.log"
    path.write_bytes(LOOSE + HIT + HIT)
    return path


def test_json_lines(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", str(log), "--json"]) == 0
    first, second, last = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["kind"], first["fields"]["op"], first["line"]) == ("cpu_fallback", "Gelu", 2)
    assert (first["offset"], first["pid"], first["time"]) == (len(LOOSE), 4021, "11-20 09:20:00.100")
    assert first["raw"] == HIT.decode().rstrip()
    assert second["line"] == 3
    assert last["summary"] == {
        "format": "threadtime",
        "lines": 3,
        "read": 3,
        "unparsed": 1,
        "lost": 0,
        "cut": 0,
        "backwards": 0,
        "broken": "",
    }


def test_table(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", str(log)]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.endswith("threadtime, 3 lines, 3 read, 1 unparsed, 0 lost, 0 cut, time went back 0 times")
    assert row.split() == ["cpu_fallback", "phrases", "2", "from", "line", "2", "Gelu", "for", "op", "Gelu"]


def test_fast_reads_only_candidates(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", str(log), "--fast"]) == 0
    assert "3 lines, 2 read, 0 unparsed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "words"), [(b"", "no line: no evidence"), (b"I/Tag: hello\n", "no line of a runtime")]
)
def test_silence_is_no_evidence(
    tmp_path: Path, data: bytes, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    path.write_bytes(data)
    assert main(["logs", str(path)]) == 0
    assert words in capsys.readouterr().out


def test_broken_gzip_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.gz"
    path.write_bytes(gzip.compress(HIT * 100, 0)[:-9])
    assert main(["logs", str(path)]) == 0
    assert "the log breaks off" in capsys.readouterr().out


def test_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(HIT))))
    assert main(["logs", "-"]) == 0
    assert capsys.readouterr().out.startswith("-: threadtime, 1 lines")


def test_what_cannot_be_read_is_the_users_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", str(tmp_path)]) == 4
    assert main(["logs", str(tmp_path / "none")]) == 4
    assert "fix: name a log file, or - for standard input" in capsys.readouterr().err


def test_a_compressed_log_cannot_be_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.gz"
    path.write_bytes(gzip.compress(HIT))
    assert main(["logs", str(path), "--follow"]) == 4
    assert "cannot be followed" in capsys.readouterr().err


def test_follow_waits_for_more_and_starts_anew_with_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"first line\n")
    steps = iter([b"first line\nsecond\n", b"new\n"])

    def sleep(_: float) -> None:
        step = next(steps, None)
        if step is None:
            raise KeyboardInterrupt
        path.write_bytes(step)

    with path.open("rb") as stream:
        read_into = _following(stream, sleep)
        view = memoryview(bytearray(100))
        seen = []
        while count := read_into(view):
            seen.append(bytes(view[:count]))
    assert seen == [b"first line\n", b"second\n", b"new\n"]


def test_hostile_words_do_not_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"W/QNN( 1): Fallback to CPU, reason: \x1b]0;gone\x07\x9b2J\n")
    assert main(["logs", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.replace("\n", "").isprintable()


def test_follow_prints_events_as_they_come(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def sleep(_: float) -> None:
        seen.append(capsys.readouterr().out)
        if len(seen) == 1:
            with log.open("ab") as file:
                file.write(HIT.replace(b"Gelu", b"Erf"))
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    assert main(["logs", str(log), "--follow"]) == 0
    first, second = seen[0].splitlines()
    assert first.split()[:6] == ["11-20", "09:20:00.100", "line", "2", "cpu_fallback", "phrases"]
    assert "Gelu" in second
    assert "line 4" in seen[1]
    assert "Erf" in seen[1]
    assert "4 lines, 4 read" in capsys.readouterr().out  # and the table at the end
