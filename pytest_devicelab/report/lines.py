"""Lines of plain text that fit a terminal: wrapped rather than cut, counted where there is no room."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Literal

from pytest_devicelab.report import phrases

Style = Literal["heading", "plain", "quiet", "pass", "fail", "flaky", "inconclusive"]

_SENTENCE = 5  # lines a single sentence may take


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the summary, without a newline; `style` is for the terminal to colour it by."""

    text: str
    style: Style = "plain"


Entry = list[Line]
"""One finding: its sentence, wrapped, and what belongs to it."""


def wrapped(text: str, width: int, style: Style) -> Entry:
    """Wrap a sentence with a hanging indent; only one of more than a few lines is cut."""
    indent = text[: len(text) - len(text.lstrip())]
    found = textwrap.wrap(
        phrases.visible(" ".join(text.split())),
        max(width, len(indent) + 8),
        initial_indent=indent,
        subsequent_indent=f"{indent}    ",
        break_on_hyphens=False,
    )
    if len(found) > _SENTENCE:
        found = [*found[: _SENTENCE - 1], f"{found[_SENTENCE - 1][: max(0, width - 1)]}…"]
    return [Line(text=line, style=style) for line in found]


def limited(title: str, entries: list[Entry], room: int, noun: str) -> Entry:
    """Keep the entries that fit below their title, and count the others on one more line."""
    lines = [Line(text=title, style="heading")] if title and entries else []
    for index, entry in enumerate(entries):
        last = index == len(entries) - 1
        if len(lines) + len(entry) + (not last) > room:
            rest = phrases.count(len(entries) - index, f"more {noun}" if index else noun)
            return [*lines, Line(text=f"… {'and ' if index else ''}{rest} in report.html", style="quiet")]
        lines += entry
    return lines


def cut(text: str, width: int) -> str:
    """Cut a row of a table, which cannot be wrapped."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"
