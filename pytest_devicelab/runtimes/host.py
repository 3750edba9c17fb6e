"""Models on the host: what an ONNX model declares, and what a model gives on its CPU, as on an engineer's bench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pytest_devicelab.errors import ModelError, UserError
from pytest_devicelab.runtimes.inputs import Arrays
from pytest_devicelab.runtimes.names import require_listable
from pytest_devicelab.runtimes.runtime import DeclaredInput
from pytest_devicelab.virtual.context_binary import TensorInfo
from pytest_devicelab.virtual.engine import Tensors


def run_on_host(path: Path, inputs: Arrays) -> Arrays:
    """Run a model on the CPU, sample by sample.

    Args:
        path: an ONNX model with batch dimension 1.
        inputs: arrays `[N, ...]` by input name.

    Returns:
        Arrays `[N, ...]` by output name.

    Raises:
        UserError: onnxruntime is not installed.
        ModelError: the model does not load, or does not take these inputs.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "the CPU reference needs onnxruntime",
            why=str(error),
            fix="pip install 'pytest-devicelab[virtual]'",
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # The model as it is written: what the optimizer makes of it differs between versions and kinds of CPU.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # One thread: the order of additions, and so every bit, stays the same from run to run.
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        count = len(next(iter(inputs.values())))
        runs = [
            session.run(names, {name: _batch_of_one(array[sample]) for name, array in inputs.items()})
            for sample in range(count)
        ]
    except Exception as error:  # onnxruntime raises its own family of exceptions, all derived from Exception
        raise ModelError(
            f"{path}: the model does not run on the CPU",
            why=str(error).strip()[:500],
            fix="check it with onnx.checker, and that the inputs have the names and shapes it declares",
        ) from error
    return {name: stack_samples([run[index] for run in runs]) for index, name in enumerate(names)}


class LoadedModel(Protocol):
    """A model that is loaded on the host and takes one sample at a time."""

    @property
    def outputs(self) -> Sequence[TensorInfo]:
        """What it gives."""

    def run(self, sample: Mapping[str, npt.NDArray[np.generic]]) -> Tensors:
        """Return outputs by name for inputs `[1, ...]`."""


def run_loaded(model: LoadedModel, path: Path, inputs: Arrays) -> Arrays:
    """Run a loaded model on inputs `[N, ...]`, sample by sample; returns outputs `[N, ...]` by name.

    Raises:
        ModelError: it does not take these inputs; `path` is where it came from.
    """
    try:
        runs = [
            model.run({name: _batch_of_one(array[sample]) for name, array in inputs.items()})
            for sample in range(len(next(iter(inputs.values()))))
        ]
    except (KeyError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{path}: the model does not run on the CPU",
            why=str(error).strip()[:500],
            fix="check that the inputs have the names and shapes it declares",
        ) from error
    return {tensor.name: stack_samples([run[tensor.name] for run in runs]) for tensor in model.outputs}


def _batch_of_one(sample: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    return np.expand_dims(sample, 0)


def stack_samples(samples: list[npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
    """Join samples `[1, ...]` to `[N, ...]`; samples of another shape get a new first dimension."""
    if samples[0].ndim and samples[0].shape[0] == 1:
        return np.concatenate(samples)
    return np.stack(samples)


def declared_inputs(path: Path) -> Mapping[str, DeclaredInput]:
    """Return the inputs an ONNX model declares, by name.

    Raises:
        ModelError: not an ONNX model, or a name that cannot be written into an input list.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        loaded = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError, ValueError) as error:
        loaded, why = None, str(error)
    if loaded is None or not loaded.graph.node or not loaded.opset_import:
        raise ModelError(
            f"{path}: not an ONNX model",
            why=why if loaded is None else "it holds no graph",
            fix="name an .onnx file; export the model anew if it was cut short",
        )
    constants = {tensor.name for tensor in loaded.graph.initializer}
    names = [value.name for value in loaded.graph.input if value.name not in constants]
    require_listable(path, names, (":", ","))
    return {
        value.name: DeclaredInput(
            _dtype_name(value.type.tensor_type.elem_type),
            tuple(
                dim.dim_value if dim.HasField("dim_value") else None
                for dim in value.type.tensor_type.shape.dim
            ),
        )
        for value in loaded.graph.input
        if value.name in names
    }


def _dtype_name(element: int) -> str:
    from onnx.helper import tensor_dtype_to_np_dtype

    try:
        return tensor_dtype_to_np_dtype(element).name
    except (KeyError, TypeError, ValueError):  # a sequence, or an element type of a later ONNX
        return f"ONNX element type {element}"
