"""`devicelab bisect`: the first layer at which devices part, and how a difference grows over depth."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pytest_devicelab.commands.experiment import add_options, bench, or_inconclusive

if TYPE_CHECKING:
    from pytest_devicelab.audit.bisect import Bisection, Curve
    from pytest_devicelab.audit.layers import LayerDiff

SCHEMA = "devicelab.bisect/1"
_SAMPLES = 16
_BARS = "▁▂▃▄▅▆▇█"
# Above this the noise is a thousandth of the signal; a bar grows by one step every 8 dB below it.
_QUIET_DB = 64.0


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser("bisect", help="find the first layer at which devices part")
    add_options(parser, samples=_SAMPLES)
    parser.add_argument(
        "--memory-mb",
        type=int,
        default=256,
        metavar="MB",
        help="cap for the tensors of one run (default: 256)",
    )
    parser.set_defaults(run=or_inconclusive(run))


def run(options: argparse.Namespace) -> int:
    """Print the curves; status 0 when no layer parts, 1 when one does, 2 when that cannot be said."""
    from pytest_devicelab.audit.bisect import bisect
    from pytest_devicelab.evidence import codec
    from pytest_devicelab.report.phrases import visible

    with bench(options, compares=True) as lab:
        found = bisect(
            lab.session,
            lab.model,
            lab.devices,
            samples=options.samples,
            memory_bytes=options.memory_mb * 1024 * 1024,
        )
        data = codec.dump({"schema": SCHEMA, **codec.encode(found)})
        lab.session.store.write_file("bisect.json", data)
    print(data.decode() if options.json else visible("\n".join(describe(found)), keep="\n"))
    return status(found)


def status(found: Bisection) -> int:
    """Return 1 when a layer parts, 0 when every layer of every device was seen to be the same, else 2."""
    if found.divergences:
        return 1
    whole = all(len(curve.layers) == found.depth and not curve.taps_changed_output for curve in found.curves)
    compared = bool(found.curves or found.against_float)
    return 0 if compared and whole and not found.missing else 2


def describe(found: Bisection) -> list[str]:
    """Return the findings as lines of text: a verdict, a curve for each pair, a table of its layers."""
    size = f"{found.model}: {found.samples} samples, {found.depth} layers"
    lines = [f"{size}, {f'reference {found.devices[0]}' if found.devices else 'and no device to run them'}"]
    for device, reason in found.missing:
        lines.append(f"  {device} did not take part: " + reason.replace("\n", "\n  "))
    for curve in found.curves:
        lines += ["", *_describe_pair(found, curve)]
    for curve in found.against_float:
        lines += ["", *_describe_float(curve)]
    if found.unmatched and found.against_float:
        lines += ["", f"not found in the float model: {', '.join(found.unmatched)}"]
    return lines + [f"note: {note}" for note in found.notes]


def _describe_pair(found: Bisection, curve: Curve) -> list[str]:
    first = next((each for each in found.divergences if each.observed == (curve.observed,)), None)
    if first is not None:
        may = "may part" if curve.taps_changed_output else "parts"
        verdict = f"{may} first at {first.op} {first.node}, layer {first.depth} of {first.layers}"
        verdict += f": {first.elements_different / first.elements:.1%} of its elements"
        verdict += f", at most {first.max_lsb:g} LSB" if first.max_lsb is not None else ""
    elif len(curve.layers) < found.depth:
        verdict = (
            f"only {len(curve.layers)} of {found.depth} layers could be compared, and none of them parts"
        )
    else:
        verdict = "the same bits in every layer"
    shares = [(layer.elements_different or 0) / layer.elements for layer in curve.layers]
    by = "" if curve.method == "taps" else " (each layer by itself)"
    return [
        f"{curve.observed} against {curve.reference}{by}: {verdict}",
        f"  elements that differ {spark(shares)}  0 to {max(shares, default=0.0):.1%}",
        f"  noise                {_noise(curve.layers)}",
        *_table(curve.layers),
    ]


def _describe_float(curve: Curve) -> list[str]:
    last = curve.layers[-1]
    hint = "; a hint only: tapping changed its output" if curve.taps_changed_output else ""
    return [
        f"{curve.observed} against float: {_db(last.sqnr_db)} at the last layer, {last.op} {last.node}{hint}",
        f"  noise                {_noise(curve.layers)}",
        *_table(curve.layers),
    ]


def spark(shares: Sequence[float]) -> str:
    """Draw shares between 0 and 1 as one character each: `·` is exactly 0, `█` is 1."""
    return "".join("·" if share <= 0 else _BARS[min(7, int(share * 8))] for share in shares)


def _noise(layers: Sequence[LayerDiff]) -> str:
    """Draw the noise of each layer: `·` is none, `▁` at least 64 dB below the signal, `█` as loud as it."""
    shares = [
        0.0 if layer.sqnr_db is None else min(1.0, max(1e-9, 1.0 - layer.sqnr_db / _QUIET_DB))
        for layer in layers
    ]
    numbers = [layer.sqnr_db for layer in layers if layer.sqnr_db is not None]
    return f"{spark(shares)}  {f'{_db(max(numbers))} to {_db(min(numbers))}' if numbers else 'none'}"


def _table(layers: Sequence[LayerDiff]) -> list[str]:
    columns: Sequence[tuple[str, int, Callable[[LayerDiff], str]]] = (
        ("layer", 5, lambda layer: str(layer.depth)),
        ("differ", 7, lambda layer: _share(layer.elements_different, layer.elements)),
        ("max LSB", 8, lambda layer: _number(layer.max_lsb)),
        ("SQNR", 9, lambda layer: _db(layer.sqnr_db)),
        ("KL", 8, lambda layer: _number(layer.kl)),
        ("W1", 8, lambda layer: _number(layer.wasserstein)),
        ("saturated", 9, lambda layer: _percent(layer.saturation_observed)),
        ("clipped", 7, lambda layer: _percent(layer.clipping)),
    )
    head = "  " + " ".join(f"{name:>{width}}" for name, width, _ in columns) + "  operator"
    rows = [
        "  "
        + " ".join(f"{show(layer):>{width}}" for _, width, show in columns)
        + f"  {layer.op} {layer.node}"
        for layer in layers
    ]
    return [head, *rows]


def _share(part: int | None, whole: int) -> str:
    return "-" if part is None else f"{part / whole:.1%}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _db(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f} dB" if math.isfinite(value) else "no signal"
