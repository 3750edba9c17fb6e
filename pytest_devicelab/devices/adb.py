"""An Android device behind an adb server: a phone, or a virtual device, which is reached in the same way."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pytest_devicelab.devices.device import ShellResult
from pytest_devicelab.devices.transport import LONGEST_PULL_BYTES, Transport
from pytest_devicelab.errors import InfrastructureError, TransferError
from pytest_devicelab.evidence.record import DeviceIdentity, RecoveryStep
from pytest_devicelab.matrix.soc import Soc, soc_from_properties
from pytest_devicelab.matrix.specs import DeviceSpec

# What tells one device from another, and which system image it runs.
_SIMULATED = "ro.devicelab.simulated"
_IDENTITY_PROPERTIES = (
    "ro.soc.model",
    "ro.soc.manufacturer",
    "ro.board.platform",
    "ro.product.model",
    "ro.build.version.sdk",
    "ro.build.fingerprint",
    _SIMULATED,
)
_PART_NUMBER = re.compile(r"[A-Za-z]{2,4}\d{4}")
_SERVER_SAYS_S = 5.0
_PROPERTY_NAME = re.compile(r"[A-Za-z0-9_.@:][A-Za-z0-9_.@:-]*")


class AdbDevice:
    """One device of the matrix, reached over a transport.

    Args:
        spec: what the matrix says of it.
        transport: an adb client's view of it.
        require_held: called before each use of the device; raises `LeaseLost` when it is not ours any more.
    """

    def __init__(
        self, spec: DeviceSpec, transport: Transport, *, require_held: Callable[[], None] = lambda: None
    ) -> None:
        self.require_held = require_held
        self.recovery: tuple[RecoveryStep, ...] = ()
        """What it took to reach the device; whoever writes the next record takes it from here."""
        self._spec = spec
        self._transport = transport
        self._pushed_bytes = 0
        self._pulled_bytes = 0

    @property
    def id(self) -> str:
        """The device's id in the matrix."""
        return self._spec.id

    @property
    def spec(self) -> DeviceSpec:
        """What the matrix says of the device."""
        return self._spec

    @property
    def serial(self) -> str:
        """The serial adb knows the device by."""
        return self._transport.serial

    @property
    def pushed_bytes(self) -> int:
        """Bytes pushed since this object was made."""
        return self._pushed_bytes

    @property
    def pulled_bytes(self) -> int:
        """Bytes pulled since this object was made."""
        return self._pulled_bytes

    def identity(self) -> DeviceIdentity:
        """Say what the device is, from its own properties; the matrix fills in only what it cannot say."""
        # One script, because a call takes longer than what it does; NUL, because a value may hold anything else.
        script = f"for name in {' '.join(_IDENTITY_PROPERTIES)}; do printf '%s\\0' \"$(getprop $name)\"; done"
        values = self.script(script).text.split("\0")
        if len(values) != len(_IDENTITY_PROPERTIES) + 1:
            raise InfrastructureError(
                f"device {self.id} ({self._transport.serial}) does not say what it is",
                why=f"{len(_IDENTITY_PROPERTIES)} properties were asked for, {len(values) - 1} values came back",
                fix=f"try `adb -s {self._transport.serial} shell getprop`",
            )
        found = {name: value for name, value in zip(_IDENTITY_PROPERTIES, values, strict=False) if value}
        soc = self.chip(found)
        return DeviceIdentity(
            id=self.id,
            kind=self._spec.kind,
            soc=soc.name if soc else None,
            hexagon=soc.hexagon if soc else None,
            # A virtual device says so itself, also where the matrix names it like a phone.
            simulated=self._spec.simulated or found.get(_SIMULATED) == "1",
            serial=self._transport.serial,
            engine=self._spec.engine if self._spec.simulated else None,
            properties=found,
        )

    def chip(self, properties: Mapping[str, str]) -> Soc | None:
        """Return the chip the matrix names, else the one these properties of the device tell of, if any.

        Raises:
            InfrastructureError: `ro.soc.model` is another chip: a run there would say nothing about the one meant.
        """
        told, wanted = soc_from_properties(properties), self._spec.soc
        if wanted is None:
            return told
        model = properties.get("ro.soc.model", "").strip()
        # A part number nothing is known of is another chip too; of any other unknown word nobody can say.
        says = told.name if told is not None else model if _PART_NUMBER.match(model) else wanted.name
        if model and says != wanted.name:
            raise InfrastructureError(
                f"device {self.id} ({self._transport.serial}) is not what the matrix says",
                why=f"{self._spec.source} says {wanted.name}, the device says {says}",
                fix="correct the serial or the soc in the matrix",
            )
        return wanted

    def shell(self, argv: Sequence[str], *, timeout_s: float = 30.0, cwd: str | None = None) -> ShellResult:
        """Run one program, each word quoted, in `cwd` where given."""
        command = shlex.join(argv)
        if cwd is not None:
            command = f"cd {shlex.quote(cwd)} && {command}"
        self.require_held()
        return self._transport.shell(command, timeout_s=timeout_s)

    def script(self, text: str, *, timeout_s: float = 30.0) -> ShellResult:
        """Run shell text written by us."""
        self.require_held()
        return self._transport.shell(text, timeout_s=timeout_s)

    def stream(self, text: str, sink: Callable[[bytes], bool], *, timeout_s: float) -> None:
        """Run shell text written by us and hand its output to `sink` as it comes, until that says True."""
        self.require_held()
        self._transport.stream(text, sink, timeout_s=timeout_s)

    def exec_out(self, argv: Sequence[str], *, timeout_s: float = 60.0) -> bytes:
        """Run one program and return its standard output; `InfrastructureError` unless it exits with 0."""
        result = self.shell(argv, timeout_s=timeout_s)
        if result.exit_code != 0:
            raise InfrastructureError(
                f"device {self.id} ({self._transport.serial}): `{shlex.join(argv)}` failed",
                why=f"exit status {result.exit_code}: {result.stderr.decode('utf-8', 'replace').strip()}",
                fix=f"try it by hand: `adb -s {self._transport.serial} shell {shlex.quote(shlex.join(argv))}`",
            )
        return result.stdout

    def push(self, local: Path, remote: str, *, timeout_s: float = 120.0) -> None:
        """Copy a file to the device."""
        self.require_held()
        self._pushed_bytes += self._transport.push(local, remote, timeout_s=timeout_s)

    def pull(
        self,
        remote: str,
        local: Path,
        *,
        timeout_s: float = 120.0,
        limit_bytes: int = LONGEST_PULL_BYTES,
    ) -> None:
        """Copy a file of at most `limit_bytes` from the device."""
        self.require_held()
        self._pulled_bytes += self._transport.pull(
            remote, local, timeout_s=timeout_s, limit_bytes=limit_bytes
        )

    def getprop(self, name: str, *, timeout_s: float = 60.0) -> str:
        """Return an Android property, empty when unset."""
        return self.exec_out(["getprop", name], timeout_s=timeout_s).decode("utf-8", "replace").rstrip("\r\n")

    def setprop(self, name: str, value: str) -> None:
        """Set an Android property and check that it took: setprop is silent when it is denied."""
        require_property_name(self.id, name)
        self.shell(["setprop", name, value])
        found = self.getprop(name)
        if found != value:
            raise InfrastructureError(
                f"device {self.id}: property {name} could not be set to {value!r}",
                why=f"it reads {found!r} afterwards",
                fix="a user build allows only debug.* and log.tag.* to the shell user",
            )

    def hash(self, remote: str, *, timeout_s: float = 60.0) -> str | None:
        """Return the sha256 the device itself computes of a file, or None when there is no such file."""
        result = self.shell(["sha256sum", "--", remote], timeout_s=timeout_s)
        word = result.text.split(maxsplit=1)[0].lstrip("\\") if result.text.strip() else ""
        if result.exit_code == 0 and re.fullmatch(r"[0-9a-f]{64}", word):
            return word
        if self.shell(["test", "-e", remote]).exit_code != 0:
            return None
        raise TransferError(
            f"device {self.id}: sha256sum of {remote} gave no hash",
            why=result.stderr.decode("utf-8", "replace").strip() or repr(result.text[:80]),
            fix="a device without a working sha256sum cannot prove what was pushed to it",
        )

    def reconnect(self, *, timeout_s: float = 20.0) -> None:
        """Wait until the device answers again."""
        self.require_held()
        self._transport.reconnect(timeout_s=timeout_s)

    def restart_transport(self, *, timeout_s: float) -> None:
        """Have the adb server connect to the device anew."""
        self.require_held()
        self._transport.restart(timeout_s=timeout_s)

    def adb_version(self) -> str | None:
        """Return the version of the adb server that reaches the device; None where it does not say."""
        self.require_held()
        return self._transport.adb_version(timeout_s=_SERVER_SAYS_S)

    def reboot(self, *, timeout_s: float) -> None:
        """Reboot the device; returns when it has gone down."""
        self.require_held()
        self._transport.reboot(timeout_s=timeout_s)


def require_property_name(device_id: str, name: str) -> None:
    """Raise `InfrastructureError` unless a name is one that Android allows, which needs no quoting anywhere."""
    if not _PROPERTY_NAME.fullmatch(name):
        raise InfrastructureError(
            f"device {device_id}: {name!r} is not a property name",
            why="it is made of letters, digits and _ . @ : -",
            fix="check the spelling",
        )
