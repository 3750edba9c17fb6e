from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.devices.energy import EnergyReading, energy_between, parse_energy

BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: {usb}
  Charge counter: {counter}
  status: {status}
  level: 85
  voltage: 4000
  temperature: 270
"""


def battery(counter: object, *, usb: str = "false", status: int = 3) -> str:
    return "\0" + BATTERY.format(counter=counter, usb=usb, status=status)


def rails(*lines: str) -> str:
    return "meter /sys/bus/iio/devices/iio:device0/energy_value\nt=473\n" + "\n".join(lines) + battery(1000)


def test_the_fuel_gauge_of_a_phone_on_its_battery_counts() -> None:
    found = energy_between(parse_energy(battery(3_000_000)), parse_energy(battery(2_999_000)))
    assert found.value == pytest.approx(14_400)  # 1 mAh at 4 V
    assert "charge counter" in found.source


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (battery(3000, usb="true"), battery(2000, usb="true"), "power from outside"),
        (battery(3000), battery(2000, usb="true"), "power from outside"),
        (battery(3000, status=2), battery(2000), "power from outside"),
        (battery(3000, status=5), battery(2000, status=5), "power from outside"),
        (battery(3000), battery(3000), "did not go down"),
        (battery(3000), battery(3500), "did not go down"),
        (battery("nan"), battery("nan"), "no charge counter"),
        ("\0", "\0", "no charge counter"),
        ("\0  Charge counter: 3000\n", "\0  Charge counter: 2000\n", "does not say whether"),
        (battery(3000).replace("4000", "4"), battery(2000), "voltage makes no sense"),
        (battery(3000).replace("voltage: 4000", ""), battery(2000), "voltage makes no sense"),
        (battery(999_999_999_999), battery(-999_999_999_999), "not what a run takes"),
    ],
)
def test_what_does_not_show_what_was_used_is_absent(before: str, after: str, why: str) -> None:
    found = energy_between(parse_energy(before), parse_energy(after))
    assert found.value is None
    assert why in found.why


def test_power_rails_add_up_and_come_before_the_battery() -> None:
    before = parse_energy(rails("CH0(T=473)[S2M_VDD_CPUCL2], 1000", "CH1(T=473)[S10M_VDD_TPU], 5000"))
    after = parse_energy(rails("CH0(T=999)[S2M_VDD_CPUCL2], 3000", "CH1(T=999)[S10M_VDD_TPU], 9000"))
    found = energy_between(before, after)
    assert found.value == pytest.approx(6.0)
    assert found.source.startswith("2 power rails")


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (["CH0(T=9)[A], 900"], "ran backwards"),
        (["CH0(T=9)[A], 1000"], "0 mJ is not what a run takes"),
        (["CH0(T=9)[B], 5000"], "other rails"),
        (["CH0(T=9)[A], -5"], "other rails"),
        (["CH0(T=9)[A], 99999999999999999999"], "not what a run takes"),
    ],
)
def test_rails_that_lie_give_no_figure_and_do_not_fall_back_to_the_battery(
    after: list[str], why: str
) -> None:
    found = energy_between(parse_energy(rails("CH0(T=1)[A], 1000")), parse_energy(rails(*after)))
    assert found.value is None
    assert why in found.why


@given(st.text(max_size=200), st.text(max_size=200))
def test_whatever_a_device_prints_is_a_figure_above_0_or_a_reason(before: str, after: str) -> None:
    found = energy_between(parse_energy(before), parse_energy(after))
    assert found.why if found.value is None else found.value > 0


_COUNT = st.none() | st.integers(-(10**21), 10**21)
_READING = st.builds(
    EnergyReading,
    powered=st.none() | st.booleans(),
    charge_uah=_COUNT,
    voltage_mv=_COUNT,
    rails_uj=st.dictionaries(st.sampled_from("ab"), st.integers(0, 10**21)),
)


@given(_READING, _READING)
def test_whatever_is_read_is_a_figure_above_0_or_a_reason(
    before: EnergyReading, after: EnergyReading
) -> None:
    found = energy_between(before, after)
    assert found.why if found.value is None else 0 < found.value <= 1e9
