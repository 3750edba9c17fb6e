"""The first layer at which two runs of one model part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_devicelab.audit.taps import Tap
from pytest_devicelab.errors import TensorMismatch
from pytest_devicelab.tensors.diff import diff_bitwise
from pytest_devicelab.verdicts.comparison import Divergence

Arrays = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TappedRun:
    """One run of a tapped model, standing for a class of devices.

    Attributes:
        devices: the class.
        tapped: tensor -> `[N, ...]` for every tap and every output of the model.
        untapped: the model's own outputs from a run without taps, `[M, ...]` with M >= N.
    """

    devices: tuple[str, ...]
    tapped: Arrays
    untapped: Arrays


def first_divergence(taps: Sequence[Tap], reference: TappedRun, observed: TappedRun) -> Divergence | None:
    """Find the first tensor, in topological order, in which two runs differ in any bit.

    Args:
        taps: of the model, in topological order.
        reference: a run of the class taken as reference.
        observed: a run of the class held against it.

    Returns:
        The divergence, or None when all taps are identical. It is only a hint where `taps_changed_output` is
        set: then the tapped model computes something else than the model.

    Raises:
        TensorMismatch: there is no tap, a run lacks one, or shapes differ: comparing nothing is never equal.
    """
    if not taps:
        raise TensorMismatch("no tensor was tapped, so there is nothing to compare")
    changed = taps_changed_output(reference) or taps_changed_output(observed)
    for tap in taps:
        left, right = (_tensor(run, tap.tensor) for run in (reference, observed))
        diff = diff_bitwise(left, right, lsb=_lsb(tap, left))
        if not diff:
            return Divergence(
                node=tap.node,
                op=tap.op,
                tensor=tap.tensor,
                depth=tap.depth,
                layers=max(each.depth for each in taps),
                reference=reference.devices,
                observed=observed.devices,
                samples=len(left) if left.ndim else 1,
                elements=diff.elements,
                elements_different=diff.elements_different,
                max_lsb=diff.max_lsb,
                taps_changed_output=changed,
            )
    return None


def taps_changed_output(run: TappedRun) -> bool:
    """Say whether tapping changed any bit of the model's own outputs.

    Raises:
        TensorMismatch: there is no untapped output to hold the tapped run against, or one of other shape.
    """
    if not run.untapped:
        raise TensorMismatch(f"no untapped output of {', '.join(run.devices)} to hold the tapped run against")
    changed = False
    for name, untapped in run.untapped.items():
        tapped = _tensor(run, name)
        changed |= not diff_bitwise(untapped[: len(tapped)], tapped)
    return changed


def _tensor(run: TappedRun, name: str) -> npt.NDArray[np.generic]:
    if name not in run.tapped:
        raise TensorMismatch(
            f"the tapped run of {', '.join(run.devices)} has no tensor {name!r}",
            why=f"it has {len(run.tapped)} tensors",
            fix="run the tapped model that belongs to these taps",
            expected=name,
            found=sorted(run.tapped),
        )
    return run.tapped[name]


def _lsb(tap: Tap, array: npt.NDArray[np.generic]) -> float | None:
    """Return one step of the tapped tensor: 1 where it holds the quantized integers, else their scale."""
    if tap.quantization is None:
        return None
    return tap.quantization.scale if array.dtype.kind == "f" else 1.0
