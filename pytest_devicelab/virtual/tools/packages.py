"""Packages of a virtual device: files kept as they were installed. Nothing in them ever runs."""

# Programs on the device start without pathlib, which alone takes some milliseconds.
# ruff: noqa: PTH105, PTH108, PTH118, PTH208

from __future__ import annotations

import hashlib
import os
import tempfile
from typing import IO

SYSTEM_PACKAGES = (
    ("android", "/system/framework/framework-res.apk"),
    ("com.android.shell", "/system/bin/sh"),
)
_CHUNK_BYTES = 1 << 20


class InstallFailed(Exception):
    """The package did not arrive whole."""


def install(root: str, stream: IO[bytes], size_bytes: int | None) -> str:
    """Keep a package and return its name, `devicelab.apk.` and the start of the sha256 of its bytes.

    The name inside of an .apk is in a binary manifest nobody here reads.

    Args:
        root: the device's root folder.
        stream: where the package comes from.
        size_bytes: how many bytes it has, or None for all there are.

    Raises:
        InstallFailed: fewer bytes came than announced.
    """
    folder = os.path.join(root, "data", "app")
    digest, left = hashlib.sha256(), size_bytes
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".install.", delete=False) as file:
        try:
            while left is None or left > 0:
                chunk = stream.read(_CHUNK_BYTES if left is None else min(left, _CHUNK_BYTES))
                if not chunk:
                    break
                file.write(chunk)
                digest.update(chunk)
                left = None if left is None else left - len(chunk)
            if left:
                raise InstallFailed(
                    f"INSTALL_FAILED_INVALID_APK: {left} of {size_bytes} bytes did not arrive"
                )
            name = f"devicelab.apk.{digest.hexdigest()[:12]}"
            os.replace(file.name, os.path.join(folder, f"{name}.apk"))
        except BaseException:
            os.unlink(file.name)
            raise
    return name


def installed(root: str) -> list[tuple[str, str]]:
    """Return `(name, path on the device)` of all packages, sorted."""
    files = os.listdir(os.path.join(root, "data", "app"))
    kept = [(file.removesuffix(".apk"), f"/data/app/{file}") for file in files if file.endswith(".apk")]
    return sorted([*SYSTEM_PACKAGES, *kept])


def uninstall(root: str, name: str) -> bool:
    """Remove a package and return whether there was one of that name that can be removed."""
    path = dict(installed(root)).get(name)
    if path is None or (name, path) in SYSTEM_PACKAGES:
        return False
    os.unlink(root + path)
    return True
