"""Tensors in .npy and .npz files; objects, which only pickle could read, are refused unread."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

import numpy as np

from pytest_devicelab.audit.tensor_files.source import (
    TensorSource,
    TensorSpec,
    read_chunks,
    reading,
    unreadable,
)
from pytest_devicelab.tensors.formats import FORMATS, Codes, Format, codes_of

_SUFFIX = ".npy"


@dataclass(frozen=True, slots=True, kw_only=True)
class NpySource:
    """A tensor in an .npy file, or in a member of an .npz file.

    Attributes:
        member: of the .npz file, None for an .npy file.
        swapped: whether its byte order is not this machine's.
        fortran: whether its elements are in Fortran order.
    """

    file: Path
    member: str | None
    number: Format
    shape: tuple[int, ...]
    scale: float | None
    swapped: bool
    fortran: bool

    @property
    def name(self) -> str | None:
        """The member's name without suffix."""
        return None if self.member is None else self.member.removesuffix(_SUFFIX)

    def chunks(self, elements: int) -> Iterator[Codes]:
        """Read the elements; those in Fortran order at once, because C order needs all of them."""
        with reading(self.file, self.name), _opened(self.file, self.member) as handle:
            _header(handle)
            if not self.fortran:
                yield from read_chunks(handle, self, elements, swapped=self.swapped)
                return
            flat = next(
                read_chunks(handle, replace(self, fortran=False), sys.maxsize - 1, swapped=self.swapped)
            )
            codes = codes_of(flat.reshape(self.shape, order="F"))
            for start in range(0, codes.size, elements):
                yield codes[start : start + elements]


def open_npy(file: Path, spec: TensorSpec) -> tuple[TensorSource, ...]:
    """Return the tensor of an .npy file.

    Raises:
        TensorFileError: it is damaged, or holds no numbers.
    """
    return (_source(file, None, spec),)


def open_npz(file: Path, spec: TensorSpec) -> tuple[TensorSource, ...]:
    """Return the tensors of an .npz file, in its order.

    Raises:
        TensorFileError: it is damaged, holds no numbers, or two tensors of one name.
    """
    with reading(file, None), zipfile.ZipFile(file) as archive:
        members = archive.namelist()
    if len(set(members)) < len(members):
        raise unreadable(file, None, "two members have the same name", fix="write the file again")
    return tuple(_source(file, member, spec) for member in members)


def _source(file: Path, member: str | None, spec: TensorSpec) -> NpySource:
    name = None if member is None else member.removesuffix(_SUFFIX)
    with reading(file, name):
        with _opened(file, member) as handle:
            shape, fortran, dtype = _header(handle)
        return NpySource(
            file=file,
            member=member,
            number=_number(file, name, dtype, spec),
            shape=shape,
            scale=spec.scale,
            swapped=not dtype.isnative,
            fortran=fortran and len(shape) > 1,
        )


@contextmanager
def _opened(file: Path, member: str | None) -> Iterator[BufferedIOBase]:
    if member is None:
        with file.open("rb") as handle:
            yield handle
    else:
        with zipfile.ZipFile(file) as archive, archive.open(member) as inner:
            yield cast("BufferedIOBase", inner)  # a ZipExtFile, whatever the stubs call it


def _header(handle: BufferedIOBase) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(handle)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(handle)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(handle)
    raise ValueError(f"version {version} of the .npy format, which only records with odd names need")


def _number(file: Path, name: str | None, dtype: np.dtype[Any], spec: TensorSpec) -> Format:
    found = FORMATS.get(dtype.name)
    if found is not None:
        return found
    if dtype.hasobject:
        why, fix = "it holds Python objects, and reading them would run the code in them", "save numbers"
    elif dtype.kind == "V" and dtype.names is None:
        # How numpy writes the dtypes of ml_dtypes: as bytes of no meaning.
        if spec.number is not None and spec.number.storage.itemsize == dtype.itemsize:
            return spec.number
        why, fix = (
            f"the file says no more of its elements than their size, {dtype.itemsize} bytes",
            ("name their format, such as --dtype bfloat16"),
        )
    else:
        why, fix = f"its elements are {dtype}", f"save one of {', '.join(FORMATS)}"
    raise unreadable(file, name, why, fix=fix, expected=list(FORMATS), found=str(dtype))
