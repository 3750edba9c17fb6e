"""Property toggles that are always put back, also after a crash: the device itself remembers what was changed."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from pytest_devicelab.devices import performance
from pytest_devicelab.devices.adb import AdbDevice, require_property_name
from pytest_devicelab.devices.slots import DEVICE_ROOT
from pytest_devicelab.errors import InfrastructureError

_NOTES = f"{DEVICE_ROOT}/restore"

# change NAME VALUE: note the old value, whole or not at all, print it with a NUL, and set the new one. A note that is
# there already is older and stays. back NAME VALUE: set the value, and drop the note if it asked for just that.
_FUNCTIONS = f"""
refused() {{ echo "$1 reads otherwise after setprop" >&2; exit 1; }}
change() {{
    old=$(getprop "$1")
    [ -e {_NOTES}/"$1" ] || {{ printf %s "$old" > {_NOTES}/."$1" && mv {_NOTES}/."$1" {_NOTES}/"$1"; }} || exit 1
    printf '%s\\0' "$old"
    setprop "$1" "$2"
    [ "$(getprop "$1")" = "$2" ] || refused "$1"
}}
back() {{
    [ "$(getprop "$1")" = "$2" ] || setprop "$1" "$2"
    [ "$(getprop "$1")" = "$2" ] || refused "$1"
    [ "$(cat {_NOTES}/"$1" 2>/dev/null)" != "$2" ] || rm -f {_NOTES}/"$1"
}}
"""
_RESTORE_ALL = f"""
{performance.RESTORE}
cd {_NOTES} 2>/dev/null || exit 0
for note in *; do
    case $note in -*|*[!A-Za-z0-9_.@:-]*) continue ;; esac
    back "$note" "$(cat "$note")"
    echo "$note"
done
"""


@contextmanager
def toggled(device: AdbDevice, properties: Mapping[str, str]) -> Iterator[None]:
    """Set properties for the duration of a block and put the old values back.

    Each old value is noted on the device before the property is touched, so that whoever holds the device
    next can put it back (`restore_toggles`) when this process never gets to it. Blocks may be nested.

    Raises:
        InfrastructureError: the device refuses one of them; what was set until then is put back.
    """
    if not properties:
        yield
        return
    for name in properties:
        require_property_name(device.id, name)
    changes = (f"change {name} {shlex.quote(value)}" for name, value in properties.items())
    done = device.script("\n".join((f"{_FUNCTIONS}mkdir -p {_NOTES} || exit 1", *changes)))
    old = [value.decode("utf-8", "surrogateescape") for value in done.stdout.split(b"\0")[:-1]]
    undo = dict(zip(properties, old, strict=False))  # fewer than asked for when one was refused
    try:
        _require_done(device, done.exit_code, done.stderr)
        yield
    except BaseException:
        with suppress(InfrastructureError):  # what happened first is what counts; the notes are still there
            _put_back(device, undo)
        raise
    _put_back(device, undo)


@contextmanager
def farf_file(device: AdbDevice, folder: str, program: str, mask: str) -> Iterator[None]:
    """Have the DSP's messages of a program in the log for the duration of a block.

    FastRPC reads the mask from `<program>.farf` in the working directory.

    Args:
        device: the device.
        folder: where the program will run.
        program: its name.
        mask: what is logged, `0x1f` for all levels.

    Raises:
        InfrastructureError: the file cannot be written, or reads otherwise afterwards.
    """
    file = shlex.quote(f"{folder}/{program}.farf")
    quoted = shlex.quote(mask)
    done = device.script(f'printf %s {quoted} > {file} && [ "$(cat {file})" = {quoted} ]')
    if done.exit_code != 0:
        raise InfrastructureError(
            f"device {device.id}: {program}.farf could not be written",
            why=done.stderr.decode("utf-8", "replace").strip() or "it reads otherwise afterwards",
            fix=f"look at {folder} on the device, or leave farf out of the log profile",
        )
    try:
        yield
    finally:
        with suppress(InfrastructureError):  # what happened first is what counts; the next run removes it
            device.script(f"rm -f {file}")


def restore_toggles(device: AdbDevice) -> tuple[str, ...]:
    """Put back every property a former holder of this device left changed; return their names."""
    done = device.script(_FUNCTIONS + _RESTORE_ALL)
    _require_done(device, done.exit_code, done.stderr)
    return tuple(done.text.split())


def _put_back(device: AdbDevice, values: Mapping[str, str]) -> None:
    steps = [f"back {name} {shlex.quote(value)}" for name, value in values.items()]
    done = device.script("\n".join((_FUNCTIONS, *steps)))
    _require_done(device, done.exit_code, done.stderr)


def _require_done(device: AdbDevice, exit_code: int, stderr: bytes) -> None:
    if exit_code != 0:
        raise InfrastructureError(
            f"device {device.id}: a property could not be set",
            why=stderr.decode("utf-8", "replace").strip(),
            fix="a user build allows only debug.* and log.tag.* to the shell user",
        )
