"""What a device matrix says, frozen: the only form of it the rest of the project sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pytest_devicelab.matrix.soc import Soc

DeviceKind = str  # one of `kind_names.kind_names()`
Compiler = Literal["hub", "ours"]
RuntimeName = str  # one of `runtime_names.runtime_names()`
Agreement = Literal["three_run", "bitwise"]
LogLevel = Literal["off", "error", "warn", "info", "verbose"]
ThermalStatus = Literal["none", "light", "moderate", "severe"]
ProcessDomain = Literal["unsigned", "signed"]
TransportName = Literal["adb", "ppadb"]
Phase = Literal["connect", "push", "run", "pull", "log", "restore"]


def _no_items() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where in the matrix a thing was written, for messages: 1-based line and column."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdbServerSpec:
    """An adb server that is already running; without one a session starts its own, on a private port."""

    host: str
    port: int


def _no_servers() -> Mapping[str, AdbServerSpec | None]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often a run may be tried again after the lab failed: one run, and all runs of a session together."""

    per_run: int = 1
    per_session: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSpec:
    """When a device is fit to be used.

    Attributes:
        min_battery: least charge, percent.
        max_battery_c: hottest the battery may be, `max_skin_c` the skin, degrees Celsius.
        max_status: highest thermal status that is still cool.
        cool_wait_s: how long to wait for what goes away by itself, seconds.
        min_free_mib: least room in /data/local/tmp, MiB.
        max_clock_skew_s: largest difference of the clocks that is not worth a note, seconds.
    """

    min_battery: int = 10
    max_battery_c: float = 45.0
    max_skin_c: float = 43.0
    max_status: ThermalStatus = "light"
    cool_wait_s: float = 300.0
    min_free_mib: int = 64
    max_clock_skew_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabSpec:
    """The lab the session runs in.

    Attributes:
        adb: a running adb server, or None for a private one that ends with the session.
        groups: the adb server of each group of devices, by the group's name; None for the session's private one.
        run_timeout_s: the deadline of one run on one device, in seconds.
        retries: how often runs may be tried again.
        health: when a device is fit to be used.
        cluster: HOST:PORT of a Ray cluster's head, for devices of kind cluster.
        fixed_performance: whether devices are asked for Android's fixed-performance mode during a run.
    """

    adb: AdbServerSpec | None = None
    groups: Mapping[str, AdbServerSpec | None] = field(default_factory=_no_servers, hash=False)
    run_timeout_s: float = 120.0
    retries: Retries = Retries()
    health: HealthSpec = HealthSpec()
    fixed_performance: bool = False
    cluster: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultSpec:
    """Trouble a virtual device is to have.

    Attributes:
        fault: its name, a key of `matrix.faults.FAULTS`.
        during: what must begin first, counted from when the fault was asked for; None for nothing.
        after_s: how long it then waits, in seconds.
        lasts_s: after how many seconds it ends by itself; None for when it is told to.
        values: everything else the fault can be told, as written or by default.
    """

    fault: str
    source: Source
    during: Phase | None = None
    after_s: float = 0.0
    lasts_s: float | None = None
    values: Mapping[str, str] = field(default_factory=_no_items, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """One device of the matrix.

    Attributes:
        id: the name used in test ids and reports, `[a-z0-9][a-z0-9_.]*`.
        soc: the chip, or None where the matrix leaves it for the device to say.
        group: which of the lab's groups it is in, whose adb server reaches it; None for the lab's own.
        serial: adb serial; None for a virtual device, whose serial is its loopback address.
        serials: adb serials of phones that are equal, any of which stands for this entry.
        units: how many equal devices a virtual entry stands for.
        selector: properties a phone must have to stand for this entry, when no serial is given.
        properties: Android properties a virtual device starts with, beyond those of its chip.
        engine: numerics engine of a virtual device: `htp`, `cpu`, or `package.module:callable`.
        runtime: the runtime models use on this device instead of their own, as far as it takes their files.
        runners: runtime -> path on the device of the program that runs its models, where it is not on PATH.
        sdk: Android API level.
        name: of an AI Hub device, its name there; `chipset`, `hub_os` and `attributes`: what else it must be.
        compiler: who compiles for an AI Hub device: `hub` itself, or `ours` on this host.
        timeout_s: how long one run on an AI Hub device may take in all, its queues included.
        transport: who speaks to the adb server: this project itself, or pure-python-adb.
        faults: trouble a virtual device starts with.
        process_domain: of the DSP's code; `signed` takes a skel the phone's vendor has signed.
        power_cycle: a command on this host, program and arguments, that takes the device's power away and gives it
            back; empty for none.
        reboot: whether the lab may reboot it to get it back; None where the matrix does not say.
    """

    id: str
    kind: DeviceKind
    source: Source
    soc: Soc | None = None
    group: str | None = None
    serial: str | None = None
    serials: tuple[str, ...] = ()
    units: int = 1
    name: str | None = None
    selector: Mapping[str, str] = field(default_factory=_no_items, hash=False)
    properties: Mapping[str, str] = field(default_factory=_no_items, hash=False)
    engine: str = "htp"
    runtime: RuntimeName | None = None
    runners: Mapping[str, str] = field(default_factory=_no_items, hash=False)
    sdk: int = 34
    chipset: str | None = None
    hub_os: str | None = None
    attributes: tuple[str, ...] = ()
    compiler: Compiler = "hub"
    timeout_s: float = 3600.0
    transport: TransportName = "adb"
    faults: tuple[FaultSpec, ...] = ()
    process_domain: ProcessDomain = "unsigned"
    power_cycle: tuple[str, ...] = ()
    reboot: bool | None = None

    @property
    def may_reboot(self) -> bool:
        """Whether the lab may reboot it: a virtual device unless told not to, a phone only when told so."""
        return self.kind == "virtual" if self.reboot is None else self.reboot

    @property
    def pool(self) -> bool:
        """Whether this entry may stand for several equal devices."""
        return self.units > 1 or len(self.serials) > 1 or bool(self.selector)

    @property
    def unit_ids(self) -> tuple[str, ...]:
        """What the virtual devices of this entry are called among themselves: `s24`, `s24.2`, `s24.3`."""
        return (self.id, *(f"{self.id}.{number}" for number in range(2, self.units + 1)))

    @property
    def simulated(self) -> bool:
        """Whether what this device reports was computed by a simulator instead of a chip."""
        return self.kind == "virtual"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedFallback:
    """A CPU fallback the matrix declares as known, with the reason a person gave for accepting it.

    Attributes:
        op: ONNX operator type, such as `LayerNormalization`.
        reason: why it is accepted; shown in every report.
        node: name of the one node meant, or None for every node of that type.
        devices: ids it is expected on, or an empty tuple for all devices with an NPU.
    """

    op: str
    reason: str
    node: str | None = None
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """What a model must satisfy to pass.

    Attributes:
        accuracy_drop: largest loss of top-1 accuracy against the float model, as a share (0.01 = 1 point).
        agreement: `three_run`, or `bitwise` where every device must give the same bits.
        three_run_tolerance: how much worse than quantized@CPU a device may be, as a share of the
            output's range. Source: 0.004 is the tolerance of onnxruntime-qnn's own tests (one 8-bit step).
    """

    accuracy_drop: float = 0.01
    agreement: Agreement = "three_run"
    three_run_tolerance: float = 0.004


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSpec:
    """How a model's time, memory and energy are measured: so many inferences, after so many that do not count."""

    inferences: int = 100
    warm_up: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model variant under test.

    Attributes:
        path: the quantized (or float) model, in a file its runtime takes.
        reference: the float ONNX file for the three-run rule, or None.
        inputs: .npz whose arrays are named like the model's inputs, each `[N, ...]`.
        reference_inputs: the same samples as the float model takes them, where its names or layout are others.
        labels: .npy of N integer class labels, or None.
        options: options of the QNN execution provider, such as `offload_graph_io_quantization`.
        samples: how many of the N samples to run, from the first; None for all.
        network: what the model is one form of; models of one network are compared on each device. Empty for none.
        measure: how its time, memory and energy are measured; None where they are not.
    """

    id: str
    path: Path
    source: Source
    variant: str = ""
    network: str = ""
    reference: Path | None = None
    inputs: Path | None = None
    reference_inputs: Path | None = None
    labels: Path | None = None
    runtime: RuntimeName = "qnn"
    options: Mapping[str, str] = field(default_factory=_no_items, hash=False)
    expected_fallbacks: tuple[ExpectedFallback, ...] = ()
    gates: Gates = Gates()
    samples: int | None = None
    measure: MeasureSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    """One network in several forms: other runtimes, backends or precisions of the same thing.

    Attributes:
        models: at least two, in the order of the matrix; the others are measured against the first.
    """

    id: str
    models: tuple[ModelSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogProfile:
    """How much is logged during a run: what is switched on before it and put back after it.

    Attributes:
        level: what the runtime itself is asked for.
        properties: Android properties set meanwhile. `debug.nn.vlog` is read by NNAPI, which most models
            never touch; whether a switch worked is judged by the lines seen, never by the switch.
        farf: mask of a `<process>.farf` file in the run's working directory, `0x1f`, for messages of the
            DSP; None for no such file.
        buffer_bytes: how large the log buffers are made where they are smaller.
    """

    level: LogLevel = "verbose"
    properties: Mapping[str, str] = field(default_factory=_no_items, hash=False)
    farf: str | None = None
    buffer_bytes: int = 16 << 20


_NNAPI_VERBOSE: Mapping[str, str] = MappingProxyType({"debug.nn.vlog": "all", "debug.nn.perf": "1"})


def log_profile(level: LogLevel) -> LogProfile:
    """Return what a level alone stands for."""
    return LogProfile(level=level, properties=_NNAPI_VERBOSE if level == "verbose" else _no_items())


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixSpec:
    """A whole device matrix.

    Attributes:
        path: the file it was read from.
        logging: what is logged during every run.
        qairt_sdk: Qualcomm's SDK on this machine, whose runner and libraries go to phones, or None.
        notes: remarks for the user, such as an invented chip name and the real chip it was taken for.
    """

    path: Path
    lab: LabSpec
    devices: tuple[DeviceSpec, ...]
    models: tuple[ModelSpec, ...]
    logging: LogProfile = field(default_factory=lambda: log_profile("verbose"))
    qairt_sdk: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def measured(self) -> tuple[ModelSpec, ...]:
        """The models that ask to be measured, in the order of the matrix."""
        return tuple(model for model in self.models if model.measure is not None)

    @property
    def networks(self) -> tuple[NetworkSpec, ...]:
        """The networks that models name, in the order of the matrix."""
        members: dict[str, list[ModelSpec]] = {}
        for model in self.models:
            if model.network:
                members.setdefault(model.network, []).append(model)
        return tuple(NetworkSpec(id=name, models=tuple(models)) for name, models in members.items())

    def device(self, device_id: str) -> DeviceSpec:
        """Return the device of that id; KeyError when there is none."""
        return {device.id: device for device in self.devices}[device_id]

    def model(self, model_id: str) -> ModelSpec:
        """Return the model of that id; KeyError when there is none."""
        return {model.id: model for model in self.models}[model_id]
