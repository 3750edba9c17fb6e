"""Chooses devices by what is known of them: `soc=SM8650`, `hexagon>=V73,kind!=aihub`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType

from pytest_devicelab.errors import UserError
from pytest_devicelab.matrix.specs import DeviceSpec
from pytest_devicelab.matrix.suggest import did_you_mean, show

_OPTION = "--devicelab-select"
_TERM = re.compile(r"\s*(?P<key>[A-Za-z_]+)\s*(?P<operator>!=|>=|<=|=)\s*(?P<value>[^=<>!\s](?:.*\S)?)\s*")
_HEXAGON = re.compile(r"v?(\d+)")
_EXAMPLE = "key=value, or with !=, >=, <=, such as 'soc=SM8650' or 'hexagon>=V73,kind=virtual'"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Term:
    key: str
    operator: str
    value: str


def _soc_names(device: DeviceSpec) -> tuple[str, ...]:
    return () if device.soc is None else (device.soc.name, device.soc.marketing or device.soc.name)


def _hexagons(device: DeviceSpec) -> tuple[str, ...]:
    if device.soc is None:
        return ()
    return ("none",) if not device.soc.has_hexagon else tuple(filter(None, (device.soc.hexagon,)))


def _sdks(device: DeviceSpec) -> tuple[str, ...]:
    # The level of a phone is the phone's to say; the matrix knows it only where its selector demands one.
    known = str(device.sdk) if device.simulated else device.selector.get("ro.build.version.sdk")
    return () if known is None else (known,)


# What a key is compared with: all names of the thing, or nothing where it is not known yet.
_FACTS: Mapping[str, Callable[[DeviceSpec], tuple[str, ...]]] = MappingProxyType(
    {
        "id": lambda device: (device.id,),
        "kind": lambda device: (device.kind,),
        "soc": _soc_names,
        "hexagon": _hexagons,
        "engine": lambda device: (device.engine if device.simulated else "none",),
        "sdk": _sdks,
        "name": lambda device: (device.name or "",),
    }
)


def select_devices(devices: Sequence[DeviceSpec], expression: str) -> tuple[DeviceSpec, ...]:
    """Return the devices an expression chooses, in their order.

    Args:
        devices: the devices of a matrix.
        expression: terms that must all hold, separated by commas. `=` and `!=` take the patterns `*`, `?` and
            `[...]`, ignoring case; `>=` and `<=` compare `sdk` and `hexagon` as numbers. A fact that is
            not known before the device is seen (the chip of a phone named by its serial) matches nothing.

    Raises:
        UserError: the expression cannot be read, or chooses no device.
    """
    terms = [_parse(text) for text in expression.split(",")]
    chosen = tuple(device for device in devices if all(_holds(term, device) for term in terms))
    if not chosen:
        raise UserError(
            f"{_OPTION} {show(expression)} matches none of the {len(devices)} devices",
            why="\n".join(["the matrix has:", *map(_describe, devices)]),
            fix=f"choose by {', '.join(_FACTS)}; '?' is unknown here and matches nothing",
            devices=tuple(device.id for device in devices),
        )
    return chosen


def _parse(text: str) -> _Term:
    match = _TERM.fullmatch(text)
    if match is None:
        raise UserError(
            f"{_OPTION}: cannot read {show(text)}", why=f"a term is {_EXAMPLE}", fix="correct the term"
        )
    term = _Term(key=match["key"].lower(), operator=match["operator"], value=match["value"].casefold())
    if term.key not in _FACTS:
        raise UserError(
            f"{_OPTION}: unknown key {show(match['key'])}{did_you_mean(term.key, _FACTS)}",
            why=f"the keys are {', '.join(_FACTS)}",
            fix="correct the key",
        )
    if term.operator in {">=", "<="} and (term.key not in {"sdk", "hexagon"} or _number(term.value) is None):
        raise UserError(
            f"{_OPTION}: cannot compare {show(text.strip())}",
            why=">= and <= compare sdk with a number, or hexagon with a version such as V73",
            fix="use = or != with a pattern, such as id=v7*",
        )
    return term


def _holds(term: _Term, device: DeviceSpec) -> bool:
    facts = [fact.casefold() for fact in _FACTS[term.key](device)]
    if term.operator in {">=", "<="}:
        wanted = _number(term.value)
        numbers = [number for fact in facts if (number := _number(fact)) is not None]
        if wanted is None or not numbers:
            return False
        return min(numbers) >= wanted if term.operator == ">=" else max(numbers) <= wanted
    pattern = f"v{term.value}" if term.key == "hexagon" and term.value.isdigit() else term.value
    matches = any(fnmatchcase(fact, pattern) for fact in facts)
    return matches if term.operator == "=" else bool(facts) and not matches


def _number(text: str) -> int | None:
    match = _HEXAGON.fullmatch(text)
    return int(match[1]) if match else None


def _describe(device: DeviceSpec) -> str:
    facts = {key: "|".join(dict.fromkeys(fact(device))) for key, fact in _FACTS.items()}
    return "  " + ", ".join(f"{key}={fact or '?'}" for key, fact in facts.items() if fact or key != "name")
