"""A realistic session in a store, as a run of the lab leaves it: six Snapdragons, one chip without NPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np

from pytest_devicelab.evidence.events import Event
from pytest_devicelab.evidence.record import (
    Attempt,
    DeviceIdentity,
    ModelIdentity,
    OpRow,
    Quantization,
    RunRecord,
    TensorRecord,
    Transfers,
)
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.matrix.soc import Soc
from pytest_devicelab.matrix.specs import DeviceSpec, LabSpec, MatrixSpec, ModelSpec, Source
from pytest_devicelab.report.assemble import assemble
from pytest_devicelab.report.session import Session
from pytest_devicelab.verdicts.attribution import Attribution, attribute
from pytest_devicelab.verdicts.comparison import Comparison, Distance, Divergence, PairDiff
from pytest_devicelab.verdicts.verdict import Outcome, Verdict

STARTED = datetime(2026, 11, 20, 22, 43, 0, tzinfo=UTC)
FINISHED = datetime(2026, 11, 20, 22, 44, 31, tzinfo=UTC)
SESSION_ID = "20261120T224300Z-1a2b"

CHIPS = {
    "s21": ("SM8350", "V68", "Snapdragon 888"),
    "s22": ("SM8450", "V69", "Snapdragon 8 Gen 1"),
    "s23": ("SM8550", "V73", "Snapdragon 8 Gen 2"),
    "s24": ("SM8650", "V75", "Snapdragon 8 Gen 3"),
    "s25": ("SM8750", "V79", "Snapdragon 8 Elite"),
    "s26": ("SM8850", "V81", "Snapdragon 8 Elite Gen 5"),
    "pixel9pro": ("Tensor G4", None, "Tensor G4"),
}
OLD, NEW, CPU = ("s21", "s22"), ("s23", "s24", "s25", "s26"), ("pixel9pro",)
NPU = OLD + NEW
REASON = "QnnBackend_validateOpConfig failed: LayerNorm axis 1 is not the innermost dimension"
SAMPLES = 540

# By model: top-1 of float on a CPU, of the quantized model on a CPU, and on each class of devices.
ACCURACY: Mapping[str, tuple[float, float, Mapping[tuple[str, ...], float]]] = {
    "digits_int8": (0.994444, 0.994444, {OLD: 0.992593, NEW: 0.994444, CPU: 0.994444}),
    "digits_a16w8": (
        0.994444,
        0.994444,
        {OLD: 0.994444, NEW[:3]: 0.994444, NEW[3:]: 0.992593, CPU: 0.994444},
    ),
    "digits_block_int8": (0.953704, 0.951852, {OLD: 0.951852, NEW: 0.951852, CPU: 0.951852}),
    "digits_ln_axis1": (0.987037, 0.985185, {OLD: 0.985185, NEW: 0.985185, CPU: 0.985185}),
}
FIRST_LAYER = {
    "digits_int8": ("Conv", "/conv1/Conv"),
    "digits_a16w8": ("Conv", "/conv1/Conv"),
    "digits_block_int8": ("MatMul", "/attn/q/MatMul"),
    "digits_ln_axis1": ("Conv", "/conv1/Conv"),
}


def matrix(path: Path) -> MatrixSpec:
    """The matrix of the session, as if read from `path`."""
    source = Source(file=str(path), line=1, column=1)
    devices = tuple(
        DeviceSpec(
            id=device,
            kind="virtual",
            source=source,
            soc=Soc(name=soc, hexagon=hexagon, has_hexagon=hexagon is not None, marketing=marketing),
            engine="htp" if hexagon else "cpu",
        )
        for device, (soc, hexagon, marketing) in CHIPS.items()
    )
    models = tuple(
        ModelSpec(
            id=model,
            path=path.parent / "fixtures" / f"{model}.onnx",
            source=source,
            variant=model.partition("_")[2],
            reference=path.parent / "fixtures" / "float.onnx",
        )
        for model in ACCURACY
    )
    note = f"{path}:12:16: `Snapdragon 8 Gen 4` was never sold; taken for Snapdragon 8 Elite (SM8750)"
    return MatrixSpec(path=path, lab=LabSpec(), devices=devices, models=models, notes=(note,))


def record(model: str, device: str, *, session: str = SESSION_ID) -> RunRecord:
    """One run that went well."""
    soc, hexagon, _ = CHIPS[device]
    return RunRecord(
        id=f"{model}.{device}.evaluate",
        session=session,
        device=DeviceIdentity(
            id=device,
            kind="virtual",
            soc=soc,
            hexagon=hexagon,
            simulated=True,
            serial="127.0.0.1:5601",
            engine="htp" if hexagon else "cpu",
            properties={"ro.soc.model": soc},
        ),
        model=ModelIdentity(id=model, variant=model.partition("_")[2], sha256="ab" * 32),
        runtime="qnn" if hexagon else "ort",
        backend="htp" if hexagon else "cpu",
        purpose="evaluate",
        status="ok",
        samples=SAMPLES,
        options={"offload_graph_io_quantization": "0"},
        outputs=(
            TensorRecord(
                name="logits",
                dtype="float32",
                shape=(SAMPLES, 10),
                sha256="cd" * 32,
                quantization=Quantization(scale=0.0421, zero_point=131, dtype="uint8"),
            ),
        ),
        ops=_profile(hexagon),
        events=(
            Event(
                kind="partition",
                dialect="ort",
                source="logcat",
                line=14,
                offset=912,
                raw="Number of partitions supported by QNN EP: 1",
                fields={"partitions": "1"},
                pid=4711,
            ),
        ),
        log_sources={"logcat": 128},
        telemetry={"thermal_status": "0"},
        attempts=(Attempt(number=1, started="2026-11-20T22:43:04Z", duration_s=1.25),),
        transfers=Transfers(pushed_bytes=61440, pulled_bytes=21600, spared_bytes=21600),
        files={"log": "logcat.txt"},
        versions={"onnxruntime": "1.31.1", "qairt": "2.51.0"} if hexagon else {"onnxruntime": "1.31.1"},
    )


def verdicts(model: str) -> list[Verdict]:
    """The standard suite's verdicts on one model."""
    found = []
    for device in CHIPS:
        record_path = f"runs/{model}.{device}.evaluate/record.json"
        found += [
            _verdict("placement", model, (device,), record_path, _placement(model, device)),
            _verdict("determinism", model, (device,), record_path, {"samples": 32, "elements_different": 0}),
            _verdict("accuracy", model, (device,), record_path, _accuracy(model, device)),
        ]
    details: dict[str, object] = {
        "classes": [list(devices) for devices in _classes(model)],
        "gate": "three_run",
    }
    return [
        *found,
        _verdict("agreement", model, tuple(CHIPS), f"runs/{model}.s24.evaluate/record.json", details),
    ]


