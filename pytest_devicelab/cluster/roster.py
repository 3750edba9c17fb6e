"""Which units of the cluster may stand for a device, which of them our runs are on, and which are lost to us."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pytest_devicelab.cluster.errand import loads, session_ended
from pytest_devicelab.cluster.head import HeadWatch
from pytest_devicelab.cluster.names import chip_of, is_unit, make_of
from pytest_devicelab.cluster.ray_edge import NAMESPACE, within
from pytest_devicelab.errors import DeviceLost
from pytest_devicelab.matrix.specs import DeviceSpec

_LIST_S = 20.0
# How often to look for units that have joined while all others are busy.
_LOOK_S = 5.0


class Roster:
    """The units of the cluster, as one session sees them.

    Args:
        address: HOST:PORT of the cluster's head, for people.
        progress: told when a unit is lost.
    """

    def __init__(self, address: str, progress: Callable[[str], None]) -> None:
        self._address = address
        self._progress = progress
        # Guards what is below; notified when a unit is idle again or lost, and when nobody needs one any more.
        self._changed = threading.Condition()
        self._busy: set[str] = set()
        self._lost: dict[str, str] = {}
        self._closed = False

    def take(self, ray: Any, head: HeadWatch, spec: DeviceSpec, wanted: str) -> tuple[str, Any]:
        """Wait for a unit that no run of ours is on: the wanted one, else the equal one others want least; and its name.

        A run is only sent where it can begin, as far as we know: so it goes to the unit that is free first, and its
        deadline does not pass while others of ours are before it.

        Raises:
            DeviceLost: none is left; quotes those that were lost.
            InfrastructureError: the head is lost, or nobody waits for runs any more.
        """
        while True:
            units = self._candidates(ray, spec, wanted)
            waited = loads(ray, units) if len(units) > 1 else dict.fromkeys(units, 0.0)

            def news(names: frozenset[str] = frozenset(units)) -> bool:
                return self._closed or head.lost or names <= self._lost.keys() or bool(self._free(names))

            with self._changed:
                self._changed.wait_for(news, timeout=_LOOK_S)
                if head.lost:
                    raise head.error()
                if self._closed:
                    raise session_ended(spec.id)
                free = self._free(frozenset(units))
                if free:
                    name = min(free, key=lambda name: (waited[name], name))
                    self._busy.add(name)
                    return name, units[name]

    def let_go(self, name: str) -> None:
        """Note that no run of ours is on a unit any more."""
        with self._changed:
            self._busy.discard(name)
            self._changed.notify_all()

    def lose(self, name: str, why: str) -> None:
        """Note that a unit is gone: this session does not use it again."""
        with self._changed:
            self._lost[name] = why
            self._changed.notify_all()
        self._progress(f"lost {name}; looking for an equal unit")

    def close(self) -> None:
        """Let nobody wait for a unit any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait_idle(self, timeout_s: float) -> None:
        """Wait until no run of ours is on any unit, for a while at most; whoever waits for a unit looks at the head."""
        with self._changed:
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._busy, timeout=timeout_s)

    def equals(self, ray: Any, spec: DeviceSpec) -> list[str]:
        """Return the units that may stand for a device: of its chip, and all of one make, phones before simulators.

        A unit that was lost still says which make is meant: a simulator never takes over from a phone.
        """
        chip = spec.soc.name if spec.soc else None
        found = within(
            _LIST_S,
            lambda: [
                str(each["name"])
                for each in ray.util.list_named_actors(all_namespaces=True)
                if each["namespace"] == NAMESPACE
            ],
            what=f"the Ray cluster at {self._address} does not say who is in it",
        )
        with self._changed:
            lost = set(self._lost)
        known = [name for name in {*found, *lost} if chip_of(name) == chip]
        make = min((make_of(name) for name in known), default=None)
        return [name for name in known if make_of(name) == make and name not in lost]

    def _free(self, names: frozenset[str]) -> frozenset[str]:
        return names - self._busy - self._lost.keys()

    def _candidates(self, ray: Any, spec: DeviceSpec, wanted: str) -> dict[str, Any]:
        """Return the units a run may go to, by name: the wanted one alone where it is there, else all equal ones."""
        units: dict[str, Any] = {}
        known = self.equals(ray, spec)
        for name in [name for name in known if is_unit(name, wanted)] or known:
            with suppress(ValueError):  # it ended meanwhile
                units[name] = ray.get_actor(name, namespace=NAMESPACE)
        if units:
            return units
        chip = spec.soc.name if spec.soc else None
        with self._changed:
            lost = "; ".join(f"{name}: {why}" for name, why in self._lost.items() if chip_of(name) == chip)
        raise DeviceLost(
            f"device {spec.id}: no unit with chip {chip} is in the cluster at {self._address}",
            why=f"lost: {lost}" if lost else "no lab host has joined with one",
            fix="say `devicelab lab join` on a host that has one",
        )
