"""The standard suite: what every model of a matrix has to show, without a line of test code by its owner.

These are collected through the plugin, as `devicelab::test_placement[model-device]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_devicelab.fixtures import Fleet
    from pytest_devicelab.lab.session import LabSession
    from pytest_devicelab.matrix.specs import DeviceSpec, ModelSpec, NetworkSpec
    from pytest_devicelab.verdicts.verdict import Verdict

Conclude = Callable[["Verdict"], None]


def test_placement(
    lab_session: LabSession, model_spec: ModelSpec, device_spec: DeviceSpec, conclude: Conclude
) -> None:
    """Every node runs where it should, by the strongest evidence the runtime gives."""
    from pytest_devicelab.verdicts.placement import judge_placement

    conclude(judge_placement(lab_session.evaluate(device_spec, model_spec), model_spec))


def test_determinism(
    lab_session: LabSession, model_spec: ModelSpec, device_spec: DeviceSpec, conclude: Conclude
) -> None:
    """A second, cold run gives the same bits."""
    from pytest_devicelab.verdicts.determinism import judge_determinism

    first = lab_session.evaluate(device_spec, model_spec)
    again = lab_session.repeat(device_spec, model_spec)
    conclude(judge_determinism(first, again, lab_session.outputs(first), lab_session.outputs(again)))


def test_accuracy(
    lab_session: LabSession, model_spec: ModelSpec, device_spec: DeviceSpec, conclude: Conclude
) -> None:
    """The device is as close to the float model as the quantized model on a CPU is, and as accurate."""
    from pytest_devicelab.audit.fleet import accuracy_of

    conclude(accuracy_of(lab_session, model_spec, lab_session.evaluate(device_spec, model_spec)))


def test_measurements(
    lab_session: LabSession, measured_spec: ModelSpec, device_spec: DeviceSpec, conclude: Conclude
) -> None:
    """Its time is measured, as the matrix asks for; so are memory and energy, where the device shows them."""
    from pytest_devicelab.verdicts.measured import judge_measured

    conclude(judge_measured(lab_session.measure(device_spec, measured_spec)))


def test_agreement(lab_session: LabSession, model_spec: ModelSpec, fleet: Fleet, conclude: Conclude) -> None:
    """All devices agree: to the bit, or each as close to float as the gate asks for."""
    from pytest_devicelab.audit.fleet import judge_fleet

    conclude(judge_fleet(lab_session, model_spec, fleet.records(model_spec)))


def test_network(
    lab_session: LabSession, network_spec: NetworkSpec, device_spec: DeviceSpec, conclude: Conclude
) -> None:
    """A network answers alike in every form that the matrix has of it: runtimes, backends, precisions."""
    from pytest_devicelab.audit.network import judge_forms

    conclude(judge_forms(lab_session, network_spec, device_spec))
