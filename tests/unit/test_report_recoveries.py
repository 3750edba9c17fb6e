"""What was tried to get devices back, in session.json and in the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jsonschema

from pytest_devicelab.evidence.record import Attempt, RecoveryStep, RunRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.report.assemble import assemble
from pytest_devicelab.report.html import render_html
from pytest_devicelab.report.recoveries import find_recoveries
from pytest_devicelab.report.session import session_schema, to_json
from tests.unit.session_builders import FINISHED, SESSION_ID, STARTED, matrix, record

BACK = RecoveryStep(
    attempt=1,
    rung="reconnect",
    why="push of <b>model.bin</b> failed",
    started="2026-11-20T22:43:10.250+00:00",
    duration_s=1.25,
    helped=True,
)
FAILED = replace(BACK, rung="reboot", why="silence", helped=False, said="no end after 10 s", duration_s=10.0)
BANNED = RecoveryStep(
    attempt=1,
    rung="quarantine",
    why="push failed",
    started="2026-11-20T22:43:00Z",
    duration_s=0.0,
    helped=False,
    said="left alone until 2026-11-20T22:45:00Z",
)


def failed(model: str, device: str, *steps: RecoveryStep) -> RunRecord:
    attempt = Attempt(number=1, started="", duration_s=0.0, error="gone", failure="quarantined")
    return replace(record(model, device), status="failed", error="gone", attempts=(attempt,), recovery=steps)


def test_one_quarantine_is_one_entry_with_all_the_runs_it_cost() -> None:
    records = [
        failed("digits_int8", "s24", FAILED, BANNED),
        failed("digits_a16w8", "s24", replace(BANNED, attempt=0)),
        replace(record("digits_int8", "s25"), recovery=(BACK,)),
        failed("digits_int8", "s26", replace(BANNED, attempt=0)),
    ]
    found = find_recoveries(records)
    assert [(entry.device, entry.rung, entry.runs) for entry in found] == [
        ("s24", "reboot", (records[0].id,)),
        ("s25", "reconnect", (records[2].id,)),
        ("s24", "quarantine", (records[0].id, records[1].id)),
        ("s26", "quarantine", (records[3].id,)),
    ]
    assert find_recoveries([record("digits_int8", "s24")]) == ()


def test_the_report_shows_each_step_and_when_a_quarantine_ends(tmp_path: Path) -> None:
    store = SessionStore.create(tmp_path, SESSION_ID)
    store.write_record(replace(record("digits_int8", "s25"), recovery=(BACK,)))
    store.write_record(failed("digits_int8", "s24", FAILED, BANNED))
    store.write_record(failed("digits_a16w8", "s24", replace(BANNED, attempt=0)))
    found = assemble(store, matrix(tmp_path / "matrix.yaml"), STARTED, FINISHED, 1)
    jsonschema.validate(to_json(found), session_schema())
    page = render_html(found)
    section = page.partition('<h2 id="recoveries">')[2].partition("</section>")[0]
    assert "push of &lt;b&gt;model.bin&lt;/b&gt; failed" in section
    assert "the device answered" in section
    assert "left alone until 2026-11-20T22:45:00Z" in section
    assert "and 1 further run" in section
    assert section.count("<tr>") == 1 + 3
    # Nobody knows anything of the chip that went into quarantine.
    (hole,) = found.coverage_holes
    assert hole.devices == ("s24",)


def test_a_session_without_trouble_has_no_such_section(tmp_path: Path) -> None:
    store = SessionStore.create(tmp_path, SESSION_ID)
    store.write_record(record("digits_int8", "s25"))
    found = assemble(store, matrix(tmp_path / "matrix.yaml"), STARTED, FINISHED, 0)
    assert found.recoveries == ()
    assert "Recovery of devices" not in render_html(found)
