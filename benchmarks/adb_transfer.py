"""How fast files go to a virtual device and back: our transport, adbutils, and the adb binary, in one run.

    python benchmarks/adb_transfer.py --size-mb 200 --rounds 5

The three take turns, so that whatever else the machine does meets all of them; the median counts. Everything goes over
loopback into the page cache: the figures compare clients, and say nothing about a phone's cable.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pytest_devicelab.devices.adb_server import AdbServer, find_adb, private_environment
from pytest_devicelab.devices.adb_transport import AdbTransport
from pytest_devicelab.matrix.soc import find_soc
from pytest_devicelab.matrix.specs import DeviceSpec, Source
from pytest_devicelab.virtual.spawn import spawn

REMOTE = "/data/local/tmp/benchmark.bin"
Transfer = Callable[[Path], object]


def clients(server: AdbServer, serial: str, home: Path) -> dict[str, tuple[Transfer, Transfer]]:
    """Return push and pull of each client, by its name."""
    import adbutils

    ours = AdbTransport(host=server.host, port=server.port, serial=serial, name="benchmark")
    theirs = adbutils.AdbClient(host=server.host, port=server.port).device(serial).sync
    adb = [str(find_adb()), "-P", str(server.port), "-s", serial]

    def binary(*arguments: str) -> None:
        environment = private_environment(home, server.port)
        subprocess.run([*adb, *arguments], env=environment, check=True, capture_output=True)

    return {
        "ours": (
            lambda local: ours.push(local, REMOTE, timeout_s=600),
            lambda local: ours.pull(REMOTE, local, timeout_s=600),
        ),
        "adbutils": (
            lambda local: theirs.push(local, REMOTE),
            lambda local: theirs.pull(REMOTE, local),
        ),
        "adb": (
            lambda local: binary("push", str(local), REMOTE),
            lambda local: binary("pull", REMOTE, str(local)),
        ),
    }


def megabytes_per_s(transfer: Transfer, local: Path, size_mb: int) -> float:
    """Time one transfer."""
    started = time.perf_counter()
    transfer(local)
    return size_mb / (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size-mb", type=int, default=200, help="size of the file (1 MB = 10^6 bytes)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    place = Source(file="benchmark", line=1, column=1)
    spec = DeviceSpec(id="bench", kind="virtual", source=place, soc=find_soc("SM8650")[0], engine="cpu")
    with tempfile.TemporaryDirectory(prefix="dl-") as folder:
        home, there, back = Path(folder) / "adb", Path(folder) / "there.bin", Path(folder) / "back.bin"
        there.write_bytes(os.urandom(options.size_mb * 1_000_000))
        with AdbServer(home) as server, spawn([spec], Path(folder) / "v", timeout_s=60) as farm:
            serial = f"127.0.0.1:{farm.ports['bench']}"
            server.connect(serial)
            found: dict[tuple[str, str], list[float]] = {}
            for _ in range(options.rounds):
                for name, (push, pull) in clients(server, serial, home).items():
                    found.setdefault((name, "push"), []).append(megabytes_per_s(push, there, options.size_mb))
                    found.setdefault((name, "pull"), []).append(megabytes_per_s(pull, back, options.size_mb))
                    if back.read_bytes() != there.read_bytes():
                        raise SystemExit(f"{name}: what came back is not what was sent")
                    back.unlink()
    print(f"{options.size_mb} MB, {options.rounds} rounds: MB/s as median (slowest to fastest)")
    for (name, direction), rates in sorted(found.items(), key=lambda entry: entry[0][1], reverse=True):
        print(f"{direction} {name:9} {statistics.median(rates):6.0f} ({min(rates):.0f} to {max(rates):.0f})")


if __name__ == "__main__":
    main()
