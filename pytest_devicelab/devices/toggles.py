"""Property toggles that are always put back, also after a crash: the device itself remembers what was changed."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.slots import DEVICE_ROOT

_NOTES = f"{DEVICE_ROOT}/restore"


@contextmanager
def toggled(device: AdbDevice, properties: Mapping[str, str]) -> Iterator[None]:
    """Set properties for the duration of a block and put the old values back.

    Each old value is noted on the device before the property is touched, so that whoever holds the device
    next can put it back (`restore_toggles`) when this process never gets to it.
    """
    restore_toggles(device)
    try:
        for name, value in properties.items():
            _note(device, name, device.getprop(name))
            device.setprop(name, value)
        yield
    finally:
        restore_toggles(device)


def restore_toggles(device: AdbDevice) -> tuple[str, ...]:
    """Put back every property a holder of this device left changed; return their names."""
    listing = device.script(f"cd {shlex.quote(_NOTES)} 2>/dev/null && ls -A || true").text.split()
    names = tuple(name for name in listing if not name.startswith("."))
    for name in names:
        note = f"{_NOTES}/{name}"
        old = device.exec_out(["cat", note]).decode("utf-8", "replace")
        device.setprop(name, old)
        device.exec_out(["rm", "-f", note])
    return names


def _note(device: AdbDevice, name: str, value: str) -> None:
    """Write down an old value, whole or not at all; a note that is there already is older and stays."""
    folder, note, part = (shlex.quote(path) for path in (_NOTES, f"{_NOTES}/{name}", f"{_NOTES}/.{name}"))
    device.exec_out(
        [
            "sh",
            "-c",
            f'mkdir -p {folder} && printf %s "$1" > {part} && {{ [ -e {note} ] || mv {part} {note}; }}',
            "sh",
            value,
        ]
    )
