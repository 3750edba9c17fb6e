"""What can be found wrong before anything is started: models, inputs, labels, packages, device kinds."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from pytest_devicelab.devices.adb_server import find_adb
from pytest_devicelab.errors import ModelError, UserError
from pytest_devicelab.lab.lab import transport_of
from pytest_devicelab.lab.services import namespace_wanted, refuse_unsupported
from pytest_devicelab.lab.session import read_labels
from pytest_devicelab.matrix.specs import DeviceSpec, MatrixSpec, ModelSpec
from pytest_devicelab.runtimes.compile import FIX_SHAPES
from pytest_devicelab.runtimes.inputs import Arrays, load_inputs
from pytest_devicelab.runtimes.qairt import find_sdk
from pytest_devicelab.runtimes.registry import REFERENCE_RUNTIME, choose_runtime, find_runtime
from pytest_devicelab.runtimes.runtime import DeclaredInput
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
    if other := next((spec for spec in devices if spec.transport != "adb"), None):
        _attempt(problems, lambda: transport_of(other))
    if any(spec.kind == "adb" for spec in devices):
        _attempt(problems, lambda: find_sdk(matrix.qairt_sdk, os.environ))
    for engine in sorted({spec.engine for spec in devices if spec.simulated} - {"htp", "cpu"}):
        _attempt(problems, partial(resolve_engine, engine))
    runtimes = {choose_runtime(device, model) for device in devices for model in matrix.models}
    usable = {name for name in sorted(runtimes) if _attempt(problems, partial(_required, name))}
    for model in matrix.models:
        problems += _model_problems(model, usable)
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


def _required(runtime: str) -> bool:
    find_runtime(runtime).require()
    return True


def _check_packages(matrix: MatrixSpec, devices: tuple[DeviceSpec, ...]) -> None:
    """The CPU engine never stands in for the simulator on its own: that would be another chip under the same name."""
    asked = {device.id: {choose_runtime(device, model) for model in matrix.models} for device in devices}
    simulated = [
        device.id
        for device in devices
        # LiteRT and ExecuTorch compute with libraries of their own.
        if device.simulated
        and device.engine == "htp"
        and (not matrix.models or asked[device.id] - {"litert", "executorch"})
    ]
    # AI Hub compiles for itself unless told otherwise, and other lab hosts compile for their own devices.
    compiling = [
        device.id
        for device in devices
        if "qnn" in asked[device.id]
        and device.kind != "cluster"
        and (device.kind != "aihub" or device.compiler == "ours")
    ]
    wanted = {}
    if any(
        path.suffix == ".onnx" for model in matrix.models for path in (model.path, model.reference) if path
    ):
        wanted["onnxruntime"] = "the CPU reference of every accuracy verdict"
    if simulated or compiling:
        wanted["onnxruntime_qnn"] = (
            f"the HTP simulator of {', '.join(simulated)}"
            if simulated
            else f"compiling context binaries for {', '.join(compiling)}"
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


def _model_problems(model: ModelSpec, usable: Collection[str]) -> list[UserError]:
    """Return what is wrong with a model and the files beside it; each file is looked at, whatever the others hold.

    Args:
        model: the model.
        usable: runtimes with all they need: the files of another cannot be read, which is reported already.
    """
    problems: list[UserError] = []
    _attempt(problems, partial(_check_ending, model))
    arrays = _attempt(problems, lambda: _inputs(model))
    labels = None if model.labels is None else _attempt(problems, partial(read_labels, model.labels))
    named = {model.path: (model.runtime, arrays)} if model.runtime in usable else {}
    if model.reference is not None:
        named[model.reference] = (REFERENCE_RUNTIME, _reference_inputs(problems, model, arrays))
    for path, (runtime, given) in named.items():
        declared = _attempt(problems, partial(_declared_inputs, runtime, path, model))
        if declared is not None and path == model.path and runtime == REFERENCE_RUNTIME:
            _attempt(problems, partial(_refuse_open, declared, model))
        if declared is not None and given is not None:
            source = model.inputs if given is arrays else model.reference_inputs
            _attempt(problems, partial(_check_fit, path, declared, model, given, given=str(source)))
    if arrays is None:
        return problems
    samples = _count(arrays)
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


def _check_ending(model: ModelSpec) -> None:
    """A runtime that another package brings says itself which files it takes."""
    suffixes = find_runtime(model.runtime).suffixes
    if model.path.suffix not in suffixes:
        raise ModelError(
            f"{model.path}: runtime {model.runtime} takes {' or '.join(suffixes)} (model {model.id}, {model.source})",
            why="the ending says what a file holds",
            fix="name a file of that kind, or another `runtime:`",
        )


def _refuse_open(declared: Mapping[str, DeclaredInput], model: ModelSpec) -> None:
    """A batch left open is 1; a runner on a device has nothing to tell another open dimension by."""
    if found := {name: each for name, each in declared.items() if None in each.shape[1:]}:
        raise ModelError(
            f"{model.path}: the model leaves dimensions of its inputs open (model {model.id}, {model.source})",
            why=f"{_list(found)}: only the first, the batch, may be open, and is then 1",
            fix=FIX_SHAPES,
        )


def _reference_inputs(problems: list[UserError], model: ModelSpec, arrays: Arrays | None) -> Arrays | None:
    """Return what the float model is run on: inputs of its own, as many samples as the model has, or the same."""
    if model.reference_inputs is None:
        return arrays
    own = _attempt(problems, partial(load_inputs, model.reference_inputs, samples=model.samples))
    if own is not None and arrays is not None and (have := _count(own)) != (want := _count(arrays)):
        problems.append(
            ModelError(
                f"{model.reference_inputs}: not the samples of {model.inputs}",
                why=f"{have} samples for {want}",
                fix="save the same samples in the same order, as the float model takes them",
            )
        )
    return own


def _count(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))


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
    declared = _declared_inputs(model.runtime, model.path, model)
    _check_fit(model.path, declared, model, arrays, given="the inputs given")


def _check_fit(
    path: Path, declared: Mapping[str, DeclaredInput], model: ModelSpec, arrays: Arrays, *, given: str = ""
) -> None:
    found = {name: DeclaredInput(array.dtype.name, (1, *array.shape[1:])) for name, array in arrays.items()}
    if found.keys() != declared.keys() or any(
        not _fits(found[name], want) for name, want in declared.items()
    ):
        raise ModelError(
            f"{given or model.inputs}: these are not the inputs of {path.name} (model {model.id}, {model.source})",
            why=f"the model declares {_list(declared)}; one sample here has {_list(found)}",
            fix="save one array `[N, ...]` for each input, by its name and in its dtype; the model's batch is 1",
        )


def _list(inputs: Mapping[str, DeclaredInput]) -> str:
    return ", ".join(
        f"{name}: {dtype} [{', '.join('?' if extent is None else str(extent) for extent in shape)}]"
        for name, (dtype, shape) in inputs.items()
    )


def _declared_inputs(runtime: str, path: Path, model: ModelSpec) -> Mapping[str, DeclaredInput]:
    """Return the inputs a model file declares, as the runtime reads it."""
    try:
        return find_runtime(runtime).declared_inputs(path)
    except ModelError as error:
        raise ModelError(
            f"{error.what} (model {model.id}, {model.source})", why=error.why, fix=error.fix
        ) from error


def _fits(found: DeclaredInput, declared: DeclaredInput) -> bool:
    return (
        found.dtype == declared.dtype
        and len(found.shape) == len(declared.shape)
        and all(want in (None, have) for have, want in zip(found.shape, declared.shape, strict=True))
    )
