"""What is not there at all: adb servers that are away, and phones that are not plugged in.

Neither is broken, so neither is put in quarantine. Both are found out once, and from then on looked at in passing: the
second device behind a server that is away costs next to nothing, and whatever comes back is used at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pytest_devicelab.devices.adb_stream import list_attached
from pytest_devicelab.errors import AdbServerLost, DeviceAbsent, InfrastructureError
from pytest_devicelab.matrix.specs import DeviceSpec

# A server that is there answers within milliseconds; one on a host that is switched off costs all of it.
_LOOK_S = 1.0
# A port that refuses says so at once, and may be asked each time; a host that is switched off takes a tenth of the
# time at most.
_REST_PER_LOOK = 10.0
# A server that has only just been started may not have found its phones yet.
_SETTLE_S = 3.0
_POLL_S = 0.1

Server = tuple[str, int]
Listing = Callable[[str, int, float], tuple[tuple[str, str], ...]]


def ask_server(host: str, port: int, timeout_s: float) -> tuple[tuple[str, str], ...]:
    """Return serial and state of all devices that an adb server knows; raises when it does not say within the time."""
    return list_attached(host, port, timeout_s=timeout_s)


class Presence:
    """What one process knows to be away.

    Args:
        ask: serial and state of all devices of a server, which it has so many seconds to say.
        clock: seconds, growing; `sleep` waits for some.
    """

    def __init__(
        self,
        ask: Listing = ask_server,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._sleep = sleep
        self._away: dict[Server, tuple[str, float]] = {}
        self._absent: set[tuple[Server, str]] = set()

    def require_server(self, server: Server) -> None:
        """Return when nothing is known against an adb server, or when it is back.

        Raises:
            AdbServerLost: it was away, and still is, or was a moment ago.
        """
        known = self._away.get(server)
        if known is None:
            return
        why, look_again = known
        if (begun := self._clock()) >= look_again:
            try:
                self._ask(*server, _LOOK_S)
            except InfrastructureError as error:
                why = self._remember(server, error, took_s=self._clock() - begun)
            else:
                self._away.pop(server, None)
                return
        raise _away(server, why)

    def attached(self, server: Server) -> tuple[str, ...]:
        """Return the serials of all devices that an adb server can use now, sorted.

        Raises:
            AdbServerLost: it does not say.
        """
        self.require_server(server)
        try:
            listed = self._ask(*server, 10.0)
        except InfrastructureError as error:
            raise _away(server, self._remember(server, error)) from error
        return tuple(serial for serial, state in listed if state == "device")

    def require_phone(self, spec: DeviceSpec, serial: str, server: Server) -> None:
        """Return when a device may be there: it is listed, or only using it can tell.

        Raises:
            DeviceAbsent: it is a phone on a cable, its adb server does not list it, and nothing we may do changes that.
        """
        if not on_a_cable(spec, serial):
            return
        known = (server, serial) in self._absent
        # Where its power can be cycled, the ladder is to be climbed once: a hub may have lost the phone.
        if spec.power_cycle and not known:
            return
        deadline = self._clock() + (0.0 if known else _SETTLE_S)
        while True:
            try:
                if self._lists(server, serial):
                    self._absent.discard((server, serial))
                    return
            except InfrastructureError:
                return  # what is missing is the server, for which the ladder waits
            if self._clock() >= deadline:
                self._absent.add((server, serial))
                raise _not_attached(spec, serial, server)
            self._sleep(_POLL_S)

    def explain(
        self, spec: DeviceSpec, serial: str, server: Server, last: InfrastructureError
    ) -> AdbServerLost | DeviceAbsent | None:
        """Say what is away, after nothing got a device back; None when it is the device's own fault.

        Args:
            spec: the device.
            serial: which unit of it.
            server: the adb server that should reach it.
            last: why the last attempt failed.
        """
        if isinstance(last, AdbServerLost):
            return _away(server, self._remember(server, last))
        try:
            there = self._lists(server, serial)
        except InfrastructureError as error:
            # A server that hangs makes all of its devices hang.
            return _away(server, self._remember(server, error))
        if there or not on_a_cable(spec, serial):
            return None
        self._absent.add((server, serial))
        return _not_attached(spec, serial, server)

    def _lists(self, server: Server, serial: str) -> bool:
        return any(found == serial for found, _ in self._ask(*server, _LOOK_S))

    def _remember(self, server: Server, error: InfrastructureError, took_s: float = 0.0) -> str:
        why = error.why or error.what
        self._away[server] = (why, self._clock() + _REST_PER_LOOK * took_s)
        return why


def on_a_cable(spec: DeviceSpec, serial: str) -> bool:
    """Whether an adb server lists a device when it is plugged in; one over TCP is when somebody connects it."""
    return spec.kind == "adb" and ":" not in serial


def _away(server: Server, why: str) -> AdbServerLost:
    host, port = server
    return AdbServerLost(
        f"no adb server at {host}:{port} answers, so all of its devices are out of reach",
        why=why,
        fix="start it there with `adb start-server` (`adb -a` for other hosts to reach it); "
        "it is used again as soon as it answers",
    )


def _not_attached(spec: DeviceSpec, serial: str, server: Server) -> DeviceAbsent:
    host, port = server
    return DeviceAbsent(
        f"device {spec.id} ({serial}) is not attached",
        why=f"the adb server at {host}:{port} does not list it; it is not in quarantine",
        fix="plug it in, accept the debugging prompt, and check `adb devices -l`; it is used as soon as it is there",
    )
