"""`devicelab sensitivity`: which switch changes a model's bits on a device, and by how much."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pytest_devicelab.commands.experiment import add_options, bench, or_inconclusive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_devicelab.audit.sensitivity import Sensitivity, SwitchResult

SCHEMA = "devicelab.sensitivity/1"
_SAMPLES = 16


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "sensitivity",
        help="find which switch changes a model's bits: fusion, optimization level, graph edges, ...",
    )
    add_options(parser, samples=_SAMPLES)
    parser.set_defaults(run=or_inconclusive(run))


def run(options: argparse.Namespace) -> int:
    """Print what each switch did; status 0 when none changes bits, 1 when one does, 2 when that cannot be said."""
    from pytest_devicelab.audit.sensitivity import measure_sensitivity
    from pytest_devicelab.evidence import codec
    from pytest_devicelab.report.phrases import visible

    with bench(options, compares=False) as lab:
        found = [
            measure_sensitivity(lab.session, lab.model, spec, samples=options.samples) for spec in lab.devices
        ]
        data = codec.dump({"schema": SCHEMA, "devices": [codec.encode(each) for each in found]})
        lab.session.store.write_file("sensitivity.json", data)
    print(
        data.decode()
        if options.json
        else visible("\n\n".join("\n".join(describe(each)) for each in found), keep="\n")
    )
    return max(status(each.results) for each in found)


def status(results: Sequence[SwitchResult]) -> int:
    """Return 1 when a switch changes bits, 0 when each that was tried does not, 2 when the control already does."""
    control, *switches = results
    if control.problem or control.changed or all(result.problem for result in switches):
        return 2
    return int(any(result.changed for result in switches))


def describe(found: Sensitivity) -> list[str]:
    """Return the findings as lines of text: the answer, then one line a switch."""
    head = f"{found.model} on {found.device}, {found.samples} samples: {found.answer}"
    width = max(len(result.switch) for result in found.results)
    return [head, *(f"  {result.switch:<{width}}  {_effect(result)}" for result in found.results)]


def _effect(result: SwitchResult) -> str:
    if result.problem:
        return "not tried: " + ", ".join(line.strip() for line in result.problem.splitlines()[:2])
    if not result.changed:
        return "the same bits"
    texts = []
    for change in result.changes:
        text = f"{change.output}: {change.elements_different / change.elements:.1%} of its elements differ"
        text += (
            f", at most {change.max_lsb:.3g} LSB"
            if change.max_lsb is not None
            else f", at most {change.max_abs:.3g}"
        )
        text += f", {change.sqnr_db:.1f} dB" if change.sqnr_db is not None else ""
        text += f", {change.top1_flips} top-1 flips" if change.top1_flips else ""
        texts.append(text)
    moved = f" (on another unit: {', '.join(result.moved)})" if result.moved else ""
    return "; ".join(texts) + moved
