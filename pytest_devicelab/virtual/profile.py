"""The op profile ONNX Runtime writes for QNN, as rows of evidence."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from pytest_devicelab.evidence.record import OpRow
from pytest_devicelab.virtual.runtime_log import onnx_name

_SUFFIX = " (cycles)"


def op_rows(
    profile_csv: bytes,
    ops: Mapping[str, str],
    *,
    partitions: int = 1,
    origins: Mapping[str, tuple[str, ...]] | None = None,
) -> tuple[OpRow, ...]:
    """Read the op rows of the first inference.

    Args:
        profile_csv: a profile of `profiling_level=detailed`, all inferences of a run one after another.
        ops: operator type of every named node of the model.
        partitions: how many graphs one inference executes.
        origins: sources by operator, for a context binary, whose profile does not name them.
    """
    rows: list[OpRow] = []
    executed = 0
    for row in csv.DictReader(io.StringIO(profile_csv.decode("utf-8", "replace"))):
        if row["Message"] == "EXECUTE":
            executed += 1
            if executed == partitions:
                break
        elif row["Message"] == "NODE" and row["Unit of Measurement"] == "CYCLES":
            name = row["Event Identifier"].removesuffix(_SUFFIX)
            sources = _sources(row.get("ONNX Source Ops") or "", ops)
            known = (origins or {}).get(name.rpartition(":OpId_")[0], ())
            rows.append(OpRow(name=name, cycles=int(row["Time"]), sources=sources or known))
    return tuple(rows)


def _sources(joined: str, ops: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(source_name(name, ops) for name in joined.split(";") if name)


def source_name(name: str, ops: Mapping[str, str]) -> str:
    """Return `op type:name` for a node of the model, the bare name for one the runtime put in."""
    own = onnx_name(name)
    return f"{ops[own]}:{own}" if own in ops else name
