"""Put a session together from what lies in its folder and what the matrix asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pytest_devicelab.evidence.record import RunRecord, Transfers
from pytest_devicelab.evidence.starts import read_starts
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.matrix.specs import DeviceSpec, MatrixSpec, ModelSpec
from pytest_devicelab.report.coverage import find_holes
from pytest_devicelab.report.findings import find_fallbacks, find_fusions
from pytest_devicelab.report.measured import find_measurements
from pytest_devicelab.report.networks import find_networks
from pytest_devicelab.report.recoveries import find_recoveries
from pytest_devicelab.report.session import (
    AttributionEntry,
    ComparisonEntry,
    DeviceEntry,
    MissingDevice,
    ModelEntry,
    RunEntry,
    Session,
    VerdictEntry,
    worst,
)
from pytest_devicelab.verdicts.comparison import Comparison
from pytest_devicelab.verdicts.flaky import settle
from pytest_devicelab.verdicts.unchecked import as_of_before, find_unchecked
from pytest_devicelab.verdicts.verdict import Outcome, Verdict


def assemble(
    store: SessionStore, matrix: MatrixSpec, started: datetime, finished: datetime, exit_status: int
) -> Session:
    """Put a session together from what lies in its folder and what the matrix asked for.

    Args:
        store: the session's folder.
        matrix: all of it, so that a device that never answered is named too.
        started: when pytest began, an aware time.
        finished: when it ended.
        exit_status: of pytest, so that a session that broke off is never green.

    A session that was resumed began when pytest first began on it.

    Raises:
        InfrastructureError: a record, verdict or comparison in the folder is damaged.
    """
    order = _MatrixOrder(matrix)
    starts = read_starts(store.root)
    records = sorted(
        store.records(), key=lambda record: (*order.of(record.model.id, (record.device.id,)), record.id)
    )
    judgements = store.judgements(Verdict)
    given = [(each.verdict, each.nodeid) for each in judgements]
    unchecked = find_unchecked(judgements, len(starts))
    standing = [
        (as_of_before(verdict, unchecked[nodeid], len(starts)) if nodeid in unchecked else verdict, nodeid)
        for verdict, nodeid in store.verdicts(Verdict)
    ]
    judged = sorted(
        settle(given, standing),
        key=lambda pair: (*order.of(pair[0].model, pair[0].devices), pair[0].check, pair[1]),
    )
    verdicts = tuple(_verdict(verdict, nodeid) for verdict, nodeid in judged)
    compared = sorted(
        store.comparisons(Comparison), key=lambda found: (*order.of(found.model, ()), found.output)
    )
    devices = tuple(_device(spec, [r for r in records if r.device.id == spec.id]) for spec in matrix.devices)
    return Session(
        id=store.id,
        started=starts[0].started if starts else _utc(started),
        finished=_utc(finished),
        matrix=matrix.path.name,
        outcome=_outcome([entry.verdict for entry in verdicts], exit_status),
        exit_status=exit_status,
        starts=starts,
        simulated=any(device.simulated for device in devices),
        versions=_versions(records),
        notes=matrix.notes,
        devices=devices,
        coverage_holes=find_holes(_units(devices), records),
        models=tuple(_model(spec, matrix.path.parent, records) for spec in matrix.models),
        runs=tuple(_run(record) for record in records),
        measurements=find_measurements(records),
        transfers=_transfers(records),
        comparisons=tuple(_comparison(comparison) for comparison in compared),
        attribution=tuple(entry for comparison in compared for entry in _attribution(comparison)),
        networks=find_networks((verdict for verdict, _ in judged), records),
        verdicts=verdicts,
        fallbacks=find_fallbacks(verdict for verdict, _ in judged),
        fusions=find_fusions(records),
        blames=tuple(sorted(store.blames(), key=lambda each: (each.at, each.device))),
        recoveries=find_recoveries(records),
    )


class _MatrixOrder:
    """Sort keys that put things in the order the matrix names them; what it does not name comes last."""

    def __init__(self, matrix: MatrixSpec) -> None:
        self._models = {model.id: index for index, model in enumerate(matrix.models)}
        self._devices = {device.id: index for index, device in enumerate(matrix.devices)}

    def of(self, model: str, devices: tuple[str, ...]) -> tuple[int, str, tuple[int, ...]]:
        last = len(self._models) + len(self._devices)
        places = tuple(self._devices.get(device, last) for device in devices)
        return self._models.get(model, last), model, places


def _outcome(verdicts: list[Outcome], exit_status: int) -> Outcome:
    decided = worst(verdicts) or "inconclusive"
    if decided == "pass" and exit_status != 0:
        # Every verdict is green, yet pytest is not: status 1 is a test of the user's that failed; any
        # other is a session that broke off, so nobody knows what was left unjudged.
        return "fail" if exit_status == 1 else "inconclusive"
    return decided


def _units(devices: Iterable[DeviceEntry]) -> Mapping[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for device in devices:
        found[device.soc or device.chip].append(device.id)
    return found


def _device(spec: DeviceSpec, records: list[RunRecord]) -> DeviceEntry:
    # A failed run may never have met its device, and then repeats what the matrix says; one that read
    # the device's properties did meet it.
    met = [record.device for record in records if record.status != "failed" or record.device.properties]
    found = met[-1] if met else None
    soc = found.soc if found else spec.soc.name if spec.soc else None
    return DeviceEntry(
        id=spec.id,
        kind=spec.kind,
        soc=soc,
        hexagon=found.hexagon if found else spec.soc.hexagon if spec.soc else None,
        # Both, so that a device that forgets to say so is still labelled.
        simulated=spec.simulated or (found is not None and found.simulated),
        marketing=spec.soc.marketing if spec.soc and spec.soc.name == soc else None,
        engine=found.engine if found else spec.engine if spec.kind == "virtual" else None,
        status="seen" if found else "not_seen",
    )


def _model(spec: ModelSpec, base: Path, records: list[RunRecord]) -> ModelEntry:
    hashes = {record.model.sha256: None for record in records if record.model.id == spec.id}
    return ModelEntry(
        id=spec.id,
        variant=spec.variant,
        network=spec.network,
        runtime=spec.runtime,
        path=_relative(spec.path, base),
        reference=_relative(spec.reference, base) if spec.reference else None,
        sha256=", ".join(hashes) or None,
        accuracy_drop=spec.gates.accuracy_drop,
        agreement=spec.gates.agreement,
    )


def _run(record: RunRecord) -> RunEntry:
    return RunEntry(
        id=record.id,
        device=record.device.id,
        model=record.model.id,
        runtime=record.runtime,
        backend=record.backend,
        purpose=record.purpose,
        status=record.status,
        samples=record.samples,
        attempts=len(record.attempts),
        duration_s=round(sum(attempt.duration_s for attempt in record.attempts), 3),
        queued_s=_queued(record),
        pushed_bytes=record.transfers.pushed_bytes,
        pulled_bytes=record.transfers.pulled_bytes,
        spared_bytes=record.transfers.spared_bytes,
        record=f"runs/{record.id}/record.json",
        error=record.error,
    )


def _queued(record: RunRecord) -> float | None:
    waits = [float(value) for name, value in record.telemetry.items() if name.endswith(".queue_s")]
    return round(sum(waits), 3) if waits else None


def _verdict(verdict: Verdict, nodeid: str) -> VerdictEntry:
    return VerdictEntry(
        check=verdict.check,
        model=verdict.model,
        devices=verdict.devices,
        verdict=verdict.outcome,
        reason=verdict.reason,
        nodeid=nodeid,
        evidence=verdict.evidence,
        details=verdict.details,
    )


def _comparison(comparison: Comparison) -> ComparisonEntry:
    return ComparisonEntry(
        model=comparison.model,
        output=comparison.output,
        classes=comparison.classes,
        pairs=comparison.pairs,
        distances=comparison.distances,
        first_divergence=comparison.first_divergence,
        divergences=comparison.divergences,
        missing=tuple(MissingDevice(device=device, reason=reason) for device, reason in comparison.missing),
    )


def _attribution(comparison: Comparison) -> Iterable[AttributionEntry]:
    found = comparison.attribution
    if found is not None:
        yield AttributionEntry(
            model=comparison.model,
            output=comparison.output,
            line=found.line,
            signal=found.signal,
            accuracy=found.accuracy,
        )


def _transfers(records: list[RunRecord]) -> Transfers:
    moved = [record.transfers for record in records]
    return Transfers(
        pushed_bytes=sum(each.pushed_bytes for each in moved),
        pulled_bytes=sum(each.pulled_bytes for each in moved),
        spared_bytes=sum(each.spared_bytes for each in moved),
    )


def _versions(records: list[RunRecord]) -> Mapping[str, str]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for record in records:
        for name, version in record.versions.items():
            found[name].add(version)
    return {name: ", ".join(sorted(found[name])) for name in sorted(found)}


def _relative(path: Path, base: Path) -> str:
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
