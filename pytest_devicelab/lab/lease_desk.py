"""The desk of one device: the record of who holds it, the queue before it, and the lock both change under."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.lab.lease_seat import HELD, WAITING, Seen, look, unusable, write_whole

# A record has one size, so that one write replaces it whole.
RECORD_BYTES = 4096
RELEASED_BY = "released_by"
"""Key of a record: the operator who ended the hold before."""
# What is done under the lock takes a millisecond.
_LOCK_TIMEOUT_S = 20.0
# Who waits says so fifty times a second. One that was stopped lets those behind it pass.
_ABSENT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Who wants a device or holds it, for whoever has to wait.

    Attributes:
        device: what makes it one device on this host: its serial. `name`: its id in the claimant's matrix.
        since: when the claim was made, in seconds since 1970.
        ttl_s: how long the heartbeat may stop before the lease is anybody's.
    """

    device: str
    name: str
    holder: str
    pid: int
    user: str
    since: float
    ttl_s: float

    def to_json(self) -> bytes:
        """Return the claim as its seat holds it."""
        return json.dumps(asdict(self)).encode()

    def __str__(self) -> str:
        return f"{self.holder} (pid {self.pid}, user {self.user})"


def claim_of(device: str, name: str, holder: str, ttl_s: float) -> Claim:
    """Return this process's claim to a device."""
    return Claim(
        device=device[:300],
        name=name[:100],
        holder=holder[:200],
        pid=os.getpid(),
        user=user_name(),
        since=time.time(),
        ttl_s=ttl_s,
    )


def user_name() -> str:
    """Return the user's name, or number where the system knows no name for it, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """A device in somebody's hands: the claim, its fencing token, and how long ago the holder's heart beat."""

    claim: Claim
    token: int
    beat_age_s: float
    seat: str

    @property
    def lapsed(self) -> bool:
        """Whether the holder lives but stopped for so long that the device is anybody's."""
        return self.beat_age_s > self.claim.ttl_s


class Desk:
    """What there is in the lease folder about one device.

    Args:
        folder: where leases are taken.
        device: the device's serial, whatever characters it has.
    """

    def __init__(self, folder: Path, device: str) -> None:
        # The readable part is for people; the hash keeps devices apart that read alike.
        readable = re.sub(r"[^A-Za-z0-9_-]", "_", device)[:64]
        self.folder = folder
        self.device = device
        self.stem = f"{readable}-{hashlib.sha256(device.encode()).hexdigest()[:16]}"
        self.path = folder / f"{self.stem}.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Change the record in this block only; it is short, so waiting long means that something is wrong."""
        lock = FileLock(self.folder / f"{self.stem}.lock", mode=0o666, thread_local=False)
        try:
            lock.acquire(timeout=_LOCK_TIMEOUT_S, poll_interval=0.002)
        except (Timeout, OSError) as error:
            raise InfrastructureError(
                f"the lease record of {self.device} cannot be locked",
                why=str(error),
                fix=f"a process that is stopped may be at it: `fuser -v {self.path.with_suffix('.lock')}`",
            ) from error
        try:
            yield
        finally:
            lock.release()

    def read(self) -> Mapping[str, Any]:
        """Return the record, empty where there is none or it says nothing."""
        return self.record_at(self.path)

    @staticmethod
    def record_at(path: Path) -> Mapping[str, Any]:
        """Return the record in a file of the folder, empty where it says nothing."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return {}
        try:
            found = json.loads(os.pread(descriptor, RECORD_BYTES, 0))
        except (OSError, ValueError, RecursionError):
            return {}
        finally:
            os.close(descriptor)
        return found if isinstance(found, dict) else {}

    def write(self, descriptor: int, record: Mapping[str, Any]) -> bytes:
        """Replace the record; the caller has it locked. Returns the bytes written.

        Raises:
            HostFailed: the disk is full.
        """
        data = json.dumps(record).encode().ljust(RECORD_BYTES)
        try:
            os.ftruncate(descriptor, RECORD_BYTES)
            write_whole(descriptor, data)
        except OSError as error:
            raise unusable(self.folder, str(error)) from error
        return data

    def holding(self) -> Holding | None:
        """Return who holds the device, or None when nobody does: nobody alive, or an operator released it."""
        record = self.read()
        seat, token, claim = record.get("seat"), record.get("token"), _claim(record.get("claim"))
        # A record may say anything: a seat of another name could be a file of another kind.
        if (
            not isinstance(seat, str)
            or not self._is_seat(seat, HELD)
            or not isinstance(token, int)
            or claim is None
        ):
            return None
        seen = look(self.folder, seat)
        if seen is None:
            return None
        return Holding(claim=claim, token=token, beat_age_s=seen.beat_age_s, seat=seat)

    def grant(self, descriptor: int, claim: Claim, seat: str) -> tuple[int, bytes]:
        """Write down a new holder; returns its fencing token and the record as written.

        Tokens grow: by one, and with the clock, so that a record that was lost does not begin anew.
        """
        former = self.read()
        last = former.get("token")
        token = max(last + 1 if isinstance(last, int) else 0, time.time_ns() // 1000)
        # Who lost it to an operator may ask only now.
        released = (
            {RELEASED_BY: former[RELEASED_BY]} if "seat" not in former and RELEASED_BY in former else {}
        )
        record = {"token": token, "seat": seat, "claim": asdict(claim), **released}
        return token, self.write(descriptor, record)

    def queue(self) -> list[tuple[str, Claim]]:
        """Return seat and claim of all who wait, longest first."""
        try:
            names = sorted(
                entry.name for entry in os.scandir(self.folder) if self._is_seat(entry.name, WAITING)
            )
        except OSError:
            return []
        seats = (look(self.folder, name) for name in names)
        return [(seat.name, claim) for seat in seats if seat is not None and (claim := _present(seat))]

    def _is_seat(self, name: str, ending: str) -> bool:
        return "/" not in name and name.startswith(f"{self.stem}.") and name.endswith(ending)


def devices_of(folder: Path) -> list[str]:
    """Return the serials of all devices that anybody in a folder holds or awaits, sorted.

    Raises:
        HostFailed: the folder cannot be looked into.
    """
    found = set()
    try:
        # A name with a dot in front is a seat in the making: to look at it before it is locked would remove it.
        names = [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise unusable(folder, str(error)) from error
    for name in sorted(name for name in names if name.endswith((WAITING, HELD))):
        seen = look(folder, name)
        claim = _parsed(seen.claim) if seen else None
        # A seat that claims one device and is named for another is nobody's.
        if claim is not None and name.startswith(f"{Desk(folder, claim.device).stem}."):
            found.add(claim.device)
    return sorted(found)


def _present(seat: Seen) -> Claim | None:
    claim = _parsed(seat.claim)
    return claim if claim is not None and seat.beat_age_s < _ABSENT_S else None


def _parsed(data: bytes) -> Claim | None:
    try:
        return _claim(json.loads(data))
    except (ValueError, RecursionError):
        return None


def _claim(data: object) -> Claim | None:
    kinds = {
        "device": str,
        "name": str,
        "holder": str,
        "pid": int,
        "user": str,
        "since": float,
        "ttl_s": float,
    }
    if not isinstance(data, dict) or data.keys() != kinds.keys():
        return None
    return Claim(**data) if all(isinstance(data[key], kind) for key, kind in kinds.items()) else None
