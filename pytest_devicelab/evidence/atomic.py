"""Write a file so that it appears whole or not at all, and stays when the machine loses its power."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pytest_devicelab.errors import HostFailed


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Give a handle to write to; the file gets its name when the block ends well and all is on disk.

    Folders above it are made. What is being written is called `.<random>.partial` beside it, so that
    writers in several processes never meet.

    Raises:
        HostFailed: the disk is full, or the folder cannot be written to.
    """
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        make_folder(path.parent)
        with partial.open("xb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)
        sync(path.parent)  # the name, too, is lost with the power until its folder is on disk
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):  # it has its name by now, or the error above says more
            partial.unlink()


def make_folder(path: Path) -> None:
    """Make a folder and those above it, so that their names are on disk; raises `OSError`."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def sync_files(folder: Path) -> None:
    """Have all below a folder on disk, such as logs that were written piece by piece; raises `OSError`."""
    for path in folder.rglob("*"):
        if not path.is_symlink() and (path.is_file() or path.is_dir()):
            sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Have a file's content, or a folder's names, on disk; raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def host_failed(error: OSError) -> HostFailed:
    """Return the error for a call to this host's system that failed in the middle of something else."""
    return HostFailed(
        "this host failed what it was asked for",
        why=str(error),
        fix="free space on its disks, and see that nobody else removes or locks what a session uses",
    )


def unwritable(path: Path, error: OSError) -> HostFailed:
    """Return the error for evidence that cannot be kept: this host's fault, never the model's or a device's."""
    return HostFailed(
        f"{path} cannot be written",
        why=str(error),
        fix="free space on that disk, or make its folder writable, and run the session again",
        path=str(path),
    )
