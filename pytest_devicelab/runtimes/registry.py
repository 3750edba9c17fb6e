"""The runtimes there are, by name."""

from __future__ import annotations

from pytest_devicelab.runtimes.ort import OrtRuntime
from pytest_devicelab.runtimes.qnn import QnnRuntime
from pytest_devicelab.runtimes.runtime import Runtime


def find_runtime(name: str) -> Runtime:
    """Return the runtime of that name; KeyError for a name the matrix would not have let through."""
    runtimes: dict[str, Runtime] = {"qnn": QnnRuntime(), "ort": OrtRuntime()}
    return runtimes[name]
