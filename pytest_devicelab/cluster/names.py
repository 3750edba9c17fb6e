"""Names of units in the cluster: `unit|<host>|<chip>|<kind>|<engine>|<id>`, all that a controller chooses by.

A host is called `<node name>-<of its matrix>-<of this joining>`, so no two units ever have one name. What stays of a
unit's name when its host joins again with the same matrix is what records know it by, and with it the serial of a phone.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from pytest_devicelab.matrix.specs import DeviceSpec

_PARTS = 6


def new_host_name(matrix: Path) -> str:
    """Return a name for this host in the cluster, for as long as it offers the devices of a matrix."""
    known = hashlib.sha256(matrix.read_bytes()).hexdigest()[:4]
    return f"{os.uname().nodename}-{known}-{secrets.token_hex(2)}"


def unit_name(host: str, spec: DeviceSpec) -> str:
    """Return the name of a device of a lab host."""
    soc = spec.soc.name if spec.soc else ""
    return "|".join(("unit", host, soc, spec.kind, spec.engine if spec.simulated else "", spec.id))


def serial_of(name: str, beside: str) -> str:
    """Return what records call the device of a unit, whenever its lab host joined.

    Args:
        name: of the unit.
        beside: serial of the device on its host; a virtual device has another each time.
    """
    lasting = _lasting(name)
    return lasting if make_of(name)[0] == "virtual" else f"{lasting}|{beside}"


def is_unit(name: str, serial: str) -> bool:
    """Say whether a unit is the one, or has the device, that `serial_of` made a serial of."""
    return serial.split("|")[:_PARTS] == _lasting(name).split("|")


def beside_of(serial: str) -> str:
    """Return the serial on its own host of the device that `serial_of` made a serial of; empty for a virtual one."""
    return "|".join(serial.split("|")[_PARTS:])


def chip_of(name: str) -> str | None:
    """Return the chip of a unit; None for a name that is no unit's."""
    parts = name.split("|")
    return parts[2] if len(parts) == _PARTS and parts[0] == "unit" else None


def make_of(name: str) -> tuple[str, str]:
    """Return kind and engine of a unit: phones, `adb`, sort before simulators."""
    _, _, _, kind, engine, _ = name.split("|")
    return kind, engine


def host_of(name: str) -> str:
    """Return the lab host of a unit."""
    return name.split("|")[1]


def _lasting(name: str) -> str:
    parts = name.split("|")
    return "|".join((parts[0], parts[1].rpartition("-")[0], *parts[2:]))
