"""With pytest-xdist: workers are told where the lab is, and a device's tests stay together.

The lease of a device is what keeps two workers apart; the scheduler only makes them rarely wait for one.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest

from pytest_devicelab.durations import Durations
from pytest_devicelab.state import STATE

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.workermanage import WorkerController


class XdistHooks:
    """Hooks of pytest-xdist; registered only where it is installed and there is a matrix.

    Args:
        durations: how long tests took; None in a worker, and where a session goes on with another's runs.
    """

    def __init__(self, durations: Durations | None) -> None:
        self._durations = durations

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how long a test took in a worker."""
        if self._durations is not None and hasattr(report, "node"):
            self._durations.note(report.nodeid, report.duration)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Keep what was noted for the next session's scheduler."""
        if self._durations is not None:
            self._durations.save()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: WorkerController) -> None:
        """Tell a worker where the lab and the session are."""
        node.workerinput["devicelab"] = node.config.stash[STATE].handoff()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Producer) -> DeviceScheduling | None:
        """Use our scheduler unless the user chose one of xdist's."""
        if config.getvalue("dist") != "load":
            return None
        return DeviceScheduling(
            config,
            [spec.id for spec in config.stash[STATE].devices],
            units=config.stash[STATE].units(),
            durations_s=self._durations.known if self._durations is not None else {},
        )


def device_of(nodeid: str, devices: Sequence[str]) -> str | None:
    """Return the device a test is parametrized with, or None for a test of the whole fleet.

    Device ids hold no `-`, which pytest puts between parameters.
    """
    found = re.search(r"\[(.*)\]$", nodeid)
    parameters = set(found[1].split("-")) if found else set()
    return next((device for device in devices if device in parameters), None)


