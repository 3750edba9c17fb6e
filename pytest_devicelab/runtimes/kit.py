"""Kit: what a runner needs on a phone beside the model: its own program, libraries, settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.matrix.soc import Soc
from pytest_devicelab.matrix.specs import DeviceSpec

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}", re.ASCII)
_ELF = b"\x7fELF"
_MACHINES: Mapping[int, str] = {3: "x86", 40: "arm", 62: "x86_64", 164: "hexagon", 183: "aarch64"}
"""ELF `e_machine` by name. Source: the ELF specification's registry of machines."""
_ABIS: Mapping[str, str] = {
    "arm64-v8a": "aarch64",
    "armeabi-v7a": "arm",
    "x86": "x86",
    "x86_64": "x86_64",
}
"""Machine of each Android ABI. Source: the Android NDK's list of ABIs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """Files that lie together in one folder on the device while a run goes on.

    Attributes:
        program: name of the runner among `files`.
        files: local file by its name in the folder; each is pushed once, into the slot of its content.
        texts: small files that are written anew for each run, by name.
        environment: what the runner's environment gets.
        arguments: what its command line gets.
        evidence_files: what this runner leaves below the output folder, besides what the runtime expects of all.
        host_tools: programs on this machine that read what the runner leaves, by name.
        version: of the SDK the files come from.
    """

    program: str
    files: Mapping[str, Path]
    texts: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    evidence_files: tuple[str, ...] = ()
    host_tools: Mapping[str, Path] = field(default_factory=dict)
    version: str = ""

    def __post_init__(self) -> None:
        """Refuse files that would lie elsewhere than in the kit's folder, or one upon the other.

        Raises:
            InfrastructureError: a name is no plain one, or a file and a text share it: the text would be written through
                the link, into the slot of the file's content.
        """
        odd = [name for name in (*self.files, *self.texts) if not _NAME.fullmatch(name)]
        shared = sorted(self.files.keys() & self.texts.keys())
        if odd or shared:
            raise InfrastructureError(
                f"kit of {self.program[:80]!r}: files {(odd or shared)[:5]} cannot lie in one folder",
                why="a name is letters, digits and ._+-, and not . first"
                if odd
                else "two files have one name",
                fix="repair the runtime that brings this kit",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The device a kit is for, as far as a kit depends on it.

    Attributes:
        abis: its ABIs, best first, as in `ro.product.cpu.abilist`.
        folder: where the kit will lie, on the device.
        sdk: the vendor's SDK on this machine; None where the device has all that is needed.
    """

    spec: DeviceSpec
    soc: Soc | None
    abis: tuple[str, ...]
    folder: str
    sdk: Path | None


def require_machine(file: Path, place: Place, *, machine: str | None = None) -> None:
    """Check that a program or library runs on a device.

    Args:
        file: an ELF file; for a program a script will do, which any device can run.
        place: the device.
        machine: the machine it must be for; one of the device's ABIs where None.

    Raises:
        InfrastructureError: it is for another machine, or is no program at all.
    """
    wanted = {machine} if machine else {_ABIS.get(abi, abi) for abi in place.abis}
    found = _machine(file)
    if found in wanted or (found == "script" and file.suffix != ".so"):
        return
    raise InfrastructureError(
        f"device {place.spec.id}: {file.name} does not run there",
        why=f"{file} is {_called(found)}; needed is {' or '.join(sorted(wanted))}",
        fix="take the file from the SDK's folder for this device; see docs/how-to/use-a-real-phone.md",
    )


def _called(machine: str | None) -> str:
    if machine is None:
        return "neither a program nor a library"
    return "a script" if machine == "script" else f"for {machine}"


def _machine(file: Path) -> str | None:
    with file.open("rb") as handle:
        head = handle.read(20)
    if head.startswith(b"#!"):
        return "script"
    if len(head) < 20 or not head.startswith(_ELF):
        return None
    number = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
    return _MACHINES.get(number, f"machine {number}")
