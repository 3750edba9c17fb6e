"""The lab of one session: its adb server, its virtual devices, and a handle and a lease for each device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.adb_server import AdbServer, connect_device, find_adb
from pytest_devicelab.devices.adb_transport import AdbTransport, list_serials
from pytest_devicelab.devices.slots import clear_leftovers
from pytest_devicelab.devices.toggles import restore_toggles
from pytest_devicelab.errors import DeviceLost, InfrastructureError, UserError
from pytest_devicelab.lab.executor import LOCAL_KINDS, require_executor
from pytest_devicelab.lab.lease import hold
from pytest_devicelab.matrix.specs import DeviceSpec, MatrixSpec

# Devices the current context holds, by adb server and device id: a lease belongs to who took it and to the
# threads working for them, not to the whole process.
_HELD: ContextVar[Mapping[tuple[str, int, str], AdbDevice]] = ContextVar("held", default={})  # noqa: B039  (a Mapping)

_REACH_TIMEOUT_S = 20.0
_LOST_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabAddress:
    """How to reach a lab that is up: plain data, so that a worker process can be told.

    Attributes:
        host: the adb server's address; `port`: its port.
        ports: loopback port of each virtual device, by device id.
    """

    host: str
    port: int
    ports: Mapping[str, int]


class LabServices:
    """The processes behind a lab: a private adb server and the virtual devices. One a session, on the controller.

    Args:
        matrix: the lab to bring up.
        devices: those of its devices that were selected.
        state: a folder with a short path, for keys, logs and the virtual devices' storage.
    """

    def __init__(self, matrix: MatrixSpec, devices: tuple[DeviceSpec, ...], state: Path) -> None:
        refuse_unsupported(devices)
        namespace = namespace_wanted(os.environ)
        self._stack = ExitStack()
        virtual = tuple(spec for spec in devices if spec.kind == "virtual")
        try:
            adb = find_adb()
            if matrix.lab.adb is None:
                server = self._stack.enter_context(AdbServer(state / "adb", adb=adb))
                host, port = server.host, server.port
            else:
                host, port = matrix.lab.adb.host, matrix.lab.adb.port
            ports: Mapping[str, int] = {}
            if virtual:
                from pytest_devicelab.virtual.spawn import spawn

                farm = spawn(virtual, state / "v", timeout_s=60.0, namespace=namespace)
                ports = dict(self._stack.enter_context(farm).ports)
                for serial_port in ports.values():
                    # A device that does not answer is lost to whoever leases it; the others go on.
                    with suppress(InfrastructureError):
                        connect_device(adb, host, port, f"127.0.0.1:{serial_port}")
        except BaseException:
            self._stack.close()
            raise
        self.address = LabAddress(host=host, port=port, ports=ports)

    def close(self) -> None:
        """Bring the lab down: devices first, then the adb server."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
        self._lost: set[str] = set()

    @contextmanager
    def lease(self, spec: DeviceSpec) -> Iterator[AdbDevice]:
        """Hold a device for the duration of a block and hand out its handle.

        Inside the block, and in threads started with a copy of its context, the device may be leased again, so that
        a test that holds a device can also use the fleet.

        Raises:
            DeviceLost: the device does not answer.
            InfrastructureError: somebody else held it for too long.

        In the block, `LeaseLost` is what every use of the device raises from when an operator released it, or somebody
        else took it because this process was stopped for too long.
        """
        held = _HELD.get()
        key = (self._address.host, self._address.port, spec.id)
        if key in held:
            yield held[key]
            return
        transport = self._transport(spec)
        # By serial alone: a phone that two adb servers of this host can reach is one phone.
        with hold(transport.serial, self._holder, name=spec.id, waiting=self._waiting) as lease:
            device = AdbDevice(spec, transport, require_held=lease.check)
            self._reach(device)
            restore_toggles(device)
            clear_leftovers(device)
            token = _HELD.set({**held, key: device})
            try:
                yield device
            finally:
                _HELD.reset(token)

    def _reach(self, device: AdbDevice) -> None:
        """Wait for a device to answer; one that was waited for in vain gets little time from then on."""
        try:
            device.reconnect(timeout_s=_LOST_TIMEOUT_S if device.id in self._lost else _REACH_TIMEOUT_S)
        except InfrastructureError:
            self._lost.add(device.id)
            raise
        self._lost.discard(device.id)

    def _transport(self, spec: DeviceSpec) -> AdbTransport:
        if spec.kind == "virtual":
            serial = f"127.0.0.1:{self._address.ports[spec.id]}"
        elif spec.serial is not None:
            serial = spec.serial
        elif spec.kind == "adb":
            serial = self._find(spec)
        else:
            raise UserError(
                f"{spec.source}: device {spec.id} cannot be held in a test's hands",
                why=f"it is of kind {spec.kind}, which only takes whole runs",
                fix="use `run_model` or `fleet`, or a device of kind virtual or adb",
            )
        return self._at(serial, spec)

    def _at(self, serial: str, spec: DeviceSpec) -> AdbTransport:
        return AdbTransport(host=self._address.host, port=self._address.port, serial=serial, name=spec.id)

    def _find(self, spec: DeviceSpec) -> str:
        """Return the serial of the first attached device that has every property the selector asks for."""
        serials = list_serials(self._address.host, self._address.port)
        for serial in serials:
            device = AdbDevice(spec, self._at(serial, spec))
            with suppress(InfrastructureError):  # a device that does not answer is not the one we look for
                if all(device.getprop(name) == value for name, value in spec.selector.items()):
                    return serial
        wanted = ", ".join(f"{name}={value}" for name, value in spec.selector.items())
        raise DeviceLost(
            f"device {spec.id} is not attached",
            why=f"none of {len(serials)} attached devices has {wanted}",
            fix="plug it in, accept the debugging prompt, and check `adb devices -l`",
        )


def namespace_wanted(environment: Mapping[str, str]) -> bool | None:
    """Say what `$DEVICELAB_NAMESPACE` asks of virtual devices: mount namespaces, none of them, or where allowed.

    Returns:
        True for `require`, False for `never`, None for `auto` and where it is not set.

    Raises:
        UserError: it says something else.
    """
    modes = {"auto": None, "require": True, "never": False}
    value = environment.get("DEVICELAB_NAMESPACE") or "auto"
    if value not in modes:
        raise UserError(
            f"$DEVICELAB_NAMESPACE is {value!r}",
            why=f"it takes {', '.join(modes)}",
            fix="unset it, and virtual devices get mount namespaces where the kernel allows them",
        )
    return modes[value]


def refuse_unsupported(devices: tuple[DeviceSpec, ...]) -> None:
    """Refuse devices that cannot be driven here, before anything is started."""
    for kind in dict.fromkeys(spec.kind for spec in devices if spec.kind not in LOCAL_KINDS):
        require_executor(kind)
