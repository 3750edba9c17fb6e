"""RunRecord: everything one run on one device left behind, before anybody judges it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from pytest_devicelab.evidence.events import Event
from pytest_devicelab.evidence.measurements import Measurements

Purpose = Literal["evaluate", "repeat", "taps", "measure"]
Status = Literal["ok", "refused", "failed"]


def _nothing() -> Mapping[str, str]:
    return MappingProxyType({})


def _nothing_counted() -> Mapping[str, int]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceIdentity:
    """The device a run took place on, as found, not as the matrix hoped.

    Attributes:
        soc: chip model, `SM8650`; None when nobody could say.
        hexagon: `V75`; None when unknown or absent.
        engine: numerics engine of a virtual device, None on silicon.
        properties: the Android properties that identify it.
    """

    id: str
    kind: str
    soc: str | None
    hexagon: str | None
    simulated: bool
    serial: str = ""
    engine: str | None = None
    properties: Mapping[str, str] = field(default_factory=_nothing, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """The model that ran: its id in the matrix and the sha256 of its bytes."""

    id: str
    variant: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """Per-tensor affine quantization: `real = scale * (q - zero_point)`."""

    scale: float
    zero_point: int
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRecord:
    """One output over all samples of a run.

    Attributes:
        dtype: numpy dtype name, `float32`, `uint8`.
        shape: `[N, ...]`, N samples first.
        sha256: of the little-endian C-order bytes of the whole array, computed on the device.
        quantization: how the runtime quantized it, where known; one LSB is its scale.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    quantization: Quantization | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpRow:
    """One row of the runtime's op profile.

    Attributes:
        name: the operator as the backend names it.
        cycles: accelerator cycles (simulated on a virtual device); 0 next to a busy one means fused into it.
        sources: ONNX nodes it came from, `op type:name` where the type is known.
    """

    name: str
    cycles: int
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlacement:
    """Where the runtime itself says it put one node: the strongest evidence of placement.

    Attributes:
        unit: `htp`, `gpu` or `cpu`.
        macs: multiply-accumulates of one inference, counted from the model; None where its shapes do not
            tell, 0 for an operator that has none to speak of.
        boundary: of a node that quantizes or dequantizes, whether it stands at an edge: of the graph, or of a
            computing node on the CPU; None where nobody looked.
    """

    node: str
    op: str
    unit: str
    macs: int | None = None
    boundary: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at a run; a later one only follows a failure of the lab.

    Attributes:
        error: what / why / fix of a try that failed.
        failure: class of that failure, such as `lost` or `npu_crash`; empty when it did not fail.
        decision: what was made of the failure, and why: a further try, or none.
        files: evidence of a try that was followed by another, name -> path relative to the record's folder.
    """

    number: int
    started: str
    duration_s: float
    error: str = ""
    failure: str = ""
    decision: str = ""
    files: Mapping[str, str] = field(default_factory=_nothing, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryStep:
    """One thing tried to get a device back.

    Attributes:
        attempt: the attempt it followed; 0 for before the first.
        rung: `reconnect`, `restart_transport`, `power_cycle`, `reboot` or `clean`; `quarantine` when nothing helped.
        why: what was wrong when it was tried, in one line; of a quarantine, its first cause, and `started` when that was.
        helped: whether the device answered afterwards.
        said: why it did not help; empty when it did. Of a quarantine, when it ends.
    """

    attempt: int
    rung: str
    why: str
    started: str
    duration_s: float
    helped: bool
    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfers:
    """Bytes moved over adb for a run, and bytes that were not.

    Attributes:
        spared_bytes: of outputs that stayed on the device, because an output with the same hash is here already.
    """

    pushed_bytes: int = 0
    pulled_bytes: int = 0
    spared_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogCapture:
    """How the logs of a run were taken: what their silence is worth.

    Attributes:
        level: what the runtime was asked for, `off` to `verbose`; empty when no run came about.
        heard: lines of the runner that were seen, by priority `V D I W E F`, in logcat and in what it printed.
        pid: of the runner; None when the device did not say. Lines of others are not about its placement.
        streamed: whether logcat was read while the run went on.
        lost: why lines are known to be missing; empty when none are.
        buffer_bytes: size of the log buffers that was asked for; `buffers`: those the device has, by name.
    """

    level: str = ""
    heard: Mapping[str, int] = field(default_factory=_nothing_counted, hash=False)
    pid: int | None = None
    streamed: bool = False
    lost: str = ""
    buffer_bytes: int = 0
    buffers: Mapping[str, int] = field(default_factory=_nothing_counted, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run, whole.

    Attributes:
        id: unique in its session and the name of its folder, `runs/<id>/`.
        backend: `htp`, `cpu`; what the runtime was asked to use.
        status: `ok`; `refused` when the model does not compile or load on this chip, a finding about
            the model; `failed` when the lab could not carry the run out, which says nothing about it.
        error: what / why / fix of a run that is not `ok`.
        refused_ops: `(op, node, reason)` a compiler or runtime named when it refused.
        placement: the runtime's own graph assignment; empty when it gave none.
        log_sources: for each log read, how many lines were seen: 0 lines is no evidence.
        unparsed_lines: how many of those lines could not be read; their text is kept in the files.
        capture: how those logs were taken.
        measured: time, memory and energy, of a run that was made to measure them; None for every other.
        recovery: what was tried to get the device back, in order.
        files: evidence beside the record, name -> path relative to the record's folder; that of an earlier attempt
            is in the attempt.
        versions: tool and library versions that decide the result.
    """

    id: str
    session: str
    device: DeviceIdentity
    model: ModelIdentity
    runtime: str
    backend: str
    purpose: Purpose
    status: Status
    samples: int = 0
    options: Mapping[str, str] = field(default_factory=_nothing, hash=False)
    outputs: tuple[TensorRecord, ...] = ()
    placement: tuple[NodePlacement, ...] = ()
    ops: tuple[OpRow, ...] = ()
    events: tuple[Event, ...] = ()
    refused_ops: tuple[tuple[str, str, str], ...] = ()
    log_sources: Mapping[str, int] = field(default_factory=_nothing_counted, hash=False)
    unparsed_lines: Mapping[str, int] = field(default_factory=_nothing_counted, hash=False)
    capture: LogCapture = LogCapture()
    measured: Measurements | None = None
    telemetry: Mapping[str, str] = field(default_factory=_nothing, hash=False)
    attempts: tuple[Attempt, ...] = ()
    recovery: tuple[RecoveryStep, ...] = ()
    transfers: Transfers = Transfers()
    error: str = ""
    files: Mapping[str, str] = field(default_factory=_nothing, hash=False)
    versions: Mapping[str, str] = field(default_factory=_nothing, hash=False)

    def output(self, name: str) -> TensorRecord:
        """Return the output of that name; KeyError when the run has none."""
        return {tensor.name: tensor for tensor in self.outputs}[name]
