"""The names of runtimes a matrix may use: those that ship, and those that installed packages bring."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from types import MappingProxyType

GROUP = "devicelab.runtimes"
"""Entry points of this group name, for a runtime, a callable without arguments that returns it."""

BUILT_IN: Mapping[str, str] = MappingProxyType(
    {"qnn": ".onnx", "ort": ".onnx", "litert": ".tflite", "executorch": ".pte"}
)
"""Runtimes that ship -> ending of the model files they take."""


def runtime_names() -> tuple[str, ...]:
    """Return every name `runtime:` may have: built-in ones first, those of packages after them."""
    brought = sorted({entry.name for entry in entry_points(group=GROUP)} - BUILT_IN.keys())
    return (*BUILT_IN, *brought)


def default_runtime(suffix: str) -> str:
    """Return the runtime of a model whose entry names none; `qnn` where no runtime that ships takes its file."""
    return next((name for name, taken in BUILT_IN.items() if taken == suffix), "qnn")