def comparison(model: str) -> Comparison:
    """The comparison of one model over all devices."""
    classes = _classes(model)
    reference = classes[0]
    op, node = FIRST_LAYER[model]
    return Comparison(
        model=model,
        output="logits",
        classes=classes,
        pairs=tuple(
            PairDiff(
                reference=reference[0],
                observed=observed[0],
                elements=5400,
                elements_different=1873,
                bits_different=9121,
                max_abs=0.0842,
                max_lsb=2.0,
                sqnr_db=38.61,
                top1_flips=1 if observed == OLD else 0,
            )
            for observed in classes[1:]
        ),
        distances=tuple(
            tuple(
                None if row == column else Distance(elements_different=1873, max_lsb=2.0, sqnr_db=38.61)
                for column in classes
            )
            for row in classes
        ),
        attribution=attribution(classes),
        divergences=tuple(
            Divergence(
                node=node,
                op=op,
                tensor=f"{node}_output_0",
                depth=1,
                layers=11,
                reference=reference,
                observed=observed,
                samples=8,
                elements=65536,
                elements_different=2291,
                max_lsb=1.0,
                taps_changed_output=False,
            )
            for observed in classes[1:]
        ),
    )


@cache
def attribution(classes: tuple[tuple[str, ...], ...]) -> Attribution:
    """Whose the loss is, of runs in which the quantization loses most and the oldest chips a little more."""
    draw = np.random.default_rng(4)
    labels = draw.integers(0, 10, size=SAMPLES)
    exact = draw.normal(size=(SAMPLES, 10))
    exact[np.arange(SAMPLES), labels] += 6.0
    noise, other = draw.normal(scale=0.1, size=(2, *exact.shape))
    observed = {
        devices: exact + noise + (0.3 if devices == OLD else 0.1 if devices != CPU else 0.0) * other
        for devices in classes
    }
    chips = {device: hexagon or soc for device, (soc, hexagon, _) in CHIPS.items()}
    return attribute(exact, exact + noise, observed, chips=chips, rng=draw, step=0.0421, labels=labels)


