"""Runs in the making before the tests that will ask for them: on every device at once, the longest first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from pytest_devicelab.errors import DevicelabError
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.lab.executor import LOCAL_KINDS
from pytest_devicelab.matrix.specs import DeviceSpec, ModelSpec

_HERE = 2
"""How many virtual devices are served at once: they compute on this machine's cores."""


class MakesRuns(Protocol):
    """What is needed of a session."""

    def evaluate(self, spec: DeviceSpec, model: ModelSpec) -> RunRecord:
        """Return the record of a model on a device."""

    def repeat(self, spec: DeviceSpec, model: ModelSpec) -> RunRecord:
        """Return the record of a second run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A run that tests will ask for, and whether a repeat will be asked for too."""

    spec: DeviceSpec
    model: ModelSpec
    twice: bool

    @property
    def name(self) -> str:
        """What its duration is kept under."""
        return f"run {self.model.id} on {self.spec.id}"


class Agenda:
    """What is left to do on some devices, each of which does one thing at a time for each of its units.

    Args:
        wishes: in the order tests will ask.
        expected_s: how long runs took before, by `Wish.name`; others are taken for average.
    """

    def __init__(self, wishes: Sequence[Wish], expected_s: Mapping[str, float]) -> None:
        known = [expected_s[wish.name] for wish in wishes if wish.name in expected_s]
        usual = sum(known) / len(known) if known else 1.0
        self._cost_s = {wish.name: expected_s.get(wish.name, usual) for wish in wishes}
        self._left: dict[str, list[Wish]] = {}
        self._units = {wish.spec.id: units_of(wish.spec) for wish in wishes}
        self._busy = dict.fromkeys(self._units, 0)
        self._guard = threading.Lock()
        for wish in wishes:
            self._left.setdefault(wish.spec.id, []).append(wish)
        for queue in self._left.values():
            queue.sort(
                key=lambda wish: -self._cost_s[wish.name]
            )  # stable: equal ones stay in the tests' order

    def take(self) -> Wish | None:
        """Return the longest run of the idle device with the most left; None when no idle device has any."""
        with self._guard:
            idle = [id_ for id_, queue in self._left.items() if queue and self._busy[id_] < self._units[id_]]
            if not idle:
                return None
            chosen = max(idle, key=lambda id_: sum(self._cost_s[wish.name] for wish in self._left[id_]))
            self._busy[chosen] += 1
            return self._left[chosen].pop(0)

    def done(self, wish: Wish) -> None:
        """Note that a run is at its end, and its device idle."""
        with self._guard:
            self._busy[wish.spec.id] -= 1


def units_of(spec: DeviceSpec) -> int:
    """Say how many runs an entry of the matrix takes at once, as far as the matrix tells."""
    return max(spec.units, len(spec.serials), 1)


class Prefetch:
    """Makes runs ahead of the tests.

    Args:
        session: makes them, once each.
        wishes: in the order the tests will ask.
        expected_s: how long runs took before, by `Wish.name`, seconds.
        note: told how long each took.
    """

    def __init__(
        self,
        session: MakesRuns,
        wishes: Sequence[Wish],
        *,
        expected_s: Mapping[str, float] = MappingProxyType({}),
        note: Callable[[str, float], None] = lambda name, seconds: None,
    ) -> None:
        self._session = session
        self._note = note
        self._end = threading.Event()
        here = [wish for wish in wishes if wish.spec.simulated]
        phones: dict[str, list[Wish]] = {}
        for wish in wishes:
            if wish.spec.kind in LOCAL_KINDS and not wish.spec.simulated:
                phones.setdefault(wish.spec.id, []).append(wish)
        clouds = [wish for wish in wishes if wish.spec.kind not in LOCAL_KINDS]
        # A phone waits for nobody but itself. All that goes to a cloud is submitted at once, and then waited for.
        agendas = [(Agenda(here, expected_s), _HERE)] if here else []
        agendas += [(Agenda(own, expected_s), units_of(own[0].spec)) for own in phones.values()]
        threads = sum(count for _, count in agendas) + len(clouds)
        self._pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="devicelab-prefetch")
        for agenda, count in agendas:
            for _ in range(count):
                self._pool.submit(self._serve, agenda)
        for wish in clouds:
            self._pool.submit(self._make, wish)

    def _serve(self, agenda: Agenda) -> None:
        while not self._end.is_set() and (wish := agenda.take()) is not None:
            try:
                self._make(wish)
            finally:
                agenda.done(wish)

    def _make(self, wish: Wish) -> None:
        runs = (self._session.evaluate, self._session.repeat)[: 2 if wish.twice else 1]
        made: list[RunRecord] = []
        for run in runs:
            if not self._end.is_set():
                # What goes wrong here goes wrong again, and is reported, where a test asks for the run.
                with suppress(DevicelabError):
                    made.append(run(wish.spec, wish.model))
        if len(made) == len(runs) and all(record.status == "ok" for record in made):
            self._note(wish.name, sum(each.duration_s for record in made for each in record.attempts))

    def close(self, release: Callable[[], None] = lambda: None) -> None:
        """Make no further run; wait for those under way, once `release` has told what they wait for to end."""
        self._end.set()
        release()
        self._pool.shutdown(wait=True, cancel_futures=True)
