"""A session in which every text is an attack, as a device, a log or a model could write it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_type_hints

from pytest_devicelab.report.session import Session

ATTACK = (
    "\"'></td></style></title><script>window.pwned='script'</script><img src=x onerror=\"window.pwned='img'\">"
    "<svg onload=\"window.pwned='svg'\"></svg><a href=\"javascript:window.pwned='link'\">x</a>"
    "<iframe srcdoc=\"<script>top.pwned='frame'</script>\"></iframe><base href='https://evil.example/'>"
    '<meta http-equiv="refresh" content="0;url=https://evil.example/"><style>*{display:none}</style>'
    "{{ 7 * 191 }}{% raw %}&lt;script&gt;\u202e\x1b[2J\x00\ud800"
)

PATHS_OUT = (
    "javascript:window.pwned='path'",
    "javascript:window.pwned='path'//x.json",
    "JaVaScRiPt:alert(1)/x.json",
    "data:text/html,<script>window.pwned='data'</script>.json",
    "https://evil.example/x.json",
    "//evil.example/x.json",
    "/etc/passwd",
    "/etc/x.json",
    "file:///etc/x.json",
    "../x.json",
    "../../../../etc/x.json",
    "runs/../../x.json",
    "runs/./x.json",
    "runs//x.json",
    "runs\\..\\..\\x.json",
    "..\\x.json",
    "C:/x.json",
    " javascript:alert(1).json\n",
    "runs/a\n/../../x.json",
    "",
    ".",
    "runs/",
    # Inside, but a browser would run what is in them.
    "runs/a/page.html",
    "runs/a/drawing.svg",
    "runs/a/page.xhtml",
    "runs/a/noending",
)

# Odd, but names of files inside: their links must stay inside too.
PATHS_IN = (
    "runs/%2e%2e/%2e%2e/x.json",
    "runs/a?b=c/x.json",
    "runs/a#b/x.json",
    "runs/a b/x.json",
    "runs/..a/x.json",
)


def hostile(session: Session) -> Session:
    """Return the session with an attack added to every text and with every path turned."""
    poisoned: Session = _poison(session)
    verdicts = tuple(dataclasses.replace(v, evidence=PATHS_OUT + PATHS_IN) for v in poisoned.verdicts)
    runs = tuple(
        dataclasses.replace(run, record=path)
        for run, path in zip(poisoned.runs, PATHS_OUT + PATHS_IN, strict=False)
    )
    return dataclasses.replace(poisoned, verdicts=verdicts, runs=runs)


def _poison(value: Any, hint: Any = object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value))
        changed = {f.name: _poison(getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(value)}
        return type(value)(**changed)
    if isinstance(value, tuple):
        return tuple(_poison(item, str if isinstance(item, str) else object) for item in value)
    if isinstance(value, Mapping) and all(isinstance(item, str) for item in value.values()):
        return {name + ATTACK: item + ATTACK for name, item in value.items()}
    # Fields with a closed set of words are checked where they are read; all other text is free.
    return value + ATTACK if isinstance(value, str) and hint in (str, str | None) else value
