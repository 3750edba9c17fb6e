"""What a log itself says is missing from it."""

from __future__ import annotations

import re

from pytest_devicelab.logs.dialect import Rule, RuleDialect

LOST = RuleDialect(
    name="logcat",
    rules=(
        # Source: Android's logd before version 12, which folds and expires records of busy writers.
        Rule(
            kind="lost_records",
            literals=(b"chatty",),
            pattern=re.compile(r"\b(?P<reason>identical|expire) (?P<count>[0-9]{1,9}) lines?\b"),
            tag=re.compile(r"chatty$"),
        ),
    ),
)
