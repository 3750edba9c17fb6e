"""A session on one screen of plain text, each line with a word for its style."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from pytest_devicelab.report import phrases
from pytest_devicelab.report.grid import (
    Cell,
    chip_names,
    class_letters,
    columns,
    letters_of,
    merge_fallbacks,
    merge_fusions,
)
from pytest_devicelab.report.session import ComparisonEntry, DeviceEntry, Session

Style = Literal["heading", "plain", "quiet", "pass", "fail", "inconclusive"]

T = TypeVar("T")

# Rows each section may take; with the fixed lines around them they come to MAX_LINES at most.
MAX_LINES = 40
_DEVICES, _ALARMS, _CLASSES, _FALLBACKS = 9, 4, 8, 2
_COLUMN = 13  # the narrowest column that shows ` 99.26% B *!X` whole

_LEGEND = "A B: identical bits  * declared fallback  ! undeclared  X fail  ? inconclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the summary, without a newline; `style` is for the terminal to colour it by."""

    text: str
    style: Style = "plain"


def summarize(session: Session, width: int, *, folder: str | None = None) -> list[Line]:
    """Say what a session found, in at most 40 lines.

    What does not fit is counted, and what is not green is shown before what is.

    Args:
        session: the session.
        width: columns of the terminal; longer lines are cut.
        folder: where the session lies, for the reader to go on; by default `reports/<id>`.
    """
    sections = (
        _head(session),
        _alarms(session),
        _table(session, width),
        _classes(session),
        _fallbacks(session),
        _fusions(session),
        _read_next(folder or f"reports/{session.id}"),
    )
    kept = [section for section in sections if section]
    lines = [line for section in kept for line in section]
    if len(lines) + len(kept) - 1 <= MAX_LINES:
        lines = [line for section in kept for line in (*section, Line(text=""))][:-1]
    return [Line(text=_cut(phrases.visible(line.text), width), style=line.style) for line in lines]


def _head(session: Session) -> list[Line]:
    head = [Line(text=f"{session.outcome.upper()}: {phrases.headline(session)}", style=session.outcome)]
    if note := phrases.simulation_note(session):
        head.append(Line(text=f"SIMULATED: {note}", style="heading"))
    return head


def _alarms(session: Session) -> list[Line]:
    """Name the verdicts that are not green, failures first."""
    alarms = sorted(
        (verdict for verdict in session.verdicts if verdict.verdict != "pass"),
        key=lambda verdict: verdict.verdict != "fail",
    )
    return _limited(
        [
            Line(
                text=f"{entry.verdict.upper()} {entry.check} {entry.model} on {', '.join(entry.devices)}: "
                f"{_one_line(entry.reason)}",
                style=entry.verdict,
            )
            for entry in alarms
        ],
        _ALARMS,
        "verdict",
    )


