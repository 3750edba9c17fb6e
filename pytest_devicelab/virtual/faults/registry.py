"""From the name of a fault to what carries it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from pytest_devicelab.matrix.specs import FaultSpec
from pytest_devicelab.virtual.faults import condition, connection, files, runs
from pytest_devicelab.virtual.faults.fault import Fault

_MADE_BY: Mapping[str, Callable[[Mapping[str, str]], Fault]] = MappingProxyType(
    {
        "drop": connection.Drop,
        "stall": connection.Stall,
        "freeze": connection.Freeze,
        "slow_link": connection.SlowLink,
        "offline": connection.Offline,
        "unauthorized": connection.Unauthorized,
        "reboot": connection.Reboot,
        "corrupt_push": files.CorruptPush,
        "disk_full": files.DiskFull,
        "stale_slot": files.StaleSlot,
        "log_overflow": condition.LogOverflow,
        "clock_jump": condition.ClockJump,
        "throttle": condition.Throttle,
        "battery_drain": condition.BatteryDrain,
        "wrong_soc": condition.WrongSoc,
        "npu_crash": runs.NpuCrash,
        "short_output": runs.ShortOutput,
    }
)


def make_fault(spec: FaultSpec) -> Fault:
    """Return the fault a specification asks for; KeyError where `matrix.faults` knows no such name."""
    return _MADE_BY[spec.fault](spec.values)
