"""AI Hub's profile as evidence: rows of the NPU, and a claim for every layer that ran elsewhere.

It is of the grade of an op profile, not of a graph assignment: it says what was measured where, and nobody vouches
for its listing every node. So a layer on the CPU or GPU becomes a `cpu_fallback` event, and no `NodePlacement`.
"""

from __future__ import annotations

from collections.abc import Mapping

from pytest_devicelab.aihub.messages import Layer, Profile
from pytest_devicelab.evidence.events import Event, EventKind
from pytest_devicelab.evidence.record import OpRow

SOURCE = "aihub profile"


def npu_rows(profile: Profile, ops: Mapping[str, str]) -> tuple[OpRow, ...]:
    """Return the layers that ran on the NPU; one without cycles has 0, as if it were fused.

    `ops` has the operator type of each named node of the model.
    """
    return tuple(
        OpRow(
            name=layer.name,
            cycles=max(0, layer.cycles or 0),
            sources=(f"{ops[layer.name]}:{layer.name}",) if layer.name in ops else (),
        )
        for layer in profile.layers
        if layer.unit == "NPU"
    )


def unit_events(profile: Profile) -> tuple[Event, ...]:
    """Return a fallback for each layer off the NPU, and a sign of execution for NPU layers that only have a time."""
    return tuple(
        event for line, layer in enumerate(profile.layers, 1) if (event := _event(line, layer)) is not None
    )


def _event(line: int, layer: Layer) -> Event | None:
    kind: EventKind
    if layer.unit in ("CPU", "GPU"):
        kind, told = "cpu_fallback", {"reason": f"AI Hub's profile shows it on the {layer.unit}"}
    elif layer.unit == "NPU" and layer.cycles is None and layer.time_us:
        kind, told = "op_time", {"time_us": str(layer.time_us)}
    else:
        return None
    return Event(
        kind=kind,
        dialect="aihub",
        source=SOURCE,
        line=line,
        offset=0,
        raw=f"{layer.name} {layer.op} {layer.unit}",
        fields={"op": layer.op, "node": layer.name, **told},
    )
