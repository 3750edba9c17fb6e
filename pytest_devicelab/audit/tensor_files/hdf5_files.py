"""Tensors in HDF5 files: the datasets of Qualcomm AI Hub, and any other; needs the `h5` extra (h5py)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pytest_devicelab.audit.tensor_files.source import TensorSource, TensorSpec, reading, unreadable
from pytest_devicelab.tensors.formats import FORMATS, Codes, Format, codes_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Hdf5Source:
    """A tensor of an HDF5 file: datasets of one dtype, one after the other along the first axis."""

    file: Path
    name: str
    number: Format
    shape: tuple[int, ...]
    scale: float | None
    datasets: tuple[str, ...]

    def chunks(self, elements: int) -> Iterator[Codes]:
        """Read the elements."""
        with reading(self.file, self.name), _h5py(self.file).File(self.file, "r") as opened:
            pieces = (piece for path in self.datasets for piece in _pieces(opened[path], (), elements))
            yield from _regroup(pieces, elements, self.number)


def open_hdf5(file: Path, spec: TensorSpec) -> tuple[TensorSource, ...]:
    """Return the tensors of an HDF5 file.

    A file of AI Hub's layout has a group `data` of numbered groups, each with attributes `name` and
    `batch_count` and datasets `batch_0`, `batch_1`...: a tensor each. Other files have a tensor a dataset.

    Raises:
        TensorFileError: it is damaged, holds no numbers, points out of itself, or h5py is not installed.

    Source: qai_hub, `dataset_entries_converters`.
    """
    found: list[TensorSource] = []
    with reading(file, None), _h5py(file).File(file, "r") as opened:
        paths = tuple(_dataset_paths(file, opened, ""))  # of every file: this refuses all links
        hub = opened["data"] if _is_hub(opened) else None
        if hub is None:
            found += [_source(file, path, opened, (path,), spec) for path in paths]
        else:
            for key in sorted(hub, key=lambda key: int(hub[key].attrs.get("order", 0))):
                attributes = hub[key].attrs
                batches = (f"data/{key}/batch_{index}" for index in range(int(attributes["batch_count"])))
                found.append(_source(file, str(attributes["name"]), opened, tuple(batches), spec))
    names = [source.name for source in found]
    if len(set(names)) < len(names):
        raise unreadable(
            file, None, "two tensors have the same name", fix="write the file again", found=names
        )
    return tuple(found)


def _h5py(file: Path) -> Any:
    try:
        import h5py
    except ImportError:
        fix = "pip install 'pytest-devicelab[h5]'"
        raise unreadable(file, None, "HDF5 files need h5py, which is not installed", fix=fix) from None
    return h5py


def _is_hub(opened: Any) -> bool:
    groups = opened.get("data", getclass=False)
    return (
        bool(groups)
        and hasattr(groups, "values")
        and all("batch_count" in each.attrs for each in groups.values())
    )


def _dataset_paths(file: Path, group: Any, prefix: str) -> Iterator[str]:
    import h5py

    for key in group:
        path = f"{prefix}{key}"
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            # A link may name any file of this machine.
            raise unreadable(file, path, "it is a link and no data of this file", fix="write the data itself")
        item = group[key]
        if isinstance(item, h5py.Group):
            yield from _dataset_paths(file, item, f"{path}/")
        else:
            yield path


def _source(file: Path, name: str, opened: Any, paths: tuple[str, ...], spec: TensorSpec) -> Hdf5Source:
    import h5py

    forms: set[tuple[np.dtype[Any], tuple[int, ...]]] = set()
    samples = 0
    for path in paths:
        if not isinstance(opened.get(path, getlink=True), h5py.HardLink):
            raise unreadable(
                file, name, f"{path} is missing, or a link", fix="write the data itself", expected=path
            )
        item = opened[path]
        if not isinstance(item, h5py.Dataset) or item.shape is None or item.is_virtual or item.external:
            raise unreadable(file, name, f"{path} holds no data of this file", fix="write the data itself")
        forms.add((item.dtype, item.shape[1:] if len(paths) > 1 else item.shape))
        samples += item.shape[0] if item.shape else 1
    if len(forms) != 1:
        listed = sorted(f"{dtype} {list(shape)}" for dtype, shape in forms)
        why = f"its batches are not of one kind: {', '.join(listed) or 'there are none'}"
        raise unreadable(file, name, why, fix="compare batches of one shape and dtype", found=listed)
    ((dtype, shape),) = forms
    number = FORMATS.get(dtype.name)
    if number is None:
        why = f"its elements are {dtype}"
        raise unreadable(file, name, why, fix="save numbers", expected=list(FORMATS), found=str(dtype))
    whole = (samples, *shape) if len(paths) > 1 else shape
    return Hdf5Source(file=file, name=name, number=number, shape=whole, scale=spec.scale, datasets=paths)


def _pieces(dataset: Any, at: tuple[int, ...], elements: int) -> Iterator[Codes]:
    """Read a dataset in pieces of at most `elements`, in C order."""
    rest = dataset.shape[len(at) :]
    row = math.prod(rest[1:])
    if not rest or row * rest[0] <= elements:
        yield codes_of(np.asarray(dataset[at]))
    elif row > elements:
        for index in range(rest[0]):
            yield from _pieces(dataset, (*at, index), elements)
    else:
        rows = elements // row
        for start in range(0, rest[0], rows):
            yield codes_of(np.asarray(dataset[(*at, slice(start, start + rows))]))


def _regroup(pieces: Iterator[Codes], elements: int, number: Format) -> Iterator[Codes]:
    """Yield the same elements in chunks of one size; only the last may be shorter."""
    chunk = np.empty(elements, number.storage)
    filled = 0
    for piece in pieces:
        while piece.size:
            part = piece[: elements - filled]
            chunk[filled : filled + part.size] = part
            filled += part.size
            piece = piece[part.size :]
            if filled == elements:
                yield chunk
                filled = 0
    if filled:
        yield chunk[:filled]
