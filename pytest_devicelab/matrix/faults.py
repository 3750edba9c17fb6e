"""The faults a virtual device can be given: their names, what each can be told, and how that is decoded.

`docs/reference/faults.md` says what each does; `virtual.faults` carries them out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import get_args

import yaml

from pytest_devicelab.errors import MatrixError, UserError
from pytest_devicelab.matrix.cursor import Cursor
from pytest_devicelab.matrix.issues import Issues
from pytest_devicelab.matrix.specs import FaultSpec, Phase
from pytest_devicelab.matrix.suggest import did_you_mean, show

_PHASES: tuple[Phase, ...] = get_args(Phase)
_DAY_S = 86400.0
_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,9})?")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A number a fault can be told, from `low` to `high`; `whole` for one without a fraction."""

    default: float
    low: float
    high: float
    whole: bool = True

    def decode(self, cursor: Cursor) -> str | None:
        """Return the number as text, or None after its mistake was noted."""
        if not cursor.present:
            return str(int(self.default) if self.whole else float(self.default))
        if self.whole:
            whole = cursor.integer(int(self.low), int(self.high))
            return None if whole is None else str(whole)
        number = cursor.number(self.low, self.high)
        return None if number is None else str(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A part number a fault can be told."""

    default: str

    def decode(self, cursor: Cursor) -> str | None:
        """Return the text, or None after its mistake was noted."""
        return cursor.text(_PART, "is not a part number") if cursor.present else self.default


_AT_BYTE = MappingProxyType({"at_byte": Parameter(default=1, low=1, high=1 << 40)})
_NOTHING: Mapping[str, Parameter | Text] = MappingProxyType({})

FAULTS: Mapping[str, Mapping[str, Parameter | Text]] = MappingProxyType(
    {
        "drop": _AT_BYTE,
        "stall": _AT_BYTE,
        "freeze": _NOTHING,
        "slow_link": {"bytes_per_s": Parameter(default=65536, low=100, high=1 << 30)},
        "offline": _NOTHING,
        "unauthorized": _NOTHING,
        "reboot": {"down_s": Parameter(default=3, low=0, high=_DAY_S, whole=False)},
        "corrupt_push": {
            "at_byte": Parameter(default=0, low=0, high=1 << 40),
            "files": Parameter(default=1, low=1, high=1_000_000),
        },
        "disk_full": {"free_bytes": Parameter(default=0, low=0, high=1 << 40)},
        "stale_slot": _NOTHING,
        "log_overflow": {"mib": Parameter(default=32, low=1, high=256)},
        "clock_jump": {"seconds": Parameter(default=3600, low=-1e9, high=1e9)},
        "throttle": {
            "peak_c": Parameter(default=48, low=30, high=120, whole=False),
            "over_s": Parameter(default=5, low=0, high=_DAY_S, whole=False),
            "slowdown": Parameter(default=2, low=1, high=1000, whole=False),
        },
        "battery_drain": {"percent_per_s": Parameter(default=5, low=0.001, high=1000, whole=False)},
        "wrong_soc": {"soc": Text(default="SM8550")},
        "npu_crash": {"runs": Parameter(default=1, low=1, high=1_000_000)},
        "short_output": {"missing_bytes": Parameter(default=1, low=1, high=1 << 40)},
    }
)
"""Name of a fault -> what it can be told beyond `during`, `after_s` and `lasts_s`, each with its default."""


def decode_fault(cursor: Cursor) -> FaultSpec | None:
    """Return one fault of a device, or None after its mistakes were noted.

    Args:
        cursor: a mapping with `fault`, and what that fault can be told.
    """
    named = cursor.entries().get("fault")
    name = named.word(FAULTS) if named is not None else None
    if name is None:
        if named is None:
            cursor.fail(f"has no 'fault': add one of {', '.join(FAULTS)}")
        return None
    parameters = FAULTS[name]
    fields = cursor.fields(required=("fault",), optional=("during", "after_s", "lasts_s", *parameters))
    values = {key: parameter.decode(fields[key]) for key, parameter in parameters.items()}
    return FaultSpec(
        fault=name,
        source=cursor.source,
        during=fields["during"].word(_PHASES),
        after_s=fields["after_s"].number(0, _DAY_S) or 0.0,
        lasts_s=fields["lasts_s"].number(0, _DAY_S),
        values=MappingProxyType({key: value for key, value in values.items() if value is not None}),
    )


def parse_fault(name: str, words: Sequence[str]) -> FaultSpec:
    """Return the fault a command line asks for: its name and words like `at_byte=1000`.

    Raises:
        UserError: there is no such fault, or it cannot be told that.
    """
    if name not in FAULTS:
        raise UserError(
            f"there is no fault {show(name)}{did_you_mean(name, FAULTS)}", fix=f"choose {', '.join(FAULTS)}"
        )
    told: dict[str, object] = {"fault": name}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key in told:
            raise UserError(
                f"fault {name}: {show(word)} does not say anything new",
                why="what a fault is told is written key=value, each key once",
                fix=f"it can be told {', '.join(('during', 'after_s', 'lasts_s', *FAULTS[name]))}",
            )
        told[key] = float(value) if "." in value and _NUMBER.fullmatch(value) else value
        if _NUMBER.fullmatch(value) and "." not in value:
            told[key] = int(value)
    # JSON is YAML: so the command line has the rules, and the messages, of the matrix.
    issues = Issues("command line")
    node = yaml.compose(json.dumps(told), Loader=yaml.SafeLoader)
    cursor = Cursor(path=name, node=node, source=issues.at(None), issues=issues)
    fault = decode_fault(cursor)
    try:
        issues.check()
    except MatrixError as error:
        mistakes = "\n".join(message for _, message in error.evidence["issues"])
        raise UserError(f"fault {name} cannot be told that", why=mistakes) from error
    assert fault is not None  # whatever makes it None was noted
    return fault


def write_fault(fault: FaultSpec) -> tuple[str, ...]:
    """Return the words `parse_fault` reads the same fault from, its name first."""
    general = {"during": fault.during, "after_s": fault.after_s, "lasts_s": fault.lasts_s}
    told = {**fault.values, **{key: value for key, value in general.items() if value is not None}}
    return (fault.fault, *(f"{key}={value}" for key, value in told.items()))
