"""Bring a runner's kit to a device: choose it, check it, push what is not there, lay it out in one folder."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from pytest_devicelab.devices.adb import AdbDevice
from pytest_devicelab.devices.slots import deploy_file, slot_path
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
        _require_room(device, [*kit.files.items(), (prepared.file.name, prepared.file)])
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


def _require_room(device: AdbDevice, files: Sequence[tuple[str, Path]]) -> None:
    """Check that there is room for those of the files that are not on the device yet."""
    slots = [slot_path(local, name) for name, local in files]
    looks = (f"[ ! -e {shlex.quote(slot)} ] || echo there {number}" for number, slot in enumerate(slots))
    said = device.script(f"df -k /data/local/tmp; {'; '.join(looks)}").text.splitlines()
    there = {line for line in said if line.startswith("there ")}
    words = next((line.split() for line in reversed(said) if line not in there), [])
    if len(words) < 4 or not words[3].isdecimal():
        return  # a device that does not say; the push will
    free = int(words[3]) * 1024
    needed = sum(
        local.stat().st_size for number, (_, local) in enumerate(files) if f"there {number}" not in there
    )
    if free < needed:
        raise InfrastructureError(
            f"device {device.id}: no room for the model and the runner's files",
            why=f"{needed:,} bytes of them are not there yet, /data/local/tmp has {free:,}",
            fix="free space on the device; /data/local/tmp/devicelab/slots may be removed",
        )
