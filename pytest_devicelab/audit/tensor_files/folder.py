"""The tensors of a file, or of all tensor files in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from pytest_devicelab.audit.tensor_files.hdf5_files import open_hdf5
from pytest_devicelab.audit.tensor_files.numpy_files import open_npy, open_npz
from pytest_devicelab.audit.tensor_files.raw_files import open_raw
from pytest_devicelab.audit.tensor_files.source import TensorSource, TensorSpec, unreadable

Opener = Callable[[Path, TensorSpec], tuple[TensorSource, ...]]

OPENERS: Mapping[str, Opener] = MappingProxyType(
    {
        ".npy": open_npy,
        ".npz": open_npz,
        ".raw": open_raw,
        ".bin": open_raw,
        ".h5": open_hdf5,
        ".hdf5": open_hdf5,
    }
)


def open_file(file: Path, spec: TensorSpec) -> tuple[TensorSource, ...]:
    """Return the tensors of one file, by its suffix.

    Raises:
        TensorFileError: it is no tensor file, or cannot be read as one.
    """
    if not file.is_file():
        why = "it is no file" if file.exists() else "it does not exist"
        raise unreadable(file, None, why, fix="name a file or a folder", expected="a file")
    opener = OPENERS.get(file.suffix.lower())
    if opener is None:
        why = f"its name does not end as a tensor file's: {', '.join(OPENERS)}"
        raise unreadable(
            file, None, why, fix="rename it, or convert it", expected=list(OPENERS), found=file.suffix
        )
    return opener(file, spec)


def tensor_files(folder: Path) -> Mapping[str, Path]:
    """Return the tensor files in a folder and its sub-folders, relative name with `/` -> path.

    Raises:
        TensorFileError: the folder cannot be read, or a link leads out of it.
    """
    found: dict[str, Path] = {}
    root = folder.resolve()
    for parent, folders, files in os.walk(folder, onerror=_refuse):
        folders.sort()
        for name in sorted(files):
            path = Path(parent, name)
            if path.suffix.lower() not in OPENERS:
                continue
            if not path.resolve().is_relative_to(root):
                raise unreadable(path, None, f"it is a link out of {folder}", fix="put the file itself there")
            found[path.relative_to(folder).as_posix()] = path
    return found


def _refuse(error: OSError) -> None:
    path = Path(str(error.filename))
    raise unreadable(path, None, str(error.strerror), fix="make the folder readable") from error
