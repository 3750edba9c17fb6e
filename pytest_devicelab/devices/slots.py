"""Slots: files on a device, named by their content, so that an unchanged file is never pushed twice."""

from __future__ import annotations

import hashlib
import posixpath
import shlex
import uuid
from pathlib import Path

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.device import ShellResult
from pytest_devicelab.errors import TransferError

DEVICE_ROOT = "/data/local/tmp/devicelab"
# Hashing or unpacking hundreds of megabytes on a phone takes a while.
_TIMEOUT_S = 120.0


def deploy_file(device: AdbDevice, local: Path, name: str) -> str:
    """Put a file into the slot of its content and return its path on the device.

    The file is pushed under a temporary name, hashed by the device, and renamed only when the hash is right:
    a slot holds the whole file or nothing. What a broken push left there is removed by the next one.

    Raises:
        TransferError: the device holds other bytes than were sent.
    """
    target = slot_path(local, name)
    slot = posixpath.dirname(target)
    digest = posixpath.basename(slot)
    quoted = shlex.quote(target)
    there = device.script(
        f"sha256sum {quoted} 2>/dev/null || {{ mkdir -p {slot} && rm -rf {slot}/.part-*; }}",
        timeout_s=_TIMEOUT_S,
    )
    _require_success(device, there, "make room for")
    if _hash_in(there) == digest:
        return target
    part = f"{slot}/.part-{uuid.uuid4().hex}"
    device.push(local, part)
    moved = device.script(
        f'found=$(sha256sum {part}); echo "$found"; case $found in {digest}*) mv -f {part} {quoted} ;; '
        f"*) rm -f {part} ;; esac",
        timeout_s=_TIMEOUT_S,
    )
    found = _hash_in(moved)
    if found != digest:
        raise TransferError(
            f"device {device.id}: push of {local.name} was corrupted",
            why=f"sent {local.stat().st_size:,} bytes with sha256 {digest[:16]}, the device holds "
            + (found[:16] or moved.stderr.decode("utf-8", "replace").strip()),
            fix="free space on /data/local/tmp and check the cable, then rerun",
            expected=digest,
            found=found,
        )
    _require_success(device, moved, "rename")
    return target


def slot_path(local: Path, name: str) -> str:
    """Return where on a device a file lies once it is deployed."""
    return f"{DEVICE_ROOT}/slots/{sha256_file(local)}/{slot_name(name)}"


def deploy_archive(device: AdbDevice, archive: Path) -> str:
    """Put the files of a tar archive into a folder of the archive's slot and return the folder.

    The archive stays on the device, where its hash is checked, and is unpacked every time: of files that lie about,
    some of which a runner may have written over, nobody would know that they are still the ones that were sent.
    """
    packed = deploy_file(device, archive, "files.tar")
    folder = f"{posixpath.dirname(packed)}/files"
    unpacked = device.script(
        f"rm -rf {folder} && mkdir {folder} && tar -xf {packed} -C {folder}", timeout_s=_TIMEOUT_S
    )
    _require_success(device, unpacked, "unpack")
    return folder


def clear_leftovers(device: AdbDevice) -> None:
    """Remove what former holders of this device died over: work folders of runs, and half-pushed files.

    Only who holds the device may call this: nobody else runs or pushes anything then. Whole slots stay.
    """
    device.script(f"rm -rf {DEVICE_ROOT}/runs/* {DEVICE_ROOT}/slots/*/.part-*", timeout_s=_TIMEOUT_S)


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_success(device: AdbDevice, result: ShellResult, verb: str) -> None:
    if result.exit_code != 0:
        raise TransferError(
            f"device {device.id}: could not {verb} a pushed file",
            why=result.stderr.decode("utf-8", "replace").strip(),
            fix="free space on /data/local/tmp, then rerun",
        )


def _hash_in(result: ShellResult) -> str:
    """Return the hash at the start of what sha256sum printed; a backslash before it marks a quoted file name."""
    return result.text.lstrip("\\")[:64].strip()


def slot_name(name: str) -> str:
    """Return a name that is one path component, whatever a model's author put into it."""
    return "".join(char if char.isalnum() or char in "._-" else "_" for char in name).lstrip(".") or "file"
