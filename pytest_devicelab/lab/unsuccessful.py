"""A runner that failed: whether the model was refused, or something else went wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pytest_devicelab.evidence.events import Event
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.matrix.specs import DeviceSpec

# Stages of a `load_error` at which the model is at fault; a device that does not open, a missing skel or an
# execution that broke off is the lab's.
_REFUSING_STAGES = ("placement", "finalize", "load")
# Found but not executable, not found. Source: POSIX.1-2024, Shell Command Language, 2.8.2.
_NO_RUNNER = (126, 127)


def unsuccessful(
    record: RunRecord, code: int, said: str, events: Iterable[Event], spec: DeviceSpec
) -> RunRecord:
    """Return the record of a run whose runner failed: the model's fault only where the runtime itself says so.

    Args:
        record: of the run, with its runtime and options.
        code: exit status of the runner.
        said: what it printed last.
        events: of its logs.
        spec: the device.
    """
    heard = tuple(events)
    rejected = [event for event in heard if event.kind == "op_rejected" and "benign" not in event.fields]
    refusals = [event for event in heard if event.fields.get("stage") in _REFUSING_STAGES]
    # ONNX Runtime leaves a rejected operator to the CPU and goes on, unless it is told not to.
    if record.runtime != "ort" or record.options.get("strict") == "1":
        refusals += rejected
    ops = tuple(
        (event.fields.get("op", ""), event.fields.get("node", ""), event.fields.get("reason", ""))
        for event in rejected
    )
    error = f"{record.runtime} on {spec.id} exited with {code}"
    error += "\n  why: " + (said or "it printed nothing").replace("\n", "\n       ")
    if code in _NO_RUNNER:
        error += (
            f"\n  fix: put the runner of {record.runtime} on the device, made executable, and name its path: "
            f"`runners: {{{record.runtime}: PATH}}` of device {spec.id} ({spec.source}); "
            "docs/reference/runtimes.md says which runner that is"
        )
        if record.runtime == "qnn" and spec.kind == "adb":
            error += ". Or let `qairt_sdk` in the matrix name Qualcomm's SDK, which has it"
    return replace(record, status="refused" if refusals else "failed", error=error, refused_ops=ops)
