"""Walk through a model layer by layer, on several devices and against float, and find where they part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pytest_devicelab.audit.cut import cut_model
from pytest_devicelab.audit.divergence import first_divergence
from pytest_devicelab.audit.float_reference import FloatReference
from pytest_devicelab.audit.layers import LayerDiff, compare_layer, compare_with_float
from pytest_devicelab.audit.taps import Tap, chunk_taps, tap_model
from pytest_devicelab.audit.walk import Walk
from pytest_devicelab.errors import TensorMismatch
from pytest_devicelab.evidence.record import RunRecord, TensorRecord
from pytest_devicelab.lab.session import LabSession
from pytest_devicelab.matrix.specs import DeviceSpec, ModelSpec
from pytest_devicelab.verdicts.comparison import Divergence

DEFAULT_MEMORY_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """How far a device is from a reference, over the depth of the model.

    Attributes:
        reference: a device id, or `float`.
        layers: in topological order; layers that could not be compared are missing.
        method: `taps`, runs of the whole model, where differences cascade; or `cut`, each layer by itself, fed
            with the reference's tensors, up to the first that parts.
        taps_changed_output: whether tapping changed the output of either device, so that the layers are only a hint.
    """

    reference: str
    observed: str
    layers: tuple[LayerDiff, ...]
    method: Literal["taps", "cut"] = "taps"
    taps_changed_output: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bisection:
    """What a walk through a model found.

    Attributes:
        devices: those that took part, the reference first.
        depth: how many layers the model has to look at.
        curves: each other device against the first; `against_float`: each device against the float model.
        divergences: where each device that parts from the first does so.
        missing: devices that did not take part, with the reason.
        unmatched: layers for which the float model has no tensor of that name.
        notes: what a reader must know of how this was found.
    """

    model: str
    samples: int
    depth: int
    devices: tuple[str, ...]
    curves: tuple[Curve, ...] = ()
    against_float: tuple[Curve, ...] = ()
    divergences: tuple[Divergence, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()
    unmatched: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def bisect(
    session: LabSession,
    model: ModelSpec,
    devices: Sequence[DeviceSpec],
    *,
    samples: int,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    taps: Sequence[Tap] | None = None,
    untapped: Mapping[str, RunRecord] | None = None,
    against_float: bool = True,
) -> Bisection:
    """Lay a model side by side on several devices, layer by layer.

    Args:
        session: where it runs; what it has run already is not run again.
        model: what the matrix says of the model.
        devices: the first is the reference for the others.
        samples: how many of the model's inputs to use, from the first.
        memory_bytes: how much the tensors of one tapped run may take, on one device.
        taps: where to look; None for `find_taps` of the model.
        untapped: runs of the model itself, by device id, on at least these samples; None to make them.
        against_float: whether to hold each device against the model's float reference, if it has one.

    Raises:
        UserError: the model or its inputs cannot be used, or a layer alone takes more memory than allowed.
    """
    walk = Walk(session, model, samples, taps)
    plain = walk.run(devices, model.path) if untapped is None else untapped
    taking_part = [spec for spec in devices if plain[spec.id].status == "ok"]
    missing = tuple((spec.id, plain[spec.id].error) for spec in devices if spec not in taking_part)
    if not taking_part:
        return Bisection(
            model=model.id, samples=walk.samples, depth=len(walk.taps), devices=(), missing=missing
        )
    found = _tapped(walk, taking_part, plain, memory_bytes, against_float=against_float)
    notes = [f"{id_}: {problem}" for id_, problem in found.distorted.items()]
    curves = []
    for curve in found.curves(taking_part):
        curves.append(_by_cutting(walk, curve, notes) if curve.taps_changed_output else curve)
    return Bisection(
        model=model.id,
        samples=walk.samples,
        depth=len(walk.taps),
        devices=tuple(spec.id for spec in taking_part),
        curves=tuple(curves),
        against_float=found.against_float(),
        divergences=tuple(filter(None, (_divergence(walk, curve, notes) for curve in curves))),
        missing=missing,
        unmatched=found.unmatched,
        notes=tuple(notes),
    )


@dataclass(slots=True, kw_only=True)
class _Tapped:
    """What tapped runs showed so far: layers by device, and on which devices tapping made another model of it."""

    layers: dict[str, list[LayerDiff]]
    floats: dict[str, list[LayerDiff]]
    distorted: dict[str, str] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()

    def curves(self, devices: Sequence[DeviceSpec]) -> list[Curve]:
        return [
            Curve(
                reference=devices[0].id,
                observed=spec.id,
                layers=tuple(self.layers[spec.id]),
                taps_changed_output=bool({devices[0].id, spec.id} & self.distorted.keys()),
            )
            for spec in devices[1:]
        ]

    def against_float(self) -> tuple[Curve, ...]:
        return tuple(
            Curve(
                reference="float",
                observed=id_,
                layers=tuple(layers),
                taps_changed_output=id_ in self.distorted,
            )
            for id_, layers in self.floats.items()
            if layers
        )


def _tapped(
    walk: Walk,
    devices: Sequence[DeviceSpec],
    plain: Mapping[str, RunRecord],
    memory_bytes: int,
    *,
    against_float: bool,
) -> _Tapped:
    """Run the tapped model, a chunk of taps at a time, and compare one layer of one device at a time."""
    found = _Tapped(layers={spec.id: [] for spec in devices}, floats={spec.id: [] for spec in devices})
    reference = FloatReference(walk) if against_float and walk.model.reference else None
    found.unmatched = reference.unmatched() if reference else ()
    for chunk in chunk_taps(walk.graph, walk.taps, samples=walk.samples, memory_bytes=memory_bytes):
        name = f"{walk.model.id}.taps{chunk[0].depth}-{chunk[-1].depth}.onnx"
        path = walk.session.keep_model(name, tap_model(walk.content, chunk).model)
        records = walk.run(devices, path)
        for id_, record in records.items():
            if problem := _distortion(walk, record, plain[id_]):
                found.distorted.setdefault(id_, problem)
        usable = {id_: record for id_, record in records.items() if record.status == "ok"}
        floats = reference.tensors(chunk) if reference and usable else {}
        for tap in chunk:
            expected = (
                walk.read(usable[devices[0].id].output(tap.tensor)) if devices[0].id in usable else None
            )
            for id_, record in usable.items():
                tensor = walk.read(record.output(tap.tensor))
                if expected is not None and id_ != devices[0].id:
                    found.layers[id_].append(compare_layer(tap, expected, tensor))
                if tap.tensor in floats:
                    found.floats[id_].append(compare_with_float(tap, floats[tap.tensor], tensor))
    return found


def _distortion(walk: Walk, tapped: RunRecord, plain: RunRecord) -> str:
    """Say how the tapped model is another one to this device; empty when its outputs keep every bit."""
    if tapped.status != "ok":
        return f"the tapped model does not run: {tapped.error.splitlines()[0]}"
    for tensor in plain.outputs:
        own, other = walk.read(tensor)[: walk.samples], walk.read(tapped.output(tensor.name))
        if own.dtype != other.dtype or own.tobytes() != other.tobytes():
            return f"tapping changed bits of the output {tensor.name}"
    return ""


def _by_cutting(walk: Walk, curve: Curve, notes: list[str]) -> Curve:
    """Run the layers one by one, each as a model of its own and fed with real tensors, up to the first that parts.

    A layer that does not run by itself, such as a lone DequantizeLinear, becomes part of the next one.
    """
    devices = [walk.session.matrix.device(id_) for id_ in (curve.reference, curve.observed)]
    known: dict[str, TensorRecord] = {}
    layers: list[LayerDiff] = []
    for tap in walk.taps:
        part = cut_model(walk.graph, known, [tap.tensor])
        left, right = walk.run_part(devices, f"part{tap.depth}", part, known).values()
        if left.status == right.status == "ok":
            known[tap.tensor] = left.output(tap.tensor)
            observed = walk.read(right.output(tap.tensor))
            layers.append(compare_layer(tap, walk.read(known[tap.tensor]), observed))
            if layers[-1].parts:
                break
    if not layers:
        return curve
    pair = f"{curve.reference} and {curve.observed}"
    notes.append(f"{pair}: the model was cut into its layers, each fed with the tensors of {curve.reference}")
    if not layers[-1].parts:
        notes.append(f"{pair}: no layer parts by itself: a difference comes from fusing across layers")
    return replace(curve, layers=tuple(layers), method="cut", taps_changed_output=False)


def _divergence(walk: Walk, curve: Curve, notes: list[str]) -> Divergence | None:
    """Find the first layer of a curve that parts; None where none does, or none could be compared."""
    try:
        return first_divergence(
            curve.layers,
            (curve.reference,),
            (curve.observed,),
            samples=walk.samples,
            depth=len(walk.taps),
            taps_changed_output=curve.taps_changed_output,
        )
    except TensorMismatch as error:
        notes.append(error.what)
        return None
