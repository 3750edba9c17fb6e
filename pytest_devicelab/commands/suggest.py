"""`devicelab suggest`: matrix YAML for the devices that an adb server knows, or that AI Hub lists."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_devicelab.aihub.messages import HubDevice
    from pytest_devicelab.devices.adb_transport import AdbTransport

_PROPERTIES = (
    "ro.product.model",
    "ro.soc.model",
    "ro.hardware.chipname",
    "ro.board.platform",
    "ro.build.version.sdk",
    "ro.devicelab.simulated",
)
_EXAMPLE = """\
# No device is attached. A virtual one needs none:
devices:
  - {id: v75_sm8650, kind: virtual, soc: SM8650, sdk: 34}
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser("suggest", help="print matrix YAML for the devices attached")
    parser.add_argument(
        "--adb-port", type=int, default=5037, metavar="PORT", help="the adb server to ask (default: 5037)"
    )
    parser.add_argument(
        "--adb-host", default="127.0.0.1", metavar="HOST", help="where it runs (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--aihub",
        choices=("all", "canary"),
        help="ask Qualcomm AI Hub instead: for every device that runs QNN models, or one a Hexagon version",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the `lab` and `devices` of a matrix; an adb server that does not run has no devices and is not started."""
    from pytest_devicelab.devices.adb_stream import list_attached
    from pytest_devicelab.devices.adb_transport import AdbTransport
    from pytest_devicelab.errors import DeviceLost, InfrastructureError

    if options.aihub:
        print("\n".join(["devices:", *_aihub_entries(options.aihub)]))
        return 0
    host, port = options.adb_host, options.adb_port
    try:
        attached = list_attached(host, port)
    except DeviceLost:
        print(f"# No adb server answers at {host}:{port}: `adb -P {port} start-server` starts one.")
        attached = ()
    lines, ids = [], set[str]()
    for serial, state in attached:
        if state != "device":
            lines.append(trouble(serial, state))
            continue
        transport = AdbTransport(host=host, port=port, serial=serial, name=serial)
        try:
            lines.append(entry(serial, _properties(transport), ids))
        except InfrastructureError as error:
            lines.append(trouble(serial, f"does not answer ({error.brief})"))
    if not any(line.startswith("  - ") for line in lines):
        print("\n".join([*lines, _EXAMPLE]), end="")
        return 0
    # These devices belong to this server; a private one of the session's would not see them.
    print(f"lab: {{adb: {{host: {json.dumps(host)}, port: {port}}}}}\ndevices:")
    print("\n".join(lines))
    return 0


def entry(serial: str, properties: dict[str, str], taken: set[str]) -> str:
    """Return the line of a device that works; its id is new in `taken`."""
    from pytest_devicelab.matrix.soc import soc_from_properties

    soc = soc_from_properties(properties)
    model, told = properties["ro.product.model"], properties["ro.soc.model"]
    identifier = _identifier(model or "phone", taken)
    words = [f"id: {identifier}", "kind: adb", f"serial: {json.dumps(serial)}"]
    words += [f"soc: {json.dumps(soc.name)}"] if soc else []
    # Of a phone the sdk is not for the matrix to say, but it is what a selector could ask for.
    sdk = properties["ro.build.version.sdk"]
    remarks = [text for text in (model, f"sdk {sdk}" if sdk else "") if text]
    if soc is None:
        remarks.append(f"its chip {told!r} is not in our table" if told else "it does not say its chip")
    elif soc.note and not told:
        remarks.append(soc.note)
    if properties["ro.devicelab.simulated"]:
        remarks.append("a virtual device, not silicon: kind: virtual would say so in reports")
    return f"  - {{{', '.join(words)}}}  # {_comment(remarks)}"


def _aihub_entries(name: str) -> list[str]:
    """Ask AI Hub for the devices of a set; collection never does, so that it is the same in every worker."""
    from pytest_devicelab.aihub.account import account_file, read_account
    from pytest_devicelab.aihub.edge import HubEdge, require_client
    from pytest_devicelab.aihub.outcome import Deadline
    from pytest_devicelab.aihub.selection import device_set

    require_client()
    edge, deadline = HubEdge(read_account(account_file())), Deadline.after(120)
    edge.check(deadline)
    taken: set[str] = set()
    return [hub_entry(each, taken) for each in device_set(name, edge.devices("", "", (), deadline))]


def hub_entry(device: HubDevice, taken: set[str]) -> str:
    """Return the line of a device of AI Hub; its id is new in `taken`."""
    words = [f"id: {_identifier(device.name, taken)}", "kind: aihub", f"name: {json.dumps(device.name)}"]
    words += [f"os: {json.dumps(device.os)}", "runtime: qnn"]
    told = [device.attribute(key) for key in ("chipset", "hexagon")]
    return f"  - {{{', '.join(words)}}}  # {_comment(text for text in told if text)}"


def trouble(serial: str, state: str) -> str:
    """Return the comment for a device that cannot be used, with what to do about it."""
    from pytest_devicelab.devices.adb_stream import fix_of_state

    return f"  # {_comment([f'{serial}: {state}'])}\n  #   fix: {fix_of_state(state)}"


def _properties(transport: AdbTransport) -> dict[str, str]:
    from pytest_devicelab.errors import InfrastructureError

    script = f"for name in {' '.join(_PROPERTIES)}; do printf '%s\\0' \"$(getprop $name)\"; done"
    values = transport.shell(script, timeout_s=15).text.split("\0")
    if len(values) != len(_PROPERTIES) + 1:
        why = f"{len(_PROPERTIES)} properties were asked for, {len(values) - 1} came back"
        raise InfrastructureError("it does not say what it is", why=why)
    return {name: value.strip() for name, value in zip(_PROPERTIES, values, strict=False)}


def _identifier(model: str, taken: set[str]) -> str:
    plain = re.sub(r"[^a-z0-9]+", "_", model.casefold()).strip("_")[:40] or "phone"
    found, number = plain, 1
    while found in taken:
        number += 1
        found = f"{plain}_{number}"
    taken.add(found)
    return found


def _comment(texts: Iterable[str]) -> str:
    """Return what a device says as one line of a comment, whatever it says."""
    return "".join(char if char.isprintable() else "?" for char in "; ".join(texts))[:200]
