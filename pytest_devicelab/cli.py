"""The command line: `devicelab ...`."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from pytest_devicelab.errors import DevicelabError, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 for a finding, or 4 for a mistake of the user's, as in pytest."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except UserError as error:
        print(f"devicelab: {error}", file=sys.stderr)
        return 4
    except DevicelabError as error:
        print(f"devicelab: {error}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="devicelab", description="A lab of devices for quantized models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    virtual = commands.add_parser("virtual", help="virtual devices").add_subparsers(
        required=True, metavar="ACTION"
    )
    up = virtual.add_parser(
        "up", help="start the virtual devices of a matrix and leave them up for any adb client"
    )
    up.add_argument("--matrix", type=Path, default=Path("device_matrix.yaml"), help="device matrix")
    up.add_argument("--select", default="", metavar="EXPR", help="only these devices, such as 'soc=SM8650'")
    up.add_argument(
        "--adb-port", type=int, default=5037, help="adb server to connect them to (started if need be)"
    )
    up.set_defaults(run=_virtual_up)

    matrix = commands.add_parser("matrix", help="check a device matrix and show what it means")
    matrix.add_argument("path", type=Path, nargs="?", default=Path("device_matrix.yaml"))
    matrix.set_defaults(run=_show_matrix)
    return parser


def _virtual_up(options: argparse.Namespace) -> int:
    import subprocess

    from pytest_devicelab.devices.adb_server import connect_device, find_adb
    from pytest_devicelab.matrix.decode import load_matrix
    from pytest_devicelab.matrix.select import select_devices
    from pytest_devicelab.virtual.spawn import spawn

    matrix = load_matrix(options.matrix)
    chosen = select_devices(matrix.devices, options.select) if options.select else matrix.devices
    virtual = tuple(spec for spec in chosen if spec.kind == "virtual")
    if not virtual:
        raise UserError(
            f"{options.matrix}: none of the chosen devices is virtual", fix="add one with `kind: virtual`"
        )
    adb = find_adb()
    state = Path(tempfile.mkdtemp(prefix="dl-"))
    try:
        with spawn(virtual, state, timeout_s=60.0) as farm:
            subprocess.run(
                [adb, "-P", str(options.adb_port), "start-server"], check=False, capture_output=True
            )
            for spec in virtual:
                address = f"127.0.0.1:{farm.ports[spec.id]}"
                connect_device(adb, "127.0.0.1", options.adb_port, address)
                soc = spec.soc.name if spec.soc else "?"
                print(f"{spec.id:20} {address:18} {soc:10} simulated", flush=True)
            print(
                f"{len(virtual)} virtual devices are up; try `{adb} devices -l`. Ctrl-C ends them.",
                flush=True,
            )
            _wait_for_signal()
            for spec in virtual:
                # An old adb server wedges when many devices vanish at once: say goodbye first.
                address = f"127.0.0.1:{farm.ports[spec.id]}"
                disconnect = [str(adb), "-P", str(options.adb_port), "disconnect", address]
                subprocess.run(disconnect, check=False, capture_output=True, timeout=10)
    finally:
        shutil.rmtree(state, ignore_errors=True)
    return 0


def _wait_for_signal() -> None:
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()


def _show_matrix(options: argparse.Namespace) -> int:
    from pytest_devicelab.matrix.decode import load_matrix

    matrix = load_matrix(options.path)
    for device in matrix.devices:
        soc = device.soc
        chip = (
            f"{soc.name} ({soc.marketing or 'marketing name unknown'}, Hexagon {soc.hexagon or 'none known'})"
            if soc
            else "chip unknown"
        )
        print(
            f"device {device.id}: {device.kind}, {chip}, engine {device.engine if device.simulated else 'silicon'}"
        )
    for model in matrix.models:
        print(f"model  {model.id}: {model.path}, runtime {model.runtime}")
    for note in matrix.notes:
        print(f"note   {note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
