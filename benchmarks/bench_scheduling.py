"""How far from the best possible a session with many devices and workers ends, with our scheduler and with others.

    python benchmarks/bench_scheduling.py --devices 64 --tests 24 --seeds 20

The schedulers are the real classes, ours and pytest-xdist's, driven by simulated workers in simulated time: a worker
begins a test only when it knows the one after it or was told that there is none, and a device does one test at a time,
so a worker whose test's device is busy waits for it, first come, first served. The figure is the makespan divided by a
lower bound that no scheduler can beat: the longest device's tests one after another, or all tests spread evenly.

`recorded` knows the durations of an earlier session, which differ by 10 % (standard deviation); `first` knows none.
`--real` also runs xdist itself with tests that sleep. Exit status 1 where ours with recorded durations exceeds 1.10.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from xdist.remote import Producer
from xdist.scheduler import LoadScheduling, LoadScopeScheduling

from pytest_devicelab.xdist import DeviceScheduling, device_of

LIMIT = 1.10
SKEWS: Mapping[str, Callable[[random.Random], float]] = {
    "lognormal": lambda chance: chance.lognormvariate(0.0, 1.0),
    "Pareto 1.5": lambda chance: chance.paretovariate(1.5),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Tests of one session in pytest's order, what each takes, and what the last session said it takes, in seconds."""

    devices: tuple[str, ...]
    tests: tuple[str, ...]
    duration_s: tuple[float, ...]
    recorded_s: Mapping[str, float]

    def bound_s(self, workers: int) -> float:
        """The makespan that no scheduler can beat."""
        chains = dict.fromkeys(self.devices, 0.0)
        for test, duration_s in zip(self.tests, self.duration_s, strict=True):
            chains[str(device_of(test, self.devices))] += duration_s
        return max(max(chains.values()), sum(chains.values()) / workers)


def make_load(skew: str, devices: int, tests: int, seed: int) -> Load:
    """Return devices of different speed with tests of different length."""
    chance = random.Random(seed)
    draw = SKEWS[skew]
    names = tuple(f"d{number}" for number in range(devices))
    ids, durations = [], []
    for name in names:
        slow = chance.lognormvariate(0.0, 0.5)
        for number in range(tests):
            # A module for each device: loadscope's scope is the module, and that is the best it can be given.
            ids.append(f"test_{name}.py::test_{number}[m-{name}]")
            durations.append(slow * draw(chance))
    recorded = {
        test: value * max(0.1, chance.gauss(1.0, 0.1)) for test, value in zip(ids, durations, strict=True)
    }
    return Load(devices=names, tests=tuple(ids), duration_s=tuple(durations), recorded_s=recorded)


@dataclass(slots=True, kw_only=True, eq=False)
class Worker:
    """As much of xdist's WorkerController as schedulers use."""

    gateway: SimpleNamespace
    queue: deque[int] = field(default_factory=deque)
    shutting_down: bool = False
    busy: bool = False

    def send_runtest_some(self, indices: Sequence[int]) -> None:
        """Queue tests."""
        self.queue.extend(indices)

    def shutdown(self) -> None:
        """Say that no more tests come."""
        self.shutting_down = True

    @property
    def ready(self) -> bool:
        """Whether it begins its next test."""
        return not self.busy and len(self.queue) > (0 if self.shutting_down else 1)


class RoundRobin:
    """Devices dealt to workers in turn, before anything runs."""

    def __init__(self, config: Any, load: Load) -> None:
        self._load = load
        self._nodes: list[Worker] = []

    tests_finished = False

    def add_node(self, node: Worker) -> None:
        """Take in a worker."""
        self._nodes.append(node)

    def add_node_collection(self, node: Worker, collection: Sequence[str]) -> None:
        """Nothing to check."""

    def schedule(self) -> None:
        """Deal out everything."""
        for index, test in enumerate(self._load.tests):
            device = self._load.devices.index(str(device_of(test, self._load.devices)))
            self._nodes[device % len(self._nodes)].send_runtest_some([index])
        for node in self._nodes:
            node.shutdown()

    def mark_test_complete(self, node: Worker, item_index: int, duration: float = 0) -> None:
        """Nothing to do."""


def simulate(scheduler: Any, load: Load, workers: int) -> float:
    """Return the makespan in simulated seconds."""
    fleet = [Worker(gateway=SimpleNamespace(id=f"gw{number}")) for number in range(workers)]
    for worker in fleet:
        scheduler.add_node(worker)
        scheduler.add_node_collection(worker, list(load.tests))
    scheduler.schedule()
    device = [str(device_of(test, load.devices)) for test in load.tests]
    held: set[str] = set()
    queues: dict[str, deque[Worker]] = {name: deque() for name in load.devices}
    ends: list[tuple[float, int, Worker]] = []
    order = itertools.count()
    now_s, done = 0.0, 0

    def begin(worker: Worker) -> None:
        held.add(device[worker.queue[0]])
        heapq.heappush(ends, (now_s + load.duration_s[worker.queue[0]], next(order), worker))

    while True:
        if scheduler.tests_finished:
            for worker in fleet:
                worker.shutdown()
        for worker in fleet:
            if worker.ready:
                worker.busy = True
                wanted = device[worker.queue[0]]
                if wanted in held:
                    queues[wanted].append(worker)
                else:
                    begin(worker)
        if not ends:
            break
        now_s, _, worker = heapq.heappop(ends)
        index = worker.queue.popleft()
        worker.busy = False
        done += 1
        held.discard(device[index])
        if queues[device[index]]:
            begin(queues[device[index]].popleft())
        scheduler.mark_test_complete(worker, index, load.duration_s[index])
    assert done == len(load.tests), f"{len(load.tests) - done} tests were never run"
    return now_s


