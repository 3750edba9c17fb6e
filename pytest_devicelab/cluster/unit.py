"""A unit: one device of a lab host, as an actor of Ray there. It does one run at a time, and only for who still waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from pytest_devicelab.cluster.carrier import Carrier
from pytest_devicelab.cluster.parcel import Parcel
from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.lab.address import LabAddress
from pytest_devicelab.lab.request import RunRequest
from pytest_devicelab.matrix.specs import DeviceSpec

WATCH = "watch"
"""Concurrency group of `beat`, `cancel` and `load`, which are answered while a run is on."""
QUIET_S = 10.0
"""A controller that says nothing for so long has died, and its run is ended; it speaks every second."""
_LOOK_S = 1.0
# Who waits for a run here has said so within this time.
_WAITING_S = 3.0
_CANCELLED = float("-inf")


class Unit:
    """Takes runs for one device, and ends one that its controller cancels or dies over.

    A run is in a process of its own, the carrier, because nothing else can end one in the middle: with the process
    go its connections to the device, which end the runner there, and its lease, which the next carrier takes.

    Args:
        spec: the device, as the lab host's own matrix describes it.
        address: of the lab that is up on this host.
        cache: folder for compiled models and packed inputs.
    """

    def __init__(self, spec: DeviceSpec, address: LabAddress, cache: str) -> None:
        self._told = (spec, address, cache)
        self._guard = threading.Lock()
        self._heard: dict[str, float] = {}
        self._carrier = self._new_carrier()

    def alive(self) -> bool:
        """Say that this host can carry runs out."""
        import ray

        return bool(ray.get(self._carrier.ready.remote()))

    def run(
        self,
        ticket: str,
        request: RunRequest,
        files: Mapping[str, bytes],
        session: str,
        retries_used: int,
    ) -> Parcel:
        """Carry a run out and return it with its evidence.

        Args:
            ticket: what `beat` and `cancel` call this run.
            request: the run; its `path` is a name in `files`.
            files: the model, and weights it keeps in files of their own, by their path beside it.
            session: id of the controller's session.
            retries_used: how many retries that session has taken.

        Raises:
            InfrastructureError: nobody waits for it any more, or its process died.
        """
        import ray

        with self._guard:
            self._heard.setdefault(ticket, time.monotonic())
        try:
            self._require_wanted(ticket)  # it may have waited here for longer than its controller lived
            answer = self._carrier.carry.remote(request, files, session, retries_used)
            self._wait(ticket, answer)
            parcel: Parcel = ray.get(answer)
            return parcel
        except ray.exceptions.RayActorError as error:
            self._replace_carrier()
            raise InfrastructureError(
                f"device {self._told[0].id}: the process that carried the run out died",
                why=str(error)[:500],
                fix="see the logs of Ray on that lab host",
            ) from None
        finally:
            with self._guard:
                del self._heard[ticket]

    def beat(self, ticket: str) -> None:
        """Say that somebody still waits for a run."""
        with self._guard:
            if self._heard.get(ticket) != _CANCELLED:
                self._heard[ticket] = time.monotonic()

    def cancel(self, ticket: str) -> None:
        """Say that nobody waits for a run any more, whether it has begun or not."""
        with self._guard:
            self._heard[ticket] = _CANCELLED

    def load(self) -> int:
        """Return how many runs somebody waits for here, the one that is on included."""
        now = time.monotonic()
        with self._guard:
            return sum(now - heard < _WAITING_S for heard in self._heard.values())

    def _wait(self, ticket: str, answer: Any) -> None:
        import ray

        try:
            while not ray.wait([answer], timeout=_LOOK_S)[0]:
                self._require_wanted(ticket)
        except InfrastructureError:
            self._replace_carrier()
            raise

    def _require_wanted(self, ticket: str) -> None:
        with self._guard:
            heard = self._heard[ticket]
        if time.monotonic() - heard > QUIET_S:
            raise InfrastructureError(
                f"device {self._told[0].id}: the run was ended on its lab host",
                why="it was cancelled"
                if heard == _CANCELLED
                else f"its controller said nothing for {QUIET_S:g} s",
                fix="run it again",
            )

    def _replace_carrier(self) -> None:
        import ray

        ray.kill(self._carrier)
        self._carrier = self._new_carrier()
        self._carrier.tidy.remote()  # before the next run, in its order

    def _new_carrier(self) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
        return ray.remote(Carrier).options(num_cpus=0, scheduling_strategy=here).remote(*self._told)
