from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.xdist import DeviceScheduling, device_of

DEVICES = ("a", "b", "c")
TESTS = [
    *(f"devicelab::test_{check}[m-{device}]" for device in DEVICES for check in ("x", "y", "z")),
    "devicelab::test_agreement[m]",
    "test_user.py::test_other",
]


class Worker:
    """A worker as xdist has it: it begins a test only when it knows the next one, or that there is none."""

    def __init__(self, number: int) -> None:
        self.gateway = SimpleNamespace(id=f"gw{number}")
        self.queue: deque[int] = deque()
        self.done: list[int] = []
        self.shutting_down = False
        self.judge: Callable[[Worker, int], None] = lambda worker, index: None

    def send_runtest_some(self, indices: Sequence[int]) -> None:
        assert not self.shutting_down, "a worker that was told to end takes no tests"
        for index in indices:
            self.judge(self, index)
        self.queue.extend(indices)

    def shutdown(self) -> None:
        self.shutting_down = True

    @property
    def ready(self) -> bool:
        return len(self.queue) > 1 or (bool(self.queue) and self.shutting_down)


class Session:
    """What xdist does with a scheduler, without processes."""

    def __init__(
        self,
        workers: int,
        tests: Sequence[str] = TESTS,
        *,
        units: Mapping[str, int] = MappingProxyType({}),
        durations_s: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.tests = list(tests)
        config = SimpleNamespace(getvalue=lambda name: ["popen"] * workers)
        self.scheduler = DeviceScheduling(
            cast("pytest.Config", config), DEVICES, units=units, durations_s=durations_s
        )
        self.numbers = itertools.count()
        self.workers: list[Worker] = []
        self.crashed: list[str] = []
        for _ in range(workers):
            self.join()

    def join(self) -> None:
        worker = Worker(next(self.numbers))
        self.workers.append(worker)
        self.scheduler.add_node(cast("Any", worker))
        self.scheduler.add_node_collection(cast("Any", worker), self.tests)
        if self.scheduler.collection_is_completed:
            self.scheduler.schedule()

    def step(self, worker: Worker) -> None:
        index = worker.queue.popleft()
        worker.done.append(index)
        self.scheduler.mark_test_complete(cast("Any", worker), index)

    def crash(self, worker: Worker) -> None:
        self.workers.remove(worker)
        test = self.scheduler.remove_node(cast("Any", worker))
        if test is not None:
            self.crashed.append(test)

    def leave_finished(self) -> None:
        for worker in [each for each in self.workers if each.shutting_down and not each.queue]:
            self.workers.remove(worker)
            assert self.scheduler.remove_node(cast("Any", worker)) is None

    def run(self, done: list[str]) -> None:
        """Let workers take turns until nothing is left to do."""
        while ready := [worker for worker in self.workers if worker.ready]:
            for worker in ready:
                self.step(worker)
                done.append(self.tests[worker.done[-1]])


@pytest.mark.parametrize(
    ("nodeid", "device"),
    [
        ("devicelab::test_placement[m-a]", "a"),
        ("test_x.py::test_y[a-m-3]", "a"),
        ("devicelab::test_agreement[m]", None),
        ("test_x.py::test_y", None),
        ("test_x.py::test_y[ab]", None),
        ("a.py::test_y[m]", None),
        ("test_x.py::test_y[[odd]-b]", "b"),
    ],
)
def test_device_of(nodeid: str, device: str | None) -> None:
    assert device_of(nodeid, DEVICES) == device


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
def test_every_test_runs_once_and_every_worker_ends(workers: int) -> None:
    session = Session(workers)
    done: list[str] = []
    session.run(done)
    assert sorted(done) == sorted(TESTS)
    assert all(worker.shutting_down for worker in session.workers)
    assert session.scheduler.tests_finished
    assert not session.scheduler.has_pending


@pytest.mark.parametrize("workers", [1, 3, 4])
def test_a_device_stays_with_one_worker(workers: int) -> None:
    session = Session(workers)
    session.run([])
    for device in DEVICES:
        served = [
            worker.gateway.id
            for worker in session.workers
            if any(device_of(TESTS[index], DEVICES) == device for index in worker.done)
        ]
        assert len(served) == 1


def test_few_tests_are_shared_out() -> None:
    session = Session(2, [TESTS[0], TESTS[3]])
    assert [list(worker.queue) for worker in session.workers] == [[0], [1]]


def test_tests_of_the_whole_fleet_come_last() -> None:
    done: list[str] = []
    Session(1).run(done)
    assert done[-2:] == TESTS[-2:]


def test_nothing_is_dealt_out_before_all_have_collected() -> None:
    session = Session(1)
    scheduler = DeviceScheduling(
        cast("pytest.Config", SimpleNamespace(getvalue=lambda name: ["popen"] * 2)), DEVICES
    )
    first = session.workers[0]
    scheduler.add_node(cast("Any", first))
    scheduler.add_node_collection(cast("Any", first), TESTS)
    assert not scheduler.collection_is_completed
    assert not scheduler.tests_finished


def test_workers_must_collect_the_same() -> None:
    session = Session(1)
    other = Worker(9)
    session.scheduler.add_node(cast("Any", other))
    with pytest.raises(pytest.UsageError, match=r"gw9 collected other tests(.|\n)*fix: "):
        session.scheduler.add_node_collection(cast("Any", other), TESTS[:-1])


@pytest.mark.parametrize("before", range(len(TESTS) - 1))
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_crash_costs_one_test(workers: int, before: int) -> None:
    session = Session(workers)
    done: list[str] = []
    for _ in range(before):
        worker = next(each for each in session.workers if each.ready)
        session.step(worker)
        done.append(TESTS[worker.done[-1]])
    session.crash(next(each for each in session.workers if each.queue))
    session.join()
    session.run(done)
    assert sorted([*done, *session.crashed]) == sorted(TESTS)
    assert len(session.crashed) == 1
    assert session.scheduler.tests_finished


def test_a_crash_when_the_other_worker_has_gone_already() -> None:
    tests = TESTS[:1] + TESTS[3:6]
    session = Session(2, tests)
    first, second = session.workers
    while first.ready:
        session.step(first)
    session.leave_finished()
    assert session.workers == [second]
    session.crash(second)
    session.join()
    done: list[str] = []
    session.run(done)
    assert len(done) + len(first.done) + len(second.done) == len(tests) - 1
    assert session.scheduler.tests_finished


def test_an_idle_worker_that_goes_costs_nothing() -> None:
    session = Session(4, TESTS[:2])
    idle = next(worker for worker in session.workers if not worker.queue)
    session.crash(idle)
    done: list[str] = []
    session.run(done)
    assert session.crashed == []
    assert sorted(done) == sorted(TESTS[:2])


def on(index: int) -> str | None:
    return device_of(TESTS[index], DEVICES)


def test_the_device_with_the_most_left_goes_first_and_its_longest_test() -> None:
    durations_s = dict.fromkeys(TESTS, 1.0) | {TESTS[7]: 5.0, TESTS[4]: 3.0}
    session = Session(2, durations_s=durations_s)
    assert [worker.queue[0] for worker in session.workers] == [7, 4]


def test_a_test_that_was_never_timed_is_taken_for_average() -> None:
    # The average of 1 and 9 is 5: device c, of which nothing is known, has 15 to do, and b has 11.
    known = {TESTS[3]: 1.0, TESTS[4]: 1.0, TESTS[5]: 9.0, **dict.fromkeys(TESTS[:3], 9.0)}
    session = Session(3, durations_s=known)
    assert [on(worker.queue[0]) for worker in session.workers] == ["a", "c", "b"]


def test_a_worker_leaves_its_device_for_one_that_would_end_last() -> None:
    # a has 3 x 2 to do, b and c 3 x 1.9: one after another, c would begin when the others are done.
    durations_s = {test: 2.0 if on(index) == "a" else 1.9 for index, test in enumerate(TESTS)}
    session = Session(2, TESTS[:9], durations_s=durations_s)
    session.run([])
    assert sorted(len(worker.done) for worker in session.workers) == [4, 5]


def test_who_has_no_device_waits_for_one_and_begins_nothing() -> None:
    session = Session(3, TESTS[:6])
    first, second, third = session.workers
    assert not third.queue
    session.step(first)
    assert not third.queue
    session.crash(second)
    # The crashed worker's device is free now.
    assert {on(index) for index in third.queue} == {"b"}


def test_a_pool_is_served_by_as_many_workers_as_it_has_units() -> None:
    session = Session(3, TESTS[:9], units={"a": 2})
    served = [{on(index) for index in worker.queue} for worker in session.workers]
    assert served == [{"b"}, {"c"}, {"a"}]
    alone = Session(3, [*TESTS[:3], *(f"x::t{number}[a]" for number in range(3))], units={"a": 2})
    assert [len(worker.queue) for worker in alone.workers] == [2, 2, 0]


@given(data=st.data())
def test_whatever_crashes_each_test_is_dealt_out_once(data: st.DataObject) -> None:
    tests = TESTS[: data.draw(st.integers(1, len(TESTS)), "tests")]
    workers = data.draw(st.integers(1, 6), "workers")
    units = data.draw(st.dictionaries(st.sampled_from(DEVICES), st.integers(1, 3)), "units")
    durations_s = data.draw(st.dictionaries(st.sampled_from(tests), st.floats(0, 100)), "durations")
    session = Session(workers, tests, units=units, durations_s=durations_s)
    done: list[str] = []
    while able := [worker for worker in session.workers if worker.ready]:
        for worker in session.workers:
            assert len(worker.queue) != 1 or worker.shutting_down, "a worker that cannot begin its only test"
        worker = data.draw(st.sampled_from(able), "worker")
        if data.draw(st.integers(0, 4), "fate") == 0:
            session.crash(worker)
            session.join()
        else:
            session.step(worker)
            done.append(tests[worker.done[-1]])
            if data.draw(st.booleans(), "leave"):
                session.leave_finished()
    assert sorted([*done, *session.crashed]) == sorted(tests)
    assert session.scheduler.tests_finished
    assert not session.scheduler.has_pending
    assert all(worker.shutting_down for worker in session.workers)


@given(
    workers=st.integers(1, 5),
    durations_s=st.dictionaries(st.sampled_from(TESTS[:9]), st.floats(0, 100)),
    units=st.dictionaries(st.sampled_from(DEVICES), st.integers(1, 3)),
    order=st.randoms(use_true_random=False),
)
def test_no_device_gets_more_than_it_takes_while_another_is_free(
    workers: int, durations_s: dict[str, float], units: dict[str, int], order: Any
) -> None:
    session = Session(workers, TESTS[:9], units=units, durations_s=durations_s)
    dealt = {index for worker in session.workers for index in worker.queue}

    def users(device: str, but: Worker) -> int:
        others = (worker for worker in session.workers if worker is not but)
        return sum(any(on(index) == device for index in worker.queue) for worker in others)

    def judge(worker: Worker, index: int) -> None:
        assert index not in dealt
        dealt.add(index)
        over = users(str(on(index)), worker) >= units.get(str(on(index)), 1)
        left = {str(on(other)) for other in range(9) if other not in dealt}
        assert not over or all(users(device, worker) >= units.get(device, 1) for device in left)

    for worker in session.workers:
        worker.judge = judge
    while able := [worker for worker in session.workers if worker.ready]:
        session.step(order.choice(able))
    assert len(dealt) == 9
