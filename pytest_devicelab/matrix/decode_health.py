"""Decodes `lab.health`: when a device is fit to be used."""

from __future__ import annotations

from typing import Any, get_args

from pytest_devicelab.matrix.cursor import Cursor
from pytest_devicelab.matrix.specs import HealthSpec, ThermalStatus

_KEYS = (
    "min_battery",
    "max_battery_c",
    "max_skin_c",
    "max_status",
    "cool_wait_s",
    "min_free_mib",
    "max_clock_skew_s",
)


def decode_health(cursor: Cursor) -> HealthSpec:
    """Return the limits of a lab; what is not written is as by default, mistakes are noted."""
    fields = cursor.fields(optional=_KEYS)
    statuses: tuple[ThermalStatus, ...] = get_args(ThermalStatus)
    written: dict[str, Any] = {
        "min_battery": fields["min_battery"].integer(0, 100),
        "max_battery_c": fields["max_battery_c"].number(20, 90),
        "max_skin_c": fields["max_skin_c"].number(20, 90),
        "max_status": fields["max_status"].word(statuses),
        "cool_wait_s": fields["cool_wait_s"].number(0, 86_400),
        "min_free_mib": fields["min_free_mib"].integer(0, 1 << 30),
        "max_clock_skew_s": fields["max_clock_skew_s"].number(0, 1e9),
    }
    return HealthSpec(**{name: value for name, value in written.items() if value is not None})
