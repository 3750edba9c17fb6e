"""Ledger: who lost how much of a model's quality, the quantization or each chip, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pytest_devicelab.verdicts.statistics import Estimate

Unit = Literal["dB", "points"]
Decision = Literal["chip", "none", "unclear"]
Cause = Literal["nothing", "quantization", "chip", "every_chip", "inconclusive"]

LEAST_SAMPLES = 20
"""With fewer, the intervals of the bootstrap are too narrow to be believed (measured: tests/unit/test_statistics.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A loss in the ledger's unit, below 0 for a gain, with its simultaneous 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one class of bit-identical devices loses beyond the quantized model on the CPU.

    Attributes:
        chip: short names of its chips, `V68/V69`.
        level: SQNR in dB or top-1 in percent, on these devices; None when it is not finite.
        loss: None when it is not finite.
        p_value: that this class and the CPU are alike (paired sign flips, Holm over classes); None if not tested.
        effect_size: mean paired difference in standard deviations; None when all samples differ alike.
        decision: `chip` when the loss is beyond what is material, `none` when it is not, else `unclear`.
    """

    devices: tuple[str, ...]
    chip: str
    level: float | None
    loss: Loss | None
    p_value: float | None
    effect_size: float | None
    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The loss of one output in one unit: `reference_level - quantized_level - level of a chip`, step by step.

    Attributes:
        reference_level: where nothing is lost: SQNR of float rounded to the output's own steps, or top-1 of
            float; None when that is unknown.
        quantized_level: of the quantized model on the CPU; None when it errs nowhere.
        quantization: what lies between these two; None when one of them is.
        total: what lies between the first and the worst chip.
        material: the loss that is called one.
        detectable: the smallest chip's share these samples would have told from none, with 80 % power.
        samples_needed: about how many would settle an inconclusive ledger; None for a settled one.
        spread: between the best and the worst class; `spread_p`: that all classes are alike.
        line: the ledger in one line; `reason`: what follows from it.
    """

    unit: Unit
    cause: Cause
    line: str
    reason: str
    samples: int
    samples_needed: int | None
    material: float
    detectable: float | None
    reference_level: float | None
    quantized_level: float | None
    quantization: Loss | None
    total: float | None
    spread: float | None
    spread_p: float | None
    shares: tuple[Share, ...]


def decide(loss: Estimate, material: float, samples: int) -> Decision:
    """Say whether a loss is beyond what is material, by its whole interval."""
    if samples < LEAST_SAMPLES:
        return "unclear"
    return "chip" if loss.low > material else "none" if loss.high < material else "unclear"


def find_cause(shares: Sequence[Share], quantization: Decision | None, *, differs: bool) -> Cause:
    """Say whose the loss is: a chip's only if the quantized model on the CPU does not show it.

    Args:
        shares: one a class of devices.
        quantization: `chip` standing for "material" here; None when its size is unknown.
        differs: whether chips that all lose lose materially different amounts.
    """
    decisions = {share.decision for share in shares}
    if "chip" in decisions:
        several = sum(len(share.devices) for share in shares) > 1
        return "every_chip" if decisions == {"chip"} and several and not differs else "chip"
    if "unclear" in decisions or not shares or quantization == "unclear":
        return "inconclusive"
    return "nothing" if quantization == "none" else "quantization"


def describe(
    unit: Unit, quantization: Loss | None, quantized_level: float | None, shares: Sequence[Share]
) -> str:
    """Write a ledger as one line; its figures add up as they are printed."""
    digits = 1 if unit == "dB" else 2
    own = 0.0 if quantization is None else _rounded(quantization.value, digits)
    amounts: dict[float, list[str]] = {}
    for share in shares:
        if share.loss is not None:
            amounts.setdefault(_rounded(share.loss.value, digits), []).append(share.chip)
    costs = sorted(((amount, "/".join(chips)) for amount, chips in amounts.items()), reverse=True)
    unsized = [_unsized(share) for share in shares if share.loss is None]
    if len(costs) == 1 and len(shares) > 1 and not unsized:
        costs = [(costs[0][0], "every chip")]
    parts = [*(f"{amount:.{digits}f} on {chips}" for amount, chips in costs[1:]), *unsized]
    what = unit if unit == "dB" else "points of top-1"
    if quantization is None or not costs:
        if costs:
            parts.insert(0, f"{costs[0][0]:.{digits}f} {what} more go to {costs[0][1]}'s arithmetic")
        left = "costs nothing" if quantized_level is None else f"leaves {quantized_level:.1f} dB"
        return f"quantization {left}, {', '.join(parts)}"
    worst, first = costs[0]
    if not (own or worst or parts):
        return f"no {what} lost"
    parts.insert(0, f"{worst:.{digits}f} is {first}'s arithmetic")
    total = _rounded(own + worst, digits)
    return f"of {total:.{digits}f} {what} lost, {own:.{digits}f} is quantization, {', '.join(parts)}"


def _unsized(share: Share) -> str:
    if share.decision == "none":
        return f"no error on {share.chip}"
    return (
        f"NaN or infinity on {share.chip}"
        if share.level is None
        else f"{share.chip} leaves {share.level:.1f} dB"
    )


def _rounded(value: float, digits: int) -> float:
    return round(value, digits) + 0.0  # + 0.0: no minus sign on a zero


def explain(
    cause: Cause, unit: Unit, shares: Sequence[Share], material: float, samples: int, needed: int | None
) -> str:
    """Say what follows from a ledger, and how sure that is."""
    limit = f"{material:g} {'point' if (unit, material) == ('points', 1.0) else unit}"
    guilty = "/".join(share.chip for share in shares if share.decision == "chip")
    others = ", ".join(share.chip for share in shares if share.decision != "chip")
    if cause == "inconclusive":
        least = f"about {needed:,}" if needed else "more"
        return f"{samples:,} samples cannot tell whose the loss is at {limit}: {least} are needed"
    if cause == "chip":
        apart = f"; {others} not shown to" if others else ", not all alike"
        return (
            f"{guilty} add more than {limit} to what the same quantized model loses on the CPU{apart}: "
            "that is the NPU's arithmetic or its compiler, not the quantization"
        )
    if cause == "every_chip":
        return (
            f"all devices alike add more than {limit} to what the same quantized model loses on the CPU: not the "
            "quantization but what the devices share, the NPU's arithmetic or its compiler"
        )
    if cause == "quantization":
        return f"the quantized model loses it on the CPU already, and no device adds {limit}: it is the quantization"
    return f"neither the quantization nor any device loses {limit}"
