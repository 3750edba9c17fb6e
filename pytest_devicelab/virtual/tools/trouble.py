"""The faults that befall programs on a device: one small JSON file the runners and `df` read.

`dev/devicelab/trouble.json` below the device's root; `virtual.faults` writes it.
"""

# Programs on the device start without pathlib, which alone takes some milliseconds.
# ruff: noqa: PTH105, PTH118, PTH123

from __future__ import annotations

import json
import os
from typing import Any

FILE = "dev/devicelab/trouble.json"


def read(root: str) -> dict[str, dict[str, Any]]:
    """Return what the device in `root` has: name of a fault -> its figures."""
    try:
        with open(_path(root), encoding="utf-8") as file:
            found: dict[str, dict[str, Any]] = json.load(file)
    except FileNotFoundError:
        return {}
    return found


def write(root: str, fault: str, figures: dict[str, Any] | None) -> None:
    """Add a fault, or take it away with None, in one step."""
    found = {name: each for name, each in read(root).items() if name != fault}
    if figures is not None:
        found[fault] = figures
    temporary = f"{_path(root)}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(found, file)
    os.replace(temporary, _path(root))


def take_crash(root: str) -> bool:
    """Say whether the NPU crashes under this run, and count the run."""
    left = read(root).get("npu_crash", {}).get("runs", 0)
    if left:
        write(root, "npu_crash", {"runs": left - 1} if left > 1 else None)
    return bool(left)


def _path(root: str) -> str:
    return os.path.join(root, FILE)
