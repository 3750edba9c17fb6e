"""`devicelab lab`: who holds which device and who waits for it, which are in quarantine, and changing both."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pytest_devicelab.errors import UserError

if TYPE_CHECKING:
    from pytest_devicelab.lab.lease import Standing
    from pytest_devicelab.lab.lease_desk import Claim
    from pytest_devicelab.lab.quarantine import Ban

SCHEMA = "devicelab.lab-status/1"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    lab = commands.add_parser("lab", help="who holds which device, and which are in quarantine")
    actions = lab.add_subparsers(required=True, metavar="ACTION")
    status = actions.add_parser("status", help="show who holds what, who waits, and what is in quarantine")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(run=run_status)
    release = actions.add_parser("release", help="take a device from whoever holds it")
    release.add_argument("device", metavar="DEVICE", help="its serial, or its id in the holder's matrix")
    release.set_defaults(run=run_release)
    join = actions.add_parser("join", help="offer this host's devices to a Ray cluster")
    join.add_argument("--address", required=True, metavar="HOST:PORT", help="head of the cluster")
    join.add_argument("--devices", required=True, metavar="MATRIX.yaml", help="matrix of this host's devices")
    join.add_argument(
        "--cache", default="reports/cache", metavar="DIR", help="compiled models (reports/cache)"
    )
    join.add_argument(
        "--without-token", action="store_true", help="take orders from whoever reaches this host's ports"
    )
    join.set_defaults(run=run_join)
    unquarantine = actions.add_parser("unquarantine", help="let a device out of quarantine")
    unquarantine.add_argument("device", metavar="DEVICE", help="its serial, or its id in the matrix")
    unquarantine.set_defaults(run=run_unquarantine)


def run_status(options: argparse.Namespace) -> int:
    """Print every device that somebody of this host holds or awaits."""
    from pytest_devicelab.lab.lease import standings
    from pytest_devicelab.lab.quarantine import Quarantine

    found, bans = standings(), Quarantine().bans()
    if options.json:
        plain = {"devices": [_plain(each) for each in found], "quarantine": [asdict(ban) for ban in bans]}
        print(json.dumps({"schema": SCHEMA, **plain}, indent=1))
    else:
        print("\n".join(line for each in found for line in describe(each)) or "nobody holds a device")
        for line in (line for ban in bans for line in describe_ban(ban, time.time())):
            print(line)
    return 0


def run_join(options: argparse.Namespace) -> int:
    """Offer the devices of this host until a signal says to stop."""
    import os
    import signal
    import threading
    from pathlib import Path

    from pytest_devicelab.cluster.join import join
    from pytest_devicelab.cluster.ray_edge import require_ray, require_token
    from pytest_devicelab.lab.executor import LOCAL_KINDS
    from pytest_devicelab.matrix.decode import load_matrix

    require_ray()
    if not options.without_token:
        require_token(os.environ)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    matrix = load_matrix(Path(options.devices))

    def ready(host: str, units: tuple[str, ...]) -> None:
        print(f"lab host {show(host)} offers {len(units)} devices:", flush=True)
        for unit in units:
            print(f"  {show(unit)}", flush=True)

    join(
        matrix,
        tuple(spec for spec in matrix.devices if spec.kind in LOCAL_KINDS),
        address=options.address,
        cache=Path(options.cache).absolute(),
        ready=ready,
        stop=stop,
    )
    return 0


def run_unquarantine(options: argparse.Namespace) -> int:
    """Let one device out of quarantine."""
    from pytest_devicelab.lab.quarantine import Quarantine

    quarantine = Quarantine()
    bans = quarantine.bans()
    meant = [ban for ban in bans if ban.device == options.device]
    meant = meant or [ban for ban in bans if ban.name == options.device]
    if len(meant) > 1:
        raise UserError(
            f"{show(options.device)} is the id of {len(meant)} devices in quarantine",
            fix=f"say which serial: {', '.join(repr(show(ban.device)) for ban in meant)}",
        )
    if not meant or quarantine.lift(meant[0].device) is None:
        raise UserError(f"{show(options.device)} is not in quarantine", fix="see `devicelab lab status`")
    print(f"{show(meant[0].device)} is out of quarantine; it was there because: {show(meant[0].reason)}")
    return 0


def describe_ban(ban: Ban, now: float) -> list[str]:
    """Return a device in quarantine as lines of text."""
    left = ban.until - now
    state = f"in quarantine for {left:.0f} s more" if left > 0 else "on probation: its next use must reach it"
    times = f", failed {ban.strikes} times" if ban.strikes > 1 else ""
    return [
        f"{show(ban.device)} ({show(ban.name)}): {state}; since {_moment(ban.since)}{times}",
        f"  first cause: {show(ban.reason)}",
    ]


def run_release(options: argparse.Namespace) -> int:
    """Release one device; its holder learns of it before it next uses the device."""
    from pytest_devicelab.lab.lease import release, standings

    held = [(each.device, each.holding.claim) for each in standings() if each.holding is not None]
    meant = [device for device, _ in held if device == options.device]
    meant = meant or [device for device, claim in held if claim.name == options.device]
    claim = release(meant[0]) if len(meant) == 1 else None
    if len(meant) > 1:
        raise UserError(
            f"{show(options.device)} is the id of {len(meant)} devices that are held",
            fix=f"say which serial: {', '.join(map(show, meant))}",
        )
    if claim is None:
        known = ", ".join(show(device) for device, _ in held)
        raise UserError(
            f"nobody holds {show(options.device)}",
            why=f"held are: {known}" if held else "no device of this host is held",
            fix="see `devicelab lab status`",
        )
    print(f"{show(claim.device)} is released; it was held by {show(str(claim))}")
    return 0


def describe(standing: Standing) -> list[str]:
    """Return a device as lines of text: its holder, then who waits, longest first."""
    holding = standing.holding
    names = [holding.claim.name] if holding else [claim.name for claim in standing.waiting[:1]]
    head = " ".join(show(word) for word in (standing.device, *(f"({name})" for name in names if name)))
    if holding is None:
        lines = [f"{head}: free, about to be taken"]
    else:
        stopped = (
            f"; its heart stopped {holding.beat_age_s:.0f} s ago: the next to ask gets the device"
            if holding.lapsed
            else ""
        )
        lines = [f"{head}: held by {_who(holding.claim)}{stopped}"]
    return [*lines, *(f"  waits: {_who(claim)}" for claim in standing.waiting)]


def show(text: str) -> str:
    """Return text of somebody else's with nothing in it that a terminal would act on."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _who(claim: Claim) -> str:
    return f"{show(str(claim))} since {_moment(claim.since)}, {max(0.0, time.time() - claim.since):.0f} s"


def _moment(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):  # a claim may say any number
        return "an unknown time"


def _plain(standing: Standing) -> dict[str, object]:
    holding = standing.holding
    held = None
    if holding is not None:
        held = {
            **asdict(holding.claim),
            "token": holding.token,
            "beat_age_s": round(holding.beat_age_s, 3),
            "lapsed": holding.lapsed,
        }
    return {
        "device": standing.device,
        "holder": held,
        "waiting": [asdict(claim) for claim in standing.waiting],
    }
