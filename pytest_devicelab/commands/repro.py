"""`devicelab repro`: a zip that shows a difference between devices without this project."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_devicelab.commands.experiment import add_options, bench, or_inconclusive
from pytest_devicelab.errors import UserError, visible

if TYPE_CHECKING:
    from pytest_devicelab.audit.smallest import SmallestPart

SCHEMA = "devicelab.repro_summary/1"
_SAMPLES = 16


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "repro", help="make a zip that shows where devices part, to hand to a vendor"
    )
    add_options(parser, samples=_SAMPLES)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the zip to write")
    parser.add_argument(
        "--fingerprint",
        action="append",
        default=[],
        metavar="DEVICE=FILE",
        help="put a device's numeric fingerprint into the bundle",
    )
    parser.set_defaults(run=or_inconclusive(run))


def run(options: argparse.Namespace) -> int:
    """Write the bundle; status 0 when it shows a difference, 2 when there is none to show."""
    from pytest_devicelab.audit.repro import bundle
    from pytest_devicelab.audit.smallest import smallest_part
    from pytest_devicelab.evidence.atomic import whole_file

    fingerprints = dict(_fingerprint(assignment) for assignment in options.fingerprint)
    with bench(options, compares=True) as lab:
        shown = smallest_part(lab.session, lab.model, lab.devices, samples=options.samples)
        content = bundle(lab.session, shown, lab.devices, fingerprints=fingerprints)
    with whole_file(options.out) as file:
        file.write(content)
    print(
        json.dumps(_summary(shown, options.out), indent=1)
        if options.json
        else visible(_describe(shown, options.out), keep="\n")
    )
    return 0


def _fingerprint(assignment: str) -> tuple[str, bytes]:
    device, _, path = assignment.partition("=")
    try:
        return device, Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"--fingerprint {assignment}: no such file", why=str(error), fix="write it as DEVICE=FILE"
        ) from error


def _summary(shown: SmallestPart, out: Path) -> dict[str, object]:
    from pytest_devicelab.evidence import codec

    return {
        "schema": SCHEMA,
        "bundle": str(out),
        "op": shown.tap.op,
        "node": shown.tap.node,
        "nodes": list(shown.part.nodes),
        "differences": {id_: codec.encode(diff) for id_, diff in shown.differences.items()},
    }


def _describe(shown: SmallestPart, out: Path) -> str:
    lines = [
        f"{out}: {shown.tap.op} {shown.tap.node}, cut out as a model of {len(shown.part.nodes)} nodes, parts by itself"
    ]
    for id_, diff in shown.differences.items():
        lsb = f", at most {diff.max_lsb:.3g} LSB" if diff.max_lsb is not None else ""
        lines.append(f"  {id_}: {diff.elements_different} of {diff.elements} elements differ{lsb}")
    return "\n".join([*lines, "  unpack it and see README.md: it needs nothing of this project"])
