"""Decodes what a matrix says of logging: a level, a profile written in place, or the name of one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import get_args

import yaml

from pytest_devicelab.matrix.cursor import Cursor
from pytest_devicelab.matrix.specs import LogLevel, LogProfile, log_profile
from pytest_devicelab.matrix.suggest import show

LOG_LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)
_NAME = re.compile(r"[a-z0-9][a-z0-9_.]{0,63}")
# All that a user build lets the shell user set. Nothing else is a log switch either.
_PROPERTY = re.compile(r"(?:debug|log\.tag|persist\.log\.tag)\.[A-Za-z0-9_.@:-]{1,200}")
_MASK = re.compile(r"0x[0-9a-fA-F]{1,8}")
_SIZE = re.compile(r"([1-9][0-9]{0,8})([KM])")
# Source: AOSP logd, LogSize.h: 64 KiB to 256 MiB a buffer.
_SMALLEST_BYTES, _LARGEST_BYTES = 64 << 10, 256 << 20
# Source: AOSP PROP_VALUE_MAX, 92 bytes with the NUL; longer values are refused for all but `ro.` names.
_LONGEST_VALUE_BYTES = 91


def decode_logging(cursor: Cursor, profiles: Cursor) -> LogProfile:
    """Return what is logged during a run; mistakes are noted, in profiles nobody uses too.

    Args:
        cursor: `logging` of the matrix: a level, the name of a profile, or a profile in place.
        profiles: `log_profiles` of the matrix: profiles by name.
    """
    named = _named(profiles)
    if isinstance(cursor.node, yaml.MappingNode):
        return _profile(cursor)
    word = cursor.word((*LOG_LEVELS, *named))
    return log_profile("verbose") if word is None else named.get(word) or log_profile(_level(word))


def _named(profiles: Cursor) -> Mapping[str, LogProfile]:
    named = {}
    for name, cursor in profiles.entries().items():
        if name in LOG_LEVELS:
            cursor.fail(f"{show(name)} is a level already: give the profile another name")
        elif not _NAME.fullmatch(name):
            cursor.fail(f"{show(name)} is not a name: up to 64 of a-z 0-9 _ . after a letter or digit")
        else:
            named[name] = _profile(cursor)
    return named


def _profile(cursor: Cursor) -> LogProfile:
    fields = cursor.fields(optional=("level", "properties", "farf", "buffer"))
    plain = log_profile(fields["level"].word(LOG_LEVELS) or "verbose")
    size_bytes = _buffer_bytes(fields["buffer"])
    return LogProfile(
        level=plain.level,
        properties=_properties(fields["properties"]) if fields["properties"].present else plain.properties,
        farf=fields["farf"].text(_MASK, "is not a mask such as 0x1f"),
        buffer_bytes=plain.buffer_bytes if size_bytes is None else size_bytes,
    )


def _level(word: str) -> LogLevel:
    return next(level for level in LOG_LEVELS if level == word)


def _properties(cursor: Cursor) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name, value in cursor.entries().items():
        text = value.scalar()
        if not _PROPERTY.fullmatch(name):
            value.fail("is none the shell user may set: debug.*, log.tag.* or persist.log.tag.*")
        elif text is not None and len(text.encode()) > _LONGEST_VALUE_BYTES:
            value.fail(f"is longer than the {_LONGEST_VALUE_BYTES} bytes a property takes")
        elif text is not None:
            found[name] = text
    return MappingProxyType(found)


def _buffer_bytes(cursor: Cursor) -> int | None:
    text = cursor.text()
    if text is None:
        return None
    found = _SIZE.fullmatch(text)
    size_bytes = int(found[1]) << {"K": 10, "M": 20}[found[2]] if found else 0
    if not _SMALLEST_BYTES <= size_bytes <= _LARGEST_BYTES:
        cursor.fail(f"{show(text)} is not a size from 64K to 256M, such as 16M")
        return None
    return size_bytes
