"""Attribution: how much of a loss is the quantization's, and how much each chip's.

docs/explanation/attribution.md defines the figures and says why they are these.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pytest_devicelab.errors import TensorMismatch
from pytest_devicelab.tensors.metrics import is_classification, top_k
from pytest_devicelab.verdicts.ledger import (
    LEAST_SAMPLES,
    Decision,
    Ledger,
    Loss,
    Share,
    Unit,
    decide,
    describe,
    explain,
    find_cause,
)
from pytest_devicelab.verdicts.statistics import (
    ALPHA,
    Estimate,
    Floats,
    detectable,
    holm,
    interval,
    paired_share,
    resample_sums,
    samples_to_settle,
    sign_flip_p,
    spread_p,
    standardized,
)

Array = npt.NDArray[np.floating]
Classes = Mapping[tuple[str, ...], Array]
Sure = Literal["chip", "none"]
"""What a loss without a size is: an error where the CPU makes none, or that is not finite; or no error at all."""

MATERIAL_DB = 1.0
"""A chip's share from which it is called one: 1 dB is 12 % more RMS error. Sound chips stay below 0.5 dB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Whose the loss of one output is.

    Attributes:
        line: one line a person understands.
        signal: the ledger in dB of SQNR.
        accuracy: the ledger in points of top-1 accuracy; None without labels, or when the output is no
            `[N, classes]`.
    """

    line: str
    signal: Ledger
    accuracy: Ledger | None


def attribute(
    reference: Array,
    quantized_cpu: Array,
    observed: Classes,
    *,
    chips: Mapping[str, str],
    rng: np.random.Generator,
    step: float | None = None,
    labels: npt.NDArray[np.integer] | None = None,
    material_db: float = MATERIAL_DB,
    material_share: float = 0.01,
) -> Attribution:
    """Split the loss of one output among the quantization and the chips.

    Args:
        reference: float model on the CPU, `[N, ...]`.
        quantized_cpu: quantized model on the CPU, real values, the same shape.
        observed: for each class of bit-identical devices its output, real values, the same shape.
        chips: short name of each device's chip, such as `V75`, in the order they are to be named.
        rng: decides the resampling; the same generator gives the same attribution.
        step: of the output's own quantization, in its unit; None when unknown.
        labels: class labels `[>= N]`, or None.
        material_db: a loss of SQNR from which it is called one.
        material_share: the same for top-1 accuracy, as a share of 1.

    Raises:
        TensorMismatch: shapes differ, there are no samples or no devices, or a run on the CPU is not finite.
    """
    _check(reference, quantized_cpu, observed)
    order = {device: index for index, device in enumerate(chips)}
    observed = dict(sorted(observed.items(), key=lambda item: order[item[0][0]]))
    runs = (reference, quantized_cpu, *observed.values())
    names = _names(tuple(observed), chips)
    signal = _balance(_signal(runs, step, rng), names, material_db, rng)
    accuracy = None
    if labels is not None and is_classification(reference) and len(labels) >= len(reference):
        measured = _accuracy(runs, labels[: len(reference)])
        accuracy = _balance(measured, names, 100 * material_share, rng)
    line = f"{signal.line}; {accuracy.line}" if accuracy else signal.line
    return Attribution(line=line, signal=signal, accuracy=accuracy)


def _check(reference: Array, quantized_cpu: Array, observed: Classes) -> None:
    shapes = {str(list(array.shape)) for array in (reference, quantized_cpu, *observed.values())}
    problem = ""
    if len(shapes) > 1:
        problem = f"the runs have shapes {', '.join(sorted(shapes))}"
    elif reference.ndim == 0 or reference.size == 0 or not observed:
        problem = "there are no samples, or no devices"
    elif not (np.all(np.isfinite(reference)) and np.all(np.isfinite(quantized_cpu))):
        problem = "the float or the quantized model gives NaN or infinity on the CPU"
    if problem:
        raise TensorMismatch("a loss cannot be attributed", why=problem, fix="run all on the same samples")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """The runs in one unit.

    Attributes:
        levels: of the reference, of the quantized model on the CPU, and of each class.
        quantization: None when its size is unknown.
        losses: of each class against the CPU; `differences`: the same by sample, `[N]`.
    """

    unit: Unit
    levels: tuple[float | None, ...]
    quantization: Estimate | Sure | None
    losses: tuple[Estimate | Sure, ...]
    differences: tuple[Floats, ...]


def _signal(runs: Sequence[Array], step: float | None, rng: np.random.Generator) -> _Measured:
    """Measure float, quantized and every class in dB: differences of SQNR, which add up."""
    reference = runs[0]
    real = reference.astype(np.float64)
    # Rounding float to the output's own steps is the least any quantized model can lose; clipping is not in it,
    # because the range is the quantization's choice.
    best = real if step is None else step * np.rint(real / step)
    powers = [_power(array.astype(np.float64) - real) for array in (best, *runs[1:])]
    columns, signal = np.stack(powers, axis=1), float(np.sum(_power(real)))
    sums = columns.sum(axis=0)
    # A data set drawn may hold none of the few samples that err at all; 60 dB stand for such a ratio.
    drawn = np.maximum(resample_sums(np.nan_to_num(columns, posinf=0.0), rng), 1e-6 * sums)

    def loss(better: int, worse: int) -> Estimate | Sure:
        before, after = float(sums[better]), float(sums[worse])
        if before == after:
            return Estimate(value=0.0, low=0.0, high=0.0, standard_error=0.0)
        if after == 0.0:
            return "none"
        if before == 0.0 or after == math.inf:
            return "chip"
        ratios = 10 * np.log10(drawn[:, worse] / drawn[:, better])
        return interval(10 * math.log10(after / before), ratios, len(runs) - 1)

    devices = range(2, len(runs))
    return _Measured(
        unit="dB",
        levels=tuple(_decibel(signal, float(noise)) for noise in sums),
        quantization=None if step is None else loss(0, 1),
        losses=tuple(loss(1, device) for device in devices),
        differences=tuple(columns[:, device] - columns[:, 1] for device in devices),
    )


def _accuracy(runs: Sequence[Array], labels: npt.NDArray[np.integer]) -> _Measured:
    """Measure the same in points of top-1 accuracy."""
    right = [top_k(array, 1)[:, 0] == labels for array in runs]

    def loss(better: int, worse: int) -> Estimate:
        wins = int(np.count_nonzero(right[better] & ~right[worse]))
        losses = int(np.count_nonzero(right[worse] & ~right[better]))
        share = paired_share(wins, losses, len(labels), len(runs) - 1)
        return Estimate(
            value=100 * share.value,
            low=100 * share.low,
            high=100 * share.high,
            standard_error=100 * share.standard_error,
        )

    devices = range(2, len(runs))
    return _Measured(
        unit="points",
        levels=tuple(100 * float(np.mean(each)) for each in right),
        quantization=loss(0, 1),
        losses=tuple(loss(1, device) for device in devices),
        differences=tuple(right[1].astype(np.float64) - right[device] for device in devices),
    )


def _balance(
    measured: _Measured, names: Mapping[tuple[str, ...], str], material: float, rng: np.random.Generator
) -> Ledger:
    """Decide every share, and write the ledger; `names` has a name for each class."""
    unit, samples = measured.unit, len(measured.differences[0])
    shares = _shares(measured, names, material, rng)
    spread, alike = _spread(shares, measured.differences, rng)
    quantization = measured.quantization
    own = None if quantization is None else _decide(quantization, material, samples)
    differs = spread is not None and alike is not None and spread > material and alike < ALPHA
    cause = find_cause(shares, own, differs=differs)
    known = [found for found in measured.losses if isinstance(found, Estimate)]
    needed = None
    if cause == "inconclusive":
        every = [*known, *([quantization] if isinstance(quantization, Estimate) else [])]
        unclear = [found for found in every if decide(found, material, samples) == "unclear"]
        needed = max([LEAST_SAMPLES, *(samples_to_settle(found, material, samples) for found in unclear)])
    lost = _loss(quantization)
    worst = max((found.value for found in known), default=None)
    line = describe(unit, lost, measured.levels[1], shares)
    return Ledger(
        unit=unit,
        cause=cause,
        line=f"inconclusive ({samples:,} samples, about {needed:,} needed): {line}" if needed else line,
        reason=explain(cause, unit, shares, material, samples, needed),
        samples=samples,
        samples_needed=needed,
        material=material,
        detectable=max((detectable(found.standard_error, len(names) + 1) for found in known), default=None),
        reference_level=measured.levels[0] if lost is not None else None,
        quantized_level=measured.levels[1],
        quantization=lost,
        total=lost.value + worst if lost is not None and worst is not None else None,
        spread=spread,
        spread_p=alike,
        shares=shares,
    )


def _shares(
    measured: _Measured, names: Mapping[tuple[str, ...], str], material: float, rng: np.random.Generator
) -> tuple[Share, ...]:
    finite = [bool(np.all(np.isfinite(each))) for each in measured.differences]
    tested = [each for each, usable in zip(measured.differences, finite, strict=True) if usable]
    p_values = iter(holm([sign_flip_p(each, rng) for each in tested]))
    return tuple(
        Share(
            devices=devices,
            chip=chip,
            level=measured.levels[2 + index],
            loss=_loss(measured.losses[index]),
            p_value=next(p_values) if finite[index] else None,
            effect_size=standardized(measured.differences[index]) if finite[index] else None,
            decision=_decide(measured.losses[index], material, len(measured.differences[index])),
        )
        for index, (devices, chip) in enumerate(names.items())
    )


def _spread(
    shares: Sequence[Share], differences: Sequence[Floats], rng: np.random.Generator
) -> tuple[float | None, float | None]:
    values = [share.loss.value for share in shares if share.loss is not None]
    if len(shares) < 2 or len(values) < len(shares):
        return None, None
    return max(values) - min(values), spread_p(np.stack(differences, axis=1), rng)


def _decide(found: Estimate | Sure, material: float, samples: int) -> Decision:
    return decide(found, material, samples) if isinstance(found, Estimate) else found


def _loss(found: Estimate | Sure | None) -> Loss | None:
    if not isinstance(found, Estimate):
        return None
    return Loss(value=found.value, low=found.low, high=found.high)


def _power(values: Floats) -> Floats:
    """Return the sum of squares of each sample, `[N]`; infinite where any value is not finite."""
    flat = values.reshape(len(values), -1)
    with np.errstate(over="ignore", invalid="ignore"):
        power: Floats = np.sum(np.square(flat), axis=1)
    return np.where(np.isfinite(power), power, np.inf)


def _decibel(signal: float, noise: float) -> float | None:
    return 10 * math.log10(signal / noise) if 0.0 < noise < math.inf and signal > 0.0 else None


def _names(classes: Sequence[tuple[str, ...]], chips: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Name each class by its chips; by its devices where another class has a chip of the same name."""
    owners = Counter(chip for devices in classes for chip in {chips[device] for device in devices})
    return {
        devices: "/".join(
            dict.fromkeys(chips[device] if owners[chips[device]] == 1 else device for device in devices)
        )
        for devices in classes
    }
