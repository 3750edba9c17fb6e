"""Verdicts of tests that were left out when their session was resumed."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from pytest_devicelab.errors import UserError
from pytest_devicelab.evidence.starts import begin_start, end_start
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.open import open_session
from pytest_devicelab.lab.session_lock import SessionLock
from pytest_devicelab.matrix.decode import load_matrix
from pytest_devicelab.report.assemble import assemble
from pytest_devicelab.report.session import Session
from pytest_devicelab.verdicts.verdict import Outcome, Verdict
from tests.unit.session_builders import FINISHED, STARTED, matrix

NOW = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)


def played(folder: Path, *starts: dict[str, Outcome]) -> Session:
    """Return the report of a session that was started so often, with the verdicts its tests gave each time."""
    root = SessionStore.create(folder / "reports", "20261121T020000Z-1a2b").root
    for said in starts:
        number = begin_start(root, NOW).number
        for nodeid, outcome in said.items():
            verdict = Verdict(
                check="placement", model="m", devices=("s24",), outcome=outcome, reason="because"
            )
            SessionStore.open(root, attempt=number).write_verdict(verdict, nodeid)
        end_start(root, number, NOW)
    return assemble(SessionStore.open(root), matrix(folder / "m.yaml"), STARTED, FINISHED, 0)


def found(session: Session) -> dict[str, tuple[str, str]]:
    return {entry.nodeid: (entry.verdict, entry.reason) for entry in session.verdicts}


def test_a_pass_that_was_not_checked_again_is_none(tmp_path: Path) -> None:
    session = played(tmp_path, {"a": "pass", "b": "pass"}, {"b": "pass"})
    assert found(session) == {
        "a": ("inconclusive", "pass in start 1 of this session, and not checked again in start 2: because"),
        "b": ("pass", "because"),
    }
    assert session.outcome == "inconclusive"


@pytest.mark.parametrize("outcome", ["fail", "inconclusive", "flaky"])
def test_what_was_not_green_stays_what_it_was(outcome: Outcome, tmp_path: Path) -> None:
    session = played(tmp_path, {"a": outcome}, {"a": outcome, "b": "pass"}, {"b": "pass"})
    assert found(session)["a"] == (
        outcome,
        f"{outcome} in start 2 of this session, and not checked again in start 3: because",
    )
    assert session.outcome == outcome


def test_what_is_checked_again_is_green(tmp_path: Path) -> None:
    session = played(tmp_path, {"a": "pass"}, {}, {"a": "pass"})
    assert found(session) == {"a": ("pass", "because")}
    assert session.outcome == "pass"


def test_a_verdict_that_changed_before_it_was_left_out_stays_flaky(tmp_path: Path) -> None:
    session = played(tmp_path, {"a": "fail"}, {"a": "pass"}, {})
    assert session.outcome == "flaky"


def test_an_experiment_is_not_gone_on_with_while_somebody_is_at_it(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").touch()
    (tmp_path / "m.yaml").write_text(
        "schema: devicelab.matrix/1\ndevices: [{id: s24, kind: virtual, soc: SM8650}]\n"
        "models: [{id: net, path: net.onnx}]\n"
    )
    spec = load_matrix(tmp_path / "m.yaml")
    root = tmp_path / "reports/experiments/20261121T020000Z-1a2b"
    (root / "runs").mkdir(parents=True)
    lock = SessionLock.take(root)
    with (
        pytest.raises(UserError, match="is being run"),
        open_session(
            spec, spec.devices, reports=tmp_path / "reports", resume=root, progress=lambda text: None
        ),
    ):
        pass
    lock.close()
