"""A session as one HTML file that needs nothing else: no script, no request, no font."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from pytest_devicelab.report import phrases
from pytest_devicelab.report.fallback_table import fallback_rows
from pytest_devicelab.report.grid import (
    chip_names,
    class_letters,
    columns,
    letters_of,
    merge_fallbacks,
    merge_fusions,
    percent,
)
from pytest_devicelab.report.measured import energy_text, latency_text, size_text, time_text
from pytest_devicelab.report.networks import places
from pytest_devicelab.report.session import Session

# What a browser shows as text or offers to save. An .html or .svg a device left behind would run.
_LINKED = frozenset({".json", ".npy", ".npz", ".raw", ".txt", ".log", ".csv", ".bin", ".onnx"})
_PART = re.compile(r"[^/\\:\x00-\x1f\x7f]+")


def render_html(session: Session) -> str:
    """Render the report page, to be written as UTF-8 into the session's folder.

    Every text in it is escaped by jinja2, and its policy (CSP) allows the one style sheet it carries, by
    hash, and nothing else: should a text get through, the browser still runs and loads nothing.

    Args:
        session: the session; texts in it may be hostile.
    """
    import jinja2
    import markupsafe

    def finalize(value: object) -> object:
        plain = isinstance(value, str) and not isinstance(value, markupsafe.Markup)
        return phrases.visible(str(value), keep="\n\t") if plain else value

    folder = Path(__file__).with_name("templates")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(href=evidence_href, percent=percent, count=phrases.count)
    style = (folder / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    return environment.get_template("report.html.j2").render(
        style=markupsafe.Markup(style),  # our own file
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        **_content(session),
    )


def evidence_href(path: str) -> str | None:
    """Return a relative link to a file below the session's folder, or None for anything else.

    Args:
        path: as a verdict or record names it: relative, with `/`. A scheme, an absolute path, `..`, a
            backslash, and files that a browser would run are all refused.
    """
    parts = path.split("/")
    inside = all(_PART.fullmatch(part) and part not in (".", "..") for part in parts)
    if not inside or PurePosixPath(path).suffix.lower() not in _LINKED:
        return None
    return quote(path.encode("utf-8", "surrogatepass"), safe="/")


def _content(session: Session) -> dict[str, Any]:
    models = [model.id for model in session.models]
    return {
        "session": session,
        "headline": phrases.headline(session),
        "simulation_note": phrases.simulation_note(session),
        "columns": columns(session),
        "letters": {found.model: class_letters(session, found.model) for found in session.comparisons},
        "alarms": sorted(
            (verdict for verdict in session.verdicts if verdict.verdict != "pass"),
            key=lambda verdict: ("fail", "flaky", "inconclusive").index(verdict.verdict),
        ),
        "comparisons": session.comparisons,
        "uncompared": [model for model in models if model not in {c.model for c in session.comparisons}],
        "fallbacks": sorted(merge_fallbacks(session.fallbacks), key=lambda pair: pair[0].expected),
        "fallback_rows": fallback_rows(session),
        "fusions": merge_fusions(session.fusions),
        "chip_names": partial(chip_names, session),
        "letters_of": letters_of,
        "simulation_mark": partial(phrases.simulation_mark, session),
        "parting": phrases.parting,
        "divergence": phrases.divergence,
        "loss": phrases.loss,
        "distance": phrases.distance,
        "form_places": places,
        "latency_text": latency_text,
        "time_text": time_text,
        "size_text": size_text,
        "energy_text": energy_text,
        "moved": phrases.moved(session),
    }
