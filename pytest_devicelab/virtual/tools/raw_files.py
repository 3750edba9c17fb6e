"""Raw tensor files on a device: input lists, input files, `Result_N/NAME.raw`.

Source: input list and file layout: Qualcomm AI Engine Direct documentation, qnn-net-run; the `_native`
suffix, and that float32 never gets it: QNN SDK sample application, `IOTensor::writeOutputTensors`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_devicelab.evidence.record import Quantization
from pytest_devicelab.virtual.context_binary import TensorInfo
from pytest_devicelab.virtual.engine import EngineResult, Tensors
from pytest_devicelab.virtual.tools import trouble
from pytest_devicelab.virtual.tools.device_path import device_root, host_path

_ASSIGN = ":="
_LONGEST = 255  # NAME_MAX of Linux


class RunnerError(Exception):
    """What a runner prints before it exits with status 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputList:
    """A decoded input list: one mapping a sample, input name -> file; the outputs it names, or none."""

    samples: tuple[Mapping[str, Path], ...]
    outputs: tuple[str, ...]


def file_name(tensor: str, *, native: bool = False) -> str:
    """Return the name of an output's raw file.

    Whatever is not a letter, digit or underscore becomes an underscore, and a name never starts with a
    digit, so no tensor name can leave the folder.
    """
    plain = re.sub(r"[^A-Za-z0-9_]", "_", tensor)
    return f"{'_' if plain[:1].isdigit() else ''}{plain}{'_native' if native else ''}.raw"


def native_file(tensor: str, dtype: str) -> str:
    """Return the name of an output's raw file in the graph's own dtype: float32 is not called native."""
    return file_name(tensor, native=dtype != "float32")


