"""Faults of a run: the NPU that goes down under it, the result that is not whole."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_devicelab.virtual.faults.fault import Subject
from pytest_devicelab.virtual.tools import trouble


class NpuCrash:
    """The NPU's processor crashes under each of the next `runs` runs and restarts (SSR: subsystem restart).

    On a phone: the runner fails in its execution, QNN logs that an SSR was detected, and the kernel's log has
    remoteproc's `crash detected in cdsp`.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._runs = int(values["runs"])

    def begin(self, device: Subject) -> None:
        """Crash from the next run on."""
        trouble.write(str(device.root), "npu_crash", {"runs": self._runs})

    def struck(self, device: Subject) -> bool:
        """Say whether a run has crashed."""
        left: int = trouble.read(str(device.root)).get("npu_crash", {}).get("runs", 0)
        return left < self._runs

    def end(self, device: Subject) -> None:
        """Crash no more."""
        trouble.write(str(device.root), "npu_crash", None)


class ShortOutput:
    """The runner ends well, but the last file it wrote lacks its last `missing_bytes`.

    On a phone: status 0, no message, and a file that is too short, as after a power loss or a full flash.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._missing_bytes = int(values["missing_bytes"])

    def begin(self, device: Subject) -> None:
        """Cut results from now on."""
        trouble.write(str(device.root), "short_output", {"missing_bytes": self._missing_bytes})

    def struck(self, device: Subject) -> bool:
        """Say whether a result was cut."""
        return "cut" in trouble.read(str(device.root)).get("short_output", {})

    def end(self, device: Subject) -> None:
        """Write whole results again."""
        trouble.write(str(device.root), "short_output", None)
