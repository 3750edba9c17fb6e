"""The smallest part of a model at which devices still part, both of its edges real tensors of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pytest_devicelab.audit.bisect import bisect
from pytest_devicelab.audit.cut import SubModel, cut_model
from pytest_devicelab.audit.layers import LayerDiff, compare_layer
from pytest_devicelab.audit.taps import Tap, tap_model
from pytest_devicelab.audit.walk import Walk
from pytest_devicelab.errors import Inconclusive
from pytest_devicelab.evidence.record import RunRecord, TensorRecord
from pytest_devicelab.lab.session import LabSession
from pytest_devicelab.matrix.specs import DeviceSpec, ModelSpec
from pytest_devicelab.runtimes.inputs import Arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallestPart:
    """A part of a model that still parts, shown by running it on these very devices.

    Attributes:
        tap: the tensor it computes.
        part: the sub-model.
        feed: its inputs, one sample, `[1, ...]` by name.
        sample: which of the model's samples they come from, from 0.
        records: its run on each device, by device id; the first is the reference.
        differences: each other device against the first.
    """

    tap: Tap
    part: SubModel
    feed: Arrays
    sample: int
    records: Mapping[str, RunRecord]
    differences: Mapping[str, LayerDiff]


def smallest_part(
    session: LabSession, model: ModelSpec, devices: Sequence[DeviceSpec], *, samples: int
) -> SmallestPart:
    """Find the first layer that parts, cut it out, and show that it parts by itself.

    Where the layer alone does not, the cut grows backwards, up to the whole model in front of it.

    Raises:
        UserError: the model or its inputs cannot be used.
        Inconclusive: a device did not take part, no layer parts, or no part of the model shows it by itself.
    """
    found = bisect(session, model, devices, samples=samples, against_float=False)
    if found.missing:
        raise Inconclusive(
            f"{', '.join(id_ for id_, _ in found.missing)} did not take part",
            why="\n".join(reason for _, reason in found.missing),
            fix="bring it back and go on with --resume, or leave it out of --devices",
        )
    if not found.divergences:
        raise Inconclusive(
            f"{model.id} gives the same bits in every layer that could be compared, so there is nothing to reproduce",
            why=f"{found.samples} samples on {', '.join(found.devices)}; {'; '.join(found.notes) or 'no remarks'}",
            fix="try other devices, or more samples",
        )
    first = min(found.divergences, key=lambda divergence: divergence.depth)
    walk = Walk(session, model, samples)
    step = 1
    while True:
        shown = _show(walk, devices, first.depth, step)
        if shown is not None:
            return shown
        if step > first.depth:
            raise Inconclusive(
                f"the devices part at {first.op} {first.node}, but no part of the model that ends there shows it",
                why="cut out of the model, every part gives the same bits: the difference comes from fusing across it",
                fix="`devicelab bisect` has the layers; send the whole model",
            )
        step *= 2


def _show(walk: Walk, devices: Sequence[DeviceSpec], depth: int, step: int) -> SmallestPart | None:
    """Cut `step` layers out, ending at layer `depth`, and run them; None when they do not part by themselves."""
    tap = walk.taps[depth - 1]
    edges = {each.tensor: each for each in walk.taps if each.depth <= depth - step}
    part = cut_model(walk.graph, edges, [tap.tensor])
    known = _real_tensors(walk, devices[0], [edges[name] for name in part.inputs if name in edges])
    if known is None:
        return None
    name = f"repro{depth}.{step}"
    records = walk.run_part(devices, name, part, known)
    sample = _worst_sample(walk, tap, records)
    if sample is None:
        return None
    feed = {name: array[sample : sample + 1] for name, array in walk.feed(part, known).items()}
    path = walk.session.keep_model(f"{walk.model.id}.{name}.onnx", part.model)
    alone = walk.run(devices, path, feed)
    if _worst_sample(walk, tap, alone) is None:
        return None
    arrays = {id_: walk.read(record.output(tap.tensor)) for id_, record in alone.items()}
    reference, *others = (spec.id for spec in devices)
    differences = {id_: compare_layer(tap, arrays[reference], arrays[id_]) for id_ in others}
    return SmallestPart(tap=tap, part=part, feed=feed, sample=sample, records=alone, differences=differences)


def _real_tensors(walk: Walk, device: DeviceSpec, taps: Sequence[Tap]) -> Mapping[str, TensorRecord] | None:
    """Return what a device really computes at some tensors, by the tensor; None when tapping them does not run."""
    if not taps:
        return {}
    names = "-".join(str(tap.depth) for tap in taps)
    path = walk.session.keep_model(f"{walk.model.id}.edges{names}.onnx", tap_model(walk.content, taps).model)
    record = walk.run([device], path)[device.id]
    if record.status != "ok":
        return None
    return {tap.tensor: record.output(tap.tensor) for tap in taps}


def _worst_sample(walk: Walk, tap: Tap, records: Mapping[str, RunRecord]) -> int | None:
    """Return the sample in which most elements differ from the first device; None when no bit does, or a run failed."""
    if any(record.status != "ok" for record in records.values()):
        return None
    reference, *others = (walk.read(record.output(tap.tensor)) for record in records.values())
    counts = np.zeros(len(reference), np.int64)
    for other in others:
        # As bytes: NaNs and signed zeros count by their bits.
        left, right = (
            np.ascontiguousarray(each).reshape(len(each), -1).view(np.uint8) for each in (reference, other)
        )
        counts += np.count_nonzero(left != right, axis=1)
    worst = int(np.argmax(counts))
    return worst if counts[worst] else None
