"""What can be found wrong before anything is started: models, inputs, labels, packages, device kinds."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from pytest_devicelab.devices.adb_server import find_adb
from pytest_devicelab.errors import ModelError, UserError
from pytest_devicelab.lab.lab import namespace_wanted, refuse_unsupported
from pytest_devicelab.lab.session import read_labels
from pytest_devicelab.matrix.specs import DeviceSpec, MatrixSpec, ModelSpec
from pytest_devicelab.runtimes.inputs import Arrays, load_inputs
from pytest_devicelab.runtimes.qairt import find_sdk
from pytest_devicelab.virtual.engines.resolve import resolve_engine


def check_lab(matrix: MatrixSpec, devices: tuple[DeviceSpec, ...]) -> None:
    """Check everything that needs no device.

    Raises:
        UserError: lists every mistake found, each with its fix.
    """
    problems: list[UserError] = []
    _attempt(problems, find_adb)
    _attempt(problems, lambda: namespace_wanted(os.environ))
    _attempt(problems, lambda: refuse_unsupported(devices))
    _attempt(problems, lambda: _check_packages(matrix, devices))
    if any(spec.kind == "adb" for spec in devices):
        _attempt(problems, lambda: find_sdk(matrix.qairt_sdk, os.environ))
    for engine in sorted({spec.engine for spec in devices if spec.simulated} - {"htp", "cpu"}):
        _attempt(problems, partial(resolve_engine, engine))
    for model in matrix.models:
        problems += _model_problems(model)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise UserError(
            f"{matrix.path}: {len(problems)} problems before anything was started\n"
            + "\n".join(str(problem) for problem in problems),
            problems=tuple(problems),
        )


T = TypeVar("T")


def _attempt(problems: list[UserError], check: Callable[[], T]) -> T | None:
    try:
        return check()
    except UserError as problem:
        problems.append(problem)
        return None


def _check_packages(matrix: MatrixSpec, devices: tuple[DeviceSpec, ...]) -> None:
    """The CPU engine never stands in for the simulator on its own: that would be another chip under the same name."""
    runtimes = {device.runtime or model.runtime for device in devices for model in matrix.models}
    simulated = [device.id for device in devices if device.simulated and device.engine == "htp"]
    wanted = {"onnxruntime": "the CPU reference of every accuracy verdict"}
    if simulated or "qnn" in runtimes:
        wanted["onnxruntime_qnn"] = (
            f"the HTP simulator of {', '.join(simulated)}" if simulated else "compiling context binaries"
        )
    missing = {name: use for name, use in wanted.items() if importlib.util.find_spec(name) is None}
    if missing:
        raise UserError(
            f"not installed: {', '.join(name.replace('_', '-') for name in missing)}",
            why="; ".join(f"{name.replace('_', '-')} is needed for {use}" for name, use in missing.items()),
            fix="pip install 'pytest-devicelab[virtual]' (x86-64 Linux, glibc 2.35 or newer); "
            "or write `engine: cpu` and `runtime: ort` for devices whose CPU is what you want to test",
            missing=tuple(missing),
        )


def _model_problems(model: ModelSpec) -> list[UserError]:
    """Return what is wrong with a model and the files beside it; each file is looked at, whatever the others hold."""
    problems: list[UserError] = []
    onnx_files = [path for path in (model.path, model.reference) if path is not None]
    declared = [_attempt(problems, partial(_declared_inputs, path, model)) for path in onnx_files]
    arrays = _attempt(problems, lambda: _inputs(model))
    labels = None if model.labels is None else _attempt(problems, partial(read_labels, model.labels))
    if arrays is None:
        return problems
    for path, inputs in zip(onnx_files, declared, strict=True):
        if inputs is not None:
            _attempt(problems, partial(_check_fit, path, inputs, model, arrays))
    samples = len(next(iter(arrays.values())))
    # With `samples:` the first few are meant; without it, another number of labels belongs to other inputs.
    if labels is not None and (len(labels) < samples or (len(labels) > samples and model.samples is None)):
        problems.append(
            ModelError(
                f"{model.labels}: {'fewer' if len(labels) < samples else 'more'} labels than samples",
                why=f"{len(labels)} labels for {samples} samples",
                fix="save one label for each sample, in the same order",
            )
        )
    return problems


def _inputs(model: ModelSpec) -> Arrays:
    if model.inputs is None:
        raise ModelError(
            f"{model.source}: model {model.id} has no inputs",
            why="without inputs there is nothing to run",
            fix="add `inputs: file.npz` with one array `[N, ...]` for each input of the model",
        )
    return load_inputs(model.inputs, samples=model.samples)


def check_inputs(model: ModelSpec, arrays: Arrays) -> None:
    """Check inputs given in code against what the model declares.

    Raises:
        ModelError: other names, dtypes or shapes, or not arrays `[N, ...]` at all: a device takes bytes and would not
            notice, for it is only their number it can see.
    """
    wrong = {
        name: type(array).__name__ for name, array in arrays.items() if not isinstance(array, np.ndarray)
    }
    if wrong or not arrays or any(array.ndim == 0 for array in arrays.values()):
        raise ModelError(
            f"model {model.id}: inputs must be numpy arrays [N, ...]",
            why=f"given: {wrong}" if wrong else "no input, or one without a first dimension",
            fix="wrap them with numpy.asarray(values, dtype)",
        )
    _check_fit(model.path, _declared_inputs(model.path, model), model, arrays, given="the inputs given")


def _check_fit(
    path: Path, declared: Mapping[str, _Declared], model: ModelSpec, arrays: Arrays, *, given: str = ""
) -> None:
    found = {name: _Declared(array.dtype.name, (1, *array.shape[1:])) for name, array in arrays.items()}
    if found.keys() != declared.keys() or any(
        not _fits(found[name], want) for name, want in declared.items()
    ):
        raise ModelError(
            f"{given or model.inputs}: these are not the inputs of {path.name} (model {model.id}, {model.source})",
            why=f"the model declares {_list(declared)}; one sample here has {_list(found)}",
            fix="save one array `[N, ...]` for each input, by its name and in its dtype; the model's batch is 1",
        )


class _Declared(NamedTuple):
    """dtype and shape of one input; None for a dimension left open."""

    dtype: str
    shape: tuple[int | None, ...]


def _list(inputs: Mapping[str, _Declared]) -> str:
    return ", ".join(
        f"{name}: {dtype} [{', '.join('?' if extent is None else str(extent) for extent in shape)}]"
        for name, (dtype, shape) in inputs.items()
    )


def _declared_inputs(path: Path, model: ModelSpec) -> Mapping[str, _Declared]:
    """Return the inputs an ONNX model declares, by name."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        loaded = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError, ValueError) as error:
        loaded, why = None, str(error)
    if loaded is None or not loaded.graph.node or not loaded.opset_import:
        raise ModelError(
            f"{path}: not an ONNX model (model {model.id}, {model.source})",
            why=why if loaded is None else "it holds no graph",
            fix="name an .onnx file; export the model anew if it was cut short",
        )
    constants = {tensor.name for tensor in loaded.graph.initializer}
    names = [value.name for value in loaded.graph.input if value.name not in constants]
    odd = [name for name in names if not name or any(char.isspace() or char == ":" for char in name)]
    if odd:
        raise ModelError(
            f"{path}: input names {odd} cannot be written into an input list",
            why="qnn-net-run separates entries by blanks and `:=`",
            fix="rename the inputs of the model",
        )
    return {
        value.name: _Declared(
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


def _fits(found: _Declared, declared: _Declared) -> bool:
    return (
        found.dtype == declared.dtype
        and len(found.shape) == len(declared.shape)
        and all(want in (None, have) for have, want in zip(found.shape, declared.shape, strict=True))
    )
