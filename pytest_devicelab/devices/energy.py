"""Energy of a device between two moments: from its power rails, else from the battery's fuel gauge.

Source: AOSP android.hardware.power.stats of Pixel phones, IioEnergyMeterDataProvider: `energy_value` has a line
`CH0(T=1234)[S10M_VDD_TPU], 5678` a rail, microwatt seconds since boot. `dumpsys battery` has the charge counter in
microampere hours and the voltage in millivolts. `current_now` is left alone: its unit and sign differ by vendor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.evidence.measurements import Figure, absent

_RAILS = (
    "for file in /sys/bus/iio/devices/iio:device*/energy_value; do "
    'echo "meter $file"; cat "$file"; done 2>/dev/null; '
)
_RAIL = re.compile(r"CH(\d{1,3})\(T=\d{1,20}\)\[([^\]\n]{1,80})\], ?(\d{1,20})", re.ASCII)
_METER = re.compile(r"meter (\S{1,200})")
_CHARGING, _FULL = 2, 5
_VOLTAGES_MV = range(2_000, 30_000)
# The battery of a large phone holds 80 kJ: no run empties it ten times over.
_MOST_MJ = 1e9
_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyReading:
    """What a device says of its energy at one moment; None where it does not say.

    Attributes:
        powered: whether current comes from outside, so that the battery does not show what is used.
        charge_uah: what is left in the battery, microampere hours. `voltage_mv`: its voltage.
        rails_uj: energy of each power rail since boot, microjoules.
    """

    powered: bool | None = None
    charge_uah: int | None = None
    voltage_mv: int | None = None
    rails_uj: Mapping[str, int] = field(default_factory=dict, hash=False)


def read_energy(device: AdbDevice, *, simulated: bool) -> EnergyReading:
    """Read a device's energy counters.

    Args:
        device: the device.
        simulated: whether its /sys is this host's, whose power is none of its business.

    Raises:
        InfrastructureError: the device does not answer; that it lacks a counter is no error.
    """
    text = device.script(
        f"{'' if simulated else _RAILS}printf '\\0'; dumpsys battery 2>/dev/null", timeout_s=_TIMEOUT_S
    ).text
    return parse_energy(text)


def parse_energy(text: str) -> EnergyReading:
    """Read what the script printed: rails, NUL, battery. What reads otherwise than Android writes it says nothing."""
    rails, _, battery = text.partition("\0")
    status = _number(battery, "status")
    sources = re.findall(r"^ *\w{1,20} powered: *(true|false)", battery, re.MULTILINE | re.ASCII)
    return EnergyReading(
        powered=None if status is None or not sources else status in (_CHARGING, _FULL) or "true" in sources,
        charge_uah=_number(battery, "Charge counter"),
        voltage_mv=_number(battery, "voltage"),
        rails_uj=_rails(rails),
    )


def energy_between(before: EnergyReading, after: EnergyReading) -> Figure:
    """Return what the whole device used between two readings, millijoules, or why nobody knows."""
    if before.rails_uj:
        return _from_rails(before.rails_uj, after.rails_uj)
    return _from_battery(before, after)


def _from_rails(before: Mapping[str, int], after: Mapping[str, int]) -> Figure:
    if before.keys() != after.keys():
        return absent("power rails: other rails afterwards than before")
    steps = [after[name] - before[name] for name in before]
    if min(steps) < 0:
        return absent("power rails: a counter ran backwards")
    return _figure(sum(steps) / 1000, f"{len(steps)} power rails (ODPM), /sys/bus/iio")


def _from_battery(before: EnergyReading, after: EnergyReading) -> Figure:
    if before.charge_uah is None or after.charge_uah is None:
        return absent("the device has no power rails to read, and no charge counter in dumpsys battery")
    if before.powered is None or after.powered is None:
        return absent("the device does not say whether it is being charged")
    if before.powered or after.powered:
        return absent(
            "the device has power from outside (it is charging or full): its fuel gauge does not show what was used"
        )
    used_uah = before.charge_uah - after.charge_uah
    if used_uah <= 0:
        return absent(f"the fuel gauge did not go down ({-used_uah:+d} uAh): too short a run for its steps")
    volts = [before.voltage_mv, after.voltage_mv]
    if any(value is None or value not in _VOLTAGES_MV for value in volts):
        return absent(f"the battery's voltage makes no sense: {volts} mV")
    mean_mv = sum(value for value in volts if value is not None) / 2
    # uAh * 3.6e-3 = coulombs, coulombs * mV = mJ.
    return _figure(used_uah * 3.6e-3 * mean_mv, "charge counter x voltage of the fuel gauge, dumpsys battery")


def _figure(mj: float, source: str) -> Figure:
    if not 0 < mj <= _MOST_MJ:
        return absent(f"{source}: {mj:g} mJ is not what a run takes")
    return Figure(value=mj, source=source)


def _rails(text: str) -> Mapping[str, int]:
    """Return rails by meter, channel and name: two meters may name a rail alike."""
    found: dict[str, int] = {}
    meter = ""
    for line in text.splitlines():
        if match := _METER.fullmatch(line):
            meter = match[1]
        elif match := _RAIL.fullmatch(line.strip()):
            found[f"{meter} {match[1]} {match[2]}"] = int(match[3])
    return found


def _number(battery: str, name: str) -> int | None:
    found = re.search(rf"^ *{name}: *(-?\d{{1,12}}) *$", battery, re.MULTILINE | re.ASCII)
    return int(found[1]) if found else None
