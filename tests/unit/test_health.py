from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.devices.vitals import Vitals, parse_vitals
from pytest_devicelab.lab.health import changes, left_set, problems, throttled
from pytest_devicelab.matrix.specs import HealthSpec

# Laid out as Android 14 prints it.
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  Max charging current: 500000
  Charge counter: 3396000
  status: 2
  health: 2
  present: true
  level: 43
  scale: 50
  voltage: 4210
  temperature: 312
  technology: Li-ion
"""
THERMAL = """IsStatusOverride: false
Thermal Status: 2
Cached temperatures:
\tTemperature{mValue=61.0, mType=3, mName=skin, mStatus=0}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{mValue=33.6, mType=0, mName=CPU0, mStatus=0}
\tTemperature{mValue=38.25, mType=3, mName=quiet-therm, mStatus=0}
\tTemperature{mValue=41.5, mType=3, mName=skin, mStatus=2}
Current cooling devices from HAL:
"""
DF = """Filesystem      1K-blocks     Used Available Use% Mounted on
/dev/block/dm-9 114278400 80000000  34278400  71% /data
"""
CHANGES = """--------- beginning of events
11-21 00:01:15.195  1000  1020 I thermal_changed: [skin,3,43.5,2,0]
11-21 00:01:15.395  1000  1020 I thermal_changed: [CPU0,0,95.0,4,2]
11-21 00:01:17.195  1000  1020 I thermal_changed: [nsp0,9,96.0,3,2]
11-21 00:01:18.195  1000  1020 I thermal_changed: [skin,3,36.5,0,3]
"""
PROPERTIES = """[debug.empty]: []
[debug.qnn.level]: [3]
[log.tag.QNN]: [a [b]: c]
[ro.build.version.sdk]: [34]
"""
WHOLE = "\0".join(
    (
        "1700000100\n",
        BATTERY,
        THERMAL,
        DF,
        "  mWakefulness=Dozing\n",
        "123\n456\n",
        "IDLE\n",
        PROPERTIES,
        "log.tag.QNN\nlog.tag.X\n",
        CHANGES,
        "",
    )
)
FIT = Vitals(
    battery_percent=85,
    charging=True,
    battery_c=27.0,
    skin_c=28.5,
    thermal_status=0,
    free_kib=1 << 20,
    clock_skew_s=0.4,
    wakefulness="Awake",
)
LIMITS = HealthSpec()


def test_what_android_prints_is_read() -> None:
    assert parse_vitals(WHOLE, host_s=1700000000.0) == Vitals(
        battery_percent=86,
        charging=True,
        battery_c=31.2,
        skin_c=41.5,
        thermal_status=2,
        free_kib=34278400,
        clock_skew_s=100.5,
        wakefulness="Dozing",
        doze="IDLE",
        clock_s=1700000100,
        peak_status=3,
        runners=(123, 456),
        properties={"debug.qnn.level": "3", "log.tag.QNN": "a [b]: c"},
        toggled=frozenset({"log.tag.QNN", "log.tag.X"}),
    )


def test_sensors_last_broadcast_are_taken_where_the_hal_names_none() -> None:
    cached = THERMAL.partition("HAL Ready")[0]
    assert parse_vitals(f"\0\0{cached}\0\0\0\0\0", host_s=0.0).skin_c == 61.0


@pytest.mark.parametrize("powered", [True, False])
def test_a_full_battery_is_charged_only_on_a_charger(powered: bool) -> None:
    battery = BATTERY.replace("status: 2", "status: 5").replace(
        "USB powered: true", f"USB powered: {str(powered).lower()}"
    )
    assert parse_vitals(f"\0{battery}", host_s=0.0).charging is powered


@pytest.mark.parametrize(
    ("date", "clock_s", "skew_s"),
    [
        ("1700000100.250000000\n", 1700000100.25, 0.25),
        ("1700000100.%N\n", 1700000100.0, 0.5),
        ("date: bad\n", None, None),
    ],
)
def test_a_clock_is_read_as_finely_as_it_is_shown(
    date: str, clock_s: float | None, skew_s: float | None
) -> None:
    found = parse_vitals(date, host_s=1700000100.0)
    assert (found.clock_s, found.clock_skew_s) == (clock_s, skew_s)


@given(st.text(alphabet=st.sampled_from("Thermal Status:level.=-{}\0\n 0123456789e"), max_size=300))
def test_whatever_a_device_prints_it_is_read_or_says_nothing(text: str) -> None:
    found = parse_vitals(text, host_s=0.0)
    assert all(pid >= 0 for pid in found.runners)
    assert found.thermal_status is None or 0 <= found.thermal_status <= 6
    problems(found, LIMITS)


def test_a_device_that_says_nothing_has_nothing_wrong() -> None:
    assert parse_vitals("", host_s=0.0) == Vitals()
    assert problems(Vitals(), LIMITS) == ()
    assert problems(FIT, LIMITS) == ()


@pytest.mark.parametrize(
    ("change", "kind", "text", "passes", "harmless"),
    [
        ({"battery_percent": 9}, "battery", "battery at 9 %, charging", True, False),
        ({"battery_percent": 9, "charging": False}, "battery", "not charging", False, False),
        ({"thermal_status": 2}, "heat", "thermal status moderate, more than light", True, False),
        ({"skin_c": 43.5}, "heat", "skin at 43.5 °C", True, False),
        ({"battery_c": 45.1}, "heat", "battery at 45.1 °C", True, False),
        ({"free_kib": 1024}, "room", "1 MiB free", False, False),
        ({"clock_skew_s": -3600.0}, "clock", "3,600 s behind", False, True),
        ({"runners": (7,)}, "runner", "process 7", False, False),
    ],
)
def test_each_limit(change: dict[str, object], kind: str, text: str, passes: bool, harmless: bool) -> None:
    (found,) = problems(replace(FIT, **change), LIMITS)  # type: ignore[arg-type]
    assert (found.kind, found.passes, found.harmless) == (kind, passes, harmless)
    assert text in found.text
    assert found.fix


def test_a_run_was_slowed_down_when_the_status_around_it_says_so() -> None:
    assert throttled(FIT, FIT) == ""
    assert throttled(FIT, replace(FIT, thermal_status=1)) == ""
    assert "moderate, skin 44 °C" in throttled(FIT, replace(FIT, thermal_status=2, skin_c=44.0))
    assert "severe" in throttled(replace(FIT, thermal_status=3), FIT)


def test_heat_that_came_and_went_slowed_it_down_as_well() -> None:
    """Of sensors, only the skin's and the NPU's: a core at its limit for a moment is what cores do."""
    assert "severe in between" in throttled(FIT, replace(FIT, peak_status=3))
    assert throttled(FIT, replace(FIT, peak_status=1)) == ""
    cores = "\0".join((*[""] * 9, "thermal_changed: [CPU0,0,95.0,4,2]", ""))
    assert parse_vitals(cores, host_s=0.0).peak_status is None


def test_a_status_that_is_not_said_any_more_is_no_sign_of_a_cool_device() -> None:
    assert "not after" in throttled(FIT, replace(FIT, thermal_status=None))
    assert throttled(Vitals(), Vitals()) == ""


def test_a_property_that_is_otherwise_than_it_was_is_noticed() -> None:
    before = replace(FIT, properties={"debug.gone": "1", "debug.same": "1", "log.tag.X": "a"})
    after = replace(FIT, properties={"debug.same": "1", "debug.new": "\x1b[2J", "log.tag.X": "b"})
    assert left_set(before, after) == {"debug.gone": "1", "debug.new": "", "log.tag.X": "a"}
    assert [change.text for change in changes(before, after)] == [
        "property debug.gone is ''; it was '1'",
        "property debug.new is '\\x1b[2J'; it was ''",
        "property log.tag.X is 'b'; it was 'a'",
    ]
    ours = replace(after, toggled=frozenset({"debug.gone", "debug.new", "log.tag.X"}))
    assert changes(before, ours) == changes(ours, before) == ()
    # A device that lists no properties says nothing about them.
    assert changes(before, FIT) == changes(FIT, after) == ()


def test_another_adb_server_is_noticed() -> None:
    before = replace(FIT, adb_version="36.0.0")
    (change,) = changes(before, replace(FIT, adb_version="41"))
    assert (change.kind, change.text) == ("adb", "the adb server is 41; it was 36.0.0")
    assert changes(before, before) == changes(before, FIT) == ()
