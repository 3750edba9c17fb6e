"""Sentences that the terminal and the HTML page share, and how to show text nobody vouches for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from pytest_devicelab.errors import visible as visible
from pytest_devicelab.report.grid import percent
from pytest_devicelab.report.session import AttributionEntry, Session
from pytest_devicelab.verdicts.comparison import Distance, Divergence
from pytest_devicelab.verdicts.ledger import Loss


def count(number: int, noun: str) -> str:
    """Write `1 model`, `2 models`, `2 more losses`."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"


def headline(session: Session) -> str:
    """Say how much was judged, and how it came out: `4 models on 7 devices, 28 checks: 28 pass`."""
    outcomes = Counter(verdict.verdict for verdict in session.verdicts)
    split = ", ".join(
        f"{outcomes[word]:,} {word}" for word in ("pass", "fail", "flaky", "inconclusive") if outcomes[word]
    )
    seen = sum(device.status == "seen" for device in session.devices)
    unseen = len(session.devices) - seen
    devices = count(seen, "device") + (f" ({unseen} not seen)" if unseen else "")
    checks = f"{count(len(session.verdicts), 'check')}: {split}" if split else "nothing was judged"
    return f"{count(len(session.models), 'model')} on {devices}, {checks}"


def divergence(found: Divergence) -> str:
    """Say where two classes part: the op, its node, how deep it lies and how much differs."""
    # Nothing tapped is nothing compared; a share of it would be invented.
    share = f" ({percent(found.elements_different / found.elements)})" if found.elements else ""
    steps = f", by {found.max_lsb:g} LSB at most" if found.max_lsb is not None else ""
    doubt = "; a hint only: tapping changed the model's output" if found.taps_changed_output else ""
    place = f"{found.op} {found.node}, layer {found.depth} of {found.layers}"
    amount = f"{found.elements_different:,} of {count(found.elements, 'element')} differ{share}{steps}"
    return f"{place}: {amount}, over {count(found.samples, 'sample')}{doubt}"


def parting(found: Divergence, letters: Mapping[str, str]) -> str:
    """Name the two classes that part: `A and B part first at`, or `may part`, when it is only a hint."""
    names = [letters.get(devices[0], devices[0]) for devices in (found.reference, found.observed) if devices]
    return f"{' and '.join(names)} {'may part' if found.taps_changed_output else 'part first'} at"


def attributed(session: Session, entry: AttributionEntry) -> str:
    """Say in one line what a model lost and to what; its output is named where it has several."""
    several = sum(other.model == entry.model for other in session.attribution) > 1
    # A loss of nothing in points is what everybody hopes for, and not worth half of the line.
    quiet = entry.accuracy is not None and entry.accuracy.cause == "nothing"
    return (
        f"{entry.model}{f' {entry.output}' if several else ''}: {entry.signal.line if quiet else entry.line}"
    )


def loss(found: Loss | None, unit: str) -> str:
    """Write a loss with its interval: `0.2 dB (0.1 to 0.4)`."""
    if found is None:
        return "no figure"
    digits = 1 if unit == "dB" else 2
    value, low, high = (
        f"{round(each, digits) + 0.0:.{digits}f}" for each in (found.value, found.low, found.high)
    )
    return f"{value} {unit} ({low} to {high})"


def distance(found: Distance | None) -> str:
    """Write one cell of the matrix of classes: `1,873 differ, 2 LSB, 38.6 dB`."""
    if found is None:
        return "same bits"
    steps = f", {found.max_lsb:.3g} LSB" if found.max_lsb is not None else ""
    noise = f", {found.sqnr_db:.1f} dB" if found.sqnr_db is not None else ""
    return f"{found.elements_different:,} differ{steps}{noise}"


def moved(session: Session) -> str:
    """Say how many bytes were moved, and how many were not: `7 MB to devices, 32 MB back; ...`."""
    found = session.transfers
    spared = f"; {size(found.spared_bytes)} stayed there: the same bits had come from another run"
    text = f"{size(found.pushed_bytes)} pushed to devices, {size(found.pulled_bytes)} pulled"
    return text + spared * bool(found.spared_bytes)


def size(number: int) -> str:
    """Write a number of bytes: `812 B`, `21.6 kB`, `31.7 MB`."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number} B"


def simulation_mark(session: Session, devices: Iterable[str]) -> str:
    """Mark figures of some devices as `simulated` or `partly simulated`; empty when all are silicon's."""
    simulated = {device.id for device in session.devices if device.simulated}
    marks = {device in simulated for device in devices}
    return {(True,): "simulated", (False, True): "partly simulated"}.get(tuple(sorted(marks)), "")


def simulation_note(session: Session) -> str:
    """Say which devices' figures come from a simulator; empty when none do."""
    simulated = sum(device.simulated for device in session.devices)
    if not simulated:
        return ""
    return f"figures of {simulated} of {len(session.devices)} devices come from a simulator, not from a chip"
