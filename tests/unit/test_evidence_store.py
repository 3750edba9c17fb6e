from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import multiprocessing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.errors import DevicelabError, InfrastructureError, UserError
from pytest_devicelab.evidence.arrays import tensor_sha256
from pytest_devicelab.evidence.record import TensorRecord
from pytest_devicelab.evidence.store import SessionStore, new_session_id
from pytest_devicelab.verdicts.comparison import Comparison
from pytest_devicelab.verdicts.verdict import Verdict
from tests.unit.session_builders import SESSION_ID, comparison, record, verdicts

UNSAFE = ["", ".", "..", "a/b", "../a", "/etc", ".hidden", "a\\b", "a\x00b", "a\n", "ü", "-rf", "a" * 201]


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return SessionStore.create(tmp_path / "reports", SESSION_ID)


def test_a_session_id_sorts_by_time_and_is_in_utc() -> None:
    noon = datetime(2026, 11, 20, 12, 0, 5, tzinfo=timezone(timedelta(hours=2)))
    assert new_session_id(noon, b"\x1a\x2b") == "20261120T100005Z-1a2b"


def test_a_session_id_needs_a_time_that_knows_its_zone() -> None:
    with pytest.raises(ValueError, match="aware time"):
        new_session_id(datetime(2026, 11, 20, tzinfo=UTC).replace(tzinfo=None), b"ab")


def test_create_points_latest_at_the_newest_session(tmp_path: Path) -> None:
    SessionStore.create(tmp_path, "20261120T100005Z-0001")
    SessionStore.create(tmp_path, "20261120T100006Z-0002")
    assert (tmp_path / "latest").readlink() == Path("20261120T100006Z-0002")
    assert SessionStore.open(tmp_path / "latest").id == "20261120T100006Z-0002"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "20261120T100005Z-0001",
        "20261120T100006Z-0002",
        "latest",
    ]


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_latest_that_is_not_ours_is_left_alone_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_folder: bool
) -> None:
    latest = tmp_path / "latest"
    latest.mkdir() if is_folder else latest.write_text("mine")
    with caplog.at_level(logging.WARNING):
        store = SessionStore.create(tmp_path, SESSION_ID)
    assert "latest does not point to session" in caplog.text
    assert latest.is_dir() is is_folder
    assert not latest.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == [SESSION_ID, "latest"]
    assert store.root.is_dir()


def test_two_sessions_never_share_a_folder(store: SessionStore) -> None:
    with pytest.raises(UserError, match="cannot be made"):
        SessionStore.create(store.root.parent, SESSION_ID)


def test_a_session_that_is_not_there_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no session folder"):
        SessionStore.open(tmp_path / "nowhere")


@pytest.mark.parametrize("name", UNSAFE)
def test_no_name_leaves_the_session_folder(store: SessionStore, name: str) -> None:
    before = sorted(store.root.rglob("*"))
    for call in (
        lambda: store.run_folder(name),
        lambda: store.read_record(name),
        lambda: store.arrays.read(name),
        lambda: store.write_file(name, b""),
        lambda: SessionStore.create(store.root.parent, name),
    ):
        with pytest.raises(DevicelabError):
            call()
    assert sorted(store.root.rglob("*")) == before


def test_a_record_comes_back_as_written(store: SessionStore) -> None:
    before = record("digits_int8", "s24")
    assert store.read_record(before.id) is None
    path = store.write_record(before)
    assert path == store.root / "runs" / before.id / "record.json"
    assert store.read_record(before.id) == before
    assert json.loads(path.read_bytes())["schema"] == "devicelab.run/1"


def test_records_are_sorted_and_leave_out_runs_that_have_none_yet(store: SessionStore) -> None:
    for device in ("s26", "s21"):
        store.write_record(record("digits_int8", device))
    store.run_folder("digits_int8.s24.evaluate")
    assert [found.device.id for found in store.records()] == ["s21", "s26"]


def test_a_record_of_another_session_is_refused(store: SessionStore) -> None:
    with pytest.raises(ValueError, match="belongs to session"):
        store.write_record(record("digits_int8", "s24", session="20200101T000000Z-0000"))


def test_a_record_copied_to_another_run_is_refused(store: SessionStore) -> None:
    written = store.write_record(record("digits_int8", "s24"))
    (store.run_folder("digits_int8.s21.evaluate") / "record.json").write_bytes(written.read_bytes())
    with pytest.raises(InfrastructureError, match=r"field `id`"):
        store.records()


def test_a_record_that_cannot_be_read_is_said(store: SessionStore) -> None:
    path = store.write_record(record("digits_int8", "s24"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InfrastructureError, match=r"record\.json cannot be used"):
        store.records()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        np.arange(6, dtype=">f8")[::2],
        np.array(7, dtype=np.uint8),
        np.zeros((0, 10), dtype=np.float16),
        np.array([True, False]),
        np.array([np.nan, -0.0], dtype=np.float32),
    ],
)
def test_an_array_is_named_by_the_hash_a_device_computes(
    store: SessionStore, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
) -> None:
    little = array.astype(array.dtype.newbyteorder("<"))
    sha256 = store.arrays.write(array)
    assert sha256 == hashlib.sha256(little.tobytes(order="C")).hexdigest()
    found = store.arrays.read(sha256)
    assert found.shape == array.shape
    assert found.dtype == little.dtype
    assert found.tobytes() == little.tobytes()


def test_equal_arrays_are_kept_once(store: SessionStore) -> None:
    assert store.arrays.write(np.ones(4)) == store.arrays.write(np.ones(4))
    assert len(list((store.root / "arrays").iterdir())) == 1


