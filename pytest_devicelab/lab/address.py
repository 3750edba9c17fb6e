"""How to reach a lab that is up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class LabAddress:
    """How to reach a lab that is up: plain data, so that a worker process can be told.

    Attributes:
        host: address of the adb server of all devices that `servers` does not name; `port`: its port.
        ports: loopback port of each virtual device, by `DeviceSpec.unit_ids`.
        servers: address and port of the adb server of each device that is behind another one, by device id.
    """

    host: str
    port: int
    ports: Mapping[str, int]
    servers: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    def server(self, device_id: str) -> tuple[str, int]:
        """Return address and port of the adb server that reaches a device."""
        return self.servers.get(device_id, (self.host, self.port))
