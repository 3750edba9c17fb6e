"""Which adb server reaches a device, and what makes it one device wherever it is reached from."""

from __future__ import annotations

import ipaddress
import re

from pytest_devicelab.matrix.specs import AdbServerSpec, LabSpec

# What an adb server names by its own host: emulators by console port, devices over TCP by an address of that host.
_EMULATOR = re.compile(r"emulator-\d+")


def server_for(lab: LabSpec, group: str | None, *, virtual: bool) -> AdbServerSpec | None:
    """Return the adb server that reaches a device, or None for the session's private one.

    A virtual device listens on this host's loopback only, so a server on another host never reaches it.

    Args:
        lab: the lab's servers.
        group: the device's group, or None.
        virtual: whether the device is a virtual one.
    """
    server = lab.adb if group is None else lab.groups.get(group)
    return None if virtual and server is not None and not is_loopback(server.host) else server


def device_name(serial: str, host: str) -> str:
    """Return what makes a device one device among all that this host can reach.

    A phone's serial does, whichever adb server reaches it: two servers that know one serial share one phone as far as
    anybody can tell, and two phones never run at once for it is only time that is lost. `emulator-5554` and
    `127.0.0.1:40001` name another device on every host.

    Args:
        serial: what adb calls the device.
        host: where the adb server runs.
    """
    local = _EMULATOR.fullmatch(serial) is not None or (
        ":" in serial and is_loopback(serial.rpartition(":")[0])
    )
    return f"{serial}@{host}" if local and not is_loopback(host) else serial


def is_loopback(host: str) -> bool:
    """Whether an address is this very machine; a name is not looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
