"""Runs ahead of the tests: no device twice at once, all phones at once, the longest first, and an end when told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.evidence.record import Attempt, RunRecord
from pytest_devicelab.lab.prefetch import Agenda, Prefetch, Wish
from pytest_devicelab.matrix.specs import DeviceKind, DeviceSpec, ModelSpec, Source
from tests.unit.verdict_builders import model_spec, run_record

PLACE = Source(file="m.yaml", line=1, column=1)


def device(id_: str, kind: DeviceKind = "adb", *, units: int = 1) -> DeviceSpec:
    return DeviceSpec(id=id_, kind=kind, source=PLACE, units=units)


def model(id_: str) -> ModelSpec:
    return replace(model_spec(), id=id_)


def wishes(devices: list[DeviceSpec], models: str, *, twice: bool = False) -> list[Wish]:
    return [Wish(spec=spec, model=model(name), twice=twice) for spec in devices for name in models]


@dataclass
class Bench:
    """Makes runs that wait until they are told to go on, and notes what ran when."""

    go: threading.Event = field(default_factory=threading.Event)
    running: set[str] = field(default_factory=set)
    order: list[str] = field(default_factory=list)
    together: int = 0
    clashes: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def evaluate(self, spec: DeviceSpec, model: ModelSpec) -> RunRecord:
        with self.changed:
            self.clashes += spec.id in self.running
            self.running.add(spec.id)
            self.together = max(self.together, len(self.running))
            self.order.append(f"{model.id} on {spec.id}")
            self.changed.notify_all()
        assert self.go.wait(20)
        with self.changed:
            self.running.discard(spec.id)
        if model.id == "z":
            raise InfrastructureError("gone")
        return run_record(spec.id, attempts=(Attempt(number=1, started="", duration_s=2.5),))

    def repeat(self, spec: DeviceSpec, model: ModelSpec) -> RunRecord:
        with self.changed:
            self.order.append(f"{model.id} on {spec.id} again")
        return run_record(spec.id, attempts=(Attempt(number=1, started="", duration_s=0.5),))

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.running) >= count, timeout=20)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.go.set()


def test_all_phones_and_clouds_are_busy_at_once_and_two_virtual_devices(bench: Bench) -> None:
    phones = [device(f"p{number}") for number in range(6)]
    hubs = [device(f"h{number}", "aihub") for number in range(3)]
    here = [device(f"v{number}", "virtual") for number in range(5)]
    prefetch = Prefetch(bench, wishes([*phones, *hubs, *here], "ab"))
    bench.wait_for(6 + 3 + 2)
    bench.go.set()
    prefetch.close()
    assert bench.together <= 6 + 3 + 2


def test_the_longest_goes_first_and_its_time_is_noted(bench: Bench) -> None:
    noted: dict[str, float] = {}
    expected = {"run a on p": 1.0, "run b on p": 9.0, "run c on p": 3.0}
    bench.go.set()
    prefetch = Prefetch(
        bench, wishes([device("p")], "abcz", twice=True), expected_s=expected, note=noted.__setitem__
    )
    _until_still(bench, 7)
    prefetch.close()
    first = [name for name in bench.order if not name.endswith("again")]
    assert first == ["b on p", "z on p", "c on p", "a on p"], "z is unknown, and taken for average"
    assert noted == {"run a on p": 3.0, "run b on p": 3.0, "run c on p": 3.0}, "what failed has no duration"


def test_the_end_waits_for_no_more_than_is_under_way(bench: Bench) -> None:
    prefetch = Prefetch(bench, wishes([device("p")], "abcdef"))
    bench.wait_for(1)
    released = []

    def release() -> None:
        released.append(True)
        bench.go.set()

    prefetch.close(release)
    assert (len(bench.order), released) == (1, [True])


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 4), st.floats(0.1, 100)), max_size=30),
)
def test_an_agenda_gives_each_run_once_and_no_device_too_much(
    units: list[int], runs: list[tuple[int, float]]
) -> None:
    devices = [device(f"v{number}", "virtual", units=count) for number, count in enumerate(units)]
    asked = [
        Wish(spec=devices[at % len(devices)], model=model(f"m{number}"), twice=False)
        for number, (at, _) in enumerate(runs)
    ]
    cost = {wish.name: seconds for wish, (_, seconds) in zip(asked, runs, strict=True)}
    agenda = Agenda(asked, cost)
    given_out: list[Wish] = []
    busy: list[Wish] = []
    while len(given_out) < len(asked):
        wish = agenda.take()
        if wish is None:
            agenda.done(busy.pop(0))
            continue
        waiting = [cost[other.name] for other in asked if other not in given_out and other.spec == wish.spec]
        assert cost[wish.name] == max(waiting)
        given_out.append(wish)
        busy.append(wish)
        assert sum(other.spec == wish.spec for other in busy) <= wish.spec.units
    assert agenda.take() is None
    assert sorted(wish.name for wish in given_out) == sorted(wish.name for wish in asked)


def _until_still(bench: Bench, count: int) -> None:
    with bench.changed:
        bench.changed.wait_for(lambda: len(bench.order) >= count, timeout=20)
