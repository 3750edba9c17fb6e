"""ExecuTorch: what its QNN partitioner would not take, and what its runners measured."""

from __future__ import annotations

import re

from pytest_devicelab.logs.dialect import Rule, RuleDialect

# `[QNN Partitioner Op Support]: op | answer` (older, printed), `[QnnPartitioner] op | answer` (newer, at INFO).
_OP = r"\[(?:QNN Partitioner Op Support|QnnPartitioner)\]:? (?P<op>[\w.]{1,256}) \| "

EXECUTORCH = RuleDialect(
    name="executorch",
    rules=(
        # Somebody chose to leave these out: nothing rejected them, and yet the CPU runs them.
        Rule(
            kind="cpu_fallback",
            literals=(b"Partitioner",),
            pattern=re.compile(_OP + r"(?P<reason>Forced Fallback|Skipped.{0,512})$"),
            fields={"node": "", "runtime": "executorch"},
        ),
        Rule(
            kind="op_rejected",
            literals=(b"Partitioner",),
            pattern=re.compile(_OP + r"(?P<reason>(?:False|No node visitor).{0,512})$"),
            fields={"node": ""},
        ),
        Rule(
            kind="load_error",
            literals=(b"Execution of method ",),
            pattern=re.compile(
                r"(?P<reason>Execution of method \S{1,256} failed with status (?P<code>0x[0-9a-fA-F]{1,8}))"
            ),
            fields={"stage": "execute"},
        ),
        Rule(
            kind="op_time",
            literals=(b"inference took ",),
            pattern=re.compile(
                r"\b(?P<runs>[0-9]{1,9}) inference took [0-9.]{1,32} ms, avg (?P<time_ms>[0-9.]{1,32}) ms"
            ),
            fields={"op": "inference", "node": ""},
        ),
    ),
)
