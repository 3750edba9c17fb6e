"""Leases: one holder of a device at any time, across threads, pytest workers, processes and users of one host.

A lease is a record that names its holder's seat. It is free when the seat's owner is dead, which the kernel knows; when
its heart has stopped for longer than its TTL; or when an operator released it. Whoever takes it changes the record, so a
former holder that wakes up finds another record than it wrote: it asks before each call to the device and each record.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pytest_devicelab.errors import DeviceBusy, InfrastructureError, LeaseLost
from pytest_devicelab.lab.lease_desk import (
    RECORD_BYTES,
    RELEASED_BY,
    Claim,
    Desk,
    Holding,
    claim_of,
    devices_of,
    user_name,
)
from pytest_devicelab.lab.lease_seat import Seat, lease_folder, now_ns, open_shared

TTL_S = 30.0
"""How long a holder's heartbeat may stop, as it does when the process is stopped, before others may take its device."""
_BEATS_PER_TTL = 6
_POLL_S, _LONGEST_POLL_S = 0.02, 0.2


class Lease:
    """A device in our hands, until the block that took it ends or the lease is lost.

    Args:
        desk: the device's; its record is locked by the caller.
        claim: who we are.
        seat: our seat.
        descriptor: the record, open; the lease's from now on.
    """

    def __init__(self, desk: Desk, claim: Claim, seat: Seat, descriptor: int) -> None:
        self._desk = desk
        self._claim = claim
        self._seat = seat
        self._descriptor = descriptor
        self._ended = threading.Event()
        self._guard = threading.Lock()  # threads that work for us check too, and one may be late
        seat.leave_queue()
        self._beaten_ns = now_ns()
        seat.beat(self._beaten_ns)
        self.token, self._written = desk.grant(descriptor, claim, seat.name)
        self._heart = threading.Thread(target=self._live, name=f"lease of {claim.device}", daemon=True)
        self._heart.start()

    @property
    def device(self) -> str:
        """Which device it is: its serial."""
        return self._desk.device

    def check(self) -> None:
        """Return when the device is ours at this moment.

        Raises:
            LeaseLost: it is not any more; says who released or took it.
        """
        with self._guard:
            if self._ended.is_set():
                raise self._lost("the block that held it has ended")
            self._renew(now_ns())
            if not self._unchanged():
                raise self._lost(self._what_happened())

    def close(self) -> None:
        """Stop the heart. The device is free when the seat is given up."""
        self._ended.set()
        self._heart.join()
        with self._guard:
            os.close(self._descriptor)

    def _live(self) -> None:
        while not self._ended.wait(self._claim.ttl_s / _BEATS_PER_TTL):
            at_ns = now_ns()
            try:
                with self._guard:
                    self._renew(at_ns)
                    self._beat(at_ns)
            except LeaseLost:
                return  # whoever uses the device learns of it from `check`
            except InfrastructureError:
                continue  # a disk may be full for a moment, and a lock taken: the next beat may come in time

    def _beat(self, at_ns: int) -> None:
        # The time is that of before we looked whether we had lapsed: were we stopped in between, it is an old one.
        self._seat.beat(at_ns)
        self._beaten_ns = max(self._beaten_ns, at_ns)

    def _renew(self, at_ns: int) -> None:
        """After a heartbeat that stopped for too long, live on if nobody took the device, with nobody just taking it."""
        if at_ns - self._beaten_ns <= self._claim.ttl_s * 1e9:
            return
        with self._desk.locked():
            if not self._unchanged():
                raise self._lost(self._what_happened())
            self._beat(now_ns())

    def _unchanged(self) -> bool:
        """Say whether the record at its path is the one we wrote, byte for byte."""
        try:
            there, ours = self._desk.path.lstat(), os.fstat(self._descriptor)
            return (
                os.path.samestat(there, ours) and os.pread(self._descriptor, RECORD_BYTES, 0) == self._written
            )
        except OSError:
            return False

    def _what_happened(self) -> str:
        record, holding = self._desk.read(), self._desk.holding()
        now = f"; {holding.claim} has it now" if holding is not None else ""
        if now_ns() - self._beaten_ns > self._claim.ttl_s * 1e9:
            return f"our heartbeat had stopped for more than {self._claim.ttl_s:g} s{now}"
        if isinstance(released_by := record.get(RELEASED_BY), str):
            return f"user {released_by[:100]} released it{now}"
        return f"its record was changed or removed by somebody else{now}"

    def _lost(self, why: str) -> LeaseLost:
        return LeaseLost(
            f"device {self._claim.name or self._claim.device} is not ours any more",
            why=why,
            fix="run it again; `devicelab lab status` says who holds what",
        )


