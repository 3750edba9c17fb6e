"""Leases: one holder of a device at any time, across threads, pytest workers, processes and users of one host.

A lease is a record that names its holder's seat. It is free when the seat's owner is dead, which the kernel knows; when
its heart has stopped for longer than its TTL; or when an operator released it. Whoever takes it changes the record, so a
former holder that wakes up finds another record than it wrote: it asks before each call to the device and each record.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_devicelab.errors import DeviceBusy, InfrastructureError, LeaseLost
from pytest_devicelab.lab.lease_desk import (
    RECORD_BYTES,
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
_POLL_S = 0.02


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
        with suppress(InfrastructureError, OSError):  # whoever uses the device learns of it from `check`
            while not self._ended.wait(self._claim.ttl_s / _BEATS_PER_TTL):
                at_ns = now_ns()
                with self._guard:
                    self._renew(at_ns)
                    self._beat(at_ns)

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
        if isinstance(released_by := record.get("released_by"), str):
            return f"user {released_by[:100]} released it"
        if holding is not None:
            return f"{holding.claim} took it after our heartbeat had stopped for more than {self._claim.ttl_s:g} s"
        return "its record was changed or removed by somebody else"

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
    desk = Desk(folder or lease_folder(), device_key)
    claim = claim_of(device_key, name, holder, ttl_s)
    seat = Seat(desk.folder, desk.stem, claim.to_json())
    try:
        lease = _wait(desk, claim, seat, timeout_s, waiting)
        try:
            yield lease
        finally:
            lease.close()
    finally:
        seat.close()


def _wait(desk: Desk, claim: Claim, seat: Seat, timeout_s: float, waiting: Callable[[str], None]) -> Lease:
    deadline = time.monotonic() + timeout_s
    told = False
    while True:
        seat.beat(now_ns())
        reason = _reason_to_wait(desk, seat)
        if reason is None:
            with desk.locked():
                # Looked at again under the lock: somebody else may have been quicker.
                reason = _reason_to_wait(desk, seat)
                if reason is None:
                    return _take(desk, claim, seat)
        if not told:
            waiting(reason)
            told = True
        if time.monotonic() >= deadline:
            raise DeviceBusy(
                f"device {desk.device} was not free within {timeout_s:g} s",
                why=reason,
                fix="let that session end or stop it, or say `devicelab lab release` if nobody needs it any more",
            )
        time.sleep(_POLL_S)


def _take(desk: Desk, claim: Claim, seat: Seat) -> Lease:
    descriptor = open_shared(desk.path)
    try:
        return Lease(desk, claim, seat, descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def _reason_to_wait(desk: Desk, seat: Seat) -> str | None:
    holding = desk.holding()
    if holding is not None and not holding.lapsed:
        return f"{desk.device} is held by {holding.claim}"
    for name, claim in desk.queue():
        if name < seat.name:
            return f"{desk.device} was asked for earlier by {claim}"
    return None


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
            desk.write(descriptor, {"token": holding.token, "released_by": user_name()})
        finally:
            os.close(descriptor)
    return holding.claim