class DeviceScheduling:
    """Deals out tests to workers so that every device is busy and the longest chain of tests ends first.

    A device's longest test goes first. A worker stays with its device, unless one that nobody serves has so much left
    that it would end last; a worker without one takes the device with the most left. Tests of the whole fleet come
    last, when the runs they need are there.

    Implements xdist's `Scheduling` protocol. A worker that has a test always knows the one after it (xdist runs a
    test only then, or when it is told that there is none), and a test whose worker crashed is not run again.

    Args:
        config: pytest's.
        devices: ids of the selected devices.
        units: how many tests a device takes at once, by id; one where not named.
        durations_s: how long tests took before, by node id, in seconds. Others are taken for average.
    """

    def __init__(
        self,
        config: pytest.Config,
        devices: Sequence[str],
        *,
        units: Mapping[str, int] = MappingProxyType({}),
        durations_s: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.config = config
        self._devices = devices
        self._units = units
        self._durations_s = durations_s
        self._expected = len(config.getvalue("tx"))
        self._collections: dict[WorkerController, list[str]] = {}
        self._running: dict[WorkerController, deque[int]] = {}
        self._last: dict[WorkerController, str] = {}
        self._queues: dict[str, deque[int]] | None = None
        self._left_s: dict[str, float] = {}
        self._fleet: deque[int] = deque()
        self._tests: list[str] = []
        self._on: list[str | None] = []
        self._cost_s: list[float] = []

    @property
    def nodes(self) -> list[WorkerController]:
        """The workers there are."""
        return list(self._running)

    @property
    def collection_is_completed(self) -> bool:
        """Whether every worker has said what it collected; once so, it stays so when workers come and go."""
        return self._queues is not None or len(self._collections) >= self._expected

    @property
    def tests_finished(self) -> bool:
        """Whether there is nothing left to deal out, and every worker runs its last test."""
        return (
            self.collection_is_completed
            and not self._left()
            and all(len(pending) < 2 for pending in self._running.values())
        )

    @property
    def has_pending(self) -> bool:
        """Whether any test is still to be run or running."""
        return self._left() > 0 or any(self._running.values())

    def add_node(self, node: WorkerController) -> None:
        """Take in a worker, at the start or in place of one that crashed."""
        self._running[node] = deque()

    def add_node_collection(self, node: WorkerController, collection: Sequence[str]) -> None:
        """Note what a worker collected; all must have collected the same tests in the same order."""
        if self._tests and list(collection) != self._tests:
            raise pytest.UsageError(
                f"worker {node.gateway.id} collected other tests than the first worker did\n"
                "  why: a parametrization that depends on time, chance or the environment\n"
                "  fix: make collection the same everywhere; see `pytest --collect-only`"
            )
        self._collections[node] = self._tests = list(collection)

    def schedule(self) -> None:
        """Begin once all workers have collected; later calls serve a worker that took a crashed one's place."""
        if self._queues is None:
            self._queues = self._sort()
        # A first test for everybody before anybody gets a second: there may be few.
        self._refill_all(1)
        self._refill_all()

    def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:
        """A worker finished a test: give it its next, and work to those who waited for its device."""
        self._running[node].remove(item_index)
        self._refill(node)
        self._refill_all()

    def mark_test_pending(self, item: str) -> None:
        """Put a test back to be run again."""
        self._put_back(self._tests.index(item))
        self._refill_all()

    def remove_pending_tests_from_node(self, node: WorkerController, indices: Sequence[int]) -> None:
        """A worker gave tests back unrun."""
        raise NotImplementedError("tests are dealt out two at a time, so there is nothing to steal")

    def remove_node(self, node: WorkerController) -> str | None:
        """Forget a worker; return the test it crashed in, if any. What else it had goes back to the queues."""
        pending = self._running.pop(node)
        self._collections.pop(node, None)
        self._last.pop(node, None)
        if not pending:
            return None
        crashed = self._tests[pending.popleft()]
        for index in reversed(pending):
            self._put_back(index)
        self._refill_all()
        return crashed

    def _sort(self) -> dict[str, deque[int]]:
        """Note what is known of each test; return each device's, longest first."""
        known = [self._durations_s[test] for test in self._tests if test in self._durations_s]
        average_s = sum(known) / len(known) if known else 1.0
        self._cost_s = [self._durations_s.get(test, average_s) for test in self._tests]
        self._on = [device_of(test, self._devices) for test in self._tests]
        queues: dict[str, deque[int]] = {device: deque() for device in self._devices}
        self._left_s = dict.fromkeys(self._devices, 0.0)
        for index in sorted(range(len(self._tests)), key=lambda index: -self._cost_s[index]):
            device = self._on[index]
            if device is None:
                self._fleet.append(index)
            else:
                queues[device].append(index)
                self._left_s[device] += self._cost_s[index]
        return queues

    def _put_back(self, index: int) -> None:
        device = self._on[index]
        if self._queues is None or device is None:
            self._fleet.appendleft(index)
        else:
            self._queues[device].appendleft(index)
            self._left_s[device] += self._cost_s[index]

    def _left(self) -> int:
        return sum(map(len, (self._queues or {}).values())) + len(self._fleet)

    def _refill_all(self, ahead: int = 2) -> None:
        # Who has begun nothing comes last: it can wait, while a worker without a second test does not begin its first.
        for node in sorted(self.nodes, key=lambda node: not self._running[node]):
            self._refill(node, ahead)

    def _refill(self, node: WorkerController, ahead: int = 2) -> None:
        """Give a worker tests until it knows the one after its current one, or that there is none."""
        pending = self._running[node]
        while len(pending) < ahead and not node.shutting_down:
            index = self._next_for(node)
            if index is not None:
                pending.append(index)
                node.send_runtest_some([index])
            elif pending or not self._left():
                node.shutdown()
            else:
                return  # all devices with tests left are busy: this worker is called when one is not

    def _next_for(self, node: WorkerController) -> int | None:
        """Take the next test for a worker from the queues; None when it should wait, or is not needed any more."""
        queues = self._queues or {}
        waiting = [device for device in self._devices if queues[device]]
        device = self._choose(node, waiting)
        if device is None and waiting:
            if not self._running[node] or self._can_spare(node, waiting):
                return None
            device = max(waiting, key=self._chain_s)
        if device is None:
            return self._fleet.popleft() if self._fleet else None
        self._last[node] = device
        index = queues[device].popleft()
        self._left_s[device] -= self._cost_s[index]
        return index

    def _choose(self, node: WorkerController, waiting: Sequence[str]) -> str | None:
        """The worker's own device or the one with the most left, of those with a unit that nobody else has or awaits."""
        taken = self._taken(node)
        free = [device for device in waiting if taken[device] < self._units.get(device, 1)]
        if not free:
            return None
        own, longest = self._last.get(node), max(free, key=self._chain_s)
        if own not in free:
            return longest
        alive = sum(not each.shutting_down for each in self._running)
        fair_share_s = sum(self._left_s.values()) / alive
        return longest if self._chain_s(longest) > max(self._chain_s(own), fair_share_s) else own

    def _taken(self, node: WorkerController) -> Counter[str | None]:
        """How many units of each device other workers have, or will have next."""
        return Counter(
            device
            for other, pending in self._running.items()
            if other is not node
            for device in {self._on[index] for index in pending}
        )

    def _chain_s(self, device: str) -> float:
        """The time a device still needs when all its units are busy, in seconds."""
        return self._left_s[device] / self._units.get(device, 1)

    def _can_spare(self, node: WorkerController, waiting: Sequence[str]) -> bool:
        """Say whether the other workers can keep all units busy that have tests left, and the fleet's tests too."""
        others = sum(not other.shutting_down for other in self._running if other is not node)
        queues = self._queues or {}
        needed = sum(min(self._units.get(device, 1), len(queues[device])) for device in waiting)
        return others >= needed + len(self._fleet)