@contextmanager
def hold(
    device_key: str,
    holder: str,
    *,
    name: str = "",
    timeout_s: float = 600.0,
    ttl_s: float = TTL_S,
    folder: Path | None = None,
    waiting: Callable[[str], None] = lambda reason: None,
) -> Iterator[Lease]:
    """Hold a device exclusively for the duration of a block; who asked first gets it first.

    Args:
        device_key: what makes the device one device on this host: its serial.
        holder: who holds it, for whoever has to wait.
        name: the device's id in the matrix, for people.
        timeout_s: how long to wait for other holders.
        ttl_s: how long our heartbeat may stop before others may take the device.
        folder: where leases are taken; `lease_folder()` where None.
        waiting: called once, with the reason, when the device is not free.

    Raises:
        DeviceBusy: it was not free in time; says who held it.
    """
    with hold_any(
        (device_key,),
        holder,
        name=name,
        timeout_s=timeout_s,
        ttl_s=ttl_s,
        folder=folder,
        waiting=waiting,
    ) as lease:
        yield lease


@contextmanager
def hold_any(
    device_keys: Sequence[str],
    holder: str,
    *,
    name: str = "",
    timeout_s: float = 600.0,
    ttl_s: float = TTL_S,
    folder: Path | None = None,
    waiting: Callable[[str], None] = lambda reason: None,
) -> Iterator[Lease]:
    """Hold one of several devices exclusively for the duration of a block: the first that is free.

    Who waits is in the queue of each of them until one is taken, and so is overtaken at none. Arguments as for `hold`;
    `Lease.device` says which device it is.

    Raises:
        DeviceBusy: none was free in time; says who held them.
    """
    base = folder or lease_folder()
    with ExitStack() as stack:
        places = []
        for key in device_keys:
            desk, claim = Desk(base, key), claim_of(key, name, holder, ttl_s)
            seat = Seat(base, desk.stem, claim.to_json())
            stack.callback(seat.close)
            places.append(_Place(desk=desk, claim=claim, seat=seat))
        mine, lease = _wait(places, name, timeout_s, waiting)
        stack.callback(lease.close)
        for place in places:
            if place is not mine:
                place.seat.close()
        yield lease


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A place in the queue of one device."""

    desk: Desk
    claim: Claim
    seat: Seat

    def reason_to_wait(self) -> str | None:
        holding = self.desk.holding()
        if holding is not None and not holding.lapsed:
            return f"{self.desk.device} is held by {holding.claim}"
        for name, claim in self.desk.queue():
            if name < self.seat.name:
                return f"{self.desk.device} was asked for earlier by {claim}"
        return None

    def take(self) -> Lease | str:
        """Return the lease, or the reason to wait."""
        if reason := self.reason_to_wait():
            return reason
        with self.desk.locked():
            # Looked at again under the lock: somebody else may have been quicker.
            if reason := self.reason_to_wait():
                return reason
            descriptor = open_shared(self.desk.path)
            try:
                return Lease(self.desk, self.claim, self.seat, descriptor)
            except BaseException:
                os.close(descriptor)
                raise


def _wait(
    places: Sequence[_Place], name: str, timeout_s: float, waiting: Callable[[str], None]
) -> tuple[_Place, Lease]:
    deadline = time.monotonic() + timeout_s
    told = False
    while True:
        reasons: list[str] = []
        broken: list[InfrastructureError] = []
        for place in places:
            place.seat.beat(now_ns())
            try:
                taken = place.take()
            except InfrastructureError as error:  # its equals may be well
                broken.append(error)
                taken = error.brief
            if isinstance(taken, Lease):
                return place, taken
            reasons.append(taken)
        if len(broken) == len(places):
            raise broken[0]
        why = "; ".join(reasons)
        if not told:
            waiting(why if len(places) == 1 else f"no unit of {name} is free: {why}")
            told = True
        if time.monotonic() >= deadline:
            one = f"device {places[0].desk.device} was not free"
            raise DeviceBusy(
                f"{one if len(places) == 1 else f'no unit of {name} was free'} within {timeout_s:g} s",
                why=why,
                fix="let that session end or stop it, or say `devicelab lab release` if nobody needs it any more",
            )
        # To look at many takes longer.
        time.sleep(min(_POLL_S * len(places), _LONGEST_POLL_S))


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A device that somebody holds or awaits: its serial, in whose hands it is, and who waits, longest first."""

    device: str
    holding: Holding | None
    waiting: tuple[Claim, ...]


def standings(folder: Path | None = None) -> tuple[Standing, ...]:
    """Return every device that somebody holds or awaits, by serial."""
    base = folder or lease_folder()
    desks = [Desk(base, device) for device in devices_of(base)]
    found = (
        Standing(
            device=desk.device, holding=desk.holding(), waiting=tuple(claim for _, claim in desk.queue())
        )
        for desk in desks
    )
    return tuple(each for each in found if each.holding or each.waiting)


def release(device: str, folder: Path | None = None) -> Claim | None:
    """Take a device from whoever holds it; returns the claim it had, or None when nobody holds the device.

    A living holder learns of it before its next call to the device or its next record, and does neither.
    """
    desk = Desk(folder or lease_folder(), device)
    with desk.locked():
        holding = desk.holding()
        if holding is None:
            return None
        descriptor = open_shared(desk.path)
        try:
            desk.write(descriptor, {"token": holding.token, RELEASED_BY: user_name()})
        finally:
            os.close(descriptor)
    return holding.claim
