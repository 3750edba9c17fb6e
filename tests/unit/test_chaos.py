"""The chaos suite itself: a fault that never began is no sound outcome."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks/chaos.py"


@pytest.fixture
def chaos(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("chaos", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "chaos", module)  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("fault", "phase", "says", "outcome", "is_broken"),
    [
        ("drop", "push", "drop (begun)", "sound", False),
        ("drop", "push", "drop (waits)", "not begun (sound)", True),
        ("drop", "push", "drop (lurks)", "not begun (sound)", True),
        ("drop", "push", "", "not begun (sound)", True),
        ("corrupt_push", "pull", "corrupt_push (lurks)", "sound: no file is pushed any more", False),
        ("corrupt_push", "pull", "corrupt_push (waits)", "not begun (sound)", True),
        ("corrupt_push", "push", "corrupt_push (lurks)", "not begun (sound)", True),
    ],
)
def test_only_a_fault_that_began_has_an_outcome(
    fault: str, phase: str, says: str, outcome: str, is_broken: bool, chaos: Any
) -> None:
    broken: list[str] = []
    played = chaos.Played(records=(), outcomes=("pass",), took_s=1.0, faults=says)
    assert played.outcome(fault, phase, broken) == outcome
    assert bool(broken) == is_broken