def write_session(
    reports: Path,
    *,
    change: Callable[[Verdict], Verdict] = lambda verdict: verdict,
    models: Iterable[str] = tuple(ACCURACY),
) -> tuple[SessionStore, MatrixSpec]:
    """Write the whole session under `reports`; `change` may turn verdicts first."""
    store = SessionStore.create(reports, SESSION_ID)
    for model in models:
        for device in CHIPS:
            store.write_record(record(model, device))
        for verdict in verdicts(model):
            nodeid = f"device_matrix.yaml::{verdict.check}[{'-'.join((model, *verdict.devices[:1]))}]"
            store.write_verdict(change(verdict), nodeid)
        store.write_comparison(comparison(model))
    return store, matrix(reports.parent / "device_matrix.yaml")


def session(reports: Path, *, exit_status: int = 0) -> Session:
    """Write the session and assemble it."""
    store, spec = write_session(reports)
    return assemble(store, spec, STARTED, FINISHED, exit_status)


def _classes(model: str) -> tuple[tuple[str, ...], ...]:
    return (NEW[:3], OLD, NEW[3:], CPU) if model == "digits_a16w8" else (NEW, OLD, CPU)


def _profile(hexagon: str | None) -> tuple[OpRow, ...]:
    if hexagon is None:
        return ()
    return (
        OpRow(name="Input OpId_2", cycles=330),
        OpRow(name="x_QuantizeLinear:OpId_16", cycles=117368, sources=("QuantizeLinear:x_QuantizeLinear",)),
        OpRow(
            name="conv1:OpId_23", cycles=0, sources=("Conv:/conv1/Conv", "QuantizeLinear:c1_QuantizeLinear")
        ),
        OpRow(name="act1:OpId_27", cycles=111220, sources=("HardSwish:/act1/HardSwish",)),
        OpRow(name="fc:OpId_35", cycles=4838, sources=("MatMul:/fc/MatMul", "Add:/fc/Add")),
        OpRow(name="Output OpId_3", cycles=2380),
    )


def _placement(model: str, device: str) -> dict[str, object]:
    fallbacks: list[dict[str, object]] = []
    if model == "digits_ln_axis1" and device in NPU:
        fallbacks.append(
            {
                "op": "LayerNormalization",
                "node": "/norm/LayerNormalization",
                "reason": REASON,
                "expected": True,
                "expected_reason": "axis 1 has no INT8 kernel on HTP",
                "sources": ["assignment", "log"],
            }
        )
    return {
        "nodes": {"htp": 9 if device in NPU else 0, "cpu": len(fallbacks) if device in NPU else 9},
        "fallbacks": fallbacks,
        "grade": "assignment",
        "agreeing": ["assignment", "log"],
        "silent": ["profile"],
    }


def _accuracy(model: str, device: str) -> dict[str, object]:
    on_float, on_cpu, on_devices = ACCURACY[model]
    on_device = next(share for devices, share in on_devices.items() if device in devices)
    return {
        "samples": SAMPLES,
        "top1_float": on_float,
        "top1_quantized_cpu": on_cpu,
        "top1_device": on_device,
        "drop": on_float - on_device,
        "flips": 1,
        "sqnr_quantized_cpu_db": 33.83,
        "sqnr_device_db": 32.5,
        "three_run_worst": 0.0021,
        "three_run_tolerance": 0.004,
    }


def _verdict(
    check: str, model: str, devices: tuple[str, ...], evidence: str, details: dict[str, object]
) -> Verdict:
    outcome: Outcome = "pass"
    reason = {
        "placement": "9 of 9 nodes ran on the HTP, as the runtime's own assignment says",
        "determinism": "two runs of 32 samples gave the same bits",
        "accuracy": "99.26 % on the device against 99.44 % in float: a drop of 0.18 points, 1.00 allowed",
        "agreement": "bits part into classes, and every device is as close to float as the quantized CPU run",
    }[check]
    return Verdict(
        check=check,
        model=model,
        devices=devices,
        outcome=outcome,
        reason=reason,
        evidence=(evidence,),
        details=details,
    )