def read_input_list(path: Path, inputs: Sequence[TensorInfo], outputs: Sequence[str]) -> InputList:
    """Read an input list: a line a sample, of `name:=path` or bare paths in the order of the inputs.

    A first line that starts with `#` or `%` names the outputs wanted.

    Args:
        path: the list on the host.
        inputs: what the graph takes.
        outputs: names of what the graph gives.

    Raises:
        RunnerError: it cannot be read, or does not fit the graph.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise RunnerError(f"Failed to open input list {path}: {error}") from error
    wanted: list[str] = []
    while lines and lines[0][0] in "#%":
        wanted += lines.pop(0)[1:].split()
    if unknown := sorted(set(wanted) - set(outputs)):
        raise RunnerError(f"Input list {path} names outputs the graph does not have: {', '.join(unknown)}")
    if not lines:
        raise RunnerError(f"Input list {path} names no input files")
    samples = tuple(_sample(line, number, inputs) for number, line in enumerate(lines, start=1))
    return InputList(samples=samples, outputs=tuple(wanted) or tuple(outputs))


def _sample(line: str, number: int, inputs: Sequence[TensorInfo]) -> Mapping[str, Path]:
    # A name as it is written comes first: `a_b` is the input of that name, also beside one called `a/b`.
    names = {_stem(tensor.name): tensor.name for tensor in inputs} | {
        tensor.name: tensor.name for tensor in inputs
    }
    files: dict[str, Path] = {}
    for position, word in enumerate(line.split()):
        name, assigned, path = word.partition(_ASSIGN)
        if not assigned:
            name, path = (inputs[position].name if position < len(inputs) else ""), word
        if name not in names:
            raise RunnerError(f"Input list, sample {number}: the graph has no input for {word}")
        files[names[name]] = Path(host_path(path))
    if missing := sorted({tensor.name for tensor in inputs} - set(files)):
        raise RunnerError(f"Input list, sample {number}: no file for input {', '.join(missing)}")
    return files


def _stem(tensor: str) -> str:
    return file_name(tensor).removesuffix(".raw")


def load_sample(files: Mapping[str, Path], inputs: Sequence[TensorInfo], native: Collection[str]) -> Tensors:
    """Read one sample in the dtypes of the graph.

    Args:
        files: input name -> raw file.
        inputs: what the graph takes.
        native: names of the inputs whose files hold the graph's own dtype; the others hold float32, which is
            quantized or cast to it.

    Raises:
        RunnerError: a file is missing or has the wrong size.
    """
    return {tensor.name: _load(files[tensor.name], tensor, tensor.name in native) for tensor in inputs}


def _load(path: Path, tensor: TensorInfo, native: bool) -> npt.NDArray[np.generic]:
    dtype = np.dtype(tensor.dtype if native else "float32").newbyteorder("<")
    wanted = int(np.prod(tensor.shape, dtype=np.int64)) * dtype.itemsize
    try:
        found = path.stat().st_size
        if found != wanted:
            raise RunnerError(
                f"Input file {path} has {found} bytes; input {tensor.name} takes {wanted} "
                f"({dtype.name} {list(tensor.shape)})"
            )
        values = np.fromfile(path, dtype).reshape(tensor.shape)
    except OSError as error:
        raise RunnerError(f"Failed to open input file {path}: {error.strerror}") from error
    if native or tensor.dtype == "float32":
        return values
    if tensor.quantization is not None:
        return quantize(values.astype(np.float64), tensor.quantization)
    return values.astype(tensor.dtype)


def quantize(values: npt.NDArray[np.float64], how: Quantization) -> npt.NDArray[np.generic]:
    """Quantize to a fixed-point dtype as qnn-net-run does: ties up, clamped; NaN becomes zero.

    Source: rounding of the step's distance from the smallest code, QNN SDK sample application.
    """
    limits = np.iinfo(how.dtype)
    codes = np.floor(values / how.scale + how.zero_point + 0.5)
    codes = np.where(np.isnan(codes), how.zero_point, codes)
    return np.clip(codes, limits.min, limits.max).astype(how.dtype)


def dequantize(codes: npt.NDArray[np.generic], how: Quantization) -> npt.NDArray[np.float32]:
    """Return the float32 values of fixed-point codes."""
    return ((codes.astype(np.float64) - how.zero_point) * how.scale).astype(np.float32)


@contextmanager
def results_folder(out: Path, ours: Sequence[str]) -> Iterator[Path]:
    """Give a folder to write results to, which become `out` when all of them are there, and else vanish.

    Args:
        out: the results folder; one that exists keeps the files that are not ours.
        ours: patterns of what we write there; what an earlier run left of it goes.

    Raises:
        RunnerError: the folder cannot be made or filled.
    """
    target = out.absolute()
    new = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        new.mkdir(parents=True)
        yield new
        _spoil(new)
        target.mkdir(exist_ok=True)
        for stale in [entry for pattern in ours for entry in target.glob(pattern)]:
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        for entry in new.iterdir():
            entry.replace(target / entry.name)
    except OSError as error:
        raise RunnerError(f"Failed to write results to {out}: {error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _spoil(folder: Path) -> None:
    """Do to results what the device's faults do; raises OSError when its disk is full."""
    faults = trouble.read(device_root())
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if full := faults.get("disk_full"):
        needed = sum(path.stat().st_size for path in files)
        if needed > full["free_bytes"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    if short := faults.get("short_output"):
        last = max(folder.rglob("*.raw"), key=lambda path: path.stat().st_mtime_ns)
        os.truncate(last, max(0, last.stat().st_size - short["missing_bytes"]))
        trouble.write(device_root(), "short_output", short | {"cut": last.name})


def write_result(folder: Path, number: int, tensors: Tensors, files: Mapping[str, str]) -> None:
    """Write one sample's tensors as raw little-endian files.

    Args:
        folder: what `results_folder` gave.
        number: of the sample, from 0.
        tensors: arrays by output name.
        files: output name -> file name.
    """
    result = folder / f"Result_{number}"
    result.mkdir(exist_ok=True)
    for name, file in files.items():
        array = tensors[name]
        (result / file).write_bytes(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())


def result_files(outputs: Sequence[str], *, native: Collection[str] = ()) -> Mapping[str, str]:
    """Return output name -> file name; raises RunnerError when two outputs would share a file."""
    files = {name: file_name(name, native=name in native) for name in outputs}
    if len(set(files.values())) != len(files):
        raise RunnerError(f"two outputs have the same file name: {', '.join(sorted(files.values()))}")
    return files


def told_files(outputs: Sequence[str]) -> Mapping[str, str]:
    """Return output name -> file name, for a runner that says in `outputs.json` which file is which.

    An output whose name gives no file of its own, or one no file can have, gets a number instead.
    """
    plain = [file_name(name) for name in outputs]
    return {
        name: file if plain.count(file) == 1 and len(file) <= _LONGEST else f"output.{number}.raw"
        for number, (name, file) in enumerate(zip(outputs, plain, strict=True))
    }


def write_contract(folder: Path, result: EngineResult, files: Mapping[str, str]) -> list[dict[str, str]]:
    """Write what a run under a framework says of itself: `outputs.json`, `placement.json`, `versions.json`.

    Returns:
        The placement, as it was written.
    """
    first = result.outputs[0]
    described = [
        {
            "name": name,
            "file": file,
            "dtype": first[name].dtype.name,
            "shape": list(first[name].shape),
            "quantization": asdict(result.quantization[name]) if name in result.quantization else None,
        }
        for name, file in files.items()
    ]
    placement = [{"node": each.node, "op": each.op, "unit": each.unit} for each in result.placement]
    write_json(folder / "outputs.json", described)
    write_json(folder / "versions.json", dict(result.versions))
    write_json(folder / "placement.json", placement)
    return placement


def write_timing(folder: Path, result: EngineResult) -> None:
    """Write how long loading and each inference took; nothing where the engine does not say."""
    if result.load_us is not None and result.inference_us:
        times = {"load_us": result.load_us, "inference_us": list(result.inference_us)}
        write_json(folder / "timing.json", times)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON."""
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
