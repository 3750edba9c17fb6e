"""Lay the forms of one network side by side on a device: run each, and judge what they say."""

from __future__ import annotations

import hashlib

import numpy as np

from pytest_devicelab.audit.fleet import accuracy_of
from pytest_devicelab.errors import TensorMismatch
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.lab.session import LabSession, read_labels
from pytest_devicelab.matrix.specs import DeviceSpec, ModelSpec, NetworkSpec
from pytest_devicelab.runtimes.inputs import Arrays
from pytest_devicelab.verdicts.accuracy import real_values
from pytest_devicelab.verdicts.form import Form, Values
from pytest_devicelab.verdicts.network import judge_network
from pytest_devicelab.verdicts.placement import judge_placement
from pytest_devicelab.verdicts.verdict import Verdict


def judge_forms(session: LabSession, network: NetworkSpec, device: DeviceSpec) -> Verdict:
    """Run every form of a network on a device, what this session has not run yet, and compare them."""
    forms = [_form(session, model, session.evaluate(device, model)) for model in network.models]
    return judge_network(network.id, device.id, forms)


def _form(session: LabSession, model: ModelSpec, record: RunRecord) -> Form:
    outputs, lacking = _real_outputs(session, record)
    return Form(
        model=model,
        record=record,
        outputs=outputs,
        lacking=lacking,
        asked=_digest(session.reference_inputs(model)),
        labels=read_labels(model.labels) if model.labels else None,
        accuracy=accuracy_of(session, model, record),
        placement=judge_placement(record, model),
    )


def _real_outputs(session: LabSession, record: RunRecord) -> tuple[Values, str]:
    """Return the outputs as the numbers they stand for, or why nobody knows these.

    As float32: a runtime that dequantizes computes in it, so that integers with the same steps are the same there.
    """
    try:
        real = real_values(record, session.outputs(record))
    except TensorMismatch as error:
        return {}, error.what
    wide = {tensor.name for tensor in record.outputs if tensor.dtype == "float64"}
    return {name: array if name in wide else array.astype(np.float32) for name, array in real.items()}, ""


def _digest(inputs: Arrays) -> str:
    """Return a digest of samples, whatever a model calls its inputs: formats rename them."""
    each = sorted(
        hashlib.sha256(
            f"{array.dtype.str} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes()
        ).digest()
        for array in inputs.values()
    )
    return hashlib.sha256(b"".join(each)).hexdigest()
