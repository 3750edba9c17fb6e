"""The runtimes there are, by name: those that ship, and those that installed packages bring as entry points."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

from pytest_devicelab.errors import UserError
from pytest_devicelab.matrix.brought import calling, load_brought, require_members
from pytest_devicelab.matrix.runtime_names import GROUP, runtime_names
from pytest_devicelab.matrix.specs import DeviceSpec, ModelSpec
from pytest_devicelab.runtimes.executorch import ExecutorchRuntime
from pytest_devicelab.runtimes.litert import LitertRuntime
from pytest_devicelab.runtimes.ort import OrtRuntime
from pytest_devicelab.runtimes.qnn import QnnRuntime
from pytest_devicelab.runtimes.runtime import Runtime

REFERENCE_RUNTIME = "ort"
"""The runtime that reads float models: a reference is an ONNX file, whatever the model under test is."""


def find_runtime(name: str) -> Runtime:
    """Return the runtime of that name.

    Raises:
        UserError: there is none, or what a package brings cannot be used.
    """
    built_in: dict[str, Callable[[], Runtime]] = {
        "qnn": QnnRuntime,
        "ort": OrtRuntime,
        "litert": LitertRuntime,
        "executorch": ExecutorchRuntime,
    }
    if name in built_in:
        return built_in[name]()
    make = load_brought(GROUP, name)
    if make is not None:
        found = calling(make, GROUP, name)
        require_members(found, Runtime, GROUP, name)
        return cast("Runtime", found)
    raise UserError(
        f"runtime {name!r} is not known",
        why=f"there are {', '.join(runtime_names())}",
        fix=f"install the package that brings it, as an entry point of {GROUP!r}",
    )


def choose_runtime(spec: DeviceSpec, model: ModelSpec) -> str:
    """Return the runtime of a model on a device: the device's own where it takes the model's file, else the model's."""
    if spec.runtime is not None and model.path.suffix in find_runtime(spec.runtime).suffixes:
        return spec.runtime
    return model.runtime


def runtime_of_file(path: Path) -> Runtime:
    """Return the runtime that runs a file on the host's CPU, by its ending; ONNX Runtime where no other claims it."""
    for name in runtime_names():
        runtime = find_runtime(name)
        if path.suffix in runtime.suffixes and name != "qnn":
            return runtime
    return find_runtime(REFERENCE_RUNTIME)
