"""Names of units in the cluster: `unit|<host>|<chip>|<kind>|<engine>|<id>`, all that a controller chooses by."""

from __future__ import annotations

from pytest_devicelab.matrix.specs import DeviceSpec

_PARTS = 6


def unit_name(host: str, spec: DeviceSpec) -> str:
    """Return the name of a device of a lab host."""
    soc = spec.soc.name if spec.soc else ""
    return "|".join(("unit", host, soc, spec.kind, spec.engine if spec.simulated else "", spec.id))


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
