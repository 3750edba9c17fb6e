"""What a misspelled word probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SHOWN_CHARACTERS = 60


def nearest(word: str, choices: Iterable[str], *, cutoff: float = 0.5) -> tuple[str, ...]:
    """Return up to three of `choices` that look like `word`, the most alike first, ignoring case."""
    spelled = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(word.casefold()[:200], spelled, n=3, cutoff=cutoff)
    return tuple(spelled[name] for name in close)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ` (did you mean 'x' or 'y'?)`, or nothing when no choice looks like `word`."""
    close = nearest(word, choices)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


def show(text: str) -> str:
    """Return text quoted for a message: escapes visible, on one line, not too long."""
    quoted = ascii(text) if not text.isprintable() else repr(text)
    return quoted if len(quoted) <= SHOWN_CHARACTERS else quoted[: SHOWN_CHARACTERS - 4] + "...'"
