"""From what a chip computed to what that says of it: only what every fitting explanation agrees on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from pytest_devicelab.audit.fingerprint.probe import Array, Candidate
from pytest_devicelab.audit.fingerprint.rounding import NEAREST

Status = Literal["answered", "undecided", "unknown", "unstable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the outputs of one probe say.

    Attributes:
        status: `answered`: every property is decided; `undecided`: some explanations fit, and they part on at
            least one property; `unknown`: none fits, or none is known; `unstable`: the same inputs gave
            different bits.
        facts: property -> value, for the properties all fitting explanations agree on.
        open: property -> the values that fit, for the others.
        nearest: where none fits, the closest one in words, and how many of how many elements it misses.
    """

    status: Status
    facts: Mapping[str, str] = field(default_factory=dict)
    open: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    nearest: str = ""


def classify(candidates: Sequence[Candidate], outputs: Sequence[Array]) -> Reading:
    """Say what a chip does, from its outputs for the same input, one a repetition.

    A candidate fits when it gives every bit; there is no tolerance, and no majority. Where all roundings to nearest fit
    and no other, no tie was met, and the answer is just that: `to nearest`.

    Args:
        candidates: ways to compute the probe.
        outputs: what the chip gave each time it was asked.
    """
    observed = outputs[0]
    if any(not _same_bits(observed, again) for again in outputs[1:]):
        return Reading(status="unstable", facts={"rounding": "stochastic"} if _one_step(outputs) else {})
    fitting = [candidate for candidate in candidates if _same_bits(candidate.expected, observed)]
    if not fitting:
        return Reading(status="unknown", nearest=_nearest(candidates, observed))
    values = {
        key: tuple(dict.fromkeys(candidate.facts[key] for candidate in fitting if key in candidate.facts))
        for candidate in fitting
        for key in candidate.facts
    }
    if set(values.get("rounding", ())) == set(NEAREST):
        values["rounding"] = ("to nearest",)
    facts = {key: found[0] for key, found in values.items() if len(found) == 1}
    left = {key: found for key, found in values.items() if len(found) > 1}
    return Reading(status="undecided" if left else "answered", facts=facts, open=left)


def _same_bits(expected: Array, observed: Array) -> bool:
    same_kind = expected.dtype == observed.dtype and expected.shape == observed.shape
    return same_kind and not bool(_missed(expected, observed).any())


def _missed(expected: Array, observed: Array) -> npt.NDArray[np.bool_]:
    """Say for each element whether its bits are others; for numpy's own NaN any NaN will do."""
    different: npt.NDArray[np.bool_] = _bits(expected) != _bits(observed)
    if expected.dtype.kind == "f":
        plain = _bits(np.array([np.nan, -np.nan], expected.dtype))
        different &= ~(np.isin(_bits(expected), plain) & np.isnan(observed))
    return different


def _bits(array: Array) -> Array:
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def _one_step(outputs: Sequence[Array]) -> bool:
    """Say whether repetitions differ by single steps: rounding that throws dice, not memory that is not set."""
    if outputs[0].dtype.kind not in "iu":
        return False
    codes = np.stack([output.astype(np.int64) for output in outputs])
    return bool((codes.max(axis=0) - codes.min(axis=0)).max() == 1)


def _nearest(candidates: Sequence[Candidate], observed: Array) -> str:
    comparable = [
        candidate
        for candidate in candidates
        if (candidate.expected.dtype, candidate.expected.shape) == (observed.dtype, observed.shape)
    ]
    if not comparable:
        return ""
    missed = [int(_missed(candidate.expected, observed).sum()) for candidate in comparable]
    best = int(np.argmin(missed))
    words = ", ".join(comparable[best].facts.values())
    far = (
        f"{_farthest(comparable[best].expected, observed)} {'LSB' if observed.dtype.kind in 'iu' else 'ULP'}"
    )
    return f"{words}: {missed[best]} of {observed.size} differ, by up to {far}"


def _farthest(expected: Array, observed: Array) -> int:
    """Return the largest distance in steps of the dtype: codes, or floats in the order of their values."""
    return int(np.abs(_order(expected) - _order(observed)).max())


def _order(array: Array) -> npt.NDArray[np.int64]:
    if array.dtype.kind != "f":
        return array.astype(np.int64)
    bits = _bits(array).astype(np.int64)
    magnitude = 1 << (array.dtype.itemsize * 8 - 1)
    return np.where(bits >= magnitude, magnitude - bits, bits)
