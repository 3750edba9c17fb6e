"""Networks: how the forms of one network compare over all devices, and what follows from it in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_devicelab.evidence.measurements import Measurements
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.report.measured import energy_text, size_text, time_text
from pytest_devicelab.verdicts.verdict import Outcome, Verdict

ALPHA = 0.05
"""p value below which two accuracies are told apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extreme:
    """The worst figure over some devices, and the first device that has it."""

    value: float
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FormEntry:
    """One form of a network over all devices.

    Attributes:
        runtimes: that ran it; a device may be given another than the matrix names.
        devices: how many it ran on; `asked`: how many it was compared on.
        on_npu: devices on which every node ran on the NPU; `on_cpu`, on which none did; `mixed`. The others are unknown.
        classes: of identical bits, over the devices it ran on.
        top1: the worst, with its device; None without labels. `sqnr_db`: the same, against its float model.
        latency_us: of one inference, the longest on any chip; None where no chip was measured. So are `peak_pss_kib`
            and `energy_mj`. A simulator's figures are not a chip's, and are not here.
    """

    model: str
    variant: str
    runtimes: tuple[str, ...]
    devices: int
    asked: int
    on_npu: int
    on_cpu: int
    mixed: int
    classes: int
    top1: Extreme | None
    sqnr_db: Extreme | None
    latency_us: Extreme | None
    peak_pss_kib: Extreme | None
    energy_mj: Extreme | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RivalEntry:
    """One form against the first, over all devices on which both ran and were asked the same.

    Attributes:
        reference: the first form of the network.
        devices: how many; on `different` of them their values differ.
        max_lsb: the largest difference in steps of the first one's quantization; None when these are unknown.
        top1_flips: the most on one device; None where outputs are no class scores.
        loss: of top-1 accuracy against the first, as a share of 1, on the device where it is largest, with its bounds
            and p value; None without labels.
    """

    reference: str
    model: str
    devices: int
    different: int
    max_lsb: float | None
    top1_flips: int | None
    loss: Extreme | None
    low: float | None
    high: float | None
    p_value: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDevice:
    """What the check said on one device; `classes` are forms that gave the same values."""

    device: str
    verdict: Outcome
    classes: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkEntry:
    """One network: its forms, each against the first, and what follows.

    Attributes:
        answer: one sentence for each form but the first, and what nobody can say.
    """

    network: str
    forms: tuple[FormEntry, ...]
    rivals: tuple[RivalEntry, ...]
    on_devices: tuple[OnDevice, ...]
    answer: tuple[str, ...]


def find_networks(verdicts: Iterable[Verdict], records: Sequence[RunRecord]) -> tuple[NetworkEntry, ...]:
    """Put together what the network verdicts of a session say, one entry a network.

    Details of another form, as a user's own check may write them, are passed over: their verdict stands.

    Args:
        verdicts: of the session, in the order of the matrix.
        records: its runs.
    """
    found: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.check == "network" and len(verdict.devices) == 1 and _forms(verdict):
            found.setdefault(verdict.model, []).append(verdict)
    return tuple(_network(name, of_one, records) for name, of_one in found.items())


def _network(name: str, verdicts: Sequence[Verdict], records: Sequence[RunRecord]) -> NetworkEntry:
    models = dict.fromkeys(str(form.get("model")) for verdict in verdicts for form in _forms(verdict))
    forms = tuple(_form(model, verdicts, records) for model in models)
    first, *others = models
    rivals = tuple(_rival(first, other, verdicts) for other in others)
    on_devices = tuple(
        OnDevice(device=each.devices[0], verdict=each.outcome, classes=_classes(each)) for each in verdicts
    )
    return NetworkEntry(
        network=name, forms=forms, rivals=rivals, on_devices=on_devices, answer=_answer(forms, rivals)
    )


def _form(model: str, verdicts: Sequence[Verdict], records: Sequence[RunRecord]) -> FormEntry:
    seen = [
        (each.devices[0], form) for each in verdicts for form in _forms(each) if form.get("model") == model
    ]
    ran = [(device, form) for device, form in seen if form.get("status") == "ok"]
    shares = [_number(form.get("npu_share")) for _, form in ran if form.get("backend") != "cpu"]
    runs = {form.get("run") for _, form in ran}
    compared = {device for device, _ in seen}
    costs = [
        (record.device.id, record.measured)
        for record in records
        if record.model.id == model and record.device.id in compared
        if record.measured is not None and not (record.measured.simulated or record.device.simulated)
    ]
    bits = {
        tuple((tensor.name, tensor.sha256) for tensor in record.outputs)
        for record in records
        if record.id in runs
    }
    return FormEntry(
        model=model,
        variant=str(seen[0][1].get("variant", "")),
        runtimes=tuple(dict.fromkeys(str(form.get("runtime")) for _, form in seen)),
        devices=len(ran),
        asked=len(seen),
        on_npu=sum(share == 1.0 for share in shares),
        on_cpu=sum(share == 0.0 for share in shares)
        + sum(form.get("backend") == "cpu" and form.get("placement") == "pass" for _, form in ran),
        mixed=sum(share is not None and 0.0 < share < 1.0 for share in shares),
        classes=len(bits),
        top1=_worst((device, _number(form.get("top1"))) for device, form in ran),
        sqnr_db=_worst((device, _number(form.get("sqnr_db"))) for device, form in ran),
        latency_us=_worst(((id_, _typical_us(cost)) for id_, cost in costs), largest=True),
        peak_pss_kib=_worst(((id_, cost.peak_pss_kib.value) for id_, cost in costs), largest=True),
        energy_mj=_worst(((id_, cost.energy_mj.value) for id_, cost in costs), largest=True),
    )


