"""`devicelab virtual`: leave virtual devices up for any adb client, and make trouble on those that are up."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pytest_devicelab.errors import InfrastructureError, UserError


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    virtual = commands.add_parser("virtual", help="virtual devices")
    actions = virtual.add_subparsers(required=True, metavar="ACTION")
    up = actions.add_parser(
        "up", help="start the virtual devices of a matrix and leave them up for any adb client"
    )
    up.add_argument("--matrix", type=Path, default=Path("device_matrix.yaml"), help="device matrix")
    up.add_argument("--select", default="", metavar="EXPR", help="only these devices, such as 'soc=SM8650'")
    up.add_argument(
        "--adb-port",
        type=int,
        default=5037,
        help="adb server to connect them to (if need be started, and then ended with them)",
    )
    up.set_defaults(run=run_up)
    fault = actions.add_parser("fault", help="let a virtual device that is up have a fault, or end it")
    fault.add_argument("device", metavar="DEVICE", help="its id in the matrix")
    fault.add_argument(
        "fault",
        metavar="FAULT",
        help="see docs/reference/faults.md; or `list`, or `clear` and maybe the name of one",
    )
    fault.add_argument(
        "words", nargs="*", metavar="KEY=VALUE", help="what the fault is told, such as during=push"
    )
    fault.add_argument("--lab", type=Path, help="folder of the lab, where more than one has such a device")
    fault.set_defaults(run=run_fault)


def run_up(options: argparse.Namespace) -> int:
    """Start the devices, connect them to the adb server, and wait for Ctrl-C."""
    from pytest_devicelab.devices.adb_server import connect_device, find_adb
    from pytest_devicelab.lab.services import namespace_wanted
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
    namespace = namespace_wanted(os.environ)
    # Unix sockets of the devices live below it, and their paths are limited to 107 bytes.
    state = Path(tempfile.mkdtemp(prefix="dl-"))
    server = [str(adb), "-P", str(options.adb_port)]
    try:
        with spawn(virtual, state, timeout_s=60.0, namespace=namespace) as farm, _running(server):
            for spec in virtual:
                address = f"127.0.0.1:{farm.ports[spec.id]}"
                connect_device("127.0.0.1", options.adb_port, address)
                print(
                    f"{spec.id:20} {address:18} {spec.soc.name if spec.soc else '?':10} simulated", flush=True
                )
            up, them = (
                ("1 virtual device is", "it")
                if len(virtual) == 1
                else (f"{len(virtual)} virtual devices are", "them")
            )
            print(f"{up} up; try `{shlex.join(server)} devices -l`. Ctrl-C ends {them}.", flush=True)
            _wait_for_signal()
            for spec in virtual:
                # An old adb server wedges when many devices vanish at once: say goodbye first.
                goodbye = [*server, "disconnect", f"127.0.0.1:{farm.ports[spec.id]}"]
                subprocess.run(goodbye, check=False, capture_output=True, timeout=10)
    finally:
        shutil.rmtree(state, ignore_errors=True)
    return 0


@contextmanager
def _running(server: Sequence[str]) -> Iterator[None]:
    """Have an adb server run for a block; it ends with the block only where the block began it."""
    try:
        done = subprocess.run([*server, "start-server"], check=False, capture_output=True, timeout=20)
    except subprocess.TimeoutExpired as error:
        raise InfrastructureError(
            "the adb server did not start",
            why=f"`{shlex.join(server)} start-server` took longer than {error.timeout:g} s",
            fix="try it by hand",
        ) from error
    # adb says so only to whoever started the server, and is silent where one runs already.
    ours = b"daemon started successfully" in done.stdout + done.stderr
    try:
        yield
    finally:
        if ours:
            subprocess.run([*server, "kill-server"], check=False, capture_output=True, timeout=10)


def run_fault(options: argparse.Namespace) -> int:
    """Tell a device that is up; print its answer."""
    from pytest_devicelab.matrix.faults import parse_fault, write_fault
    from pytest_devicelab.virtual.control import control

    words = (options.fault, *options.words)
    if options.fault not in ("list", "clear"):
        words = write_fault(parse_fault(options.fault, options.words))
    answer = control(_find_device(options.device, options.lab), shlex.join(("fault", *words)))
    print(answer or f"{options.device}: {options.fault} is done")
    return 0


def _find_device(device_id: str, lab: Path | None) -> Path:
    """Return the root of a virtual device that is up: of one in `lab`, or of the only one in any lab of this user.

    Raises:
        UserError: there is none, or more than one.
    """
    from pytest_devicelab.virtual.farm import device_root

    folders = [lab] if lab is not None else sorted(Path(tempfile.gettempdir()).glob("dl-*"))
    # A session keeps its devices one folder deeper, beside its adb server's.
    states = [state for folder in folders for state in (folder, folder / "v")]
    roots = [device_root(state, device_id) for state in states]
    found = [root for root in roots if os.access(root, os.X_OK) and (root / "dev/socket/control").exists()]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{len(found)} labs have a device {device_id}",
            why=", ".join(str(root.parent) for root in found),
            fix="choose one with --lab FOLDER",
        )
    raise UserError(
        f"no virtual device {device_id} is up",
        why=f"none of {len(folders)} lab folders in {tempfile.gettempdir()} has it",
        fix="start it with `devicelab virtual up`, or name its lab with --lab FOLDER",
    )


def _wait_for_signal() -> None:
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
