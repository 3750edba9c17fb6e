"""The process that serves the virtual lab: `python -m pytest_devicelab.virtual.serve`.

It writes `ports.json` into its state folder once every device listens, and ends when its standard input
closes, which it does with the process that started it however that ends, or on SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_devicelab.errors import DevicelabError
from pytest_devicelab.evidence import codec
from pytest_devicelab.evidence.atomic import whole_file
from pytest_devicelab.matrix.specs import DeviceSpec
from pytest_devicelab.virtual.farm import Farm

PORTS_FILE = "ports.json"
_SPECS_SCHEMA = "devicelab.virtual_specs/1"
_NAMESPACE = {"auto": None, "require": True, "never": False}


def write_specs(path: Path, specs: Sequence[DeviceSpec]) -> None:
    """Write the devices to serve, for `--specs`."""
    with whole_file(path) as file:
        file.write(codec.dump({"schema": _SPECS_SCHEMA, "devices": codec.encode(tuple(specs))}))


def read_specs(path: Path) -> tuple[DeviceSpec, ...]:
    """Return the devices to serve; raises `InfrastructureError` when `write_specs` wrote no such file."""
    data = codec.parse(path.read_bytes(), file=str(path), schema=_SPECS_SCHEMA)
    return tuple(codec.decode(DeviceSpec, item, file=str(path)) for item in data["devices"])


def write_ports(state: Path, ports: Mapping[str, int]) -> None:
    """Say where the devices listen, as one JSON object: device id -> TCP port on 127.0.0.1."""
    with whole_file(state / PORTS_FILE) as file:
        file.write(codec.dump(ports))


def main(argv: Sequence[str] | None = None) -> int:
    """Serve virtual devices until told to end; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pytest_devicelab.virtual.serve", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="folder for the devices")
    parser.add_argument("--specs", type=Path, required=True, help="file made by write_specs")
    parser.add_argument(
        "--namespace", choices=_NAMESPACE, default="auto", help="mount namespaces (default: auto)"
    )
    parser.add_argument(
        "--port",
        type=_fixed_port,
        action="append",
        default=[],
        metavar="ID=N",
        help="fix the port of a device",
    )
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        farm = Farm(
            read_specs(options.specs),
            options.state,
            namespace=_NAMESPACE[options.namespace],
            ports=dict(options.port),
        )
        asyncio.run(_serve(farm, options.state))
    except DevicelabError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _fixed_port(text: str) -> tuple[str, int]:
    name, _, port = text.partition("=")
    return name, int(port)


async def _serve(farm: Farm, state: Path) -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    threading.Thread(target=_wait_for_end_of_input, args=(loop, over), daemon=True).start()
    async with farm:
        write_ports(state, farm.ports)
        await over.wait()
        (state / PORTS_FILE).unlink(missing_ok=True)


def _wait_for_end_of_input(loop: asyncio.AbstractEventLoop, over: asyncio.Event) -> None:
    # A thread, because what standard input is (pipe, terminal, file) decides whether a loop can watch it.
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    with contextlib.suppress(RuntimeError):  # the loop has ended before the input did
        loop.call_soon_threadsafe(over.set)


if __name__ == "__main__":
    sys.exit(main())
