"""How one private adb server carries many devices: time to bring them up, memory, and latency of a call.

    python benchmarks/adb_scale.py --devices 256

Virtual devices without an NPU, all behind one adb server. Prints a Markdown table. Latencies are of `echo` through the
lab's own transport, a connection a call, as every step of a run is one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pytest_devicelab.devices.adb_server import AdbServer
from pytest_devicelab.devices.adb_transport import AdbTransport
from pytest_devicelab.matrix.soc import find_soc
from pytest_devicelab.matrix.specs import DeviceSpec, Source
from pytest_devicelab.virtual.spawn import spawn

_CALLERS = (1, 16, 64, 256)
_CALLS = 256
_PLACE = Source(file="adb_scale.py", line=1, column=1)
_MIB = 1 << 20


def main() -> int:
    """Bring the devices up, measure, and print what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=256)
    count = parser.parse_args().devices
    soc = find_soc("Tensor G4")[0]
    specs = [
        DeviceSpec(id=f"d{number}", kind="virtual", source=_PLACE, soc=soc, engine="cpu")
        for number in range(count)
    ]
    with tempfile.TemporaryDirectory(prefix="dl-") as folder:
        state = Path(folder)
        with AdbServer(state / "adb") as server:
            began = time.perf_counter()
            with spawn(specs, state / "v", timeout_s=600) as farm:
                up_s = time.perf_counter() - began
                serials = {name: f"127.0.0.1:{port}" for name, port in farm.ports.items()}
                first, *others = serials
                server.connect(serials[first])
                cables = {
                    name: AdbTransport(host=server.host, port=server.port, serial=serial, name=name)
                    for name, serial in serials.items()
                }
                cables[first].reconnect(timeout_s=60)
                alone = _latencies([cables[first]], 1)
                alone_kib = _pss_kib(server.port)
                began = time.perf_counter()
                with ThreadPoolExecutor(16) as pool:
                    list(pool.map(lambda name: server.connect(serials[name], timeout_s=120), others))
                connect_s = time.perf_counter() - began
                for cable in cables.values():
                    cable.reconnect(timeout_s=60)
                _row(f"{count} virtual devices, one adb server", "")
                print("|---|---|")
                _row("to bring the devices up", f"{up_s:.1f} s")
                _row("to connect all to the server, 16 at a time", f"{connect_s:.1f} s")
                server_kib, farm_kib = _pss_kib(server.port), _farm_kib(state)
                figures = f"{alone_kib / 1024:.1f} / {server_kib / 1024:.1f} MiB"
                _row("memory (PSS) of the adb server, one device / all", figures)
                figures = f"{farm_kib / 1024:.0f} / {farm_kib / 1024 / count:.2f} MiB"
                _row("memory (PSS) of the devices, idle, all / each", figures)
                _row("`echo`, one device connected, one caller", _said(alone))
                every = list(cables.values())
                for callers in (each for each in _CALLERS if each <= count):
                    _row(f"`echo`, all connected, {callers} at a time", _said(_latencies(every, callers)))
                for callers in (1, 16):
                    speed = _push(every, callers, state)
                    _row(f"push of 1 MiB, {callers} at a time", f"{speed:.0f} MiB/s in all")
    return 0


def _row(what: str, figures: str) -> None:
    print(f"| {what} | {figures} |", flush=True)


def _latencies(cables: Sequence[AdbTransport], callers: int) -> list[float]:
    """Return how long each of `_CALLS` calls took, in milliseconds, round the devices."""

    def call(number: int) -> float:
        began = time.perf_counter()
        answer = cables[number % len(cables)].shell("echo here", timeout_s=120)
        if answer.stdout != b"here\n":
            raise SystemExit(f"device {number % len(cables)} said {answer!r}")
        return 1000 * (time.perf_counter() - began)

    with ThreadPoolExecutor(callers) as pool:
        return list(pool.map(call, range(_CALLS)))


def _push(cables: Sequence[AdbTransport], callers: int, folder: Path) -> float:
    file = folder / "mib"
    file.write_bytes(bytes(_MIB))
    pushes: list[Callable[[], int]] = [
        lambda cable=cable: cable.push(file, "/data/local/tmp/mib", timeout_s=120)
        for cable in cables[: max(callers, 16)]
    ]
    began = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        sent = sum(pool.map(lambda push: push(), pushes))
    return sent / _MIB / (time.perf_counter() - began)


def _said(times_ms: list[float]) -> str:
    ordered = sorted(times_ms)
    return f"{statistics.median(ordered):.0f} ms, p99 {ordered[int(0.99 * (len(ordered) - 1))]:.0f} ms"


def _pss_kib(port: int) -> int:
    """Return the proportional set size of the adb server on a port."""
    return _sum_kib(lambda words: words[0].endswith("adb") and str(port) in " ".join(words))


def _farm_kib(state: Path) -> int:
    return _sum_kib(lambda words: str(state / "v") in " ".join(words))


def _sum_kib(ours: Callable[[list[str]], bool]) -> int:
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            if ours(words):
                lines = (process / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except OSError:
            continue  # it ended meanwhile
    return total


if __name__ == "__main__":
    sys.exit(main())
