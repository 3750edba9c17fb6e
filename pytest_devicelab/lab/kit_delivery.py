"""Bring a runner's kit to a device: choose it, check it, push what is not there, lay it out in one folder."""

from __future__ import annotations

import shlex
from pathlib import Path

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.slots import deploy_file
from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.matrix.soc import Soc
from pytest_devicelab.runtimes.kit import Kit, Place
from pytest_devicelab.runtimes.runtime import BringsKit, Prepared, Runtime


def choose_kit(
    device: AdbDevice, runtime: Runtime, prepared: Prepared, soc: Soc | None, *, folder: str, sdk: Path | None
) -> Kit | None:
    """Return what a run needs on a device beside the model, or None where the device has it.

    Raises:
        InfrastructureError: something is missing or does not fit the device; nothing has been pushed.
    """
    if not isinstance(runtime, BringsKit):
        return None
    abis = tuple(filter(None, device.getprop("ro.product.cpu.abilist").split(",")))
    place = Place(spec=device.spec, soc=soc, abis=abis, folder=folder, sdk=sdk)
    kit = runtime.kit(prepared, place)
    if kit is not None:
        _require_room(device, kit)
    return kit


def lay_out(device: AdbDevice, kit: Kit, folder: str) -> None:
    """Push a kit's files into slots, and make a folder in which they lie together under their names.

    Raises:
        InfrastructureError: a file did not arrive, or the folder cannot be made.
    """
    steps = [f"mkdir -p {shlex.quote(folder)}", f"cd {shlex.quote(folder)}"]
    for name, local in kit.files.items():
        slot = shlex.quote(deploy_file(device, local, name))
        # A slot's file is as readable as the push made it; programs and libraries have to be executable.
        steps += [f"chmod 755 {slot}", f"ln -sf {slot} {shlex.quote(name)}"]
    steps += [f"printf %s {shlex.quote(text)} > {shlex.quote(name)}" for name, text in kit.texts.items()]
    done = device.script(" && ".join(steps))
    if done.exit_code != 0:
        raise InfrastructureError(
            f"device {device.id}: the runner's files cannot be laid out in {folder}",
            why=done.stderr.decode("utf-8", "replace").strip()[:500],
            fix="look at the folder on the device; root may have made it",
        )


def _require_room(device: AdbDevice, kit: Kit) -> None:
    """Check that there is room for the whole kit, as if none of it were there already."""
    needed = sum(path.stat().st_size for path in kit.files.values())
    said = device.script("df -k /data/local/tmp").text.splitlines()
    words = said[-1].split() if said else []
    if len(words) < 4 or not words[3].isdecimal():
        return  # a device that does not say; the push will
    free = int(words[3]) * 1024
    if free < needed:
        raise InfrastructureError(
            f"device {device.id}: no room for the runner's files",
            why=f"they take {needed:,} bytes, /data/local/tmp has {free:,}",
            fix="free space on the device; /data/local/tmp/devicelab/slots may be removed",
        )
