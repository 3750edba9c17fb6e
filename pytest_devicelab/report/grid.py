"""The chip x model table, and findings merged over devices: what the terminal and the HTML page both show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pytest_devicelab.report.findings import Fallback, Fusion
from pytest_devicelab.report.session import ComparisonEntry, DeviceEntry, Session, VerdictEntry, worst
from pytest_devicelab.verdicts.verdict import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One model on one device.

    Attributes:
        figure: top-1 accuracy where there are labels, else SQNR, else what became of the run.
        change: accuracy against the float model, in percentage points, such as `-0.18`; else empty.
        letter: the class of bit-identical devices it belongs to; empty when it was not compared.
        verdict: the worst verdict on this model and device alone; None when nobody judged it.
        expected: fallbacks the matrix declares; `unexpected`: all others.
    """

    figure: str
    change: str
    letter: str
    verdict: Outcome | None
    expected: int
    unexpected: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One model: its cells in the order of the session's devices, and what a CPU gives for it.

    Attributes:
        on_float: accuracy of the float model on a CPU; empty when unknown.
        on_cpu: accuracy of this, the quantized model, on a CPU.
        agreement: the worst verdict on several devices together.
    """

    model: str
    on_float: str
    on_cpu: str
    agreement: Outcome | None
    cells: tuple[Cell, ...]

    @property
    def verdict(self) -> Outcome | None:
        """The worst verdict on this model anywhere."""
        every = (self.agreement, *(cell.verdict for cell in self.cells))
        return worst(verdict for verdict in every if verdict)


def columns(session: Session) -> tuple[Column, ...]:
    """Return one column a model, in the session's order."""
    return tuple(_column(session, model.id) for model in session.models)


def class_letters(session: Session, model: str) -> dict[str, str]:
    """Give every compared device of a model the letter of its class: A is the largest.

    A model with several outputs is in one class with another device only if all of them agree.
    """
    widest: dict[str, ComparisonEntry] = {}
    for found in session.comparisons:
        if found.model == model and _width(found) > _width(widest.get(found.output)):
            widest[found.output] = found
    places: dict[str, list[int]] = {}
    for comparison in widest.values():
        for index, devices in enumerate(comparison.classes):
            for device in devices:
                places.setdefault(device, []).append(index)
    distinct = sorted({tuple(place) for place in places.values()})
    return {device: _letter(distinct.index(tuple(place))) for device, place in places.items()}


def letters_of(devices: Iterable[str], letters: Mapping[str, str]) -> tuple[str, ...]:
    """Name the classes some devices belong to, each once.

    Devices that agree in one output have several letters when another output of the model parts them.
    """
    return tuple(dict.fromkeys(letters[device] for device in devices if device in letters))


def chip_names(session: Session, devices: Iterable[str]) -> tuple[str, ...]:
    """Name the NPUs of some devices, each once: `V68`, or the chip where it has no Hexagon."""
    chips = {device.id: device.chip for device in session.devices}
    return tuple(dict.fromkeys(chips.get(device, device) for device in devices))


def merge_fallbacks(fallbacks: Iterable[Fallback]) -> tuple[tuple[Fallback, tuple[str, ...]], ...]:
    """Merge fallbacks that differ in the device alone; returns each with its devices."""
    merged: dict[Fallback, list[str]] = {}
    for fallback in fallbacks:
        merged.setdefault(replace(fallback, device=""), []).append(fallback.device)
    return tuple((fallback, tuple(devices)) for fallback, devices in merged.items())


def merge_fusions(fusions: Iterable[Fusion]) -> tuple[tuple[Fusion, tuple[str, ...]], ...]:
    """Merge fusions that differ in the device alone; returns each with its devices."""
    merged: dict[Fusion, list[str]] = {}
    for fusion in fusions:
        merged.setdefault(replace(fusion, device=""), []).append(fusion.device)
    return tuple((fusion, tuple(devices)) for fusion, devices in merged.items())


def percent(share: float) -> str:
    """Write a share of 1 as `99.44%`."""
    return f"{100 * share:.2f}%"


def _column(session: Session, model: str) -> Column:
    verdicts = [verdict for verdict in session.verdicts if verdict.model == model]
    letters = class_letters(session, model)
    accuracy = [verdict for verdict in verdicts if verdict.check == "accuracy"]
    return Column(
        model=model,
        on_float=_first_share(accuracy, "top1_float"),
        on_cpu=_first_share(accuracy, "top1_quantized_cpu"),
        agreement=worst(verdict.verdict for verdict in verdicts if len(verdict.devices) != 1),
        cells=tuple(
            _cell(session, model, device, letters.get(device.id, ""), verdicts) for device in session.devices
        ),
    )


def _cell(
    session: Session, model: str, device: DeviceEntry, letter: str, verdicts: list[VerdictEntry]
) -> Cell:
    own = [verdict for verdict in verdicts if verdict.devices == (device.id,)]
    fallbacks = [found for found in session.fallbacks if (found.model, found.device) == (model, device.id)]
    figure, change = _figure([verdict for verdict in own if verdict.check == "accuracy"])
    expected = sum(fallback.expected for fallback in fallbacks)
    return Cell(
        figure=figure or _run_status(session, model, device.id),
        change=change,
        letter=letter,
        verdict=worst(verdict.verdict for verdict in own),
        expected=expected,
        unexpected=len(fallbacks) - expected,
    )


def _figure(accuracy: list[VerdictEntry]) -> tuple[str, str]:
    for verdict in accuracy:
        top1 = _number(verdict.details.get("top1_device"))
        on_float = _number(verdict.details.get("top1_float"))
        if top1 is not None:
            return percent(top1), "" if on_float is None else f"{100 * (top1 - on_float):+z.2f}"
        sqnr = _number(verdict.details.get("sqnr_device_db"))
        if sqnr is not None:
            return f"{sqnr:.1f} dB", ""
    return "", ""


def _run_status(session: Session, model: str, device: str) -> str:
    statuses = {run.status for run in session.runs if (run.model, run.device) == (model, device)}
    words = (("refused", "refused"), ("ok", "ran"), ("failed", "lab failed"))
    return next((word for status, word in words if status in statuses), "no run")


def _first_share(accuracy: list[VerdictEntry], name: str) -> str:
    found = (_number(verdict.details.get(name)) for verdict in accuracy)
    return next((percent(share) for share in found if share is not None), "")


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # JSON bounds no integer
        return None


def _width(comparison: ComparisonEntry | None) -> int:
    return sum(map(len, comparison.classes)) if comparison else -1


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"#{index + 1}"
