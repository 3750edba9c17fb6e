"""What went before on units that are gone stays in the record, counts for `flaky`, and takes of the session's retries."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pytest_devicelab.cluster import executor as executor_module
from pytest_devicelab.cluster import roster as roster_module
from pytest_devicelab.cluster.errand import NotCarriedOut
from pytest_devicelab.cluster.executor import ClusterExecutor
from pytest_devicelab.cluster.names import unit_name
from pytest_devicelab.cluster.parcel import Parcel, pack
from pytest_devicelab.cluster.tries import Tries
from pytest_devicelab.errors import InfrastructureError, SessionEnded
from pytest_devicelab.evidence.record import Attempt, ModelIdentity, RecoveryStep, RunRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.executor import ExecutorContext
from pytest_devicelab.lab.request import RunRequest
from pytest_devicelab.lab.retry import RetryQuota
from pytest_devicelab.matrix.soc import find_soc
from pytest_devicelab.matrix.specs import DeviceSpec, LabSpec, LogProfile, MatrixSpec, Retries, Source
from pytest_devicelab.verdicts.flaky import crashed_before
from tests.unit.verdict_builders import run_record

PLACE = Source(file="m.yaml", line=1, column=1)
SPEC = DeviceSpec(id="any", kind="cluster", source=PLACE, soc=find_soc("SM8650")[0])
LEFT, RIGHT = (unit_name(host, replace(SPEC, id=host, kind="adb")) for host in ("left", "right"))
Y = np.arange(4, dtype=np.float32).reshape(2, 2)
CRASH = Attempt(
    number=1,
    started="2026-11-21T08:00:00.000+00:00",
    duration_s=1.0,
    error="the runner exited with 1",
    failure="npu_crash",
    decision="tried again",
    files={"stderr.txt": "attempt-1/stderr.txt"},
)
GONE = Attempt(number=2, started=CRASH.started, duration_s=2.0, error="it went away", failure="lost")
FINE = Attempt(number=1, started=CRASH.started, duration_s=3.0)
STEP = RecoveryStep(
    attempt=2, rung="reconnect", why="", started=CRASH.started, duration_s=1.0, helped=False, said="silent"
)


class RayError(Exception):
    """What Ray raises when a unit is gone."""


class Lab:
    """Lab hosts, by what each unit does with a run; `sent` are the units runs went to, `used` what each was told."""

    def __init__(self, folder: Path, doing: dict[str, Callable[[], RunRecord]]) -> None:
        self.store = SessionStore.create(folder / "there", "s")
        self.doing = doing
        self.sent: list[str] = []
        self.used: list[int] = []
        self.answering = True
        self.module = SimpleNamespace(
            util=SimpleNamespace(
                list_named_actors=lambda all_namespaces: [
                    {"name": name, "namespace": "devicelab"} for name in self.doing
                ]
            ),
            get_actor=lambda name, namespace: name,
            exceptions=SimpleNamespace(RayError=RayError),
        )

    def send(self, ray: Any, unit: str, request: RunRequest, *rest: Any, name: str, **words: Any) -> Parcel:
        """Stand for `errand.send`."""
        self.sent.append(name)
        self.used.append(words["retries_used"])
        record = replace(self.doing[name](), id=request.id)
        folder = self.store.run_folder(request.id)
        for path in (*record.files.values(), *(it for each in record.attempts for it in each.files.values())):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(f"{path} of {name}")
        if record.status == "ok":
            self.store.arrays.write(Y)
        return pack(record, self.store)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[ClusterExecutor, Lab]]:
    """Return an executor, and the lab it sends its runs to."""

    def make(**doing: Callable[[], RunRecord]) -> tuple[ClusterExecutor, Lab]:
        lab = Lab(tmp_path, {{"left": LEFT, "right": RIGHT}[name]: does for name, does in doing.items()})
        monkeypatch.setattr(executor_module, "require_ray", lambda: None)
        monkeypatch.setattr(executor_module, "connect", lambda address: lab.module)
        monkeypatch.setattr(executor_module, "answers", lambda address: lab.answering)
        monkeypatch.setattr(executor_module, "send", lab.send)
        monkeypatch.setattr(
            executor_module,
            "HeadWatch",
            lambda address, leave: SimpleNamespace(
                lost=False, close=lambda: None, error=lambda: InfrastructureError("the head is gone")
            ),
        )
        monkeypatch.setattr(roster_module, "loads", lambda ray, units: dict.fromkeys(units, 0.0))
        matrix = MatrixSpec(path=tmp_path / "m.yaml", lab=LabSpec(cluster="h:1"), devices=(SPEC,), models=())
        store = SessionStore.create(tmp_path / "here", "session")
        context = ExecutorContext(
            matrix=matrix, store=store, cache=tmp_path / "cache", progress=lambda text: None
        )
        return ClusterExecutor(context), lab

    return make


def _request(tmp_path: Path, name: str = "run", **changes: Any) -> RunRequest:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"a model")
    return RunRequest(
        id=name,
        model=ModelIdentity(id="digits", variant="", sha256="0" * 64),
        path=path,
        runtime="litert",
        options={},
        inputs={"x": Y},
        purpose="evaluate",
        logging=LogProfile(level="off"),
        timeout_s=10.0,
        **changes,
    )


def _ok(*attempts: Attempt) -> RunRecord:
    return run_record(arrays={"y": Y}, attempts=attempts or (FINE,), files={"stdout.txt": "stdout.txt"})


def _gone() -> RunRecord:
    return replace(
        _ok(CRASH, GONE), status="failed", outputs=(), error="it went away\n  why: ...", recovery=(STEP,)
    )


def _raise(error: Exception) -> RunRecord:
    raise error


def _record(executor: ClusterExecutor, request: RunRequest) -> RunRecord:
    record = executor.carry_out(SPEC, request)
    assert executor._store.read_record(request.id) == record
    folder = executor._store.run_folder(request.id)
    for files in (record.files, *(attempt.files for attempt in record.attempts)):
        assert all((folder / path).is_file() for path in files.values())
    return record


def test_what_crashed_on_a_unit_that_is_gone_is_flaky_on_the_next(tmp_path: Path, made: Any) -> None:
    executor, lab = made(left=_gone, right=lambda: _ok(FINE))
    record = _record(executor, _request(tmp_path))
    assert lab.sent == [LEFT, RIGHT]
    assert record.status == "ok"
    assert [(each.number, each.failure) for each in record.attempts] == [
        (1, "npu_crash"),
        (2, "lost"),
        (3, ""),
    ]
    assert record.attempts[1].decision == "tried again, where an equal unit was free"
    assert record.attempts[1].files == {"stdout.txt": "attempt-2/stdout.txt"}
    assert [step.attempt for step in record.recovery] == [2]
    assert "the NPU crashed in attempt 1 of 3" in crashed_before(record)


def test_attempts_on_the_next_unit_are_numbered_on_with_their_files(tmp_path: Path, made: Any) -> None:
    executor, _ = made(left=_gone, right=lambda: _ok(CRASH, replace(FINE, number=2)))
    record = _record(executor, _request(tmp_path))
    assert [each.number for each in record.attempts] == [1, 2, 3, 4]
    folder = executor._store.run_folder(record.id)
    said = [(folder / path).read_text() for each in record.attempts for path in each.files.values()]
    assert [text.partition(" of ")[2] for text in said] == [LEFT, LEFT, RIGHT]
    assert record.attempts[2].files == {"stderr.txt": "attempt-3/stderr.txt"}


def test_a_unit_lost_with_its_host_is_an_attempt_also_where_no_other_is_left(
    tmp_path: Path, made: Any
) -> None:
    executor, lab = made(left=lambda: _raise(RayError("its node died")))
    lab.doing[RIGHT] = lambda: _raise(RayError("so did this"))
    record = _record(executor, _request(tmp_path))
    assert record.status == "failed"
    assert "no unit with chip SM8650" in record.error
    assert [each.failure for each in record.attempts] == ["lost", "lost", "lost"]
    assert record.attempts[0].error == f"unit {LEFT} was lost\n  why: its node died"
    assert record.attempts[0].started


def test_retries_on_lab_hosts_are_the_sessions(tmp_path: Path, made: Any) -> None:
    executor, lab = made(left=lambda: _ok(CRASH, replace(FINE, number=2)))
    request = _request(tmp_path, retries=Retries(per_run=1, per_session=2))
    for name in ("a", "b", "c"):
        executor.carry_out(SPEC, replace(request, id=name))
    assert lab.used == [0, 1, 2]
    assert "all 2 retries of this session are used up" in RetryQuota(
        executor._store.root, request.retries
    ).refuse(1)


def test_a_run_whose_process_died_on_its_lab_host_is_tried_again_once(tmp_path: Path, made: Any) -> None:
    doing = [lambda: _raise(NotCarriedOut("the process died")), _ok]
    executor, lab = made(left=lambda: doing.pop(0)())
    record = _record(executor, _request(tmp_path))
    assert [(each.failure, each.decision) for each in record.attempts] == [
        ("lab", "tried again, where an equal unit was free"),
        ("", ""),
    ]
    doing[:] = [lambda: _raise(NotCarriedOut("the process died"))] * 2
    record = _record(executor, _request(tmp_path, "other"))
    assert record.status == "failed"
    assert [each.failure for each in record.attempts] == ["lab", "lab"]
    assert lab.used == [0, 1, 1, 2]


def test_a_unit_gets_a_run_of_ours_when_it_is_free(tmp_path: Path, made: Any) -> None:
    at_once: list[int] = []
    guard, busy = threading.Lock(), set[int]()

    def does() -> RunRecord:
        with guard:
            busy.add(threading.get_ident())
            at_once.append(len(busy))
        time.sleep(0.01)
        with guard:
            busy.discard(threading.get_ident())
        return _ok()

    executor, lab = made(left=does, right=does)
    with ThreadPoolExecutor(6) as pool:
        requests = [_request(tmp_path, f"run{number}") for number in range(6)]
        records = list(pool.map(lambda request: executor.carry_out(SPEC, request), requests))
    assert [record.status for record in records] == ["ok"] * 6
    assert max(at_once) == 2
    assert set(lab.sent) == {LEFT, RIGHT}


def test_who_waits_for_a_unit_when_the_session_ends_leaves_no_record(tmp_path: Path, made: Any) -> None:
    begun, end = threading.Event(), threading.Event()

    def does() -> RunRecord:
        begun.set()
        end.wait(30)
        raise SessionEnded("the session ended")

    executor, lab = made(left=does)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(executor.carry_out, SPEC, _request(tmp_path, "first"))
        assert begun.wait(30)
        second = pool.submit(executor.carry_out, SPEC, _request(tmp_path, "second"))
        executor.close()
        assert second.result(30).status == "failed"
        end.set()
        assert "the session ended" in first.result(30).error
    assert lab.sent == [LEFT]
    assert executor._store.read_record("first") is None
    assert executor._store.read_record("second") is None


def test_no_file_of_a_unit_that_is_gone_leaves_the_runs_folder(tmp_path: Path) -> None:
    tries = Tries(tmp_path)
    for name in ("../evil", "attempt-1/../../evil", "/etc/evil"):
        parcel = Parcel(record=b"", files={name: b"x"}, arrays={})
        with pytest.raises(InfrastructureError, match="sent a file named"):
            tries.keep(parcel, _gone(), LEFT)


def test_a_lab_host_with_a_full_disk_is_made_up_for_elsewhere(tmp_path: Path, made: Any) -> None:
    full = replace(GONE, number=1, failure="host")
    executor, lab = made(
        left=lambda: replace(_ok(full), status="failed", outputs=(), error="full"), right=lambda: _ok(FINE)
    )
    assert _record(executor, _request(tmp_path)).status == "ok"
    assert lab.sent == [LEFT, RIGHT]
