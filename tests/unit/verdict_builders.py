"""Records and models in as few words as a verdict test needs."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_devicelab.evidence.events import Event, EventKind
from pytest_devicelab.evidence.record import DeviceIdentity, ModelIdentity, RunRecord, TensorRecord
from pytest_devicelab.matrix.specs import ExpectedFallback, Gates, ModelSpec, Source

Array = npt.NDArray[np.generic]


def run_record(device: str = "s24", arrays: Mapping[str, Array] | None = None, **changes: Any) -> RunRecord:
    """A sound run on an NPU whose outputs are `arrays`."""
    outputs = tuple(tensor_record(name, array) for name, array in (arrays or {}).items())
    fields: dict[str, Any] = {
        "id": f"evaluate.{device}",
        "session": "s",
        "device": DeviceIdentity(id=device, kind="virtual", soc="SM8650", hexagon="V75", simulated=True),
        "model": ModelIdentity(id="digits", variant="int8", sha256="0" * 64),
        "runtime": "ort",
        "backend": "htp",
        "purpose": "evaluate",
        "status": "ok",
        "outputs": outputs,
    }
    return RunRecord(**(fields | changes))


def tensor_record(name: str, array: Array) -> TensorRecord:
    return TensorRecord(
        name=name, dtype=array.dtype.name, shape=array.shape, sha256=sha256(array.tobytes()).hexdigest()
    )


def model_spec(*expected: ExpectedFallback, gates: Gates | None = None) -> ModelSpec:
    return ModelSpec(
        id="digits",
        path=Path("digits.onnx"),
        source=Source(file="device_matrix.yaml", line=1, column=1),
        expected_fallbacks=expected,
        gates=gates or Gates(),
    )


def event(kind: EventKind, source: str = "logcat", **fields: str) -> Event:
    return Event(kind=kind, dialect="ort", source=source, line=1, offset=0, raw="...", fields=fields)
