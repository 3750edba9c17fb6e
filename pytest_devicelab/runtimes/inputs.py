"""Inputs of a run: arrays in, one archive of raw files out."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pytest_devicelab.errors import ModelError
from pytest_devicelab.evidence.atomic import whole_file

Arrays = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputArchive:
    """A tar of `input_list.txt` and one raw file for each sample and input.

    Attributes:
        sha256: of the archive's bytes, which depend on nothing but the arrays.
    """

    path: Path
    samples: int
    sha256: str


def load_inputs(path: Path, *, samples: int | None = None) -> Arrays:
    """Read evaluation inputs: an .npz of arrays `[N, ...]` named like the model's inputs.

    Raises:
        ModelError: not an .npz, holds something else than numbers, or the arrays do not agree on N.
    """
    try:
        # Opened here, because numpy forgets to close what turns out to be no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as bundle:
            arrays = {name: np.ascontiguousarray(bundle[name][:samples]) for name in bundle.files}
    except Exception as error:  # a damaged file fails in all the ways of zip, zlib and numpy's header parser
        raise ModelError(
            f"{path}: inputs cannot be read",
            why=str(error),
            fix="save them with numpy.savez(path, input_name=array): arrays [N, ...] of numbers",
        ) from error
    if odd := {name: str(array.dtype) for name, array in arrays.items() if array.dtype.kind not in "biuf"}:
        raise ModelError(f"{path}: inputs are not numbers", why=f"dtype by input: {odd}", fix="save numbers")
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if not arrays or len(set(counts.values())) != 1 or 0 in counts.values():
        raise ModelError(
            f"{path}: inputs hold no samples, or differ in how many",
            why=f"first dimension by input: {counts}",
            fix="every array needs the same first dimension N >= 1",
        )
    found = next(iter(counts.values()))
    if samples is not None and found < samples:
        raise ModelError(
            f"{path}: fewer samples than the matrix asks for",
            why=f"`samples: {samples}`, and the file holds {found}",
            fix="lower `samples:` or leave it out to run all there are",
        )
    return arrays


def listed(names: Iterable[str]) -> list[str]:
    """Return the names of inputs in the order of an input list: numbers in them count as such.

    A runner that takes files by their place gets them so: `input_2` comes before `input_10`.
    """
    return sorted(names, key=lambda name: (_parts(name), name))


def _parts(name: str) -> list[tuple[int, str]]:
    """Return text and numbers of a name in turn; a number by its length and digits, for it may be of any length."""
    found = re.split(r"([0-9]+)", name)
    return [
        (len(part.lstrip("0")), part.lstrip("0")) if place % 2 else (0, part)
        for place, part in enumerate(found)
    ]


def pack_inputs(arrays: Arrays, cache: Path) -> InputArchive:
    """Write arrays `[N, ...]` as an archive of raw little-endian files, one a sample and input.

    Each sample gets the batch dimension 1 that the model declares. The archive is cached by content, and made anew
    where its bytes are not those it was made with: else the device would compute on other inputs than the CPU.
    """
    digest = hashlib.sha256()
    for name in listed(arrays):
        array = arrays[name]
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).data)
    samples = len(next(iter(arrays.values())))
    path = cache / f"inputs-{digest.hexdigest()[:32]}.tar"
    made_with = path.with_suffix(".sha256")
    if path.exists() and made_with.exists():
        sha256 = _sha256(path)
        if made_with.read_bytes() == sha256.encode():
            return InputArchive(path=path, samples=samples, sha256=sha256)
    with (
        whole_file(path) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        _fill(tar, arrays, samples)
    sha256 = _sha256(path)
    with whole_file(made_with) as file:
        file.write(sha256.encode())
    return InputArchive(path=path, samples=samples, sha256=sha256)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fill(tar: tarfile.TarFile, arrays: Arrays, samples: int) -> None:
    names = listed(arrays)
    lines = []
    for sample in range(samples):
        files = [f"{sample}_{index}.raw" for index in range(len(names))]
        lines.append(" ".join(f"{name}:={file}" for name, file in zip(names, files, strict=True)))
        for name, file in zip(names, files, strict=True):
            array = arrays[name][sample]
            _add(tar, file, array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    _add(tar, "input_list.txt", ("\n".join(lines) + "\n").encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)  # mtime 0, no owner: the same arrays give the same archive
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
