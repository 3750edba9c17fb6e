from __future__ import annotations

from dataclasses import replace

from pytest_devicelab.verdicts.evidence import advice_of, why_not_ok
from tests.unit.verdict_builders import run_record


def test_a_run_that_failed_says_why_and_what_to_do() -> None:
    failed = replace(
        run_record(),
        status="failed",
        error="device s24 is not attached\n  why: nobody lists it\n  fix: plug it in,\n       then look",
    )
    assert (
        why_not_ok(failed)
        == f"the run on {failed.device.id} failed: device s24 is not attached (nobody lists it)"
    )
    assert advice_of([failed, failed, run_record()]) == ("plug it in, then look",)
    silent = replace(failed, error="device s24 is not attached")
    assert advice_of([silent, replace(failed, status="ok")]) == ()
