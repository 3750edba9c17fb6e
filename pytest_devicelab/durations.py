"""How long tests took, kept between sessions for the scheduler: a hint, so whatever is wrong with it is no error."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

_MOST_TESTS = 100_000
_LONGEST_BYTES = 64 << 20


class Durations:
    """Durations of tests in a JSON file, node id to seconds.

    Args:
        path: the file; need not be there, and may be damaged.

    Attributes:
        known: what earlier sessions noted.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._noted: dict[str, float] = {}
        self.known: Mapping[str, float] = MappingProxyType(_read(path))

    def note(self, nodeid: str, duration_s: float) -> None:
        """Add the time of one phase of a test of this session."""
        self._noted[nodeid] = self._noted.get(nodeid, 0.0) + duration_s

    def save(self) -> None:
        """Write what this session noted over what was known of the same tests; the file is never half a one."""
        if not self._noted:
            return
        # Another session may have saved since; what was noted last is kept where there is too much.
        merged = {name: value for name, value in _read(self._path).items() if name not in self._noted}
        merged = dict([*merged.items(), *self._noted.items()][-_MOST_TESTS:])
        part = self._path.with_name(f".{self._path.name}.{os.getpid()}-{secrets.token_hex(4)}")
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                part.write_text(json.dumps(merged, indent=0), "utf-8")
                part.replace(self._path)
            finally:
                part.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, float]:
    try:
        if path.stat().st_size > _LONGEST_BYTES:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: float(value) for name, value in found.items() if _is_duration(value)}


def _is_duration(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 <= value < 1e9
        and math.isfinite(value)
    )
