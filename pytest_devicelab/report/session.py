"""Session: everything one pytest run found, as `session.json` says it and every report shows it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pytest_devicelab.evidence.blame import Blame
from pytest_devicelab.evidence.codec import encode
from pytest_devicelab.evidence.record import Purpose, Status, Transfers
from pytest_devicelab.evidence.starts import Start
from pytest_devicelab.report.coverage import CoverageHole
from pytest_devicelab.report.findings import Fallback, Fusion
from pytest_devicelab.report.measured import MeasurementEntry
from pytest_devicelab.report.networks import NetworkEntry
from pytest_devicelab.report.recoveries import RecoveryEntry
from pytest_devicelab.verdicts.comparison import Distance, Divergence, PairDiff
from pytest_devicelab.verdicts.ledger import Ledger
from pytest_devicelab.verdicts.verdict import Outcome

SCHEMA = "devicelab.session/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEntry:
    """One device of the matrix, as found where it was seen, else as the matrix describes it.

    Attributes:
        soc: chip model, and `hexagon` its NPU; None when unknown or absent.
        marketing: the name on the box, when the matrix knows that chip.
        status: `not_seen` when the device itself never answered in this session.
    """

    id: str
    kind: str
    soc: str | None
    hexagon: str | None
    simulated: bool
    marketing: str | None
    engine: str | None
    status: Literal["seen", "not_seen"]

    @property
    def chip(self) -> str:
        """The shortest name of its NPU: `V75`, else the chip's, else the device's own id."""
        return self.hexagon or self.soc or self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One model of the matrix; `sha256` is of the file that ran, None when none did. `network` is empty for none."""

    id: str
    variant: str
    network: str
    runtime: str
    path: str
    reference: str | None
    sha256: str | None
    accuracy_drop: float
    agreement: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEntry:
    """One run; `record` is its path in the session folder, `duration_s` the time of all its attempts.

    Attributes:
        queued_s: of `duration_s`, how long its jobs waited in a cloud's queue; None where nothing queues, or nobody says.
        spared_bytes: of outputs left on the device, because the same bits had come from another run.
    """

    id: str
    device: str
    model: str
    runtime: str
    backend: str
    purpose: Purpose
    status: Status
    samples: int
    attempts: int
    duration_s: float
    queued_s: float | None
    pushed_bytes: int
    pulled_bytes: int
    spared_bytes: int
    record: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingDevice:
    """A device that has no output to compare, and why."""

    device: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonEntry:
    """A `Comparison`, with its shallowest divergence spelled out."""

    model: str
    output: str
    classes: tuple[tuple[str, ...], ...]
    pairs: tuple[PairDiff, ...]
    distances: tuple[tuple[Distance | None, ...], ...]
    first_divergence: Divergence | None
    divergences: tuple[Divergence, ...]
    missing: tuple[MissingDevice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionEntry:
    """Whose the loss of one output is: an `Attribution`, with the model and output it is about."""

    model: str
    output: str
    line: str
    signal: Ledger
    accuracy: Ledger | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictEntry:
    """A `Verdict`, with the pytest node id of the test that gave it."""

    check: str
    model: str
    devices: tuple[str, ...]
    verdict: Outcome
    reason: str
    nodeid: str
    evidence: tuple[str, ...]
    details: Mapping[str, object] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One session, whole. Devices, models and all that refers to them come in matrix order.

    Attributes:
        started: UTC, ISO 8601; so is `finished`.
        matrix: the file the matrix was read from.
        versions: of tools and libraries; where devices differ, all of them.
        notes: the matrix reader's remarks, such as which real chip an invented name was taken for.
        starts: of pytest on this session: more than one when it was resumed.
        outcome: the worst verdict; never `pass` without a verdict, or when pytest itself did not end well.
        simulated: whether any device is simulated, and with it its figures.
        transfers: bytes of all runs together.
    """

    id: str
    started: str
    finished: str
    matrix: str
    outcome: Outcome
    exit_status: int
    starts: tuple[Start, ...]
    simulated: bool
    versions: Mapping[str, str] = field(hash=False)
    notes: tuple[str, ...]
    devices: tuple[DeviceEntry, ...]
    coverage_holes: tuple[CoverageHole, ...]
    models: tuple[ModelEntry, ...]
    runs: tuple[RunEntry, ...]
    measurements: tuple[MeasurementEntry, ...]
    transfers: Transfers
    comparisons: tuple[ComparisonEntry, ...]
    attribution: tuple[AttributionEntry, ...]
    networks: tuple[NetworkEntry, ...]
    verdicts: tuple[VerdictEntry, ...]
    fallbacks: tuple[Fallback, ...]
    fusions: tuple[Fusion, ...]
    blames: tuple[Blame, ...]
    recoveries: tuple[RecoveryEntry, ...]


def to_json(session: Session) -> dict[str, Any]:
    """Return the session as plain JSON data, valid against `session_schema()`."""
    data: dict[str, Any] = {"schema": SCHEMA, **encode(session)}
    for fusion in data["fusions"]:
        fusion["from"] = fusion.pop("sources")
    return data


def session_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of `session.json`."""
    text = Path(__file__).with_name("session.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def worst(outcomes: Iterable[Outcome]) -> Outcome | None:
    """Return the outcome that decides: any fail, else any flaky, any inconclusive, pass; None for none."""
    found = set(outcomes)
    ranked: tuple[Outcome, ...] = ("fail", "flaky", "inconclusive", "pass")
    return next((outcome for outcome in ranked if outcome in found), None)
