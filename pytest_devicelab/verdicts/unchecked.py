"""Verdicts from before: those whose tests were left out when their session was resumed, by `-k` for one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from pytest_devicelab.evidence.store import Judgement
from pytest_devicelab.verdicts.verdict import Verdict


def find_unchecked(judgements: Iterable[Judgement[Verdict]], start: int) -> Mapping[str, int]:
    """Return the tests that gave no verdict in a start of pytest, each with the start in which it last did.

    Args:
        judgements: every verdict ever given in the session.
        start: number of the start that is being reported.
    """
    latest: dict[str, int] = {}
    for each in judgements:
        latest[each.nodeid] = max(latest.get(each.nodeid, 0), each.attempt)
    return {nodeid: given for nodeid, given in latest.items() if given < start}


def as_of_before(verdict: Verdict, given: int, start: int) -> Verdict:
    """Return a verdict as it counts when its test was left out of a later start: what is bad stays, a pass is none.

    Its run may have been set aside since, or its model may be another. To judge it again costs nothing as long as its
    records stand, so nobody needs to take it on trust.

    Args:
        verdict: what the test said.
        given: number of the start of pytest it said so in.
        start: number of the start that left it out.
    """
    said = f"{verdict.outcome} in start {given} of this session, and not checked again in start {start}"
    outcome = "inconclusive" if verdict.outcome == "pass" else verdict.outcome
    return replace(verdict, outcome=outcome, reason=f"{said}: {verdict.reason}")
