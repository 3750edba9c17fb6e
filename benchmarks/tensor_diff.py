"""Speed of the tensor diff beside numpy's own way and Polygraphy, on the same arrays in one run.

    taskset -c 0 env OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/tensor_diff.py [--mebibytes 256]

One core, because that is what a device's share of a lab machine is. Rates count the bytes of the reference only;
the best of several turns is taken, and the turns of all rivals alternate, so that what else the machine does hits
them alike. Compare the ratios: the rates are the machine's.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_devicelab.tensors.accumulator import DiffAccumulator
from pytest_devicelab.tensors.compiled import load_fast, load_fast_for
from pytest_devicelab.tensors.equality import count_different
from pytest_devicelab.tensors.formats import FORMATS, codes_of

Array = npt.NDArray[np.generic]
Work = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A pair of arrays; `changed` is the share of elements that differ."""

    dtype: str
    changed: float
    reference: Array
    observed: Array


def make_case(dtype: str, size_bytes: int, changed: float) -> Case:
    """Return normal values, and the same with noise of one percent in a stretch of them."""
    random = np.random.default_rng(0)
    elements = size_bytes // np.dtype(dtype).itemsize
    scale = 30.0 if np.dtype(dtype).kind == "i" else 1.0
    reference = (random.standard_normal(elements, dtype=np.float32) * scale).astype(dtype)
    observed = reference.copy()
    end = int(elements * changed)
    noise = random.standard_normal(end, dtype=np.float32) * max(0.01 * scale, 2.0 if scale > 1 else 0.0)
    observed[:end] = (reference[:end] + noise).astype(dtype)
    return Case(dtype=dtype, changed=changed, reference=reference, observed=observed)


def numpy_equality(case: Case) -> int:
    """What one writes first: bits, because NaN is not equal to itself."""
    bits = f"u{case.reference.itemsize}"
    return int(np.sum(case.reference.view(bits) != case.observed.view(bits)))


def numpy_metrics(case: Case) -> dict[str, float]:
    """The metrics that numpy has in a line each, in float64, so that nothing wraps or overflows."""
    left, right = case.reference.astype(np.float64), case.observed.astype(np.float64)
    distance = np.abs(right - left)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.nan_to_num(distance / np.abs(left))
    low, high = min(left.min(), right.min()), max(left.max(), right.max())
    counts = [np.histogram(each, 128, (low, high))[0] + 0.5 for each in (left, right)]
    shares = [each / each.sum() for each in counts]
    return {
        "different": numpy_equality(case),
        "max_abs": distance.max(),
        "mean_abs": distance.mean(),
        "max_rel": relative.max(),
        "mean_rel": relative.mean(),
        "percentiles": np.percentile(distance, [50, 90, 99, 99.9]).sum(),
        "sqnr_db": 10 * np.log10(np.sum(left**2) / np.sum(distance**2)),
        "cosine": np.dot(left, right) / np.sqrt(np.dot(left, left) * np.dot(right, right)),
        "kl": np.sum(shares[0] * np.log(shares[0] / shares[1])),
        "wasserstein": np.mean(np.abs(np.sort(left) - np.sort(right))),
    }


def polygraphy_compare(case: Case) -> Work | None:
    """Polygraphy's comparison of one output, or None where it is not installed."""
    try:
        from polygraphy.comparator import IterationResult, SimpleCompareFunc
        from polygraphy.logger import G_LOGGER
    except ImportError:
        return None
    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    compare = SimpleCompareFunc(check_error_stat="max")
    left, right = (IterationResult({"x": each}) for each in (case.reference, case.observed))

    def work() -> object:
        with np.errstate(all="ignore"):  # it divides by zero references
            return compare(left, right)

    return work


def ours(case: Case, *, fast: bool) -> object:
    """The full metric set."""
    accumulator = DiffAccumulator(FORMATS[case.dtype], case.reference.shape, fast=fast)
    accumulator.feed(codes_of(case.reference), codes_of(case.observed))
    return accumulator.finish()


def best_seconds(rivals: Mapping[str, Work], turns: int) -> dict[str, float]:
    """Return each rival's best time; the first turn warms caches and compilers and does not count."""
    best = dict.fromkeys(rivals, float("inf"))
    for turn in range(turns + 1):
        for name, work in rivals.items():
            start = time.perf_counter()
            work()
            elapsed = time.perf_counter() - start
            if turn:
                best[name] = min(best[name], elapsed)
    return best


def report(title: str, case: Case, best: Mapping[str, float], base: str) -> None:
    """Print rates and ratios, `base` being 1."""
    print(
        f"{title}: {case.dtype}, {case.reference.nbytes >> 20} MiB, {case.changed:.0%} of the elements changed"
    )
    for name, seconds in best.items():
        rate = case.reference.nbytes / seconds / 1e9
        print(f"  {name:<34}{rate:8.2f} GB/s{best[base] / seconds:9.2f} x {base}")


def equality(case: Case, turns: int) -> None:
    """Equality and mismatch count against the bandwidth of a copy."""
    left, right = codes_of(case.reference), codes_of(case.observed)
    target = np.zeros_like(case.reference)
    rivals: dict[str, Work] = {
        "numpy.copyto": lambda: np.copyto(target, case.reference),
        "devicelab, compiled": lambda: count_different(left, right, fast=load_fast_for(left.size)),
        "devicelab, numpy only": lambda: count_different(left, right),
        "numpy sum(left != right)": lambda: numpy_equality(case),
        "numpy array_equal": lambda: np.array_equal(case.reference, case.observed),
    }
    report("equality and mismatch count", case, best_seconds(rivals, turns), "numpy.copyto")


def metrics(case: Case, turns: int, *, fallback: bool) -> None:
    """The full metric set against numpy's and Polygraphy's."""
    rivals: dict[str, Work] = {"numpy, a line a metric": lambda: numpy_metrics(case)}
    if load_fast() is not None:
        rivals["devicelab, compiled"] = lambda: ours(case, fast=True)
    if fallback:
        rivals["devicelab, numpy only"] = lambda: ours(case, fast=False)
    # The bandwidth of a copy, to tell a busy machine from a slow program.
    target = np.zeros_like(case.reference)
    rivals["numpy.copyto"] = lambda: np.copyto(target, case.reference)
    polygraphy = polygraphy_compare(case)
    if polygraphy is not None and case.dtype != "float16":  # it overflows on halves
        rivals["polygraphy SimpleCompareFunc"] = polygraphy
    report("full metric set", case, best_seconds(rivals, turns), "numpy, a line a metric")


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mebibytes", type=int, default=256, help="size of the reference")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--fallback", action="store_true", help="time the way without numba too")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = {name: os.environ.get(name, "not set") for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    print(f"cores allowed: {cores}; {threads}; load {os.getloadavg()[0]:.1f}; numpy {np.__version__}")
    size = options.mebibytes << 20
    for changed in (0.0, 1.0):
        equality(make_case("float32", size, changed), 2 * options.turns)
    for dtype, changed in (
        ("float32", 1.0),
        ("float32", 0.1),
        ("float64", 1.0),
        ("float16", 1.0),
        ("int8", 1.0),
    ):
        metrics(make_case(dtype, size, changed), options.turns, fallback=options.fallback)


if __name__ == "__main__":
    main()
