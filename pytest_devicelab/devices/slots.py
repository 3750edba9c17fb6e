"""Slots: files on a device, named by their content, so that an unchanged file is never pushed twice."""

from __future__ import annotations

import hashlib
import posixpath
import shlex
import uuid
from pathlib import Path

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.errors import TransferError

DEVICE_ROOT = "/data/local/tmp/devicelab"


def deploy_file(device: AdbDevice, local: Path, name: str) -> str:
    """Put a file into the slot of its content and return its path on the device.

    The file is pushed under a temporary name, hashed by the device, and renamed only when the hash is right:
    a slot holds the whole file or nothing.

    Raises:
        TransferError: the device holds other bytes than were sent.
    """
    digest = sha256_file(local)
    slot = f"{DEVICE_ROOT}/slots/{digest}"
    target = posixpath.join(slot, _plain(name))
    if device.hash(target) == digest:
        return target
    temporary = f"{slot}/.{uuid.uuid4().hex}"
    device.exec_out(["mkdir", "-p", slot])
    try:
        device.push(local, temporary)
        found = device.hash(temporary)
        if found != digest:
            raise TransferError(
                f"device {device.id}: push of {local.name} was corrupted",
                why=f"sent {local.stat().st_size:,} bytes with sha256 {digest[:16]}, the device holds {str(found)[:16]}",
                fix="free space on /data/local/tmp and check the cable, then rerun",
                expected=digest,
                found=found,
            )
        device.exec_out(["mv", "-f", temporary, target])
    except TransferError:
        device.shell(["rm", "-f", temporary])
        raise
    return target


def deploy_archive(device: AdbDevice, archive: Path) -> str:
    """Put a tar file into its slot, unpack it there once, and return the folder on the device."""
    packed = deploy_file(device, archive, "files.tar")
    folder = posixpath.join(posixpath.dirname(packed), "files")
    temporary = f"{folder}.{uuid.uuid4().hex}"
    quoted = {name: shlex.quote(path) for name, path in (("to", folder), ("tmp", temporary), ("tar", packed))}
    result = device.script(
        "[ -d {to} ] || {{ mkdir {tmp} && tar -xf {tar} -C {tmp} && mv {tmp} {to}; }}".format(**quoted),
        timeout_s=120,
    )
    if result.exit_code != 0:
        raise TransferError(
            f"device {device.id}: inputs could not be unpacked",
            why=result.stderr.decode("utf-8", "replace").strip(),
            fix="free space on /data/local/tmp, then rerun",
        )
    return folder


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(name: str) -> str:
    """Return a name that is one path component, whatever a model's author put into it."""
    return "".join(char if char.isalnum() or char in "._-" else "_" for char in name).lstrip(".") or "file"
