"""The lab as one process sees it: a handle and a lease for each device."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.adb_transport import AdbTransport
from pytest_devicelab.devices.slots import clear_leftovers
from pytest_devicelab.devices.toggles import restore_toggles
from pytest_devicelab.errors import (
    AdbServerLost,
    DeviceAbsent,
    DeviceLost,
    InfrastructureError,
    LeaseLost,
    UserError,
)
from pytest_devicelab.lab.address import LabAddress
from pytest_devicelab.lab.lease import Lease, hold_any
from pytest_devicelab.lab.presence import Presence
from pytest_devicelab.lab.quarantine import Quarantine, quarantine_step
from pytest_devicelab.lab.recovery import Recovery, recover
from pytest_devicelab.matrix.servers import device_name
from pytest_devicelab.matrix.specs import DeviceSpec

# Devices the current context holds, by their adb server and id: a lease belongs to who took it and to the
# threads working for them, not to the whole process.
_HELD: ContextVar[Mapping[tuple[str, int, str], AdbDevice]] = ContextVar("held", default={})  # noqa: B039  (a Mapping)

# How long to wait for a device that others hold.
_PATIENCE_S = 600.0
# An answer that took longer is told in the record of the run.
_PROMPT_S = 1.0
# For a property of a device that nobody holds; a healthy one says it in milliseconds.
_ASKED_S = 5.0


class Lab:
    """A lab that is up, as one process sees it.

    Args:
        address: where it is.
        holder: who takes leases here, for whoever has to wait.
        waiting: called with a reason when a device is held by somebody else.
    """

    def __init__(
        self, address: LabAddress, *, holder: str, waiting: Callable[[str], None] = lambda reason: None
    ) -> None:
        self._address = address
        self._holder = holder
        self._waiting = waiting
        self._quarantine = Quarantine()
        self._presence = Presence()
        self._telling = threading.Lock()
        self._left_out: set[tuple[str, str]] = set()

    @contextmanager
    def lease(self, spec: DeviceSpec, *, unit: str = "") -> Iterator[AdbDevice]:
        """Hold a device for the duration of a block and hand out its handle.

        Args:
            spec: the device; of a pool, any unit that is free.
            unit: serial of the unit it has to be, where that is one of the pool's; empty for any.

        Inside the block, and in threads started with a copy of its context, the device may be leased again, so that
        a test that holds a device can also use the fleet.

        Raises:
            Quarantined: the device could not be recovered lately, and is left alone for a while.
            DeviceAbsent: it is not plugged in.
            AdbServerLost: its adb server is away.
            DeviceLost: the device does not answer, and nothing helped.
            InfrastructureError: somebody else held it for too long.

        In the block, `LeaseLost` is what every use of the device raises from when an operator released it, or somebody
        else took it because this process was stopped for too long.
        """
        held = _HELD.get()
        host, port = self._address.server(spec.id)
        key = (host, port, spec.id)
        if key in held:
            yield held[key]
            return
        serials = self.units(spec)
        with ExitStack() as stack:
            device = self._take_any(spec, (unit,) if unit in serials else serials, stack)
            token = _HELD.set({**held, key: device})
            try:
                yield device
            finally:
                _HELD.reset(token)

    def units(self, spec: DeviceSpec) -> tuple[str, ...]:
        """Return the serials of all devices that may stand for an entry of the matrix, in a fixed order.

        Raises:
            AdbServerLost: a selector is to be looked for, and its adb server is away.
            DeviceAbsent: no attached device is what a selector asks for.
        """
        if spec.kind == "virtual":
            return tuple(f"127.0.0.1:{self._address.ports[unit]}" for unit in spec.unit_ids)
        if spec.serial is not None:
            return (spec.serial,)
        if spec.kind == "adb":
            return spec.serials or self._find(spec)
        raise UserError(
            f"{spec.source}: device {spec.id} cannot be held in a test's hands",
            why=f"it is of kind {spec.kind}, which only takes whole runs",
            fix="use `run_model` or `fleet`, or a device of kind virtual or adb",
        )

    def _take_any(self, spec: DeviceSpec, serials: tuple[str, ...], stack: ExitStack) -> AdbDevice:
        """Hold the first unit that is free and answers until the stack is closed; wait while all are held."""
        deadline = time.monotonic() + _PATIENCE_S
        host, _ = self._address.server(spec.id)
        lost: dict[str, InfrastructureError] = {}
        while usable := self._admitted(spec, serials, lost):
            names = {device_name(serial, host): serial for serial in usable}
            held = hold_any(
                tuple(names),
                self._holder,
                name=spec.id,
                timeout_s=max(deadline - time.monotonic(), 0.0),
                waiting=self._waiting,
            )
            with ExitStack() as ours:
                lease = ours.enter_context(held)
                serial = names[lease.device]
                try:
                    device = self._begin(spec, serial, lease)
                except LeaseLost:
                    raise
                except InfrastructureError as error:
                    lost[serial] = error  # its equals may be well
                    continue
                stack.push(ours.pop_all())
                with self._telling:
                    self._left_out.discard((spec.id, serial))  # it is back
                return device
        raise lost[serials[0]]

    def _admitted(
        self, spec: DeviceSpec, serials: tuple[str, ...], lost: dict[str, InfrastructureError]
    ) -> tuple[str, ...]:
        """Return the units worth waiting for; why the others are not goes to `lost`."""
        found = []
        for serial in serials:
            if serial in lost:
                continue
            try:
                self._presence.require_server(self._address.server(spec.id))
                self._quarantine.admit(self._unit(spec, serial), spec.id)
            except InfrastructureError as error:
                lost[serial] = error
            else:
                found.append(serial)
        self._tell_left_out(spec, serials, lost)
        return tuple(found)

    def _tell_left_out(
        self, spec: DeviceSpec, serials: tuple[str, ...], lost: Mapping[str, InfrastructureError]
    ) -> None:
        """Say which units of a pool do not take part, and why, once."""
        if len(serials) == 1:
            return
        with self._telling:
            news = {
                serial: error for serial, error in lost.items() if (spec.id, serial) not in self._left_out
            }
            self._left_out |= {(spec.id, serial) for serial in lost}
        for serial, error in news.items():
            self._waiting(f"unit {serial} of {spec.id} is left out: {error.brief}")

    def _begin(self, spec: DeviceSpec, serial: str, lease: Lease) -> AdbDevice:
        """Return the handle of a unit that is held, once it answers and is put in order."""
        device = AdbDevice(spec, self._at(serial, spec), require_held=lease.check)
        # Once more: whoever held it before us may have found out.
        ban = self._quarantine.admit(self._unit(spec, serial), spec.id)
        self._reach(device)
        if ban is not None:
            self._quarantine.lift(self._unit(spec, serial))
        self._tidy(device)
        return device

    def _reach(self, device: AdbDevice) -> None:
        """Have a device answer, by the recovery ladder if need be; what it took is for the next record."""
        self._presence.require_phone(device.spec, device.serial, self._address.server(device.id))
        found = recover(device, DeviceLost("a new lease asks for its first answer"))
        if len(found.steps) > 1 or found.steps[0].duration_s > _PROMPT_S:
            device.recovery = found.steps
        if found.helped:
            return
        cause = found.steps[0].said
        raise _unanswering(device, cause, self._give_up(device, found, cause))

    def _tidy(self, device: AdbDevice) -> None:
        """Put back what a former holder left; a device that goes away meanwhile is got back, once."""
        try:
            _clear_up(device)
        except LeaseLost:
            raise
        except InfrastructureError as error:
            found = self.recover(device, error)
            device.recovery += found.steps
            if not found.helped:
                raise _unanswering(device, error.what, found) from error
            _clear_up(device)

    def recover(self, device: AdbDevice, error: InfrastructureError) -> Recovery:
        """Get a device back after a failure; one that is there and that nothing helps is put in quarantine.

        Raises:
            LeaseLost: the device is not ours any more.
        """
        found = recover(device, error)
        if found.helped:
            return found
        return self._give_up(device, found, error.brief)

    def _give_up(self, device: AdbDevice, found: Recovery, cause: str) -> Recovery:
        """Return a recovery that did not help with its end: what is away, else the quarantine of a broken device."""
        assert found.last is not None
        server = self._address.server(device.id)
        away = self._presence.explain(device.spec, device.serial, server, found.last)
        if away is not None:
            return replace(found, last=away)
        ban = self._quarantine.impose(self._unit(device.spec, device.serial), device.id, cause)
        return replace(found, steps=(*found.steps, quarantine_step(ban)))

    def _unit(self, spec: DeviceSpec, serial: str) -> str:
        """Return what the device is called in quarantine: a virtual one's port is soon another's, in another lab."""
        host, port = self._address.server(spec.id)
        return f"{serial} of {host}:{port}" if spec.kind == "virtual" else device_name(serial, host)

    def _at(self, serial: str, spec: DeviceSpec) -> AdbTransport:
        host, port = self._address.server(spec.id)
        return transport_of(spec)(host=host, port=port, serial=serial, name=spec.id)

    def _find(self, spec: DeviceSpec) -> tuple[str, ...]:
        """Return the serials of the attached devices that have every property the selector asks for."""
        serials = self._presence.attached(self._address.server(spec.id))
        found = []
        for serial in serials:
            device = AdbDevice(spec, self._at(serial, spec))
            # A device that does not answer is not the one we look for, and must not keep us waiting.
            with suppress(InfrastructureError):
                wanted_of = spec.selector.items()
                if all(device.getprop(name, timeout_s=_ASKED_S) == value for name, value in wanted_of):
                    found.append(serial)
        if found:
            return tuple(found)
        wanted = ", ".join(f"{name}={value}" for name, value in spec.selector.items())
        raise DeviceAbsent(
            f"device {spec.id} is not attached",
            why=f"none of {len(serials)} attached devices has {wanted}",
            fix="plug it in, accept the debugging prompt, and check `adb devices -l`",
        )


def _clear_up(device: AdbDevice) -> None:
    restore_toggles(device)
    clear_leftovers(device)


def _unanswering(device: AdbDevice, cause: str, found: Recovery) -> InfrastructureError:
    """Return the error of a device that could not be reached: that it, or its server, is away, else that it is silent."""
    if isinstance(found.last, AdbServerLost | DeviceAbsent):
        found.last.evidence["recovery"] = found.steps
        return found.last
    return DeviceLost(
        f"device {device.id} ({device.serial}) does not answer",
        why=f"{cause}; tried {', '.join(step.rung for step in found.steps if step.rung != 'quarantine')}",
        fix="check the cable or the network, and what `adb devices -l` says of it",
        recovery=found.steps,
    )


def transport_of(spec: DeviceSpec) -> type[AdbTransport]:
    """Return the transport a device is to be reached over; `UserError` when its package is not installed."""
    if spec.transport == "adb":
        return AdbTransport
    try:
        from pytest_devicelab.devices.ppadb_transport import PpadbTransport
    except ImportError as error:
        raise UserError(
            f"device {spec.id} is to be reached over ppadb, which is not installed ({spec.source})",
            why=str(error),
            fix="pip install 'pytest-devicelab[ppadb]', or remove `transport: ppadb`",
        ) from None
    return PpadbTransport
