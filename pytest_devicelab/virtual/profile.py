"""The op profile of QNN as rows of evidence: as ONNX Runtime writes it, or as qnn-profile-viewer does of a phone's.

Source: public readers of the viewer's tables: above the heads of the columns are lines about versions, and operators
are events `EXECUTE` of the level `SUB-EVENT`, in cycles, where ONNX Runtime calls them `NODE`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping

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
    events = tuple(profile_events(profile_csv))
    own = any(event["Message"] == "NODE" for event in events)
    return tuple(
        _row(event, ops, origins or {})
        for event in (_first_inference(events, partitions) if own else _of_the_viewer(events))
    )


def profile_events(table: bytes) -> Iterator[Mapping[str, str]]:
    """Read the events of a profile, by the heads of its columns.

    Raises:
        KeyError: it has no such heads.
    """
    lines = io.StringIO(table.decode("utf-8", "replace"))
    for line in lines:
        heads = [cell.strip() for cell in line.split(",")]
        if {"Message", "Time"} <= set(heads):
            # What a line lacks is None.
            return csv.DictReader(lines, heads, skipinitialspace=True)
    if table:
        raise KeyError("Message")
    return iter(())


def _first_inference(events: Iterable[Mapping[str, str]], partitions: int) -> Iterator[Mapping[str, str]]:
    executed = 0
    for event in events:
        if event["Message"] == "EXECUTE":
            executed += 1
            if executed == partitions:
                return
        elif event["Message"] == "NODE" and event["Unit of Measurement"] == "CYCLES":
            yield event


def _of_the_viewer(events: Iterable[Mapping[str, str]]) -> Iterator[Mapping[str, str]]:
    """Yield the operators of the first inference: the next one begins where one comes again."""
    seen = set[str]()
    for event in events:
        if (event["Message"], event["Unit of Measurement"]) != ("EXECUTE", "CYCLES"):
            continue
        if event["Event Level"] != "SUB-EVENT":
            continue
        if event["Event Identifier"] in seen:
            return
        seen.add(event["Event Identifier"])
        yield event


def _row(event: Mapping[str, str], ops: Mapping[str, str], origins: Mapping[str, tuple[str, ...]]) -> OpRow:
    name = event["Event Identifier"].removesuffix(_SUFFIX)
    sources = _sources(event.get("ONNX Source Ops") or "", ops)
    known = origins.get(name.rpartition(":OpId_")[0], ())
    return OpRow(name=name, cycles=int(event["Time"]), sources=sources or known)


def _sources(joined: str, ops: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(source_name(name, ops) for name in joined.split(";") if name)


def source_name(name: str, ops: Mapping[str, str]) -> str:
    """Return `op type:name` for a node of the model, the bare name for one the runtime put in."""
    own = onnx_name(name)
    return f"{ops[own]}:{own}" if own in ops else name
