"""Decodes the models of a matrix."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from types import MappingProxyType
from typing import get_args

import yaml

from pytest_devicelab.matrix.cursor import Cursor
from pytest_devicelab.matrix.decode_device import ID, ID_RULE
from pytest_devicelab.matrix.options import decode_options
from pytest_devicelab.matrix.runtime_names import BUILT_IN, default_runtime, runtime_names
from pytest_devicelab.matrix.specs import Agreement, ExpectedFallback, Gates, MeasureSpec, ModelSpec
from pytest_devicelab.matrix.suggest import did_you_mean, show

AGREEMENTS: tuple[Agreement, ...] = get_args(Agreement)
_DEFAULT_GATES = Gates()
_OPERATOR = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,127}")
_OPTIONAL = (
    "variant",
    "network",
    "reference",
    "inputs",
    "reference_inputs",
    "labels",
    "runtime",
    "options",
    "expect",
    "gates",
    "samples",
    "measure",
)


def decode_model(
    cursor: Cursor, folder: Path, device_ids: Collection[str], notes: list[str]
) -> ModelSpec | None:
    """Return one model of the matrix, or None when it has no usable id or file; mistakes are noted.

    Args:
        cursor: an item of `models`.
        folder: what relative paths are relative to.
        device_ids: the ids of all devices of the matrix.
        notes: gets a remark for each option this version does not know.
    """
    fields = cursor.fields(
        required=("id", "path"),
        optional=_OPTIONAL,
    )
    model_id, network = fields["id"].text(ID, ID_RULE), fields["network"].text(ID, ID_RULE)
    runtime = fields["runtime"].word(runtime_names())
    path = _model_file(fields["path"], folder, runtime)
    reference = _file(fields["reference"], folder, ".onnx")
    inputs, labels = _file(fields["inputs"], folder, ".npz"), _file(fields["labels"], folder, ".npy")
    reference_inputs, variant = _file(fields["reference_inputs"], folder, ".npz"), fields["variant"].text()
    taken_by = runtime or default_runtime(path.suffix if path else "")
    options = decode_options(fields["options"], taken_by, notes)
    fallbacks = _fallbacks(fields["expect"], device_ids)
    gates = _gates(fields["gates"])
    samples = fields["samples"].integer(1, 10**9)
    measure = _measure(fields["measure"])
    if model_id is None or path is None:
        return None
    return ModelSpec(
        id=model_id,
        path=path,
        source=cursor.source,
        variant=variant or "",
        network=network or "",
        reference=reference,
        inputs=inputs,
        reference_inputs=reference_inputs,
        labels=labels,
        runtime=taken_by,
        options=MappingProxyType(options),
        expected_fallbacks=fallbacks,
        gates=gates,
        samples=samples,
        measure=measure,
    )


def _model_file(cursor: Cursor, folder: Path, runtime: str | None) -> Path | None:
    if runtime is None:
        return _file(cursor, folder, *dict.fromkeys(BUILT_IN.values()))
    return _file(cursor, folder, BUILT_IN.get(runtime, ""))


def _file(cursor: Cursor, folder: Path, *suffixes: str) -> Path | None:
    text = cursor.text()
    if text is None:
        return None
    path = folder / text
    if not text.endswith(suffixes):
        cursor.fail(f"{show(text)} is not a {' or '.join(suffixes)} file")
        return None
    if not os.path.isfile(path):  # noqa: PTH113  # unlike Path.is_file, False for any path no file can have
        cursor.fail(f"no such file: {show(text)}, relative to {folder}{_similar_file(path, text)}")
        return None
    return path


def _similar_file(path: Path, text: str) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix == path.suffix]
    except (OSError, ValueError):
        return ""
    return did_you_mean(path.name, names) if len(text) <= 200 else ""


def _fallbacks(cursor: Cursor, device_ids: Collection[str]) -> tuple[ExpectedFallback, ...]:
    expected = []
    for item in cursor.fields(optional=("fallbacks",))["fallbacks"].items():
        fields = item.fields(required=("op", "reason"), optional=("node", "devices"))
        op = fields["op"].text(_OPERATOR, "is not an ONNX operator type, such as LayerNormalization")
        reason, node = fields["reason"].text(), fields["node"].text()
        devices = _fallback_devices(fields["devices"], device_ids)
        if op is not None and reason is not None:
            expected.append(ExpectedFallback(op=op, reason=reason, node=node, devices=devices))
    return tuple(expected)


def _fallback_devices(cursor: Cursor, device_ids: Collection[str]) -> tuple[str, ...]:
    entries = cursor.items()
    if isinstance(cursor.node, yaml.SequenceNode) and not entries:
        cursor.fail("is empty, so it would hold nowhere: name devices, or remove the key for all with an NPU")
    devices = []
    for entry in entries:
        device = entry.text()
        if device is not None and device not in device_ids:
            entry.fail(f"{show(device)} is not the id of a device{did_you_mean(device, device_ids)}")
        elif device is not None:
            devices.append(device)
    return tuple(devices)


def _measure(cursor: Cursor) -> MeasureSpec | None:
    fields = cursor.fields(optional=("inferences", "warm_up"))
    inferences, warm_up = fields["inferences"].integer(1, 100_000), fields["warm_up"].integer(0, 10_000)
    if not cursor.present:
        return None
    usual = MeasureSpec()
    return MeasureSpec(
        inferences=usual.inferences if inferences is None else inferences,
        warm_up=usual.warm_up if warm_up is None else warm_up,
    )


def _gates(cursor: Cursor) -> Gates:
    fields = cursor.fields(optional=("accuracy_drop", "agreement", "bitwise", "three_run_tolerance"))
    drop = fields["accuracy_drop"].number(0, 1)
    tolerance = fields["three_run_tolerance"].number(0, 1)
    agreement = fields["agreement"].word(AGREEMENTS)
    if fields["bitwise"].word(("required",)) is not None:
        if agreement == "three_run":
            fields["bitwise"].fail("contradicts agreement: three_run: keep one of the two")
        agreement = "bitwise"
    return Gates(
        accuracy_drop=_DEFAULT_GATES.accuracy_drop if drop is None else drop,
        agreement=agreement or _DEFAULT_GATES.agreement,
        three_run_tolerance=_DEFAULT_GATES.three_run_tolerance if tolerance is None else tolerance,
    )
