"""What an ExecuTorch program declares, and what ExecuTorch's runtime computes of it on this machine's CPU."""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_devicelab.errors import ModelError, UserError
from pytest_devicelab.virtual.context_binary import TensorInfo
from pytest_devicelab.virtual.engine import Tensors
from pytest_devicelab.virtual.pte_file import METHOD, read_pte


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorchModel:
    """A program that is loaded.

    Attributes:
        inputs: what its `forward` takes: a program names nothing, so they are `input_0`, `input_1`, ...
        outputs: what it gives: `output_0`, `output_1`, ...
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    _program: Any
    _method: Any
    _torch: Any

    def run(self, sample: Mapping[str, npt.NDArray[np.generic]]) -> Tensors:
        """Run one sample: arrays of the declared shapes by input name."""
        given = [self._torch.from_numpy(np.ascontiguousarray(sample[info.name])) for info in self.inputs]
        taken = self._method.execute(given)
        return {info.name: tensor.numpy().copy() for info, tensor in zip(self.outputs, taken, strict=True)}


def require_executorch() -> tuple[Any, Any]:
    """Import ExecuTorch's runtime and torch; UserError, saying how to install them, where one is missing."""
    try:
        with warnings.catch_warnings():
            # What these packages use that is on its way out is no concern of a session whose warnings are errors.
            warnings.simplefilter("ignore")
            return importlib.import_module("executorch.runtime"), importlib.import_module("torch")
    except ImportError as error:
        raise UserError(
            "ExecuTorch is not installed",
            why=str(error),
            fix="pip install 'pytest-devicelab[executorch]'; with it comes PyTorch, whose CPU build is the smaller one: "
            "add --extra-index-url https://download.pytorch.org/whl/cpu",
            missing=("executorch",),
        ) from None


def load_executorch(path: Path) -> ExecutorchModel:
    """Load a .pte file.

    Raises:
        ModelError: it is no such file, or it was lowered for a backend that this machine does not have, such as QNN's.
        UserError: ExecuTorch is not installed.
    """
    runtime, torch = require_executorch()
    declared = read_pte(path)
    if declared.qnn is not None:
        raise ModelError(
            f"{path}: lowered for QNN, and only a phone with that NPU runs it",
            why=f"it was lowered to {declared.qnn}; ExecuTorch's runtime on this machine computes on the CPU",
            fix="run it on a phone of `kind: adb`; for virtual devices and the yardstick on the CPU export the model "
            "once more, lowered for XNNPACK",
        )
    try:
        # By path: given bytes, the runtime reads them after Python has let them go, and crashes.
        program = runtime.Runtime.get().load_program(path)
        method = program.load_method(METHOD)
        if method is None:
            raise ValueError(f"it has no method {METHOD!r}")
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        needs = ", ".join(dict.fromkeys(str(delegate) for delegate in declared.delegates))
        raise ModelError(
            f"{path}: not a program ExecuTorch can load here",
            why=str(error).strip()[:500] + (f"; it was lowered for {needs}" if needs else ""),
            fix="name a .pte file; one that was lowered for the CPU (XNNPACK or portable operators) loads on any machine",
        ) from error
    return ExecutorchModel(
        inputs=declared.inputs, outputs=declared.outputs, _program=program, _method=method, _torch=torch
    )


def executorch_versions() -> Mapping[str, str]:
    """Return the versions of the libraries that decide what is computed."""
    return {name: importlib.metadata.version(name) for name in ("executorch", "torch", "numpy")}