def _rival(first: str, model: str, verdicts: Sequence[Verdict]) -> RivalEntry:
    pairs = [
        (verdict.devices[0], pair)
        for verdict in verdicts
        for pair in _entries(verdict.details.get("pairs"))
        if (pair.get("reference"), pair.get("observed")) == (first, model)
    ]
    contests = [
        (loss, verdict.devices[0], contest)
        for verdict in verdicts
        for contest in _entries(verdict.details.get("contests"))
        if (contest.get("reference"), contest.get("observed")) == (first, model)
        and (loss := _number(contest.get("loss"))) is not None
    ]
    worst = max(contests, key=lambda each: (abs(each[0]), each[0]), default=None)
    return RivalEntry(
        reference=first,
        model=model,
        devices=len({device for device, _ in pairs}),
        different=len({device for device, pair in pairs if pair.get("elements_different")}),
        max_lsb=max(
            (steps for _, pair in pairs if (steps := _number(pair.get("max_lsb"))) is not None), default=None
        ),
        top1_flips=max(
            (int(flips) for _, pair in pairs if (flips := _number(pair.get("top1_flips"))) is not None),
            default=None,
        ),
        loss=Extreme(value=worst[0], device=worst[1]) if worst else None,
        low=_number(worst[2].get("low")) if worst else None,
        high=_number(worst[2].get("high")) if worst else None,
        p_value=_number(worst[2].get("p_value")) if worst else None,
    )


def _answer(forms: Sequence[FormEntry], rivals: Sequence[RivalEntry]) -> tuple[str, ...]:
    by_model = {form.model: form for form in forms}
    sentences = [_sentence(rival, by_model) for rival in rivals]
    spread = ", ".join(f"{form.model} {form.classes} on {form.devices} devices" for form in forms)
    ran = "; ".join(f"{form.model} {places(form)}" for form in forms)
    return (*sentences, f"Classes of bits: {spread}.", f"Ran on: {ran}.", _costs(forms))


def _sentence(rival: RivalEntry, forms: Mapping[str, FormEntry]) -> str:
    form = forms[rival.model]
    subject = f"{rival.model} ({'/'.join(form.runtimes)}) against {rival.reference}"
    if not rival.devices:
        return f"{subject}: nothing to say, they were comparable on no device."
    told = f"{subject}: other values on {rival.different} of {rival.devices} devices"
    if rival.max_lsb is not None:
        told += f", up to {rival.max_lsb:.3g} steps"
    if rival.loss is None or rival.low is None or rival.high is None or rival.p_value is None:
        return f"{told}; accuracy was not measured."
    worst = -100 * rival.loss.value
    bounds = f"{-100 * rival.high:+z.2f} to {-100 * rival.low:+z.2f}, p = {rival.p_value:.2g}"
    told += f"; accuracy {worst:+z.2f} points ({bounds})"
    return f"{told}: not told apart." if rival.p_value >= ALPHA else f"{told} on {rival.loss.device}."


def _typical_us(cost: Measurements) -> float | None:
    """Return the median time of an inference, or the mean where nobody gives single times."""
    return cost.latency.mean_us if cost.latency.median_us is None else cost.latency.median_us


def _costs(forms: Sequence[FormEntry]) -> str:
    """Say what each form costs on the chip on which it costs most, and of which nobody knows."""
    told = []
    for form in forms:
        parts = [
            f"{text(figure.value)} ({figure.device})"
            for figure, text in (
                (form.latency_us, time_text),
                (form.peak_pss_kib, size_text),
                (form.energy_mj, energy_text),
            )
            if figure is not None
        ]
        told.append(f"{form.model} {', '.join(parts) or 'not measured'}")
    if all(
        figure is None for form in forms for figure in (form.latency_us, form.peak_pss_kib, form.energy_mj)
    ):
        return "Time, memory and energy: not measured on any chip."
    return f"Time, memory and energy at most: {'; '.join(told)}."


def places(form: FormEntry) -> str:
    """Say where a form ran, and on how many devices: `NPU on 6, CPU on 1`."""
    parts = [
        f"{what} on {number}"
        for what, number in (
            ("NPU", form.on_npu),
            ("NPU and CPU", form.mixed),
            ("CPU", form.on_cpu),
            ("unknown", form.devices - form.on_npu - form.mixed - form.on_cpu),
        )
        if number
    ]
    return ", ".join(parts) or "nothing"


def _worst(figures: Iterable[tuple[str, float | None]], *, largest: bool = False) -> Extreme | None:
    known = [(value, device) for device, value in figures if value is not None]
    if not known:
        return None
    value, device = (max if largest else min)(known, key=lambda each: each[0])
    return Extreme(value=value, device=device)


def _forms(verdict: Verdict) -> list[Mapping[str, Any]]:
    return _entries(verdict.details.get("forms"))


def _classes(verdict: Verdict) -> tuple[tuple[str, ...], ...]:
    found = verdict.details.get("classes")
    if not isinstance(found, list | tuple):
        return ()
    return tuple(tuple(map(str, models)) for models in found if isinstance(models, list | tuple))


def _entries(found: object) -> list[Mapping[str, Any]]:
    return [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list | tuple) else []


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # JSON bounds no integer
        return None