def _table(session: Session, width: int) -> list[Line]:
    """Draw the chip x model table: a row a device, a column a model, a CPU's figures above them."""
    every = columns(session)
    rows = _urgent_first(
        list(enumerate(session.devices)),
        _DEVICES,
        lambda row: any(column.cells[row[0]].verdict in ("fail", "inconclusive") for column in every),
    )
    title = "accuracy (simulated)" if session.simulated else "accuracy"
    labels = [title, "float, CPU", "quantized, CPU", *(_device(device) for _, device in rows)]
    label_width = max(map(len, labels)) + 2
    shown = _urgent_first(
        list(every),
        max(1, (width - label_width) // _COLUMN),
        lambda column: column.verdict in ("fail", "inconclusive"),
    )
    widest = max((len(column.model) for column in shown), default=0) + 2
    column_width = max(_COLUMN, min(widest, (width - label_width) // max(1, len(shown))))

    def row(label: str, texts: Sequence[str], style: Style) -> Line:
        cells = "".join(_cut_middle(text, column_width - 1).ljust(column_width) for text in texts)
        return Line(text=(label.ljust(label_width) + cells).rstrip(), style=style)

    lines = [
        row(title, [column.model for column in shown], "heading"),
        row("float, CPU", [column.on_float for column in shown], "quiet"),
        row("quantized, CPU", [column.on_cpu for column in shown], "quiet"),
    ]
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
    return [*lines, Line(text=_LEGEND, style="quiet")]


def _classes(session: Session) -> list[Line]:
    """Name the classes of each comparison, and where the first two of them part."""
    if not session.comparisons:
        return []
    letters = {found.model: class_letters(session, found.model) for found in session.comparisons}
    lines: list[Line] = []
    for comparison in session.comparisons:
        lines.append(Line(text=_class_line(session, comparison, letters[comparison.model])))
        found = comparison.first_divergence
        if found:
            place = f"{phrases.parting(found, letters[comparison.model])} {phrases.divergence(found)}"
            lines.append(Line(text=f"  {place}", style="quiet"))
    return [Line(text="Devices with identical bits", style="heading"), *_limited(lines, _CLASSES, "line")]


def _class_line(session: Session, comparison: ComparisonEntry, letters: dict[str, str]) -> str:
    classes = []
    for devices in comparison.classes:
        names = "/".join(letters_of(devices, letters))
        classes.append((f"{names} {{{','.join(chip_names(session, devices))}}}", " ".join(devices)))
    text = " | ".join(name for name, _ in classes) or "nothing to compare"
    ids = " | ".join(ids for _, ids in classes)
    missing = (
        f"; no output: {' '.join(entry.device for entry in comparison.missing)}" if comparison.missing else ""
    )
    return f"{comparison.model} {comparison.output}: {text}  ({ids}{missing})"


def _fallbacks(session: Session) -> list[Line]:
    """Name each fallback, the runtime's own reason for it, and whether the matrix declares it."""
    merged = sorted(merge_fallbacks(session.fallbacks), key=lambda pair: pair[0].expected)
    if not merged:
        return []
    lines = [Line(text="Fell back to the CPU", style="heading")]
    for found, devices in merged[:_FALLBACKS]:
        said = f'"{_one_line(found.reason)}"' if found.reason else "gave no reason"
        known = (
            f"declared: {_one_line(found.expected_reason)}"
            if found.expected
            else "not declared in the matrix"
        )
        lines += [
            Line(text=f"{found.op} {found.node} in {found.model} on {' '.join(devices)}"),
            Line(text=f"  runtime: {said}", style="quiet"),
            Line(text=f"  {known}", style="quiet" if found.expected else "inconclusive"),
        ]
    if len(merged) > _FALLBACKS:
        rest = phrases.count(len(merged) - _FALLBACKS, "more fallback")
        lines.append(Line(text=f"… and {rest} in report.html", style="quiet"))
    return lines


def _fusions(session: Session) -> list[Line]:
    merged = merge_fusions(session.fusions)
    if not merged:
        return []
    example, devices = merged[0]
    nodes = " + ".join(example.sources)
    how = "" if example.shown_by == "sources" else " (0 cycles of its own)"
    place = f"{example.model} on {' '.join(devices)}"
    return [Line(text=f"Fused: {len(merged)}, such as {nodes}{how} into {example.into} in {place}")]


def _read_next(folder: str) -> list[Line]:
    return [
        Line(text=f"Read next: {folder}/report.html", style="heading"),
        Line(text=f"           {folder}/session.json"),
    ]


def _device(device: DeviceEntry) -> str:
    names = [device.id, *(name for name in (device.hexagon, device.soc or "unknown chip") if name)]
    if device.simulated:
        names.append("sim")
    if device.status == "not_seen":
        names.append("not seen")
    return " ".join(names)


def _cell(cell: Cell) -> str:
    marks = "*" * bool(cell.expected) + "!" * bool(cell.unexpected)
    verdict = {"fail": "X", "inconclusive": "?", "pass": "", None: ""}[cell.verdict]
    return " ".join(part for part in (cell.figure, cell.letter, marks + verdict) if part)


def _row_style(cells: Sequence[Cell]) -> Style:
    verdicts = {cell.verdict for cell in cells}
    return "fail" if "fail" in verdicts else "inconclusive" if "inconclusive" in verdicts else "plain"


def _urgent_first(items: Sequence[T], room: int, urgent: Callable[[T], bool]) -> list[T]:
    """Keep as many items as there is room for, in their order; urgent ones are kept before others."""
    kept = sorted(range(len(items)), key=lambda index: not urgent(items[index]))[:room]
    return [items[index] for index in sorted(kept)]


def _limited(lines: list[Line], room: int, noun: str) -> list[Line]:
    """Keep the first lines, and count the others on one more."""
    if len(lines) <= room:
        return lines
    rest = phrases.count(len(lines) - room + 1, f"more {noun}")
    return [*lines[: room - 1], Line(text=f"… and {rest} in report.html", style="quiet")]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cut_middle(text: str, width: int) -> str:
    """Cut where names of one family differ least: `digits…_a16w8`."""
    if len(text) <= width:
        return text
    tail = width // 2
    return f"{text[: width - tail - 1]}…{text[-tail:]}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"
