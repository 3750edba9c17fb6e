from __future__ import annotations

from pathlib import Path

import pytest

from pytest_devicelab.durations import Durations


def test_what_one_session_notes_the_next_one_knows(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "durations.json"
    first = Durations(path)
    assert dict(first.known) == {}
    for phase_s in (0.5, 2.0, 0.25):
        first.note("t[a]", phase_s)
    first.note("t[b]", 1.0)
    first.save()
    second = Durations(path)
    assert dict(second.known) == {"t[a]": 2.75, "t[b]": 1.0}
    second.note("t[a]", 4.0)
    second.save()
    assert dict(Durations(path).known) == {"t[a]": 4.0, "t[b]": 1.0}
    assert [each.name for each in path.parent.iterdir()] == ["durations.json"]


def test_two_sessions_at_once_lose_nothing_of_each_other(tmp_path: Path) -> None:
    one, two = Durations(tmp_path / "d.json"), Durations(tmp_path / "d.json")
    one.note("x", 1.0)
    two.note("y", 2.0)
    one.save()
    two.save()
    assert dict(Durations(tmp_path / "d.json").known) == {"x": 1.0, "y": 2.0}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"t": "1", "u": -1, "v": NaN, "w": true, "x": 1e99}'],
)
def test_a_damaged_file_says_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "d.json"
    path.write_bytes(content)
    damaged = Durations(path)
    assert dict(damaged.known) == {}
    damaged.note("t", 1.0)
    damaged.save()
    assert dict(Durations(path).known) == {"t": 1.0}


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    durations = Durations(tmp_path / "file" / "d.json")
    durations.note("t", 1.0)
    durations.save()
