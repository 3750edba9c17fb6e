"""Quarantine: devices that could not be recovered are left alone for a while, by everybody on this host.

A note lies beside the leases, says the first cause, and expires. Then the device is on probation: its first use must
reach it, which ends the quarantine; a failure doubles it. What a note says is data: a damaged one is none.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pytest_devicelab.errors import Quarantined
from pytest_devicelab.evidence.record import RecoveryStep
from pytest_devicelab.lab.lease_desk import Desk
from pytest_devicelab.lab.lease_seat import lease_folder, open_shared

FIRST_S = 120.0
LONGEST_S = 4 * 3600.0
# Nobody looked at the device for so long after its quarantine: it begins anew.
_FORGOTTEN_S = 24 * 3600.0
_PREFIX = "quarantine "
_LONGEST_REASON = 1000
_LONGEST_NAME = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Ban:
    """A device in quarantine, or on probation after it.

    Attributes:
        device: what makes it one device on this host. `name`: its id in the matrix of whoever put it there.
        reason: the first cause: why it had to be recovered, when that first failed.
        since: when that was, in seconds since 1970; `until`: when the quarantine ends.
        strikes: how often it could not be recovered; each doubles the time.
    """

    device: str
    name: str
    reason: str
    since: float
    until: float
    strikes: int


class Quarantine:
    """The quarantine of this host's devices.

    Args:
        folder: where leases are taken; `lease_folder()` where None.
        now: the time in seconds since 1970.
    """

    def __init__(self, folder: Path | None = None, *, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._now = now

    def admit(self, device: str, name: str) -> Ban | None:
        """Return None when a device may be used, or its ban when it is on probation: its first use must reach it.

        Raises:
            Quarantined: it is in quarantine; quotes the first cause.
        """
        ban = self._read(self._desk(device), device)
        if ban is None or self.on_probation(ban):
            return ban
        raise Quarantined(
            f"device {name} is in quarantine for {ban.until - self._now():.0f} s more",
            why=f"first cause: {ban.reason}",
            # Whoever put it there may call it otherwise.
            fix=f"see to the device, then `devicelab lab unquarantine {shlex.quote(ban.name)}`",
            recovery=(quarantine_step(ban),),
        )

    def on_probation(self, ban: Ban) -> bool:
        """Say whether the quarantine itself is over, and only a first use that reaches the device is missing."""
        return ban.until <= self._now()

    def impose(self, device: str, name: str, reason: str) -> Ban:
        """Put a device in quarantine; one that was on probation stays longer, for the same first cause."""
        desk = self._desk(device)
        with desk.locked():
            former, now = self._read(desk, device), self._now()
            if former is not None and not self.on_probation(former):
                return former
            strikes = former.strikes + 1 if former else 1
            until = now + min(FIRST_S * 2 ** min(strikes - 1, 30), LONGEST_S)
            first = Ban(
                device=device,
                name=_plain(name, _LONGEST_NAME),
                reason=_plain(reason, _LONGEST_REASON),
                since=now,
                until=until,
                strikes=strikes,
            )
            ban = replace(first, reason=former.reason, since=former.since) if former else first
            self._write(desk, asdict(ban))
            return ban

    def lift(self, device: str) -> Ban | None:
        """Let a device back; returns the ban it had."""
        desk = self._desk(device)
        with desk.locked():
            ban = self._read(desk, device)
            if ban is not None:
                self._write(desk, {})
            return ban

    def bans(self) -> tuple[Ban, ...]:
        """Return all devices in quarantine or on probation, by serial."""
        folder = self._folder or lease_folder()
        found = []
        for path in folder.glob("quarantine_*.json"):
            device = Desk.record_at(path).get("device")
            # A note that names one device and lies where another's would is nobody's.
            if isinstance(device, str) and (desk := self._desk(device)).path == path:
                found.append(self._read(desk, device))
        return tuple(sorted((ban for ban in found if ban is not None), key=lambda ban: ban.device))

    def _desk(self, device: str) -> Desk:
        return Desk(self._folder or lease_folder(), _PREFIX + device)

    def _read(self, desk: Desk, device: str) -> Ban | None:
        ban = _ban(desk.read())
        if ban is None or ban.device != device:
            return None
        now = self._now()
        # A clock that was set back must not keep a device out for years.
        return ban if now - _FORGOTTEN_S < ban.until <= now + LONGEST_S else None

    def _write(self, desk: Desk, record: dict[str, object]) -> None:
        descriptor = open_shared(desk.path)
        try:
            desk.write(descriptor, record)
        finally:
            os.close(descriptor)


def quarantine_step(ban: Ban) -> RecoveryStep:
    """Return the last rung of the ladder as records keep it: the same for all runs that one ban costs."""
    return RecoveryStep(
        attempt=0,
        rung="quarantine",
        why=ban.reason,
        started=_utc(ban.since),
        duration_s=0.0,
        helped=False,
        said=f"left alone until {_utc(ban.until)}",
    )


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _ban(data: object) -> Ban | None:
    kinds = {"device": str, "name": str, "reason": str, "since": float, "until": float, "strikes": int}
    if not isinstance(data, dict) or data.keys() != kinds.keys():
        return None
    if any(type(data[key]) is not kind for key, kind in kinds.items()) or not 0 < data["strikes"] < 1000:
        return None
    return Ban(**data)


def _plain(text: str, limit: int) -> str:
    """Return text that takes up a known room in a note: printable ASCII on one line."""
    line = " ".join(text.split()).encode("ascii", "replace").decode()
    return "".join(char if char.isprintable() else "?" for char in line)[:limit]
