"""Flaky: the same thing tried twice, with two outcomes. The rule is in docs/explanation/verdicts.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.verdicts.verdict import Verdict

# Failures of an attempt in which the model's own execution broke off, as no cable and no server can make it.
_EXECUTION = frozenset({"npu_crash"})


def crashed_before(record: RunRecord) -> str:
    """Say which attempt of a run that came to its end crashed before it; empty when none did."""
    if record.status != "ok":
        return ""
    crashed = [attempt.number for attempt in record.attempts if attempt.failure in _EXECUTION]
    if not crashed:
        return ""
    numbers = ", ".join(map(str, crashed))
    return f"{record.device.id}: the NPU crashed in attempt {numbers} of {len(record.attempts)}, and did not in the last"


def temper(verdict: Verdict, records: Iterable[RunRecord]) -> Verdict:
    """Return a verdict as it counts: a pass on a run that crashed when it was first tried is flaky.

    Args:
        verdict: what a check says.
        records: the runs it rests on.
    """
    crashed = [said for record in records if (said := crashed_before(record))]
    if verdict.outcome != "pass" or not crashed:
        return verdict
    return replace(
        verdict, outcome="flaky", reason=f"{'; '.join(crashed)}. The last attempt alone: {verdict.reason}"
    )


def settle(
    given: Sequence[tuple[Verdict, str]], standing: Sequence[tuple[Verdict, str]]
) -> list[tuple[Verdict, str]]:
    """Return the verdicts that stand, those that changed between judgements made one, and flaky.

    Args:
        given: every verdict ever given in a session with the test that gave it, oldest first.
        standing: those of each test's latest start of pytest.
    """
    told: dict[tuple[object, ...], list[Verdict]] = {}
    for verdict, nodeid in given:
        told.setdefault(_key(verdict, nodeid), []).append(verdict)
    settled: dict[tuple[object, ...], tuple[Verdict, str]] = {}
    for number, (verdict, nodeid) in enumerate(standing):
        key = _key(verdict, nodeid)
        definite = [each for each in told[key] if each.outcome != "inconclusive"]
        if len({each.outcome for each in definite}) < 2:
            settled[*key, number] = verdict, nodeid
        else:
            settled[key] = _changed(definite), nodeid
    return list(settled.values())


def _changed(verdicts: Sequence[Verdict]) -> Verdict:
    last = verdicts[-1]
    if last.outcome == "flaky":
        return last
    said = "; ".join(f"{each.outcome}: {each.reason}" for each in verdicts)
    evidence = tuple(dict.fromkeys(path for each in verdicts for path in each.evidence))
    reason = f"judged {len(verdicts)} times in this session, with different outcomes: {said}"
    return replace(last, outcome="flaky", reason=reason, evidence=evidence)


def _key(verdict: Verdict, nodeid: str) -> tuple[object, ...]:
    return nodeid, verdict.check, verdict.model, verdict.devices
