"""How fast a log is searched: this project beside ripgrep, Python's `re` and a line loop, in one run.

    python benchmarks/log_scan.py [--size-mb 2000] [--folder /dev/shm]

It writes a verbose logcat of that size in which 0.3 % of the lines are hits, and prints seconds, GB/s and
the ratio to ripgrep of each way. CPU seconds are printed beside the wall clock's, since on a shared machine
only they repeat. The slow ways run on a part of the log, and their time is scaled up.
"""

from __future__ import annotations

import argparse
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_devicelab.logs.blocks import BLOCK_BYTES, read_blocks
from pytest_devicelab.logs.candidates import Finder, PlainFinder, make_finder, make_selector
from pytest_devicelab.logs.columns import read_columns
from pytest_devicelab.logs.dialect import Dialect
from pytest_devicelab.logs.phrases import PhrasesDialect
from pytest_devicelab.logs.registry import DIALECTS
from pytest_devicelab.logs.scanner import LogScanner
from pytest_devicelab.logs.survey import Survey

_TAGS = (
    "ActivityManager",
    "chromium",
    "SurfaceFlinger",
    "BufferQueue",
    "WifiHAL",
    "AudioFlinger",
    "libc",
    "Zygote",
)
_WORDS = (
    "frame",
    "buffer",
    "queue",
    "acquired",
    "window",
    "focus",
    "binder",
    "transaction",
    "latency",
    "state",
    "power",
)
_HITS = (
    "QNN     : Fallback to CPU for op LayerNormalization (node: block1.norm), reason: axis 1 has no INT8 kernel",
    "QNN     : Fusing operation Conv + Relu -> ConvRelu",
    "QNN     : Quantization params: tensor=stem_out scale=0.0235 offset=-128",
)
_PART_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long one way took, scaled to the whole log."""

    name: str
    wall_s: float
    cpu_s: float
    found: int


def write_log(path: Path, size_bytes: int) -> None:
    """Write a log of at least that size: some 60,000 different lines, over and over."""
    choose = random.Random(5)
    lines = []
    for number in range(60_000):
        head = f"11-20 09:{number // 1000 % 60:02d}:{number // 20 % 60:02d}.{number % 1000:03d}"
        if choose.random() < 0.003:
            lines.append(f"{head}  5000  5001 I {choose.choice(_HITS)}")
        else:
            text = " ".join(choose.choices(_WORDS, k=choose.randint(5, 18)))
            ids = f"{choose.randint(100, 30000):5d} {choose.randint(100, 30000):5d}"
            lines.append(f"{head} {ids} {choose.choice('VDIW')} {choose.choice(_TAGS):8s}: {text} {number}")
    block = ("\n".join(lines) + "\n").encode()
    with path.open("wb") as out:
        for _ in range(size_bytes // len(block) + 1):
            out.write(block)


def timed(name: str, work: Callable[[], int], *, scale: float = 1.0, children: bool = False) -> Timing:
    """Run something twice and keep the faster."""
    who = resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF
    best: Timing | None = None
    for _ in range(2):
        used, wall = resource.getrusage(who), time.perf_counter()
        found = work()
        wall = (time.perf_counter() - wall) * scale
        now = resource.getrusage(who)
        cpu = (now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime) * scale
        if best is None or cpu < best.cpu_s:
            best = Timing(name=name, wall_s=wall, cpu_s=cpu, found=round(found * scale))
    assert best is not None
    return best


def ripgrep(path: Path, literals: Sequence[bytes]) -> int:
    """Count the lines that hold one of the literals."""
    with tempfile.NamedTemporaryFile() as patterns:
        patterns.write(b"\n".join(literals) + b"\n")
        patterns.flush()
        command = ["rg", "--count", "--fixed-strings", "--no-mmap", "-j1", "-f", patterns.name, str(path)]
        return int(subprocess.run(command, capture_output=True, check=True).stdout)


def search(path: Path, finder: Finder) -> int:
    """Only find the literals."""
    with path.open("rb", buffering=0) as log:
        return sum(len(finder.find(block.data, block.end)) for block in read_blocks(log.readinto))


def scan(path: Path, dialects: Sequence[Dialect], *, survey: bool = False, pure: bool = False) -> int:
    """Find the events."""
    literals = [trigger.literal for dialect in dialects for trigger in dialect.triggers]
    selector = make_selector(dialects, PlainFinder(literals) if pure else None)
    scanner = LogScanner(
        source="logcat", dialects=dialects, selector=selector, survey=Survey() if survey else None
    )
    with path.open("rb", buffering=0) as log:
        return sum(1 for _ in scanner.scan(log.readinto))


def columns(path: Path) -> int:
    """Read every line's header."""
    with path.open("rb", buffering=0) as log:
        return sum(
            int(read_columns(block.data, block.end).regular.sum()) for block in read_blocks(log.readinto)
        )


