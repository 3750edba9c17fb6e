"""Tensors as raw little-endian bytes, described on the command line or in a JSON file beside them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_devicelab.audit.tensor_files.source import (
    TensorSource,
    TensorSpec,
    read_chunks,
    reading,
    unreadable,
)
from pytest_devicelab.tensors.formats import FORMATS, Codes, Format


@dataclass(frozen=True, slots=True, kw_only=True)
class RawSource:
    """The tensor of a raw file; 4-bit elements are packed two a byte, the first in the low half."""

    file: Path
    number: Format
    shape: tuple[int, ...]
    scale: float | None

    @property
    def name(self) -> None:
        """Nothing: the file has one tensor and no name for it."""

    def chunks(self, elements: int) -> Iterator[Codes]:
        """Read the elements."""
        with reading(self.file, None), self.file.open("rb") as handle:
            yield from read_chunks(
                handle, self, elements, packed=self.number.bits == 4, swapped=sys.byteorder == "big"
            )


def open_raw(file: Path, spec: TensorSpec) -> tuple[TensorSource, ...]:
    """Return the tensor of a raw file, as `FILE.json` beside it describes it, else as `spec` does.

    Raises:
        TensorFileError: nobody says what it holds, or it has another size than that.
    """
    beside = file.with_name(f"{file.name}.json")
    if beside.exists():
        spec = _read_spec(beside)
    number = spec.number
    if number is None:
        fix = f"give --dtype and --shape, or write {beside.name}"
        raise unreadable(file, None, "raw bytes do not say what they are", fix=fix, expected="a dtype")
    with reading(file, None):
        size = file.stat().st_size
    shape = spec.shape if spec.shape is not None else (size * 8 // number.bits,)
    expected = number.size_bytes(math.prod(shape))
    if size != expected:
        raise unreadable(
            file,
            None,
            f"{number.name} {list(shape)} takes {expected:,} bytes, the file has {size:,}",
            fix="copy or write the file again, or correct the shape and dtype given for it",
            expected=f"{expected:,} bytes",
            found=f"{size:,} bytes",
        )
    return (RawSource(file=file, number=number, shape=shape, scale=spec.scale),)


def _read_spec(file: Path) -> TensorSpec:
    with reading(file, None):
        data = json.loads(file.read_bytes())
    problem = _problem(data)
    if problem:
        fix = 'such as {"dtype": "uint8", "shape": [1, 10]}; float elements may have a "scale"'
        raise unreadable(file, None, problem, fix=fix, expected="dtype, shape, scale", found=data)
    shape = data.get("shape")
    return TensorSpec(
        number=FORMATS[data["dtype"]],
        shape=None if shape is None else tuple(shape),
        scale=data.get("scale"),
    )


def _problem(data: Any) -> str:
    if not isinstance(data, dict) or set(data) - {"dtype", "shape", "scale"}:
        return "it is no object of dtype, shape and scale"
    if data.get("dtype") not in FORMATS:
        return f"dtype is none of {', '.join(FORMATS)}"
    shape = data.get("shape", [])
    if not isinstance(shape, list) or not all(type(axis) is int and axis >= 0 for axis in shape):
        return "shape is no list of sizes"
    scale = data.get("scale", 1.0)
    if type(scale) not in (int, float) or not (math.isfinite(scale) and scale > 0):
        return "scale is no number above zero"
    return ""
