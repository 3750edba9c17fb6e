"""The processes behind a lab: a private adb server and the virtual devices."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from pytest_devicelab.devices.adb_server import AdbServer, connect_device, disconnect_device
from pytest_devicelab.errors import InfrastructureError, UserError
from pytest_devicelab.lab.address import LabAddress
from pytest_devicelab.lab.executor import LOCAL_KINDS, require_executor
from pytest_devicelab.lab.server_watch import ServerWatch
from pytest_devicelab.matrix.servers import server_for
from pytest_devicelab.matrix.specs import DeviceSpec, MatrixSpec


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
        owner = {unit: spec for spec in devices if spec.kind == "virtual" for unit in spec.unit_ids}
        virtual = tuple(replace(spec, id=unit, units=1) for unit, spec in owner.items())
        try:
            servers, private = self._servers(matrix, devices, state / "adb")
            ports: Mapping[str, int] = {}
            if virtual:
                from pytest_devicelab.virtual.spawn import spawn

                farm = spawn(virtual, state / "v", timeout_s=60.0, namespace=namespace)
                ports = dict(self._stack.enter_context(farm).ports)

            def connect_all() -> None:
                for name, serial_port in ports.items():
                    # A device that does not answer is lost to whoever leases it; the others go on.
                    with suppress(InfrastructureError):
                        connect_device(*servers[owner[name].id], f"127.0.0.1:{serial_port}")

            connect_all()
            for name, serial_port in ports.items():
                host, port = servers[owner[name].id]
                if private is None or port != private.port:  # a private one ends with us
                    self._stack.callback(disconnect_device, host, port, f"127.0.0.1:{serial_port}")
            if private is not None:
                self._stack.enter_context(ServerWatch(private, connect_all))
        except BaseException:
            self._stack.close()
            raise
        # Where devices differ, any of their servers may be the one that is not spelled out.
        usual = (private.host, private.port) if private is not None else ("127.0.0.1", 5037)
        host, port = next(iter(servers.values()), usual)
        others = {name: server for name, server in servers.items() if server != (host, port)}
        self.address = LabAddress(host=host, port=port, ports=ports, servers=others)

    def _servers(
        self, matrix: MatrixSpec, devices: tuple[DeviceSpec, ...], home: Path
    ) -> tuple[dict[str, tuple[str, int]], AdbServer | None]:
        """Return address and port of each device's adb server, and the private one, started if anybody needs it."""
        named = {
            spec.id: server_for(matrix.lab, spec.group, virtual=spec.kind == "virtual")
            for spec in devices
            if spec.kind in LOCAL_KINDS
        }
        private = None
        if None in named.values() or not named:
            private = self._stack.enter_context(AdbServer(home))
        ours = (private.host, private.port) if private is not None else ("", 0)
        found = {name: (it.host, it.port) if it is not None else ours for name, it in named.items()}
        return found, private

    def close(self) -> None:
        """Bring the lab down: devices first, then the adb server."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
