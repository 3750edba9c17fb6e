"""What a look at a lab found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at: `warn` where a part of the project does without, `fail` where no session can run."""

    name: str
    grade: Literal["ok", "warn", "fail"]
    text: str
    fix: str = ""
