"""Many virtual devices in one process and one event loop."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pytest_devicelab.errors import UserError
from pytest_devicelab.matrix.specs import DeviceSpec
from pytest_devicelab.virtual import image
from pytest_devicelab.virtual.device import VirtualDevice
from pytest_devicelab.virtual.processes import end_all


class Farm:
    """The virtual devices of a matrix, up while the `async with` block runs.

    Args:
        specs: the devices; their ids are unique.
        state: folder for their root folders, one per device, named by its id.
        namespace: as for `namespace.open_view`.
        ports: TCP ports by device id; devices not named choose their own.
    """

    def __init__(
        self,
        specs: Sequence[DeviceSpec],
        state: Path,
        *,
        namespace: bool | None = None,
        ports: Mapping[str, int] | None = None,
    ) -> None:
        self._specs = specs
        self._state = state
        self._namespace = namespace
        self._wanted_ports = ports or {}
        self.devices: tuple[VirtualDevice, ...] = ()

    @property
    def ports(self) -> Mapping[str, int]:
        """TCP port on 127.0.0.1 of each device, by id."""
        return {device.id: device.port for device in self.devices}

    async def start(self) -> None:
        """Build and boot every device.

        Raises:
            InfrastructureError: one of them cannot be; then none is left running.
        """
        for spec in self._specs:
            root = device_root(self._state, spec.id)
            image.build_image(spec, root)
            port = self._wanted_ports.get(spec.id, 0)
            device = VirtualDevice(spec.id, root, namespace=self._namespace, port=port, faults=spec.faults)
            self.devices = (*self.devices, device)
        started = await asyncio.gather(*(device.start() for device in self.devices), return_exceptions=True)
        for outcome in started:
            if isinstance(outcome, BaseException):
                await self.close()
                raise outcome

    async def close(self) -> None:
        """Switch every device off and end all that runs on it. Safe to call twice."""
        await asyncio.gather(*(device.close() for device in self.devices))
        end_all(device.root for device in self.devices)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def device_root(state: Path, device_id: str) -> Path:
    """Return the root folder of a device in a farm's state folder.

    Raises:
        UserError: the id could name another folder.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.]*", device_id):
        raise UserError(
            f"device id {device_id!r} cannot name a folder",
            why="an id is made of a-z, 0-9, _ and ., and starts with a letter or digit",
            fix="choose another id",
        )
    return state / device_id
