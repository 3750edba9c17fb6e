"""Join a cluster as a lab host: bring this host's devices up, and offer each as a unit until told to stop."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_devicelab.cluster.head import HeadWatch
from pytest_devicelab.cluster.names import new_host_name, unit_name
from pytest_devicelab.cluster.ray_edge import NAMESPACE, connect, leave, require_ray
from pytest_devicelab.cluster.unit import WATCH, Unit
from pytest_devicelab.errors import InfrastructureError, UserError
from pytest_devicelab.lab.address import LabAddress
from pytest_devicelab.lab.scratch import Scratch
from pytest_devicelab.lab.services import LabServices
from pytest_devicelab.matrix.specs import DeviceSpec, MatrixSpec

_NODE_TIMEOUT_S = 60.0
_UNIT_TIMEOUT_S = 60.0


def join(
    matrix: MatrixSpec,
    devices: tuple[DeviceSpec, ...],
    *,
    address: str,
    cache: Path,
    ready: Callable[[str, tuple[str, ...]], None],
    stop: threading.Event,
) -> None:
    """Offer devices to a cluster until `stop` is set.

    Args:
        matrix: this host's own, with its adb server.
        devices: those of its devices that are offered.
        address: HOST:PORT of the cluster's head.
        cache: folder for compiled models.
        ready: called with the host's name in the cluster and the names of its units.
        stop: ends it.

    Raises:
        UserError: Ray is not installed, or nothing says which chip a device has.
        InfrastructureError: the cluster or the lab does not come up, or the head or this host's node is gone.
    """
    require_ray()
    unknown = next((spec for spec in devices if spec.soc is None), None)
    if unknown is not None:
        raise UserError(
            f"{unknown.source}: device {unknown.id} cannot be offered",
            why="controllers ask for chips, and the matrix does not say which this one has",
            fix="add soc, such as soc: SM8650; `devicelab suggest` says what is attached",
        )
    host = new_host_name(matrix.path)
    with ExitStack() as stack:
        singles = tuple(single for spec in devices for single in units_of(spec))
        scratch = Scratch()
        stack.callback(scratch.close)
        services = stack.enter_context(LabServices(matrix, devices, scratch.path))
        node = stack.enter_context(_node(address, host, singles, scratch.path / "ray.log"))
        ray = connect(address)
        stack.callback(leave)
        node_id = _wait_for_node(ray, host, node)
        servers = {
            single.id: services.address.server(spec.id) for spec in devices for single in units_of(spec)
        }
        address_here = replace(services.address, servers=servers)
        units = [
            _offer(ray, node_id, host, spec, address_here, cache) for spec in singles
        ]  # held on to: an actor ends when nobody does
        try:
            ray.get([unit.alive.remote() for unit in units], timeout=_UNIT_TIMEOUT_S)
        except ray.exceptions.RayError as error:
            raise InfrastructureError(
                f"lab host {host}: its units did not come up",
                why=str(error)[-500:],
                fix="see Ray's logs below /tmp/ray on this host",
            ) from None
        ready(host, tuple(unit_name(host, spec) for spec in singles))
        # Ray would end this process without a word, and what it started would be left behind.
        head = HeadWatch(address, leave=lambda: None)
        stack.callback(head.close)
        while not stop.wait(0.5):
            if head.lost:
                raise head.error()
            if node.poll() is not None:
                raise InfrastructureError(
                    f"lab host {host}: its Ray node ended",
                    why=f"exit status {node.returncode}",
                    fix="join again",
                )


def units_of(spec: DeviceSpec) -> tuple[DeviceSpec, ...]:
    """Return the devices an entry of the matrix stands for, one by one, each of which carries runs out of its own.

    An entry with a selector stays one: which phones it fits is found anew for each run.
    """
    if spec.kind == "virtual":
        return tuple(replace(spec, id=unit, units=1) for unit in spec.unit_ids)
    if len(spec.serials) < 2:
        return (spec,)
    ids = (spec.id, *(f"{spec.id}.{number}" for number in range(2, len(spec.serials) + 1)))
    return tuple(
        replace(spec, id=unit, serial=serial, serials=())
        for unit, serial in zip(ids, spec.serials, strict=True)
    )


@contextmanager
def _node(
    address: str, host: str, devices: tuple[DeviceSpec, ...], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Ray node that advertises this host's devices by chip, for the duration of a block."""
    chips = Counter(f"devicelab_{spec.soc.name if spec.soc else 'unknown'}" for spec in devices)
    resources = {name.replace(" ", "_"): count for name, count in chips.items()} | {_mark(host): 1}
    command = [sys.executable, "-m", "pytest_devicelab.cluster.node", f"--address={address}"]
    command += [
        "--num-cpus=0",
        "--num-gpus=0",
        "--disable-usage-stats",
        f"--resources={json.dumps(resources)}",
    ]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=file)
    assert process.stdin is not None
    try:
        yield process
    finally:
        process.terminate()
        process.stdin.close()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _mark(host: str) -> str:
    return f"devicelab_host_{host}"


def _wait_for_node(ray: Any, host: str, node: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + _NODE_TIMEOUT_S
    while time.monotonic() < deadline and node.poll() is None:
        for each in ray.nodes():
            if each["Alive"] and _mark(host) in each["Resources"]:
                return str(each["NodeID"])
        time.sleep(0.2)
    raise InfrastructureError(
        f"lab host {host}: its Ray node did not come up",
        why="it ended" if node.poll() is not None else f"not within {_NODE_TIMEOUT_S:g} s",
        fix="try `ray start --address=...` by hand; the versions of Ray and Python must be the head's",
    )


def _offer(ray: Any, node_id: str, host: str, spec: DeviceSpec, lab: LabAddress, cache: Path) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    chip = f"devicelab_{spec.soc.name if spec.soc else 'unknown'}".replace(" ", "_")
    actor = ray.remote(concurrency_groups={WATCH: 2})(Unit).options(
        name=unit_name(host, spec),
        namespace=NAMESPACE,
        num_cpus=0,
        resources={chip: 1},
        max_restarts=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node_id, soft=False),
    )
    return actor.remote(spec, lab, str(cache))
