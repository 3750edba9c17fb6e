"""Pack: many probes in one model, side by side and unconnected, so that a chip answers them in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pytest_devicelab.audit.fingerprint.probe import Array, Probe

# A second and a third answer to the same question show a rounding that throws dice.
REPEATS = 3


def pack_model(probes: Sequence[Probe]) -> bytes:
    """Return one ONNX model of several probes with the same options."""
    from onnx import helper

    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for probe in probes
        for name, array in probe.inputs.items()
    ]
    outputs = [
        helper.make_tensor_value_info(
            probe.output, helper.np_dtype_to_tensor_dtype(np.dtype(probe.output_dtype)), probe.output_shape
        )
        for probe in probes
    ]
    graph = helper.make_graph(
        [node for probe in probes for node in probe.nodes],
        "fingerprint",
        inputs,
        outputs,
        [constant for probe in probes for constant in probe.constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString(deterministic=True))


def pack_inputs(probes: Sequence[Probe]) -> Mapping[str, Array]:
    """Return the inputs of a pack, `[REPEATS, ...]` by name: the same sample again and again."""
    return {
        name: np.repeat(array, REPEATS, axis=0) for probe in probes for name, array in probe.inputs.items()
    }
