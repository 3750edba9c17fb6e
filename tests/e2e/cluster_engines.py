"""Engines of the cluster's tests. They run in the runner's process on a lab host's device."""

from __future__ import annotations

import time

from pytest_devicelab.virtual.engine import EngineJob, EngineResult


def held(job: EngineJob) -> EngineResult:
    """A run that only ends when somebody ends it."""
    time.sleep(600)
    raise RuntimeError("nobody ended this run")
