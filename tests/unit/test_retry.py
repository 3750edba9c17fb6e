from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pytest_devicelab.errors import (
    AdbServerLost,
    DeadlineExceeded,
    DeviceLost,
    HostFailed,
    InfrastructureError,
    OutputIncomplete,
    Quarantined,
    TransferError,
)
from pytest_devicelab.evidence.events import Event
from pytest_devicelab.lab.retry import RetryQuota, failure_class, runner_failure, why_never
from pytest_devicelab.matrix.specs import Retries


@pytest.mark.parametrize(
    ("error", "name", "retried"),
    [
        (DeviceLost("x"), "lost", True),
        (AdbServerLost("x"), "adb", True),
        (DeadlineExceeded("x"), "deadline", True),
        (TransferError("x"), "transfer", True),
        (TransferError("x", why="write: No space left on device"), "disk_full", True),
        (InfrastructureError("x"), "lab", True),
        (OutputIncomplete("x"), "output", False),
        (OutputIncomplete("x", why="No space left on device"), "output", False),
        (Quarantined("x"), "quarantined", False),
        # Whose disk is full makes a difference: nothing is to be removed from the device.
        (HostFailed("x", why="[Errno 28] No space left on device"), "host", False),
    ],
)
def test_only_failures_of_the_lab_are_tried_again(
    error: InfrastructureError, name: str, retried: bool
) -> None:
    assert failure_class(error) == name
    assert (why_never(name) == "") is retried


def test_a_runner_that_fails_is_tried_again_only_where_the_npu_restarted() -> None:
    crash = Event(kind="npu_crash", dialect="qnn", source="logcat", line=1, offset=0, raw="")
    assert runner_failure([crash]) == "npu_crash"
    assert runner_failure([]) == "runner"
    assert why_never("npu_crash") == ""
    assert why_never("runner")


def test_a_run_has_so_many_retries_and_a_session_so_many_for_all(tmp_path: Path) -> None:
    allowed = Retries(per_run=2, per_session=3)
    quota, of_another_worker = RetryQuota(tmp_path, allowed), RetryQuota(tmp_path, allowed)
    assert (quota.refuse(1), quota.refuse(2)) == ("", "")
    assert "a run has 2 retries" in quota.refuse(3)
    assert of_another_worker.refuse(1) == ""
    assert "all 3 retries of this session are used up" in of_another_worker.refuse(1)


def test_no_retry_is_given_twice(tmp_path: Path) -> None:
    quota = RetryQuota(tmp_path, Retries(per_run=1, per_session=50))
    with ThreadPoolExecutor(8) as pool:
        granted = [reason == "" for reason in pool.map(lambda _: quota.refuse(1), range(100))]
    assert granted.count(True) == 50


def test_none_allowed_is_none(tmp_path: Path) -> None:
    assert RetryQuota(tmp_path, Retries(per_run=0)).refuse(1)
    assert RetryQuota(tmp_path, Retries(per_session=0)).refuse(1)
