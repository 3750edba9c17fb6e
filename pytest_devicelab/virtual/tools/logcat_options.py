"""The command line of logcat: what its options and filterspecs mean."""

from __future__ import annotations

import re
import time
from typing import Any, NamedTuple

from pytest_devicelab.virtual.tools.logclient import BUFFERS, DEFAULT_BUFFERS

WITH_VALUE = frozenset("bvtTemfG")
FLAGS = frozenset("cdgsBDhS")
LONG_OPTIONS = {
    "binary": "B",
    "buffer": "b",
    "buffer-size": "g",
    "clear": "c",
    "dividers": "D",
    "file": "f",
    "format": "v",
    "help": "h",
    "max-count": "m",
    "pid": "pid",
    "print": "print",
    "regex": "e",
    "tail": "t",
}
LEVELS = "VDIWEFS"
_DAY_S = 86400


class UsageError(Exception):
    """The command line is not one logcat takes."""


class Command(NamedTuple):
    """A command line: flags, the values of options in the order given, and the filterspecs."""

    flags: frozenset[str]
    values: tuple[tuple[str, str], ...]
    filters: tuple[str, ...]

    def last(self, *options: str) -> str | None:
        """Return the value of the last of these options, or None."""
        found = [value for option, value in self.values if option in options]
        return found[-1] if found else None

    def all(self, option: str) -> list[str]:
        """Return the words of every use of an option, which may hold several, separated by commas."""
        return [word for name, value in self.values if name == option for word in value.split(",") if word]


def parse_command(arguments: list[str]) -> Command:
    """Return the command line as logcat reads it; options and filterspecs may be mixed."""
    flags: set[str] = set()
    values: list[tuple[str, str]] = []
    filters: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            filters.extend(words)
        elif word.startswith("--"):
            name, given, value = word[2:].partition("=")
            option = LONG_OPTIONS.get(name)
            if option is None:
                raise UsageError(f"unrecognized option '{word}'")
            if option in WITH_VALUE or option == "pid":
                values.append((option, value if given else _value(words, name)))
            else:
                flags.add(option)
        elif word.startswith("-") and word != "-":
            while (word := word[1:]) and word[0] in FLAGS:
                flags.add(word[0])
            if word and word[0] in WITH_VALUE:
                values.append((word[0], word[1:] or _value(words, word[0])))
            elif word:
                raise UsageError(f"invalid option -- '{word[0]}'")
        else:
            filters.extend(word.replace(",", " ").split())
    return Command(frozenset(flags), tuple(values), tuple(filters))


def _value(words: Any, option: str) -> str:
    value = next(words, None)
    if value is None:
        raise UsageError(f"option requires an argument -- '{option}'")
    return str(value)


def buffers_of(command: Command) -> list[str]:
    """Return the buffers `-b` names; main, system and crash by default."""
    names: list[str] = []
    for word in command.all("b") or ["default"]:
        if word in ("all", "default"):
            names.extend(BUFFERS if word == "all" else DEFAULT_BUFFERS)
        elif word in BUFFERS:
            names.append(word)
        else:
            raise UsageError(f"Unknown buffer '{word}'")
    return list(dict.fromkeys(names))


def filters_of(command: Command, environment: str) -> dict[str, str]:
    """Return tag -> lowest priority printed, `*` for all other tags.

    Args:
        command: the command line.
        environment: filterspecs of `ANDROID_LOG_TAGS`, which count where the command line has none.
    """
    levels = {"*": "S" if "s" in command.flags else "V"}
    for spec in command.filters or environment.replace(",", " ").split():
        tag, _, level = spec.rpartition(":") if ":" in spec else (spec, "", "")
        level = level[:1].upper() or ("D" if tag == "*" else "V")
        level = "S" if level == "*" else level
        if level not in LEVELS or not tag:
            raise UsageError(f"Invalid filter expression '{spec}'")
        levels[tag] = level
    return levels


def decode_start(text: str) -> dict[str, int]:
    """Return what `-t` or `-T` means: `{"tail": count}` or `{"since_ns": time}`."""
    if text.isascii() and text.isdigit():
        return {"tail": max(int(text), 1)}
    whole, _, digits = text.strip().partition(".")
    digits = digits or "0"
    if not (digits.isascii() and digits.isdigit()):
        raise UsageError(f'-T "{text}" not in time format')
    nanoseconds = int(digits[:9].ljust(9, "0"))
    if whole.isascii() and whole.isdigit():
        return {"since_ns": int(whole) * 10**9 + nanoseconds}
    seconds = _seconds(whole)
    if seconds is None:
        raise UsageError(f'-T "{text}" not in time format')
    return {"since_ns": seconds * 10**9 + nanoseconds}


def _seconds(text: str) -> int | None:
    """Return `[YYYY-]MM-DD hh:mm:ss`, local time, as seconds since 1970; None where it is no such time."""
    this_year = time.localtime().tm_year
    has_year = re.match(r"\d{4}-", text) is not None
    # Without a year the latest such day is meant: in January a December day is last year's.
    for year in ("",) if has_year else (f"{this_year}-", f"{this_year - 1}-"):
        try:
            seconds = int(time.mktime(time.strptime(year + text, "%Y-%m-%d %H:%M:%S")))
        except (ValueError, OverflowError):
            continue
        if has_year or seconds <= time.time() + _DAY_S:
            return seconds
    return None


def decode_size(text: str) -> int:
    """Return the bytes a size such as `4M`, `256K` or `65536` stands for."""
    matched = re.fullmatch(r"(\d+)([kKmMgG]?)[bB]?", text, re.ASCII)
    if matched is None:
        raise UsageError(f"-G <size> '{text}' must be in the format <num><unit>, such as 4M")
    size = int(matched[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[matched[2].upper()]
    if not 64 << 10 <= size <= 256 << 20:
        raise UsageError(f"-G <size> '{text}' must be from 64K to 256M")
    return size
