"""The three-run rule: is a chip as close to the float model as the same quantized model is on the CPU?

docs/explanation/three-run-rule.md has the reasons for its form and the measurements behind its constants.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_devicelab.errors import TensorMismatch
from pytest_devicelab.verdicts.verdict import Outcome

Floats = npt.NDArray[np.floating]

FULL_COUNT = 200
"""Draws from which the tolerance holds as it stands; with fewer it widens by `sqrt(FULL_COUNT / draws)`."""

LEAST_COUNT = 8
"""With fewer draws than this a view says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreeRun:
    """What the three-run rule says of one output.

    Attributes:
        outcome: `inconclusive` when the rule cannot be applied.
        reason: one sentence with the figures.
        worst: by how much the device's error exceeds the CPU's in the view nearest to (or furthest beyond)
            its limit, as a share of the output's range; below 0 when the device is the better one.
        tolerance: the limit of that view.
        enough: the smallest `three_run_tolerance` that passes.
        worst_element: the same excess for the single worst element; reported, not judged.
        elements_beyond: share of elements that break the element-wise form of the rule; reported, not judged.
    """

    outcome: Outcome
    reason: str
    worst: float | None = None
    tolerance: float | None = None
    enough: float | None = None
    worst_element: float | None = None
    elements_beyond: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """The worst slice along one axis: by how much its error exceeds the CPU's, and its limit's widening."""

    where: str
    excess: float
    widening: float


def apply_three_run(
    reference: Floats, quantized_cpu: Floats, device: Floats, *, tolerance: float
) -> ThreeRun:
    """Apply the three-run rule to one output.

    Args:
        reference: float model on the CPU, `[N, ...]`.
        quantized_cpu: quantized model on the CPU, real values, the same shape.
        device: quantized model on the device, real values, the same shape.
        tolerance: how much further from `reference` than `quantized_cpu` the device may be, as a share of
            the range of `reference`.

    Returns:
        `pass` when no view exceeds its limit; `fail` when one does or when the device gives NaN or infinity;
        `inconclusive` when the runs on the CPU are themselves no yardstick, or there are too few samples.

    Raises:
        TensorMismatch: the shapes differ.
    """
    if not reference.shape == quantized_cpu.shape == device.shape:
        raise TensorMismatch(
            f"three runs cannot be compared: float {list(reference.shape)}, quantized on the CPU "
            f"{list(quantized_cpu.shape)}, on the device {list(device.shape)}",
            why="the three-run rule needs the same samples of the same output from all three",
            expected=list(reference.shape),
            found=list(device.shape),
        )
    unusable = _unusable(reference, quantized_cpu)
    if unusable:
        return ThreeRun(outcome="inconclusive", reason=unusable)
    broken = np.count_nonzero(~np.isfinite(device))
    if broken:
        return ThreeRun(
            outcome="fail",
            reason=f"the device gives NaN or infinity in {broken:,} of {device.size:,} elements",
        )
    span = float(reference.max()) - float(reference.min())
    cpu_error = np.abs(quantized_cpu.astype(np.float64) - reference) / span
    device_error = np.abs(device.astype(np.float64) - reference) / span
    views = tuple(_views(cpu_error, device_error))
    if not views:
        return ThreeRun(
            outcome="inconclusive",
            reason=f"{device.shape[0]} samples are too few: the rule needs {LEAST_COUNT}",
        )
    gap = np.abs(device.astype(np.float64) - quantized_cpu) / span
    beyond = (device_error > cpu_error) & (gap > tolerance)
    return _judge(views, tolerance, float((device_error - cpu_error).max()), float(beyond.mean()))


def _judge(
    views: tuple[_View, ...], tolerance: float, worst_element: float, elements_beyond: float
) -> ThreeRun:
    view = max(views, key=lambda each: each.excess / each.widening)
    limit = tolerance * view.widening
    holds = view.excess <= limit
    few = f" (widened from {tolerance:.2%}: few samples)" if view.widening > 1 else ""
    reason = (
        f"against float the device errs by at worst {view.excess:+.2%} of the output's range more than the CPU "
        f"({view.where}); the limit is {limit:.2%}{few}"
    )
    enough = max(0.0, math.ceil(view.excess / view.widening * 1e6) / 1e6)
    return ThreeRun(
        outcome="pass" if holds else "fail",
        reason=reason if holds else f"{reason}; a tolerance of {enough:.4%} would have passed",
        worst=view.excess,
        tolerance=limit,
        enough=enough,
        worst_element=worst_element,
        elements_beyond=elements_beyond,
    )


def _unusable(reference: Floats, quantized_cpu: Floats) -> str:
    """Say why the two runs on the CPU are no yardstick; empty when they are one."""
    if reference.size == 0 or reference.ndim == 0:
        return "there are no samples to compare"
    for name, values in (("float model", reference), ("quantized model", quantized_cpu)):
        if not np.all(np.isfinite(values)):
            return f"the {name} itself gives NaN or infinity on the CPU"
    span = float(reference.max()) - float(reference.min())
    if not (math.isfinite(span) and span > 0.0):
        return "the float model gives the same value everywhere, so the output has no range to measure in"
    wide = reference.astype(np.float64) / span
    if np.sum(np.square(quantized_cpu / span - wide)) >= np.sum(np.square(wide - wide.mean())):
        return (
            "the quantized model on the CPU is no closer to the float model than a constant would be: "
            "is the float model the one it was made from?"
        )
    return ""


def _views(cpu_error: Floats, device_error: Floats) -> Iterator[_View]:
    """Yield the worst slice of every axis that has enough draws."""
    samples, size = cpu_error.shape[0], cpu_error.size
    for axis, length in enumerate(cpu_error.shape):
        # Samples are the draws of the ranked view; in the others every slice has its own.
        draws = samples if axis == 0 else size // length
        if draws < LEAST_COUNT:
            continue
        cpu, device = _rms_of_slices(cpu_error, axis), _rms_of_slices(device_error, axis)
        if axis == 0:
            # Which sample is unlucky with its rounding differs between sound chips: ranks are compared.
            order = np.argsort(device)
            excess = device[order] - np.sort(cpu)
            at = int(np.argmax(excess))
            where = f"sample {order[at]}"
        else:
            excess = device - cpu
            at = int(np.argmax(excess))
            where = f"index {at} of axis {axis}"
        yield _View(where=where, excess=float(excess[at]), widening=max(1.0, math.sqrt(FULL_COUNT / draws)))


def _rms_of_slices(error: Floats, axis: int) -> npt.NDArray[np.float64]:
    """Return the root mean square over all other axes, `[length of axis]`."""
    others = tuple(other for other in range(error.ndim) if other != axis)
    squares: npt.NDArray[np.float64] = np.mean(np.square(error, dtype=np.float64), axis=others)
    return np.sqrt(squares)
