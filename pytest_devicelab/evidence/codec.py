"""Dataclasses to JSON and back, strictly: a damaged file is an error with a name, never a guess."""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from pytest_devicelab.errors import InfrastructureError

T = TypeVar("T")

# JSON has no literal for these, and `json` would write words that other parsers refuse.
_NON_FINITE = ("NaN", "Infinity", "-Infinity")


class _Mismatch(Exception):
    """What was found at one field, on its way up to where the file's name is known."""

    def __init__(self, field: str, why: str) -> None:
        self.field = field
        self.why = why
        super().__init__(f"{field}: {why}")


def encode(value: object) -> Any:
    """Turn a dataclass, and all it holds, into plain JSON data.

    Args:
        value: dataclass, mapping with string keys, tuple, list or scalar; a NaN or infinite float
            becomes the string `NaN`, `Infinity` or `-Infinity`.

    Raises:
        TypeError: something in it has no JSON form.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_key(key): encode(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    if isinstance(value, np.generic):
        return encode(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form: {reprlib.repr(value)}")


def decode(cls: type[T], data: object, *, file: str) -> T:
    """Build a dataclass from plain JSON data, accepting exactly what `encode` writes.

    Args:
        cls: a dataclass of strings, numbers, literals, tuples, mappings and further dataclasses.
        data: what `parse` returned for it.
        file: the file it was read from, for the message.

    Raises:
        InfrastructureError: a field is unknown, missing or of the wrong type; names the file and the field.
    """
    try:
        return _dataclass(cls, data, "")
    except _Mismatch as bad:
        raise damaged(file, bad.why, field=bad.field) from None


def dump(data: Mapping[str, Any]) -> bytes:
    """Write plain JSON data as the bytes of a file: ASCII, indented, strict, ending in a newline."""
    return json.dumps(data, indent=1, allow_nan=False).encode("ascii") + b"\n"


def parse(raw: bytes, *, file: str, schema: str) -> dict[str, Any]:
    """Read the bytes of an evidence file and return its fields without `schema`.

    Raises:
        InfrastructureError: it is not JSON, names a key twice, is not an object, or has another schema.
    """
    try:
        data = json.loads(raw, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except RecursionError:
        raise damaged(file, "it is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise damaged(file, f"it is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise damaged(file, f"an object was expected, found {_name(data)}")
    found = data.pop("schema", None)
    if found != schema:
        raise damaged(file, f"expected `{schema}`, found {reprlib.repr(found)}", field="schema")
    return data


def damaged(file: str, why: str, *, field: str = "") -> InfrastructureError:
    """Return the error for evidence that cannot be read: it makes a run inconclusive, not wrong."""
    at = f", field `{field}`" if field else ""
    return InfrastructureError(
        f"evidence file {file}{at} cannot be used",
        why=why,
        fix="the file was cut short, edited by hand, or written by another version; run the session again",
        file=file,
        field=field,
    )


@cache
def _hints(cls: type[Any]) -> Mapping[str, Any]:
    """Return the resolved annotations of a dataclass; resolving them is slow, and they never change."""
    return MappingProxyType(get_type_hints(cls))


def _dataclass(cls: type[T], data: object, at: str) -> T:
    if not isinstance(data, dict):
        raise _Mismatch(at, f"an object was expected, found {_name(data)}")
    hints = _hints(cls)  # type: ignore[arg-type]  # a class is hashable; mypy is unsure of a type[T]
    for name in data:
        if name not in hints:
            raise _Mismatch(_join(at, name), "no such field")
    values = {}
    for name, hint in hints.items():
        if name not in data:
            raise _Mismatch(_join(at, name), "the field is missing")
        values[name] = _value(hint, data[name], _join(at, name))
    try:
        return cls(**values)
    except ValueError as error:  # each field alone is fine, together they make no sense
        raise _Mismatch(at, str(error)) from None


def _value(hint: Any, data: Any, at: str) -> Any:
    if hint is object:
        return data
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, data, at)  # type: ignore[arg-type]  # a class here: hints hold no instances
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        (inner,) = (arg for arg in args if arg is not NoneType)
        return None if data is None else _value(inner, data, at)
    if origin is Literal:
        if data not in args:
            raise _Mismatch(
                at, f"one of {', '.join(map(str, args))} was expected, found {reprlib.repr(data)}"
            )
        return data
    if origin is tuple:
        return _tuple(args, data, at)
    if origin is Mapping:
        if not isinstance(data, dict):
            raise _Mismatch(at, f"an object was expected, found {_name(data)}")
        return MappingProxyType({key: _value(args[1], item, _join(at, key)) for key, item in data.items()})
    return _scalar(hint, data, at)


def _tuple(args: tuple[Any, ...], data: object, at: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise _Mismatch(at, f"a list was expected, found {_name(data)}")
    if args[-1] is Ellipsis:
        args = (args[0],) * len(data)
    if len(args) != len(data):
        raise _Mismatch(at, f"{len(args)} items were expected, found {len(data)}")
    return tuple(
        _value(arg, item, f"{at}[{index}]") for index, (arg, item) in enumerate(zip(args, data, strict=True))
    )


def _scalar(hint: Any, data: Any, at: str) -> Any:
    if hint is float:
        if data in _NON_FINITE if isinstance(data, str) else type(data) in (int, float):
            try:
                return float(data)
            except OverflowError:
                raise _Mismatch(at, "the number is too large") from None
    elif type(data) is hint:  # not isinstance: True is no integer here
        return data
    expected = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[hint]
    raise _Mismatch(at, f"{expected} was expected, found {_name(data)}")


def _name(data: object) -> str:
    kinds = {dict: "an object", list: "a list", NoneType: "null"}
    return kinds.get(type(data)) or reprlib.repr(data)


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a JSON object needs text as keys, not {reprlib.repr(key)}")
    return key


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a key is given twice among {reprlib.repr([key for key, _ in pairs])}")
    return found


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
