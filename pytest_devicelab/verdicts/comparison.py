"""Comparison: what one model's outputs say when all devices are laid side by side."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_devicelab.verdicts.attribution import Attribution


@dataclass(frozen=True, slots=True, kw_only=True)
class PairDiff:
    """The difference between two classes of one output, each named by its first device.

    Attributes:
        elements: compared elements over all samples.
        max_lsb: largest difference in steps of the output's own quantization; None when that is unknown.
        sqnr_db: signal to quantization-noise ratio of observed against reference; None when identical.
        top1_flips: samples whose largest logit is another one; None when the output is not `[N, classes]`.
    """

    reference: str
    observed: str
    elements: int
    elements_different: int
    bits_different: int
    max_abs: float
    max_lsb: float | None
    sqnr_db: float | None
    top1_flips: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """How far one class is from another: one cell of the matrix of all classes.

    Attributes:
        max_lsb: largest difference in steps of the output's own quantization; None when that is unknown.
        sqnr_db: of the column's class, with the row's as the signal; None when no value differs.
    """

    elements_different: int
    max_lsb: float | None
    sqnr_db: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first layer at which two classes part.

    Attributes:
        node: the ONNX node whose output parts first, in topological order; `op` is its type.
        tensor: the tapped tensor.
        depth: 1-based position of that layer among the `layers` that were tapped.
        reference: devices of the class taken as reference; `observed`: the class that parts from it.
        samples: how many samples were tapped.
        taps_changed_output: whether tapping changed any bit of the model's own output; if so the layer is
            a hint and not a finding.
    """

    node: str
    op: str
    tensor: str
    depth: int
    layers: int
    reference: tuple[str, ...]
    observed: tuple[str, ...]
    samples: int
    elements: int
    elements_different: int
    max_lsb: float | None
    taps_changed_output: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One output of one model over all devices that ran it.

    Attributes:
        classes: devices whose outputs are bit-identical, largest class first, then in matrix order.
        pairs: one entry for each class against the first.
        distances: of every class (row) to every class (column), in the order of `classes`; None on the diagonal.
        divergences: one entry for each class against the first; empty when there is one class.
        missing: devices that have no output, with the reason; they belong to no class.
        attribution: whose the loss is; None without a float model to measure it by.
    """

    model: str
    output: str
    classes: tuple[tuple[str, ...], ...]
    pairs: tuple[PairDiff, ...] = ()
    distances: tuple[tuple[Distance | None, ...], ...] = ()
    divergences: tuple[Divergence, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()
    attribution: Attribution | None = None

    @property
    def first_divergence(self) -> Divergence | None:
        """The shallowest layer at which any two classes part."""
        return min(self.divergences, key=lambda divergence: divergence.depth, default=None)
