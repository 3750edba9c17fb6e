from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_devicelab.errors import Quarantined
from pytest_devicelab.lab.quarantine import FIRST_S, LONGEST_S, Quarantine, quarantine_step


class Clock:
    def __init__(self) -> None:
        self.at = 1_800_000_000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quarantine(tmp_path: Path, clock: Clock) -> Quarantine:
    return Quarantine(tmp_path, now=clock)


def test_a_device_in_quarantine_is_refused_with_its_first_cause(
    quarantine: Quarantine, tmp_path: Path, clock: Clock
) -> None:
    assert quarantine.admit("R5", "s24") is None
    quarantine.impose("R5", "s24", "the cable broke:\n\x1b[2J it does not answer")
    clock.at += FIRST_S / 2
    of_another_process = Quarantine(tmp_path, now=clock)
    with pytest.raises(Quarantined, match=r"s24 is in quarantine for 60 s more") as caught:
        of_another_process.admit("R5", "s24")
    assert caught.value.why == "first cause: the cable broke: ?[2J it does not answer"
    assert quarantine.admit("R6", "other") is None
    # What the record of a run that is refused keeps, the same for each of them.
    (ban,) = quarantine.bans()
    assert caught.value.evidence["recovery"] == (quarantine_step(ban),)
    step = quarantine_step(ban)
    assert (step.rung, step.why, step.helped) == ("quarantine", ban.reason, False)
    assert (step.started, step.said) == ("2027-01-15T08:00:00Z", "left alone until 2027-01-15T08:02:00Z")


def test_the_fix_names_the_device_as_the_quarantine_does(quarantine: Quarantine) -> None:
    quarantine.impose("R5", "their name; $(x)", "cause")
    with pytest.raises(Quarantined, match="device ours is in quarantine") as caught:
        quarantine.admit("R5", "ours")
    assert caught.value.fix.endswith("`devicelab lab unquarantine 'their name; $(x)'`")


def test_after_it_the_device_is_on_probation_and_a_success_ends_it(
    quarantine: Quarantine, clock: Clock
) -> None:
    quarantine.impose("R5", "s24", "cause")
    clock.at += FIRST_S
    ban = quarantine.admit("R5", "s24")
    assert ban is not None
    assert quarantine.on_probation(ban)
    assert [each.device for each in quarantine.bans()] == ["R5"]
    quarantine.lift("R5")
    assert quarantine.admit("R5", "s24") is None
    assert quarantine.bans() == ()
    assert quarantine.impose("R5", "s24", "another").strikes == 1


def test_a_failure_on_probation_doubles_it_and_keeps_the_first_cause(
    quarantine: Quarantine, clock: Clock
) -> None:
    for strike, length in enumerate((FIRST_S, 2 * FIRST_S, 4 * FIRST_S), start=1):
        ban = quarantine.impose("R5", "s24", f"cause {strike}")
        assert (ban.strikes, ban.until - clock.at, ban.reason) == (strike, length, "cause 1")
        clock.at = ban.until
    for _ in range(20):
        ban = quarantine.impose("R5", "s24", "again")
        clock.at = ban.until
    assert ban.until - ban.since > LONGEST_S
    assert quarantine.impose("R5", "s24", "again").until - clock.at == LONGEST_S


def test_two_who_find_out_at_once_count_once(quarantine: Quarantine) -> None:
    first = quarantine.impose("R5", "s24", "cause")
    assert quarantine.impose("R5", "s24", "the same, seen by another worker") == first


def test_one_that_nobody_asked_for_in_a_day_begins_anew(quarantine: Quarantine, clock: Clock) -> None:
    quarantine.impose("R5", "s24", "cause")
    clock.at += 25 * 3600
    assert quarantine.admit("R5", "s24") is None
    assert quarantine.impose("R5", "s24", "new").reason == "new"


def test_a_clock_that_was_set_back_keeps_nobody_out(quarantine: Quarantine, clock: Clock) -> None:
    quarantine.impose("R5", "s24", "cause")
    clock.at -= 7 * 24 * 3600
    assert quarantine.admit("R5", "s24") is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"[" * 4000,
        b"\xff\xfe",
        json.dumps({"device": "R5", "until": 9e99}).encode(),
        json.dumps(
            {"device": "R6", "name": "x", "reason": "x", "since": 1.0, "until": 1.8e9 + 60, "strikes": 1}
        ).encode(),
        json.dumps(
            {"device": "R5", "name": "x", "reason": 7, "since": 1.0, "until": 1.8e9 + 60, "strikes": 1}
        ).encode(),
        json.dumps(
            {"device": "R5", "name": "x", "reason": "x", "since": 1.0, "until": 1.8e9 + 60, "strikes": -1}
        ).encode(),
    ],
)
def test_a_damaged_note_is_none(quarantine: Quarantine, tmp_path: Path, content: bytes) -> None:
    quarantine.impose("R5", "s24", "cause")
    (note,) = tmp_path.glob("quarantine_*.json")
    note.write_bytes(content)
    assert quarantine.admit("R5", "s24") is None
    assert quarantine.bans() == ()
    assert quarantine.impose("R5", "s24", "cause").strikes == 1


def test_a_note_is_never_a_link(quarantine: Quarantine, tmp_path: Path) -> None:
    quarantine.impose("R5", "s24", "cause")
    (note,) = tmp_path.glob("quarantine_*.json")
    other = tmp_path / "other"
    note.rename(other)
    note.symlink_to(other)
    assert quarantine.bans() == ()


def test_any_reason_fits(quarantine: Quarantine) -> None:
    quarantine.impose("R" * 300, "n" * 5000, '\\"' * 50_000)
    (ban,) = quarantine.bans()
    assert len(ban.reason) == 1000
