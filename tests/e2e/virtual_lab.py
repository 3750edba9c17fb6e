"""Virtual devices behind a private adb server, as the tests of devices and runs use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.adb_server import AdbServer
from pytest_devicelab.devices.adb_transport import AdbTransport
from pytest_devicelab.lab.address import LabAddress
from pytest_devicelab.matrix.soc import find_soc
from pytest_devicelab.matrix.specs import DeviceSpec, Source
from pytest_devicelab.virtual.control import control
from pytest_devicelab.virtual.spawn import ServedFarm


def virtual_spec(device_id: str, soc: str, engine: str = "htp") -> DeviceSpec:
    """What a matrix would say of a virtual device."""
    place = Source(file="matrix.yaml", line=1, column=1)
    return DeviceSpec(id=device_id, kind="virtual", source=place, soc=find_soc(soc)[0], engine=engine)


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualLab:
    """An adb server and the devices connected to it."""

    server: AdbServer
    specs: Mapping[str, DeviceSpec]
    farms: Mapping[str, ServedFarm]

    @property
    def address(self) -> LabAddress:
        ports = {name: farm.ports[name] for name, farm in self.farms.items()}
        return LabAddress(host=self.server.host, port=self.server.port, ports=ports)

    def serial(self, device_id: str) -> str:
        return f"127.0.0.1:{self.farms[device_id].ports[device_id]}"

    def root(self, device_id: str) -> Path:
        """The folder on this machine that is the device's `/`."""
        return self.farms[device_id].root(device_id)

    def transport(self, device_id: str, cls: type[AdbTransport] = AdbTransport) -> AdbTransport:
        return cls(
            host=self.server.host, port=self.server.port, serial=self.serial(device_id), name=device_id
        )

    def device(self, device_id: str) -> AdbDevice:
        return AdbDevice(self.specs[device_id], self.transport(device_id))

    def tell(self, device_id: str, command: str) -> None:
        """Make trouble: `drop`, `offline`, `online`."""
        control(self.root(device_id), command)
