"""What can be found wrong before anything is started: models, inputs, labels, packages, device kinds."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

from pytest_devicelab.devices.adb_server import find_adb
from pytest_devicelab.errors import ModelError, UserError
from pytest_devicelab.lab.lab import refuse_unsupported
from pytest_devicelab.lab.session import read_labels
from pytest_devicelab.matrix.specs import DeviceSpec, MatrixSpec, ModelSpec
from pytest_devicelab.runtimes.inputs import load_inputs


def check_lab(matrix: MatrixSpec, devices: tuple[DeviceSpec, ...]) -> None:
    """Check everything that needs no device.

    Raises:
        UserError: lists every mistake found, each with its fix.
    """
    checks: list[Callable[[], object]] = [find_adb, lambda: refuse_unsupported(devices)]
    checks.append(lambda: _check_packages(matrix, devices))
    checks.extend(lambda model=model: _check_model(model) for model in matrix.models)  # type: ignore[misc]
    problems = list(_problems(checks))
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise UserError(
            f"{matrix.path}: {len(problems)} problems before anything was started\n"
            + "\n".join(str(problem) for problem in problems),
            problems=tuple(problems),
        )


def _problems(checks: list[Callable[[], object]]) -> Iterator[UserError]:
    for check in checks:
        try:
            check()
        except UserError as problem:
            yield problem


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


def _check_model(model: ModelSpec) -> None:
    declared = _declared_inputs(model.path, model)
    if model.reference is not None:
        _declared_inputs(model.reference, model)
    if model.inputs is None:
        raise ModelError(
            f"{model.source}: model {model.id} has no inputs",
            why="without inputs there is nothing to run",
            fix="add `inputs: file.npz` with one array `[N, ...]` for each input of the model",
        )
    arrays = load_inputs(model.inputs, samples=model.samples)
    found = {name: (1, *array.shape[1:]) for name, array in arrays.items()}
    if found.keys() != declared.keys() or any(
        not _fits(found[name], shape) for name, shape in declared.items()
    ):
        raise ModelError(
            f"{model.inputs}: these are not the inputs of {model.path.name}",
            why=f"the model declares {declared}; one sample of the file has {found}",
            fix="save one array `[N, ...]` for each input, under the input's name; the model's batch is 1",
        )
    samples = len(next(iter(arrays.values())))
    if model.labels is not None and len(read_labels(model.labels)) < samples:
        raise ModelError(
            f"{model.labels}: fewer labels than samples",
            why=f"{len(read_labels(model.labels))} labels for {samples} samples",
            fix="save one label for each sample, in the same order",
        )


def _declared_inputs(path: Path, model: ModelSpec) -> dict[str, tuple[int | None, ...]]:
    """Return the inputs an ONNX model declares, name -> shape, None for a dimension left open."""
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
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
        )
        for value in loaded.graph.input
        if value.name in names
    }


def _fits(shape: tuple[int, ...], declared: tuple[int | None, ...]) -> bool:
    return len(shape) == len(declared) and all(
        want is None or have == want for have, want in zip(shape, declared, strict=True)
    )
