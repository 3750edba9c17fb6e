"""A log dialect for a vendor's own daemon: what it says of clocks, and of models it moved to the CPU."""

from __future__ import annotations

import re

from pytest_devicelab.logs.dialect import Rule, RuleDialect

GAUGE = RuleDialect(
    name="gauge",
    rules=(
        Rule(
            kind="throttling",
            literals=(b"npu clock lowered",),
            pattern=re.compile(r"(?P<reason>npu clock lowered to (?P<clock_mhz>[0-9]{1,5}) MHz)"),
            tag=re.compile("gauged"),
        ),
        Rule(
            kind="cpu_fallback",
            literals=(b"moved to cpu",),
            pattern=re.compile(r"model (?P<node>\S{1,128}) moved to cpu: (?P<reason>.{1,200})"),
            fields={"op": "", "runtime": "gauge"},
            tag=re.compile("gauged"),
            unless=re.compile(r"\btest mode\b"),
        ),
    ),
)
