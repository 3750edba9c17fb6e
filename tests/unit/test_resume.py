"""Going on with a session: what is set aside, what is refused, and what killed sessions leave."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import pytest

from pytest_devicelab.errors import HostFailed, UserError
from pytest_devicelab.evidence.record import TensorRecord
from pytest_devicelab.evidence.starts import begin_start, end_start, read_starts
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.request import model_sha256
from pytest_devicelab.lab.resume import clean_session, find_session, require_same_matrix
from pytest_devicelab.lab.scratch import Scratch, sweep_scratch
from pytest_devicelab.lab.session_lock import SessionLock
from pytest_devicelab.verdicts.verdict import Outcome, Verdict
from tests.unit.verdict_builders import run_record

NOW = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)
VALUES = np.arange(8, dtype=np.float32)


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return SessionStore.create(tmp_path / "reports", "20261121T020000Z-1a2b")


def write_run(store: SessionStore, run_id: str, **changes: object) -> Path:
    sha256 = store.arrays.write(VALUES)
    output = TensorRecord(name="y", dtype="float32", shape=(8,), sha256=sha256)
    changes = {"id": run_id, "session": store.id, "outputs": (output,)} | changes
    return store.write_record(replace(run_record(), **changes))  # type: ignore[arg-type]


def test_sound_records_stay_and_the_others_are_set_aside(store: SessionStore) -> None:
    good = write_run(store, "good")
    before = good.read_bytes()
    failed = write_run(store, "failed", status="failed", outputs=())
    torn = write_run(store, "torn")
    torn.write_bytes(before[:50])
    said: list[str] = []

    clean_session(store, said.append)

    assert good.read_bytes() == before
    assert [record.id for record in store.records()] == ["good"]
    assert failed.with_name("record.failed.json").is_file()
    assert torn.with_name("record.damaged.json").is_file()
    assert [line.split()[1] for line in said] == ["failed", "torn"]


def test_what_was_set_aside_before_stays(store: SessionStore) -> None:
    for _ in range(2):
        path = write_run(store, "run", status="failed", outputs=())
        clean_session(store, lambda text: None)
    assert {found.name for found in path.parent.iterdir()} == {"record.failed.json", "record.failed.2.json"}


def test_an_output_that_cannot_be_read_is_pulled_again(store: SessionStore) -> None:
    path = write_run(store, "run")
    (array,) = (store.root / "arrays").iterdir()
    array.write_bytes(b"\x93NUMPY, cut short")

    clean_session(store, lambda text: None)

    assert store.records() == ()
    assert path.with_name("record.damaged.json").is_file()
    assert not store.arrays.has(array.stem)


def test_leftovers_of_a_kill_go(store: SessionStore) -> None:
    path = write_run(store, "run")
    (path.parent / ".0123.partial").write_bytes(b"half")
    (path.parent / ".pull-x").mkdir()
    (store.root / "verdicts").mkdir()
    (store.root / "verdicts" / "0.json").write_bytes(b"{")
    store.write_reference("key", (TensorRecord(name="y", dtype="float32", shape=(8,), sha256="0" * 64),))
    store.write_file("session.json", b"{}")

    clean_session(store, lambda text: None)

    assert {found.name for found in path.parent.iterdir()} == {"record.json"}
    assert store.verdicts(Verdict) == ()
    assert store.read_reference("key") is None
    assert not (store.root / "session.json").exists()


def test_only_the_verdicts_of_the_last_attempt_stand(store: SessionStore) -> None:
    def judge(attempt: int, nodeid: str, outcome: Outcome) -> None:
        verdict = Verdict(check="placement", model="m", devices=("s24",), outcome=outcome, reason=outcome)
        SessionStore.open(store.root, attempt=attempt).write_verdict(verdict, nodeid)

    judge(1, "a", "inconclusive")
    judge(1, "b", "fail")
    judge(2, "a", "pass")
    judge(2, "a", "pass")

    assert sorted((nodeid, verdict.outcome) for verdict, nodeid in store.verdicts(Verdict)) == [
        ("a", "pass"),
        ("b", "fail"),
    ]
    history = [(each.attempt, each.nodeid, each.verdict.outcome) for each in store.judgements(Verdict)]
    assert history == [(1, "a", "inconclusive"), (1, "b", "fail"), (2, "a", "pass"), (2, "a", "pass")]


def test_starts_say_which_one_was_interrupted(tmp_path: Path) -> None:
    assert begin_start(tmp_path, NOW).number == 1
    assert begin_start(tmp_path, NOW).number == 2
    end_start(tmp_path, 2, NOW)
    first, second = read_starts(tmp_path)
    assert first.interrupted
    assert first.ended is not None
    assert (second.interrupted, second.ended) == (False, "2026-11-21T02:00:00Z")


@pytest.mark.parametrize("harm", ["nothing", "no matrix", "other schema"])
def test_what_is_no_session_is_refused(harm: str, store: SessionStore) -> None:
    reports = store.root.parent
    (store.root / "matrix.yaml").write_text("schema: x")
    begin_start(store.root, NOW)
    if harm == "nothing":
        for wanted in ("latest", store.id, f"reports/{store.id}"):
            assert find_session(wanted, reports, reports.parent) == store.root
        return
    if harm == "no matrix":
        (store.root / "matrix.yaml").unlink()
    else:
        note = store.root / "starts" / "000001.json"
        note.write_bytes(note.read_bytes().replace(b"start/1", b"start/9"))
    with pytest.raises(UserError, match="there is no session to go on with"):
        find_session("latest", reports, reports.parent)


def test_another_matrix_is_refused_with_its_first_difference(tmp_path: Path) -> None:
    (tmp_path / "matrix.yaml").write_text("a: 1\nb: 2\n")
    now = tmp_path / "m.yaml"
    now.write_text("a: 1\nb: 2\n")
    require_same_matrix(tmp_path, now)
    now.write_text("a: 1\nb: 3\n")
    with pytest.raises(UserError, match="another device matrix") as caught:
        require_same_matrix(tmp_path, now)
    assert [line.strip() for line in str(caught.value).splitlines()][2:4] == ["-b: 2", "+b: 3"]


def test_a_session_has_one_controller(tmp_path: Path) -> None:
    lock = SessionLock.take(tmp_path)
    with pytest.raises(UserError, match=f"by process {os.getpid()}"):
        SessionLock.take(tmp_path)
    lock.close()
    SessionLock.take(tmp_path).close()


def test_workers_of_a_dead_controller_are_waited_for(tmp_path: Path) -> None:
    SessionLock.take(tmp_path).close()
    code = (
        "import sys, time, pathlib; from pytest_devicelab.lab.session_lock import SessionLock; "
        "lock = SessionLock.join(pathlib.Path(sys.argv[1])); print(flush=True); time.sleep(0.5)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        lock = SessionLock.take(tmp_path)
        with (tmp_path / "locks" / "workers.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody has it any more
        lock.close()


def test_scratch_of_the_dead_goes_and_that_of_the_living_and_of_others_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "dl-strange").mkdir()
    dead = tmp_path / "dl-dead"
    (dead / "v").mkdir(parents=True)
    (dead / ".owner").touch()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / ".owner").touch()
    (tmp_path / "dl-link").symlink_to(outside)
    (dead / "link").symlink_to(outside)

    living = Scratch()
    sweep_scratch(tmp_path)

    assert not dead.exists()
    assert living.path.is_dir()
    assert (tmp_path / "dl-strange").is_dir()
    assert (outside / ".owner").is_file()
    living.close()
    assert not living.path.exists()


def test_without_room_for_scratch_the_fix_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(HostFailed, match=r"(?s)No usable temporary directory.*TMPDIR"):
        Scratch()


def test_weights_in_another_file_are_part_of_the_model(tmp_path: Path) -> None:
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])
    node = onnx.helper.make_node("Identity", ["w"], ["y"])
    shas = []
    for value in (1.0, 2.0):
        weights = onnx.numpy_helper.from_array(np.full(4, value, np.float32), "w")
        graph = onnx.helper.make_graph([node], "g", [], [y], [weights])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
        path = tmp_path / "m.onnx"
        (tmp_path / "w.bin").unlink(missing_ok=True)
        onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
        shas.append((path.read_bytes(), model_sha256(path)))
    assert shas[0][0] == shas[1][0]
    assert shas[0][1] != shas[1][1]


def test_an_empty_scratch_folder_goes_once_nobody_can_be_about_to_own_it(tmp_path: Path) -> None:
    old, new, full = (tmp_path / f"dl-{name}" for name in ("old", "new", "full"))
    for folder in (old, new, full):
        folder.mkdir()
    (full / "something").touch()
    for folder in (old, full):
        os.utime(folder, (0, 0))
    sweep_scratch(tmp_path)
    assert sorted(tmp_path.iterdir()) == [full, new]
