"""What a matrix needs beside this machine: adb servers, the phones behind them, and what switches their power."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

from pytest_devicelab.devices.adb_stream import fix_of_state, list_attached
from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.lab.executor import LOCAL_KINDS
from pytest_devicelab.lab.finding import Finding
from pytest_devicelab.lab.quarantine import Quarantine
from pytest_devicelab.matrix.servers import device_name, server_for
from pytest_devicelab.matrix.specs import AdbServerSpec, DeviceSpec, MatrixSpec

_ANSWERS_S = 3.0


def check_devices(matrix: MatrixSpec) -> Iterator[Finding]:
    """Yield what was found of each adb server the matrix names, and of devices that need something.

    Nothing is started, so of phones behind a session's private server nothing is known; nor is a device touched.
    """
    behind: dict[AdbServerSpec, list[DeviceSpec]] = {}
    for spec in matrix.devices:
        server = server_for(matrix.lab, spec.group, virtual=spec.kind == "virtual")
        if server is not None and spec.kind in LOCAL_KINDS:
            behind.setdefault(server, []).append(spec)
    for server, specs in behind.items():
        yield _server(server, specs)
    for spec in matrix.devices:
        if spec.power_cycle and shutil.which(spec.power_cycle[0]) is None:
            yield Finding(
                name="power",
                grade="warn",
                text=f"{spec.power_cycle[0]}, which cycles the power of {spec.id}, is not on this host",
                fix=f"install it, or correct power_cycle ({spec.source})",
            )
    yield from _quarantine(matrix)


def _server(server: AdbServerSpec, specs: Sequence[DeviceSpec]) -> Finding:
    """Look at one adb server: whether it answers, and what it says of each serial the matrix names."""
    place = f"{server.host}:{server.port}"
    try:
        listed = dict(list_attached(server.host, server.port, timeout_s=_ANSWERS_S))
    except InfrastructureError as error:
        return Finding(
            name="adb servers",
            grade="warn",
            text=f"none answers at {place} ({error.why}): {', '.join(spec.id for spec in specs)} out of reach",
            fix="start it there with `adb start-server` (`adb -a nodaemon server start` for other hosts to reach it)",
        )
    wanted = [(spec.id, serial) for spec in specs for serial in _serials(spec)]
    states = {f"{name} ({serial})": listed.get(serial, "not attached") for name, serial in wanted}
    wrong = {device: state for device, state in states.items() if state != "device"}
    text = f"{place} has {len(states) - len(wrong)} of {len(states)} phones that the matrix names"
    if not wrong:
        return Finding(name="adb servers", grade="ok", text=text)
    missing = "; ".join(f"{device}: {state}" for device, state in wrong.items())
    fixes = dict.fromkeys(fix_of_state(state) for state in wrong.values())
    return Finding(name="adb servers", grade="warn", text=f"{text}; {missing}", fix="; ".join(fixes))


def _serials(spec: DeviceSpec) -> tuple[str, ...]:
    return spec.serials or ((spec.serial,) if spec.serial is not None else ())


def _quarantine(matrix: MatrixSpec) -> Iterator[Finding]:
    ours = {
        device_name(serial, server.host if server else "127.0.0.1"): spec.id
        for spec in matrix.devices
        for server in [server_for(matrix.lab, spec.group, virtual=False)]
        for serial in _serials(spec)
    }
    quarantine = Quarantine()
    try:
        bans = quarantine.bans()
    except InfrastructureError:  # which the line of the lease folder says
        return
    for ban in bans:
        if ban.device in ours and not quarantine.on_probation(ban):
            yield Finding(
                name="quarantine",
                grade="warn",
                text=f"{ours[ban.device]} ({ban.device}) is left alone for now; first cause: {ban.reason}",
                fix=f"see to the device, then `devicelab lab unquarantine {ban.device}`",
            )
