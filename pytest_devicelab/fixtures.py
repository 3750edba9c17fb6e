"""The fixtures: `device`, `model`, `run_model`, `fleet`, and what the standard suite is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from pytest_devicelab.errors import Flaky, Inconclusive, VerdictFailed
from pytest_devicelab.state import STATE

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_devicelab.devices.adb import AdbDevice
    from pytest_devicelab.evidence.record import RunRecord
    from pytest_devicelab.evidence.store import SessionStore
    from pytest_devicelab.lab.session import LabSession, Run
    from pytest_devicelab.matrix.specs import DeviceSpec, ModelSpec, NetworkSpec
    from pytest_devicelab.runtimes.inputs import Arrays
    from pytest_devicelab.verdicts.comparison import Comparison
    from pytest_devicelab.verdicts.verdict import Verdict


@pytest.fixture(scope="session")
def lab_session(pytestconfig: pytest.Config) -> LabSession:
    """The runs of this session; for the suite, and for plugins that build on it."""
    state = pytestconfig.stash.get(STATE, None)
    if state is None:
        raise Inconclusive(
            "this test needs devices, and none were given",
            why="pytest was started without a device matrix",
            fix="pytest --devices=device_matrix.yaml",
        )
    return state.lab_session()


@pytest.fixture(scope="session")
def device_spec(request: pytest.FixtureRequest, lab_session: LabSession) -> DeviceSpec:
    """What the matrix says of the device under test."""
    spec: DeviceSpec = request.param
    return spec


@pytest.fixture(scope="session")
def model_spec(request: pytest.FixtureRequest, lab_session: LabSession) -> ModelSpec:
    """What the matrix says of the model under test."""
    spec: ModelSpec = request.param
    return spec


@pytest.fixture(scope="session")
def measured_spec(request: pytest.FixtureRequest, lab_session: LabSession) -> ModelSpec:
    """One model of the matrix that asks to be measured."""
    spec: ModelSpec = request.param
    return spec


@pytest.fixture(scope="session")
def network_spec(request: pytest.FixtureRequest, lab_session: LabSession) -> NetworkSpec:
    """One network in all the forms that the matrix has of it."""
    spec: NetworkSpec = request.param
    return spec


@pytest.fixture
def device(
    request: pytest.FixtureRequest, device_spec: DeviceSpec, lab_session: LabSession
) -> Iterator[AdbDevice]:
    """One device of the matrix, held exclusively while the test runs; the test runs once for each."""
    from pytest_devicelab.lab.executor import LOCAL_KINDS

    # A test that holds one device and then asks the fleet for the others would wait for a worker that holds
    # one of them and waits for ours. All at once, and everywhere in the same order, nobody waits in a circle.
    # Devices of a cloud are not held: they take whole runs, and queue them.
    others = lab_session.devices if "fleet" in request.fixturenames else ()
    wanted = [spec for spec in others if spec.kind in LOCAL_KINDS]
    wanted += [device_spec] * (device_spec not in wanted)
    with ExitStack() as leases:
        held = {spec.id: leases.enter_context(lab_session.lab.lease(spec)) for spec in wanted}
        for each in held.values():
            leases.enter_context(lab_session.watched(each, request.node.nodeid))
        yield held[device_spec.id]


@pytest.fixture
def model(model_spec: ModelSpec) -> ModelSpec:
    """One model of the matrix; the test runs once for each."""
    return model_spec


@pytest.fixture
def run_model(
    request: pytest.FixtureRequest, device_spec: DeviceSpec, lab_session: LabSession
) -> Callable[..., Run]:
    """Run a model on the device: `run_model(model, inputs=None)` gives a `Run` with `.outputs` and `.record`.

    `inputs` are arrays `[N, ...]` by input name; without them, the model's evaluation inputs of the matrix. A model
    the chip refuses fails the test; a lab that failed makes it inconclusive.
    """
    from pytest_devicelab.lab.executor import LOCAL_KINDS

    # Held while the test runs, as for `device`; one of a cloud cannot be, unless the test asks for just that.
    holds = device_spec.kind in LOCAL_KINDS or "device" in request.fixturenames
    spec = request.getfixturevalue("device").spec if holds else device_spec

    def run(model: ModelSpec, inputs: Arrays | None = None) -> Run:
        from pytest_devicelab.lab.preflight import check_inputs
        from pytest_devicelab.lab.session import Run

        if inputs is not None:
            check_inputs(model, inputs)
        arrays = lab_session.inputs(model) if inputs is None else inputs
        record = lab_session.run(spec, model, arrays, "evaluate")
        demand_success(record)
        return Run(record=record, outputs=lab_session.outputs(record))

    return run


class Fleet:
    """All selected devices at once.

    Args:
        session: the session's runs.
    """

    def __init__(self, session: LabSession) -> None:
        self._session = session

    @property
    def devices(self) -> tuple[DeviceSpec, ...]:
        """The selected devices, in the order of the matrix."""
        return self._session.devices

    def records(self, model: ModelSpec) -> Mapping[str, RunRecord]:
        """Return the record of each device, by id, running what this session has not run yet."""
        return self._session.evaluate_all(model)

    def run(self, model: ModelSpec) -> Mapping[str, Run]:
        """Return run and outputs of each device, by id; inconclusive when a device could not carry it out."""
        from pytest_devicelab.lab.session import Run

        records = self.records(model)
        for record in records.values():
            demand_success(record)
        return {
            device: Run(record=record, outputs=self._session.outputs(record))
            for device, record in records.items()
        }

    def compare(self, model: ModelSpec) -> tuple[Comparison, ...]:
        """Lay all devices side by side: classes of identical bits, and the first layer at which they part.

        As with `run`, a device without outputs ends the test: the classes of the others would look like all there are.
        """
        from pytest_devicelab.audit.fleet import compare_fleet

        records = self.records(model)
        for record in records.values():
            demand_success(record)
        return compare_fleet(self._session, model, records)


@pytest.fixture
def fleet(lab_session: LabSession) -> Fleet:
    """All selected devices at once: `fleet.run(model)`, `fleet.compare(model)`."""
    return Fleet(lab_session)


@pytest.fixture
def conclude(request: pytest.FixtureRequest, lab_session: LabSession) -> Callable[[Verdict], None]:
    """Write a verdict down, then end the test as it says."""

    def end(verdict: Verdict) -> None:
        from pytest_devicelab.verdicts.evidence import advice_of
        from pytest_devicelab.verdicts.flaky import temper

        records = tuple(_records(lab_session.store, verdict))
        verdict = temper(verdict, records)
        lab_session.store.write_verdict(verdict, request.node.nodeid)
        # What `record_property` does, without its warning that one dialect of JUnit XML does not know properties.
        request.node.user_properties += [
            ("devicelab_verdict", verdict.outcome),
            ("devicelab_check", verdict.check),
            ("devicelab_model", verdict.model),
            ("devicelab_devices", " ".join(verdict.devices)),
            ("devicelab_simulated", str(lab_session.any_simulated(verdict.devices)).lower()),
            ("devicelab_reason", verdict.reason),
        ]
        if verdict.outcome == "pass":
            return
        kinds = {"inconclusive": Inconclusive, "flaky": Flaky, "fail": VerdictFailed}
        raise kinds[verdict.outcome](
            f"{verdict.check} of {verdict.model} on {', '.join(verdict.devices)}",
            why=verdict.reason,
            fix="; ".join((*advice_of(records), f"see {_evidence(lab_session.store.root, verdict)}")),
        )

    return end


def demand_success(record: RunRecord) -> None:
    """Raise unless a run was carried out: a refusal is a finding, a failed lab is none, and neither is a crash."""
    if record.status == "refused":
        raise VerdictFailed(f"{record.model.id} does not run on {record.device.id}", why=record.error)
    if record.status == "failed":
        raise Inconclusive(f"{record.model.id} could not be run on {record.device.id}", why=record.error)
    from pytest_devicelab.verdicts.flaky import crashed_before

    if said := crashed_before(record):
        raise Flaky(
            f"{record.model.id} on {record.device.id} crashed, and then ran",
            why=said,
            fix="see `attempts` in its record.json",
        )


def _records(store: SessionStore, verdict: Verdict) -> Iterator[RunRecord]:
    """Return the runs a verdict rests on."""
    for path in verdict.evidence:
        parts = path.split("/")
        if len(parts) == 3 and parts[0] == "runs" and (record := store.read_record(parts[1])) is not None:
            yield record


def _evidence(root: Path, verdict: Verdict) -> str:
    first, *others = verdict.evidence or ("report.html",)
    return f"{root / first}" + (f" and {len(others)} more beside it" if others else "")
