"""A session on one screen of plain text, each line with a word for its style."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile, zip_longest
from typing import TypeVar

from pytest_devicelab.report import phrases
from pytest_devicelab.report.findings import Fallback
from pytest_devicelab.report.grid import (
    Cell,
    chip_names,
    class_letters,
    columns,
    letters_of,
    merge_fallbacks,
    merge_fusions,
)
from pytest_devicelab.report.lines import Entry, Line, Style, cut, limited, wrapped
from pytest_devicelab.report.measured import SIMULATED, measured_text
from pytest_devicelab.report.session import ComparisonEntry, DeviceEntry, Session, VerdictEntry
from pytest_devicelab.verdicts.comparison import Divergence

T = TypeVar("T")

MAX_LINES = 48
_DEVICES = 9  # rows of the table
_COLUMN = 13  # the narrowest column that shows ` 99.26% B *!X` whole

_LEGEND = "A B: identical bits  * declared fallback  ! undeclared  X fail  ~ flaky  ? inconclusive"
_ALARMING: tuple[Style, ...] = ("fail", "flaky", "inconclusive")  # the most urgent first
_PARTED = "Classes of identical bits, and the layer at which each parts from the first"


def summarize(session: Session, width: int, *, folder: str | None = None) -> list[Line]:
    """Say what a session found, in at most 48 lines.

    Sentences are wrapped, not cut. What does not fit is counted, and what is not green comes before what is.

    Args:
        session: the session.
        width: columns of the terminal.
        folder: where the session lies, for the reader to go on; by default `reports/<id>`.
    """
    head, table = _head(session, width), _table(session, width)
    end = wrapped(
        f"Read next: {folder or f'reports/{session.id}'}/report.html, session.json", width, "heading"
    )
    room = MAX_LINES - len(head) - len(table) - len(end)
    alarms = limited("", _alarms(session, width), room // 2, "finding")
    room -= len(alarms)
    fallbacks = limited("Fell back to the CPU", _fallbacks(session, width), room // 3, "fallback")
    room -= len(fallbacks)
    networks = limited("One network in several forms", _networks(session, width), room // 4, "answer")
    room -= len(networks)
    losses = limited("What was lost, and to what", _losses(session, width), room // 3, "loss")
    room -= len(losses)
    measured = limited(_measured_title(session), _measured(session, width), room // 3, "measurement")
    room -= len(measured)
    fused = _fusions(session, width)
    # Five lines show the first of the fusions, and how many more there are.
    reserved = min(5, 1 + sum(map(len, fused))) if fused else 0
    classes = limited(_PARTED, _classes(session, width), room - reserved, "comparison")
    fusions = limited(_fused_title(session), fused, room - len(classes), "model")
    kept = [
        section
        for section in (head, alarms, table, networks, measured, losses, classes, fallbacks, fusions, end)
        if section
    ]
    spare = MAX_LINES - sum(map(len, kept))
    lines = list(kept[0])
    for number, section in enumerate(kept[1:]):
        lines += [Line(text="")] * (number < spare) + section
    return [Line(text=cut(phrases.visible(line.text), width), style=line.style) for line in lines]


def _head(session: Session, width: int) -> Entry:
    head = wrapped(f"{session.outcome.upper()}: {phrases.headline(session)}", width, session.outcome)
    if note := phrases.simulation_note(session):
        head += wrapped(f"SIMULATED: {note}", width, "heading")
    return head


def _alarms(session: Session, width: int) -> list[Entry]:
    """Name the verdicts that are not green, holes and failures first; then who left a device bad."""
    groups: dict[tuple[str, str, str], list[VerdictEntry]] = {}
    for verdict in sorted(session.verdicts, key=lambda verdict: (*_ALARMING, "pass").index(verdict.verdict)):
        if verdict.verdict != "pass":
            groups.setdefault((verdict.verdict, verdict.check, verdict.model), []).append(verdict)
    left = [
        wrapped(f"LEFT {blame.device} not as it was found: {blame.by} ({blame.text})", width, "inconclusive")
        for blame in session.blames
    ]
    return [*_holes(session, width), *(_alarm(group, width) for group in groups.values()), *left]


def _holes(session: Session, width: int) -> list[Entry]:
    """Name the chips nothing is known of because no healthy unit was left."""
    return [
        wrapped(
            f"COVERAGE HOLE {hole.chip}: no healthy unit left of {', '.join(hole.devices)}, "
            f"{phrases.count(hole.runs, 'run')} missing: {hole.reason}",
            width,
            "inconclusive",
        )
        for hole in session.coverage_holes
    ]


def _alarm(group: list[VerdictEntry], width: int) -> Entry:
    first = group[0]
    devices = dict.fromkeys(device for verdict in group for device in verdict.devices)
    alike = len({verdict.reason for verdict in group}) == 1
    told = "" if alike else f" (the reason is that of {', '.join(first.devices)})"
    subject = f"{first.verdict.upper()} {first.check} {first.model} on {', '.join(devices)}{told}"
    return wrapped(f"{subject}: {first.reason}", width, first.verdict)


def _table(session: Session, width: int) -> Entry:
    """Draw the chip x model table: a row a device, a column a model, a CPU's figures above them."""
    every = columns(session)
    rows = _urgent_first(
        list(enumerate(session.devices)),
        _DEVICES,
        lambda row: any(column.cells[row[0]].verdict in _ALARMING for column in every),
    )
    prefix = _shared_prefix([column.model for column in every])
    titles = [f"accuracy of {prefix}*" if prefix else "accuracy", *["(simulated)"] * session.simulated]
    labels = [*titles, "quantized, CPU", *(_device(device) for _, device in rows)]
    label_width = max(map(len, labels)) + 2
    shown = _urgent_first(
        list(every),
        max(1, (width - label_width) // _COLUMN),
        lambda column: column.verdict in _ALARMING,
    )
    names = [phrases.visible(column.model[len(prefix) :]) for column in shown]
    widest = max(map(len, names), default=0) + 2
    column_width = max(_COLUMN, min(widest, (width - label_width) // max(1, len(shown))))

    def row(label: str, texts: Iterable[str], style: Style) -> Line:
        cells = "".join(cut(text, column_width - 1).ljust(column_width) for text in texts)
        return Line(text=(label.ljust(label_width) + cells).rstrip(), style=style)

    headers = zip_longest(*(_name_lines(name, column_width - 1) for name in names), fillvalue="")
    lines = [
        row(title, header or (), "heading") for title, header in zip_longest(titles, headers, fillvalue="")
    ]
    lines.append(row("float, CPU", [column.on_float for column in shown], "quiet"))
    lines.append(row("quantized, CPU", [column.on_cpu for column in shown], "quiet"))
    for index, device in rows:
        cells = [column.cells[index] for column in shown]
        lines.append(row(_device(device), [_cell(cell) for cell in cells], _row_style(cells)))
    hidden = [
        phrases.count(number, f"more {noun}")
        for number, noun in ((len(session.devices) - len(rows), "device"), (len(every) - len(shown), "model"))
        if number
    ]
    if hidden:
        lines.append(Line(text=f"… and {', '.join(hidden)} in report.html", style="quiet"))
    return [*lines, *wrapped(_LEGEND, width, "quiet")]


def _losses(session: Session, width: int) -> list[Entry]:
    """Say of each model what it lost and to what; a loss that is a chip's comes first, with what follows from it."""
    blamed = {"chip", "every_chip"}
    entries = []
    for found in sorted(session.attribution, key=lambda found: found.signal.cause not in blamed):
        entry = wrapped(phrases.attributed(session, found), width, "plain")
        if found.signal.cause in blamed:
            entry += wrapped(f"  {found.signal.reason}", width, "inconclusive")
        entries.append(entry)
    return entries


def _networks(session: Session, width: int) -> list[Entry]:
    """Say what the forms of each network have to do with each other."""
    return [wrapped(sentence, width, "plain") for found in session.networks for sentence in found.answer]


def _measured(session: Session, width: int) -> list[Entry]:
    """Say what each model costs on each device, as far as it was measured."""
    return [wrapped(measured_text(entry), width, "plain") for entry in session.measurements]


def _measured_title(session: Session) -> str:
    simulated = any(entry.simulated for entry in session.measurements)
    return f"Measured{f' (sim = {SIMULATED})' if simulated else ''}"


def _classes(session: Session, width: int) -> list[Entry]:
    """Name the classes of each comparison, and for each but the first where it parts from that."""
    letters = {found.model: class_letters(session, found.model) for found in session.comparisons}
    entries = []
    for found in session.comparisons:
        names = [_class_name(session, devices, letters[found.model]) for devices in found.classes]
        missing = ", ".join(entry.device for entry in found.missing)
        first = names[0] if names else "nothing to compare"
        alone = "; no other class" if len(names) == 1 else ""
        lost = f"; no output from {missing}" if missing else ""
        entry = wrapped(f"{found.model} {found.output}: {first}{alone}{lost}", width, "plain")
        for name, devices in zip(names[1:], found.classes[1:], strict=True):
            entry += wrapped(f"  {name}: {_parting(found, devices)}", width, "quiet")
        entries.append(entry)
    return entries


def _class_name(session: Session, devices: tuple[str, ...], letters: dict[str, str]) -> str:
    return f"{'/'.join(letters_of(devices, letters))} {{{','.join(chip_names(session, devices))}}}"


def _parting(comparison: ComparisonEntry, devices: tuple[str, ...]) -> str:
    """Say where a class parts from the first: at which layer, or else in how much of the output."""
    for divergence in comparison.divergences:
        if divergence.observed == devices:
            return _layer(divergence)
    for pair in comparison.pairs:
        if pair.observed == devices[0]:
            amount = f"{pair.elements_different:,} of {pair.elements:,} differ"
            return f"{amount} in the output; its layers were not compared"
    return "not held against the first"


def _layer(found: Divergence) -> str:
    # A quantizer names its nodes for what they do; saying the type once more only makes the line longer.
    node = found.node if found.op in found.node else f"{found.op} {found.node}"
    steps = f", up to {found.max_lsb:.3g} LSB" if found.max_lsb is not None else ""
    amount = f"{found.elements_different:,} of {found.elements:,} differ{steps}"
    place = f"{node}, layer {found.depth}/{found.layers}; {amount}"
    if found.taps_changed_output:
        return f"perhaps {place}; a hint only: tapping changed the model's output"
    return place


def _fallbacks(session: Session, width: int) -> list[Entry]:
    """Name each fallback, the runtime's own reason for it, and whether the matrix declares it."""
    merged = sorted(merge_fallbacks(session.fallbacks), key=lambda pair: pair[0].expected)
    return [_fallback(session, found, devices, width) for found, devices in merged]


def _fallback(session: Session, found: Fallback, devices: tuple[str, ...], width: int) -> Entry:
    said = f'"{found.reason}"' if found.reason else "the runtime gave none"
    known = f"declared: {found.expected_reason}" if found.expected else "not declared in the matrix"
    return [
        *wrapped(f"{found.op} {found.node} in {found.model} on {_where(session, devices)}", width, "plain"),
        *wrapped(f"  reason: {said}", width, "quiet"),
        *wrapped(f"  {known}", width, "quiet" if found.expected else "inconclusive"),
    ]


def _fusions(session: Session, width: int) -> list[Entry]:
    """Say which nodes became one operator; models in which the same did share an entry."""
    fused: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for fusion, devices in merge_fusions(session.fusions):
        nodes = " + ".join(source.replace(":", " ", 1) for source in fusion.sources)
        fused.setdefault((fusion.model, devices), []).append(nodes)
    models: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for (model, devices), found in fused.items():
        models.setdefault((tuple(found), devices), []).append(model)
    return [
        wrapped(f"{', '.join(names)} on {_where(session, devices)}: {', '.join(found)}", width, "plain")
        for (found, devices), names in models.items()
    ]


def _fused_title(session: Session) -> str:
    inferred = {fusion.shown_by == "zero_cycles" for fusion in session.fusions}
    how = {(True,): " (inferred from 0 cycles)", (False, True): " (some inferred from 0 cycles)"}
    return f"Fused on the NPU: nodes joined by + -> one HTP op{how.get(tuple(sorted(inferred)), '')}"


def _where(session: Session, devices: tuple[str, ...]) -> str:
    every = [device.id for device in session.devices if device.hexagon]
    return f"all {len(every)} NPUs" if len(every) > 1 and set(every) == set(devices) else " ".join(devices)


def _device(device: DeviceEntry) -> str:
    names = [device.id, *(name for name in (device.hexagon, device.soc or "unknown chip") if name)]
    if device.simulated:
        names.append("sim")
    if device.status == "not_seen":
        names.append("not seen")
    return " ".join(names)


def _cell(cell: Cell) -> str:
    marks = "*" * bool(cell.expected) + "!" * bool(cell.unexpected)
    verdict = {"fail": "X", "flaky": "~", "inconclusive": "?", "pass": "", None: ""}[cell.verdict]
    return " ".join(part for part in (cell.figure, cell.letter, marks + verdict) if part)


def _row_style(cells: Sequence[Cell]) -> Style:
    verdicts = {cell.verdict for cell in cells}
    return next((verdict for verdict in _ALARMING if verdict in verdicts), "plain")


def _urgent_first(items: Sequence[T], room: int, urgent: Callable[[T], bool]) -> list[T]:
    """Keep as many items as there is room for, in their order; urgent ones are kept before others."""
    kept = sorted(range(len(items)), key=lambda index: not urgent(items[index]))[:room]
    return [items[index] for index in sorted(kept)]


def _shared_prefix(names: Sequence[str]) -> str:
    """Return the words all names begin with, leaving each at least its last: `digits_`."""
    if len(names) < 2:
        return ""
    leading = zip(*(name.split("_")[:-1] for name in names), strict=False)
    return "".join(f"{words[0]}_" for words in takewhile(lambda words: len(set(words)) == 1, leading))


def _name_lines(name: str, width: int) -> list[str]:
    """Break a name behind a `_`, where it can be: `transformer_`, `int8`."""
    pieces = [f"{piece}_" for piece in name.split("_")]
    pieces[-1] = pieces[-1][:-1]
    lines = [""]
    for piece in pieces:
        if lines[-1] and len(lines[-1]) + len(piece) > width:
            lines.append("")
        lines[-1] += piece
    return lines if len(lines) <= 2 else [lines[0], cut("".join(lines[1:]), width)]