def python_re(data: bytes, literals: Sequence[bytes]) -> int:
    """Search with one alternation."""
    return sum(1 for _ in re.compile(b"|".join(map(re.escape, literals))).finditer(data))


def line_loop(data: bytes, literals: Sequence[bytes]) -> int:
    """Look at each line."""
    return sum(1 for line in data.splitlines() if any(literal in line for literal in literals))


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size-mb", type=int, default=2000)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the log is written (default: a temporary one)"
    )
    options = parser.parse_args()
    if shutil.which("rg") is None:
        print("ripgrep is not installed: apt-get install ripgrep")
        return 4
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "verbose.log"
        write_log(path, options.size_mb * 10**6)
        size = path.stat().st_size
        print(
            f"{size / 1e9:.2f} GB, Python {sys.version.split()[0]}, blocks of {BLOCK_BYTES >> 20} MiB, warm page cache"
        )
        sets: tuple[tuple[str, Sequence[Dialect]], ...] = (
            ("three phrases", (PhrasesDialect(),)),
            ("all dialects", DIALECTS),
        )
        fast = [fast_ways(path, dialects) for _, dialects in sets]
        every = [
            timed("every header (columns)", lambda: columns(path)),
            timed("events + every header", lambda: scan(path, DIALECTS, survey=True)),
        ]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        for (name, dialects), timings in zip(sets, fast, strict=True):
            print(f"\n{name}: {len(_literals(dialects))} literals")
            print_table(size, [*timings, *slow_ways(path, size, dialects)])
        print("\nevery line")
        print_table(size, every)
        print(f"\npeak memory of the ways above, without those on a part of the log: {peak} MiB")
    return 0


def fast_ways(path: Path, dialects: Sequence[Dialect]) -> list[Timing]:
    """Time what can read the whole log; ripgrep comes first."""
    literals = _literals(dialects)
    return [
        timed("ripgrep -c", lambda: ripgrep(path, literals), children=True),
        timed("literals only", lambda: search(path, make_finder(literals))),
        timed("events", lambda: scan(path, dialects)),
    ]


def slow_ways(path: Path, size: int, dialects: Sequence[Dialect]) -> list[Timing]:
    """Time the others on a part of the log."""
    literals = _literals(dialects)
    with tempfile.NamedTemporaryFile(dir=path.parent) as part, path.open("rb") as log:
        data = log.read(_PART_BYTES)
        part.write(data)
        part.flush()
        scale, short = size / len(data), Path(part.name)
        return [
            timed("events, without hyperscan", lambda: scan(short, dialects, pure=True), scale=scale),
            timed("Python re", lambda: python_re(data, literals), scale=scale),
            timed("line loop", lambda: line_loop(data, literals), scale=scale),
        ]


def _literals(dialects: Sequence[Dialect]) -> list[bytes]:
    return sorted({trigger.literal for dialect in dialects for trigger in dialect.triggers})


def print_table(size: int, timings: Sequence[Timing]) -> None:
    """Print one line a way; ratios are to the first."""
    first = timings[0]
    print(f"{'':28} {'wall s':>8} {'cpu s':>8} {'GB/s cpu':>9} {'x wall':>7} {'x cpu':>7} {'found':>9}")
    for timing in timings:
        print(
            f"{timing.name:28} {timing.wall_s:8.2f} {timing.cpu_s:8.2f} {size / timing.cpu_s / 1e9:9.2f}"
            f" {timing.wall_s / first.wall_s:7.2f} {timing.cpu_s / first.cpu_s:7.2f} {timing.found:9d}"
        )


if __name__ == "__main__":
    sys.exit(main())
