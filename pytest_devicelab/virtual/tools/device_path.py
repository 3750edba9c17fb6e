"""Where a program on the device finds the device: its root, its files, its user, its boot time."""

# Programs on the device start without pathlib, which alone takes some milliseconds.
# ruff: noqa: PTH118, PTH123

from __future__ import annotations

import os

SHELL_UID = 2000
BOOT_TIME_FILE = "dev/devicelab/boot_time_ns"


def device_root() -> str:
    """Return the device's root folder on the host, from the environment every process on the device has.

    Not `$VROOT`: inside of a mount namespace that is empty, and `/dev` there is the host's.
    """
    return os.environ["DEVICELAB_VDEVICE"]


def host_path(path: str) -> str:
    """Return the host's path of a file named on the device.

    `/data/local/tmp/x` is below the device's root, whatever `..` it holds; relative paths, and folders
    the device has not got, are the host's.
    """
    from pytest_devicelab.virtual.paths import DEVICE_FOLDERS  # only programs with file arguments pay for it

    root, whole = device_root(), os.path.normpath(path)
    inside_already = whole.startswith(root + "/")
    if not whole.startswith("/") or inside_already or whole.split("/")[1] not in DEVICE_FOLDERS:
        return path
    return root + whole


def read_property(name: str) -> str:
    """Return a property of the device by a name we chose, empty when unset."""
    try:
        with open(os.path.join(device_root(), "dev", "__properties__", name), encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def shell_uid() -> int:
    """Return the user id processes on the device have: 0 after `adb root`, else the shell's."""
    return 0 if read_property("service.adb.root") == "1" else SHELL_UID


def read_boot_ns(root: str) -> int:
    """Return when the device was last started, nanoseconds since 1970; 0 when it never was."""
    try:
        with open(os.path.join(root, BOOT_TIME_FILE), encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0
