"""What a model costs on a device: time, memory, energy. Each figure has its source, or says why there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# A day: no single figure here is longer, and a device's clock that says so is broken.
_LONGEST_US = 86_400e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure. What nobody could measure is None, never 0, and `why` says why.

    Attributes:
        source: what it was read from; empty when there is none.
    """

    value: float | None = None
    source: str = ""
    why: str = ""

    def __post_init__(self) -> None:
        """Require a source of what is there, and a reason of what is not."""
        _require(self.value, self.source, self.why)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Time of one inference in microseconds; None for what the source does not tell.

    Attributes:
        inferences: how many it is of; 0 when there is none. `warm_up`: how many before them were left out;
            None where nobody says.
        median_us: and the other quantiles are times that were measured (nearest rank).
        p90_us: None for fewer than 10 inferences; `p99_us` for fewer than 100, of which it would be the slowest.
        source: what it was read from; empty when there is none.
        why: there is none.
    """

    inferences: int = 0
    warm_up: int | None = None
    mean_us: float | None = None
    min_us: float | None = None
    median_us: float | None = None
    p90_us: float | None = None
    p99_us: float | None = None
    max_us: float | None = None
    source: str = ""
    why: str = ""

    def __post_init__(self) -> None:
        """Require a source of what is there, and a reason of what is not."""
        _require(self.mean_us, self.source, self.why)
        if (self.mean_us is None) != (self.inferences < 1) or (self.warm_up or 0) < 0:
            raise ValueError(f"a mean of {self.mean_us} us over {self.inferences} inferences")
        for value in (self.min_us, self.median_us, self.p90_us, self.p99_us, self.max_us):
            if value is not None:
                _require(value, self.source, self.why)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """What one measuring run found.

    Attributes:
        simulated: a simulator on the host took that time and memory: no figure here is the chip's.
        load_us: from the start of loading the model until it can run, microseconds.
        peak_rss_kib: largest resident memory of the runner, KiB. `peak_pss_kib`: its proportional share of it.
        energy_mj: of the whole device while the runner ran, loading and warm-up included, millijoules.
    """

    simulated: bool
    latency: Latency
    load_us: Figure
    peak_rss_kib: Figure
    peak_pss_kib: Figure
    energy_mj: Figure


def absent(why: str) -> Figure:
    """Return the figure that nobody could measure."""
    return Figure(why=why)


def summarize_times(times_us: Sequence[float], *, warm_up: int, expected: int, source: str) -> Latency:
    """Return the latency of inferences, or why their times say nothing.

    Args:
        times_us: of every inference in the order they ran, warm-up first; may be a device's nonsense.
        warm_up: how many of the first to leave out.
        expected: how many there must be, warm-up included: a runner that ended early has not shown its typical time.
        source: where they come from.
    """
    if len(times_us) != expected:
        return Latency(why=f"{source}: {len(times_us):,} inferences where {expected:,} were asked for")
    counted = sorted(times_us[warm_up:])
    if not counted:
        return Latency(why=f"{source}: no inference beyond the warm-up")
    if bad := [time for time in times_us if not 0 < time <= _LONGEST_US]:
        return Latency(why=f"{source}: {bad[0]:g} us is no time an inference takes")
    return Latency(
        inferences=len(counted),
        warm_up=warm_up,
        mean_us=math.fsum(counted) / len(counted),
        min_us=counted[0],
        median_us=_nearest_rank(counted, 50),
        p90_us=_nearest_rank(counted, 90) if len(counted) >= 10 else None,
        p99_us=_nearest_rank(counted, 99) if len(counted) >= 100 else None,
        max_us=counted[-1],
        source=source,
    )


def duration(us: float | None, source: str, why: str) -> Figure:
    """Return a time in microseconds as a figure: absent, with `why`, where there is none or it makes no sense."""
    if us is None:
        return absent(why)
    if not 0 < us <= _LONGEST_US:
        return absent(f"{source}: {us:g} us is no time that could be")
    return Figure(value=float(us), source=source)


def _nearest_rank(ordered: Sequence[float], percent: int) -> float:
    return ordered[-(-percent * len(ordered) // 100) - 1]


def _require(value: float | None, source: str, why: str) -> None:
    if value is None:
        if source or not why:
            raise ValueError("a figure that is not there has no source and needs a reason")
    elif not (0 < value < math.inf and source and not why):
        raise ValueError(f"{value!r} from {source[:80]!r}: a figure is above 0 and has a source")