def test_outputs_equal_in_bytes_keep_their_own_dtype_and_shape(store: SessionStore) -> None:
    dead = np.zeros((2, 4), dtype=np.uint8)
    quiet = np.zeros(2, dtype=np.float32)
    assert store.arrays.write(dead) == store.arrays.write(quiet)
    for array in (dead, quiet):
        tensor = TensorRecord(
            name="y", dtype=array.dtype.name, shape=array.shape, sha256=tensor_sha256(array)
        )
        found = store.read_output(tensor)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)


@pytest.mark.parametrize(
    ("dtype", "shape"), [("float32", (3,)), ("float64", (-1,)), ("O", (1,)), ("(", (8,)), ("nope", (8,))]
)
def test_a_record_that_does_not_fit_its_array_is_said(
    store: SessionStore, dtype: str, shape: tuple[int, ...]
) -> None:
    sha256 = store.arrays.write(np.zeros(8, dtype=np.uint8))
    with pytest.raises(InfrastructureError, match="cannot be used"):
        store.read_output(TensorRecord(name="y", dtype=dtype, shape=shape, sha256=sha256))


def test_an_array_that_was_changed_on_disk_is_refused(store: SessionStore) -> None:
    sha256 = store.arrays.write(np.arange(4, dtype=np.uint8))
    np.save(store.root / "arrays" / f"{sha256}.npy", np.arange(4, dtype=np.uint8) + 1)
    with pytest.raises(InfrastructureError, match="cannot be used") as caught:
        store.arrays.read(sha256)
    assert "sha256" in caught.value.why


def test_a_pickle_in_place_of_an_array_is_never_loaded(store: SessionStore) -> None:
    path = store.root / "arrays" / f"{'ab' * 32}.npy"
    path.parent.mkdir()
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InfrastructureError, match=r"cannot be used") as caught:
        store.arrays.read("ab" * 32)
    assert "allow_pickle=False" in caught.value.why


@given(
    content=st.one_of(
        st.binary(max_size=80), st.binary(max_size=80).map(lambda tail: b"\x93NUMPY\x01\x00" + tail)
    )
)
def test_no_array_file_gives_a_traceback(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    store = SessionStore(tmp_path_factory.mktemp("session"))
    (store.root / "arrays").mkdir()
    (store.root / "arrays" / f"{'cd' * 32}.npy").write_bytes(content)
    with pytest.raises(InfrastructureError):
        store.arrays.read("cd" * 32)


def test_a_missing_array_is_said(store: SessionStore) -> None:
    with pytest.raises(InfrastructureError, match="is not in the session folder"):
        store.arrays.read("ef" * 32)


@pytest.mark.parametrize("array", [np.array([{}], dtype=object), np.array(["a"]), np.zeros(1, dtype="i4,f4")])
def test_what_is_no_tensor_of_numbers_is_not_kept(
    store: SessionStore, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
) -> None:
    with pytest.raises(ValueError, match="no tensor of numbers"):
        store.arrays.write(array)


def test_verdicts_and_comparisons_come_back_with_their_tests(store: SessionStore) -> None:
    written = verdicts("digits_int8")
    for number, verdict in enumerate(written):
        store.write_verdict(verdict, f"test_{number}")
    store.write_comparison(comparison("digits_int8"))
    found = dict((nodeid, verdict) for verdict, nodeid in store.verdicts(Verdict))
    assert found == {f"test_{number}": verdict for number, verdict in enumerate(written)}
    assert store.comparisons(Comparison) == (comparison("digits_int8"),)


def test_a_test_that_changes_its_mind_leaves_both_verdicts(store: SessionStore) -> None:
    passed = verdicts("digits_int8")[0]
    failed = dataclasses.replace(passed, outcome="fail", reason="a fallback nobody declared")
    for verdict in (failed, passed, passed):
        store.write_verdict(verdict, "test_placement")
    assert sorted(verdict.outcome for verdict, _ in store.verdicts(Verdict)) == ["fail", "pass"]


def test_a_verdict_without_its_test_is_damaged(store: SessionStore) -> None:
    path = store.write_verdict(verdicts("digits_int8")[0], "test_placement")
    data = json.loads(path.read_bytes())
    del data["nodeid"]
    path.write_text(json.dumps(data))
    with pytest.raises(InfrastructureError, match="field `nodeid`"):
        store.verdicts(Verdict)


def test_a_full_or_read_only_disk_leaves_nothing_half_written(store: SessionStore) -> None:
    (store.root / "runs").write_text("a file where a folder belongs")
    with pytest.raises(InfrastructureError, match="cannot be written"):
        store.write_record(record("digits_int8", "s24"))
    (store.root / "session.json").mkdir()
    with pytest.raises(InfrastructureError, match=r"session\.json cannot be written"):
        store.write_file("session.json", b"{}")
    assert sorted(path.name for path in store.root.iterdir()) == ["runs", "session.json"]


def _write_much(root: Path, worker: int) -> None:
    store = SessionStore.open(root)
    for turn in range(25):
        store.write_record(dataclasses.replace(record("digits_int8", "s24"), error=f"{worker}" * 5000))
        store.arrays.write(np.full(3000, turn, dtype=np.int32))
        store.write_verdict(verdicts("digits_int8")[turn % 5], f"test_{worker}_{turn}")


def test_processes_that_write_at_once_never_clobber_each_other(store: SessionStore) -> None:
    context = multiprocessing.get_context("spawn")  # a fork would copy pytest's threads
    workers = [context.Process(target=_write_much, args=(store.root, number)) for number in range(2)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        found = store.read_record("digits_int8.s24.evaluate")
        assert found is None or set(found.error) in ({"0"}, {"1"})
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(store.verdicts(Verdict)) == 50
    assert len(list((store.root / "arrays").iterdir())) == 25
    assert not [path for path in store.root.rglob("*") if path.name.endswith(".partial")]