def xdist_config(workers: int) -> Any:
    """Return as much of pytest's config as schedulers look at."""
    values = {"tx": ["popen"] * workers, "maxschedchunk": None}
    return SimpleNamespace(
        getvalue=values.get, getoption=values.get, option=SimpleNamespace(loadscopereorder=True)
    )


def schedulers(load: Load, workers: int) -> dict[str, Any]:
    """Return what is compared."""
    config, log = xdist_config(workers), Producer("benchmark", enabled=False)
    return {
        "ours, recorded": DeviceScheduling(config, load.devices, durations_s=load.recorded_s),
        "ours, first": DeviceScheduling(config, load.devices),
        "loadscope": LoadScopeScheduling(config, log),
        "load": LoadScheduling(config, log),
        "round robin": RoundRobin(config, load),
    }


_REAL_CONFTEST = """
import pytest
from pytest_devicelab.xdist import DeviceScheduling
DEVICES = {devices!r}
RECORDED = {recorded!r}
def pytest_xdist_make_scheduler(config, log):
    if config.getoption("dist") == "load":
        return DeviceScheduling(config, DEVICES, durations_s=RECORDED)
"""
_REAL_TESTS = """
import fcntl, pathlib, time
import pytest
TESTS = {tests!r}
@pytest.mark.parametrize("seconds", [pytest.param(s, id=i) for i, s in TESTS])
def test_sleep(seconds, request):
    device = request.node.callspec.id.rsplit("-", 1)[1]
    with open(pathlib.Path(__file__).with_name(device + ".lease"), "w") as lease:
        fcntl.flock(lease, fcntl.LOCK_EX)
        begun = time.monotonic()
        time.sleep(seconds)
        ended = time.monotonic()
    with open(pathlib.Path(__file__).with_name("journal"), "a") as journal:
        journal.write(f"{{begun}} {{ended}} {{device}}\\n")
"""


def run_real(dist: str, workers: int, seed: int) -> float:
    """Run xdist with sleeping tests under a lock for each device; return first begin to last end over the bound."""
    load = make_load("lognormal", 8, 6, seed)
    scale = 0.15
    names = {test: f"{number}-{device_of(test, load.devices)}" for number, test in enumerate(load.tests)}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        modules: dict[str, list[tuple[str, float]]] = {}
        recorded = {}
        for test, duration_s in zip(load.tests, load.duration_s, strict=True):
            module = test.partition("::")[0]
            modules.setdefault(module, []).append((names[test], duration_s * scale))
            recorded[f"{module}::test_sleep[{names[test]}]"] = load.recorded_s[test] * scale
        for module, tests in modules.items():
            (base / module).write_text(_REAL_TESTS.format(tests=tests))
        (base / "conftest.py").write_text(_REAL_CONFTEST.format(devices=load.devices, recorded=recorded))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", str(workers)]
        subprocess.run(
            [*command, f"--dist={dist}", f"--rootdir={base}", str(base)],
            check=True, stdout=subprocess.DEVNULL, cwd=base, env=dict(os.environ),
        )  # fmt: skip
        lines = [line.split() for line in (base / "journal").read_text().splitlines()]
    assert len(lines) == len(load.tests)
    span_s = max(float(line[1]) for line in lines) - min(float(line[0]) for line in lines)
    return span_s / (load.bound_s(workers) * scale)


def main() -> int:
    """Print the table; return 1 where ours is over the limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=64)
    parser.add_argument("--tests", type=int, default=24, help="of each device")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--real", action="store_true", help="also run xdist itself, 8 devices and 3 workers")
    chosen = parser.parse_args()
    worst_of_ours = 0.0
    print(f"{chosen.devices} devices x {chosen.tests} tests, {chosen.seeds} seeds; makespan / lower bound")
    print(f"{'durations':<12}{'workers':>8}  {'scheduler':<16}{'median':>8}{'worst':>8}{'ms a test':>11}")
    for skew, workers in itertools.product(SKEWS, chosen.workers):
        loads = [make_load(skew, chosen.devices, chosen.tests, seed) for seed in range(chosen.seeds)]
        ratios: dict[str, list[float]] = {}
        spent: dict[str, float] = {}
        for load in loads:
            for name, scheduler in schedulers(load, workers).items():
                begun = time.perf_counter()
                ratios.setdefault(name, []).append(simulate(scheduler, load, workers) / load.bound_s(workers))
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - begun
        for name, found in ratios.items():
            each_ms = spent[name] * 1000 / sum(len(load.tests) for load in loads)
            print(
                f"{skew:<12}{workers:>8}  {name:<16}{statistics.median(found):>8.3f}{max(found):>8.3f}{each_ms:>11.3f}"
            )
        worst_of_ours = max(worst_of_ours, *ratios["ours, recorded"])
    if chosen.real:
        for name, dist in {"ours, recorded": "load", "loadscope": "loadscope"}.items():
            print(f"xdist itself, 8 devices x 6 sleeping tests, 3 workers: {name} {run_real(dist, 3, 1):.3f}")
    print(f"ours with recorded durations, worst: {worst_of_ours:.3f}, limit {LIMIT:.2f}")
    return 0 if worst_of_ours <= LIMIT and math.isfinite(worst_of_ours) else 1


if __name__ == "__main__":
    sys.exit(main())
