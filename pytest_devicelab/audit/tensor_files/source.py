"""What a tensor in a file is to a comparison: a name, a format, a shape, and its elements in chunks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Protocol

import numpy as np

from pytest_devicelab.errors import TensorFileError
from pytest_devicelab.tensors.formats import Codes, Format, unpack_nibbles


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """What a raw file does not say of itself.

    Attributes:
        number: the format of its elements; 4-bit ones are packed two a byte. None when not told.
        shape: None for one axis as long as the file.
        scale: one quantization step of float elements; None when not told.
    """

    number: Format | None = None
    shape: tuple[int, ...] | None = None
    scale: float | None = None


class TensorSource(Protocol):
    """A tensor in a file."""

    @property
    def file(self) -> Path:
        """The file it is in."""

    @property
    def name(self) -> str | None:
        """Its name in that file; None where the file holds one tensor and no name."""

    @property
    def number(self) -> Format:
        """The format of its elements."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def scale(self) -> float | None:
        """One quantization step of float elements, where the file says it."""

    def chunks(self, elements: int) -> Iterator[Codes]:
        """Read the elements in C order, as codes `[elements]`; only the last chunk may be shorter.

        Args:
            elements: even, because two 4-bit elements may share a byte.

        Yields:
            An array that is used again for the next chunk.

        Raises:
            TensorFileError: the file ends early, is damaged or cannot be read.
        """


def unreadable(
    file: Path, tensor: str | None, why: str, *, fix: str, expected: object = None, found: object = None
) -> TensorFileError:
    """Return the error of a file that cannot be read as what it says it is."""
    named = f"{file}" if tensor is None else f"{file}, tensor {tensor}"
    return TensorFileError(
        f"{named}: cannot be compared",
        why=why,
        fix=fix,
        file=str(file),
        tensor=tensor,
        expected=expected,
        found=found,
    )


@contextmanager
def reading(file: Path, tensor: str | None) -> Iterator[None]:
    """Turn whatever a damaged file makes a reader raise into one typed error."""
    try:
        yield
    except TensorFileError:
        raise
    except Exception as error:  # zip, zlib, HDF5 and numpy's header parser fail in as many ways as Python
        why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise unreadable(file, tensor, why, fix="write the file again") from error


def read_chunks(
    handle: BufferedIOBase,
    source: TensorSource,
    elements: int,
    *,
    packed: bool = False,
    swapped: bool = False,
) -> Iterator[Codes]:
    """Read a tensor's bytes, which lie one after the other from here to the end of the file.

    Read, not mapped: a file that shrinks while it is mapped kills the process, and mapped pages count as memory.

    Args:
        handle: at the first byte.
        source: the tensor.
        elements: of one chunk, even.
        packed: whether two 4-bit elements share a byte.
        swapped: whether the bytes of an element are in the other order.
    """
    number, total = source.number, math.prod(source.shape)

    def size_bytes(count: int) -> int:
        return number.size_bytes(count) if packed else count * number.storage.itemsize

    buffer = np.empty(size_bytes(min(elements, total)), np.uint8)
    done = 0
    for start in range(0, total, elements):
        count = min(elements, total - start)
        raw = buffer[: size_bytes(count)]
        done += _fill(handle, raw.data)
        if done < size_bytes(start + count):
            raise _wrong_size(source, size_bytes(total), f"{done:,}")
        if packed:
            yield unpack_nibbles(raw, count)
        else:
            codes: Codes = raw.view(number.storage)
            yield codes.byteswap(inplace=True) if swapped else codes
    if handle.read(1):
        raise _wrong_size(source, size_bytes(total), "more")


def _fill(handle: BufferedIOBase, buffer: memoryview) -> int:
    """Read until the buffer is full or the file ends, and return how many bytes that were."""
    filled = 0
    while filled < len(buffer):
        count = handle.readinto(buffer[filled:])
        if not count:
            break
        filled += count
    return filled


def _wrong_size(source: TensorSource, expected: int, found: str) -> TensorFileError:
    return unreadable(
        source.file,
        source.name,
        f"{source.number.name} {list(source.shape)} takes {expected:,} bytes, the file holds {found}",
        fix="copy or write the file again, or correct the shape and dtype given for it",
        expected=f"{expected:,} bytes",
        found=f"{found} bytes",
    )
