"""The first layer at which two runs of one model part."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_devicelab.audit.layers import LayerDiff
from pytest_devicelab.errors import TensorMismatch
from pytest_devicelab.verdicts.comparison import Divergence


def first_divergence(
    layers: Sequence[LayerDiff],
    reference: tuple[str, ...],
    observed: tuple[str, ...],
    *,
    samples: int,
    depth: int,
    taps_changed_output: bool,
) -> Divergence | None:
    """Find the first layer, in topological order, in which two runs differ in any bit.

    Args:
        layers: what `compare_layer` says of the layers that could be compared.
        reference: devices of the class taken as reference.
        observed: devices of the class held against it.
        samples: how many samples were laid side by side.
        depth: how many layers the model has to look at.
        taps_changed_output: whether the tapped model computes something else than the model on one of them: then
            the layer is only a hint.

    Returns:
        The divergence, or None when every layer is the same.

    Raises:
        TensorMismatch: no layer was compared: comparing nothing is never equal.
    """
    if not layers:
        raise TensorMismatch(
            f"no layer of {', '.join(reference)} and {', '.join(observed)} was compared",
            why="no tensor was tapped, or no tapped run succeeded on both",
        )
    first = next((layer for layer in layers if layer.parts), None)
    if first is None:
        return None
    return Divergence(
        node=first.node,
        op=first.op,
        tensor=first.tensor,
        depth=first.depth,
        layers=depth,
        reference=reference,
        observed=observed,
        samples=samples,
        elements=first.elements,
        elements_different=first.elements_different or 0,
        max_lsb=first.max_lsb,
        taps_changed_output=taps_changed_output,
    )
