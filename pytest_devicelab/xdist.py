"""With pytest-xdist: workers are told where the lab is, and a device's tests stay together.

The lease of a device is what keeps two workers apart; the scheduler only makes them rarely wait for one.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from pytest_devicelab.state import STATE

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.workermanage import WorkerController


class XdistHooks:
    """Hooks of pytest-xdist; registered only where it is installed and there is a matrix."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: WorkerController) -> None:
        """Tell a worker where the lab and the session are."""
        node.workerinput["devicelab"] = node.config.stash[STATE].handoff()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Producer) -> DeviceScheduling | None:
        """Use our scheduler unless the user chose one of xdist's."""
        if config.getvalue("dist") != "load":
            return None
        return DeviceScheduling(config, [spec.id for spec in config.stash[STATE].devices])


def device_of(nodeid: str, devices: Sequence[str]) -> str | None:
    """Return the device a test is parametrized with, or None for a test of the whole fleet.

    Device ids hold no `-`, which pytest puts between parameters.
    """
    found = re.search(r"\[(.*)\]$", nodeid)
    parameters = set(found[1].split("-")) if found else set()
    return next((device for device in devices if device in parameters), None)


class DeviceScheduling:
    """Deals out tests device by device; tests of the whole fleet come last, when the runs they need are there.

    Implements xdist's `Scheduling` protocol. A worker always knows its next test (xdist runs a test only once
    it knows the one after it, or that there is none), and a test whose worker crashed is not run again.

    Args:
        config: pytest's.
        devices: ids of the selected devices.
    """

    def __init__(self, config: pytest.Config, devices: Sequence[str]) -> None:
        self.config = config
        self._devices = devices
        self._expected = len(config.getvalue("tx"))
        self._collections: dict[WorkerController, list[str]] = {}
        self._running: dict[WorkerController, deque[int]] = {}
        self._owner: dict[str, WorkerController] = {}
        self._queues: dict[str, deque[int]] | None = None
        self._fleet: deque[int] = deque()
        self._tests: list[str] = []

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
            self._queues = {device: deque() for device in self._devices}
            for index, nodeid in enumerate(self._tests):
                device = device_of(nodeid, self._devices)
                (self._queues[device] if device is not None else self._fleet).append(index)
        # A first test for everybody before anybody gets a second: there may be few.
        for ahead in (1, 2):
            for node in self.nodes:
                self._refill(node, ahead)

    def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:
        """A worker finished a test: give it its next."""
        self._running[node].remove(item_index)
        self._refill(node)

    def mark_test_pending(self, item: str) -> None:
        """Put a test back to be run again."""
        index = self._tests.index(item)
        device = device_of(item, self._devices)
        (self._queues[device] if self._queues and device is not None else self._fleet).appendleft(index)
        for node in self.nodes:
            self._refill(node)

    def remove_pending_tests_from_node(self, node: WorkerController, indices: Sequence[int]) -> None:
        """A worker gave tests back unrun."""
        raise NotImplementedError("tests are dealt out two at a time, so there is nothing to steal")

    def remove_node(self, node: WorkerController) -> str | None:
        """Forget a worker; return the test it crashed in, if any. What else it had goes back to the queues."""
        pending = self._running.pop(node)
        self._collections.pop(node, None)
        for device in [device for device, owner in self._owner.items() if owner is node]:
            del self._owner[device]
        if not pending:
            return None
        crashed = self._tests[pending.popleft()]
        for index in reversed(pending):
            self.mark_test_pending(self._tests[index])
        return crashed

    def _left(self) -> int:
        return sum(map(len, (self._queues or {}).values())) + len(self._fleet)

    def _refill(self, node: WorkerController, ahead: int = 2) -> None:
        """Give a worker tests until it knows the one after its current one, or that there is none."""
        if node.shutting_down:
            return
        pending = self._running[node]
        while len(pending) < ahead:
            index = self._next_for(node)
            if index is None:
                node.shutdown()
                return
            pending.append(index)
            node.send_runtest_some([index])

    def _next_for(self, node: WorkerController) -> int | None:
        """The next test of the worker's own device, else of a device nobody serves, else of the fleet."""
        queues = self._queues or {}
        own = [device for device, owner in self._owner.items() if owner is node and queues[device]]
        free = [device for device in self._devices if device not in self._owner and queues[device]]
        shared = [device for device in self._devices if queues[device]]
        if not own and free:
            self._owner[free[0]] = node
        for device in (*own, *free, *(() if self._fleet else shared)):
            return queues[device].popleft()
        return self._fleet.popleft() if self._fleet else None
