"""Whole outputs of a session, `arrays/<sha256>.npy`: named by their bytes, and kept once."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pytest_devicelab.errors import DevicelabError, InfrastructureError
from pytest_devicelab.evidence import codec
from pytest_devicelab.evidence.atomic import whole_file
from pytest_devicelab.evidence.record import TensorRecord

Array = npt.NDArray[np.generic]

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


def tensor_sha256(array: Array) -> str:
    """Return the sha256 of an array's little-endian C-order bytes: that of its .raw file on a device."""
    # A view as bytes, because `tobytes` would copy a whole evaluation set.
    return hashlib.sha256(_little_endian(array).reshape(-1).view(np.uint8).data).hexdigest()


class ArrayFolder:
    """Reads and writes arrays by the hash of their bytes.

    Args:
        root: the folder, which need not be there yet.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def write(self, array: Array) -> str:
        """Keep a whole output, `[N, ...]`, as `arrays/<sha256>.npy`; equal bytes are kept once.

        Returns:
            The sha256 of its little-endian C-order bytes (not of the file), which is what the device
            computes for the same output.
        """
        if array.dtype.kind not in "biufc":
            raise ValueError(f"an array of {array.dtype} is no tensor of numbers")
        sha256 = tensor_sha256(array)
        path = self.path(sha256)
        if not path.exists():
            with whole_file(path) as handle:
                np.lib.format.write_array(handle, _little_endian(array), allow_pickle=False)
        return sha256

    def has(self, sha256: str) -> bool:
        """Say whether the session holds an array of that hash, so that nobody has to pull it again."""
        return self.path(sha256).is_file()

    def read(self, sha256: str) -> Array:
        """Return the array of that hash, in the dtype and shape it was first written with.

        Raises:
            InfrastructureError: it is not there, is no .npy file, or its bytes have another hash.
        """
        path = self.path(sha256)
        try:
            with path.open("rb") as handle:
                # Not `np.load`, which would also open an archive.
                array: Array = np.lib.format.read_array(handle, allow_pickle=False)
        except FileNotFoundError:
            raise InfrastructureError(
                f"output {sha256[:12]} is not in the session folder {self._root.parent}",
                why="it was never pulled from a device, or was deleted",
                fix="run the session again",
            ) from None
        except Exception as error:  # the header is parsed as Python, and fails in as many ways as Python
            raise codec.damaged(str(path), f"it is no .npy file: {error}") from None
        if tensor_sha256(array) != sha256:
            raise codec.damaged(str(path), "its bytes do not have the sha256 it is named after")
        return array

    def read_output(self, tensor: TensorRecord) -> Array:
        """Return an output as its record describes it.

        Two outputs can be equal in bytes and differ in dtype or shape, all zeros for one; the store
        keeps such bytes once, so only the record knows how to read them.

        Raises:
            InfrastructureError: the array is missing or damaged, or does not fit the record.
        """
        array = self.read(tensor.sha256)
        try:
            dtype = np.dtype(tensor.dtype).newbyteorder("<")
            output = array.reshape(-1).view(dtype).reshape(tensor.shape)
        except (TypeError, ValueError, SyntaxError):
            output = None
        if output is None or output.shape != tensor.shape:  # a shape may say -1, which numpy would fill in
            found = f"it holds {array.dtype}{list(array.shape)}"
            why = f"{found}, which cannot be read as {tensor.dtype}{list(tensor.shape)}"
            raise codec.damaged(str(self.path(tensor.sha256)), why)
        return output

    def path(self, sha256: str) -> Path:
        """Return where the array of that hash lies, or would."""
        if not _SHA256.fullmatch(sha256):
            raise DevicelabError(f"{sha256[:80]!r} is no sha256", fix="the record that names it was edited")
        return self._root / f"{sha256}.npy"


def _little_endian(array: Array) -> Array:
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
