"""The kinds of device a matrix may name: those that ship, and those that installed packages bring."""

from __future__ import annotations

from importlib.metadata import entry_points

BUILT_IN = ("virtual", "adb", "aihub", "cluster")
# Entry points of this group carry runs out: lab/executor.py.
_GROUP = "devicelab.executors"


def kind_names() -> tuple[str, ...]:
    """Return every word `kind:` may be: built-in ones first, those of packages after them."""
    brought = sorted({entry.name for entry in entry_points(group=_GROUP)} - set(BUILT_IN))
    return (*BUILT_IN, *brought)
