"""`devicelab fingerprint`: how a chip computes, from small models that decide it, and how two chips compare."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_devicelab.errors import UserError, visible

if TYPE_CHECKING:
    from pytest_devicelab.audit.fingerprint.compare import FingerprintDiff
    from pytest_devicelab.audit.fingerprint.fingerprint import Answer, Fingerprint

DIFF_SCHEMA = "devicelab.fingerprint_diff/1"
_SHOWN = 20


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "fingerprint", help="show how a chip computes, and which known chip it is like"
    )
    parser.add_argument("--matrix", type=Path, default=Path("device_matrix.yaml"), metavar="MATRIX")
    parser.add_argument("--devices", metavar="A,B", help="ids of devices (default: all of the matrix)")
    parser.add_argument("--runtime", choices=("ort", "qnn"), default="ort", help="default: ort")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="write the fingerprint; {device} and {hexagon} in the name stand for the device's own",
    )
    parser.add_argument("--date", metavar="DAY", help="day to put into the fingerprint (default: today, UTC)")
    parser.add_argument(
        "--reports", type=Path, default=Path("reports"), metavar="DIR", help="default: reports"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--diff",
        nargs=2,
        type=Path,
        metavar=("REFERENCE", "OBSERVED"),
        help="compare two fingerprints' files instead; exit 0 same, 1 different, 2 cannot be said",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Take fingerprints, or compare two files."""
    return _diff(options) if options.diff else _take(options)


def _diff(options: argparse.Namespace) -> int:
    from pytest_devicelab.audit.fingerprint.compare import compare
    from pytest_devicelab.audit.fingerprint.fingerprint import read_fingerprint

    reference, observed = (read_fingerprint(path) for path in options.diff)
    diff = compare(reference, observed)
    print(
        json.dumps(_as_data(diff), indent=1)
        if options.json
        else visible("\n".join(describe(diff)), keep="\n")
    )
    return {True: 0, False: 1, None: 2}[diff.same]


def _take(options: argparse.Namespace) -> int:
    from pytest_devicelab.audit.fingerprint.compare import known_fingerprints, nearest

    fingerprints = _fingerprints(options)
    for fingerprint in fingerprints:
        _write(options.out, fingerprint)
    matches = {one.device.id: nearest(one, known_fingerprints()) for one in fingerprints}
    if options.json:
        print(_json_of(fingerprints, matches))
    else:
        for one in fingerprints:
            print(visible("\n".join(_summary(one, matches[one.device.id])), keep="\n"))
        print(visible("\n".join(table(fingerprints)), keep="\n"))
    answered = (any(answer.sha256 for answer in one.probes) for one in fingerprints)
    return 0 if all(answered) else 2


def _fingerprints(options: argparse.Namespace) -> tuple[Fingerprint, ...]:
    from pytest_devicelab.audit.fingerprint.catalogue import all_probes
    from pytest_devicelab.audit.fingerprint.take import take_fingerprint
    from pytest_devicelab.lab.open import open_session
    from pytest_devicelab.lab.preflight import check_lab
    from pytest_devicelab.lab.session import side_by_side
    from pytest_devicelab.matrix.decode import load_matrix

    matrix = load_matrix(options.matrix)
    known = {device.id: device for device in matrix.devices}
    wanted = [name.strip() for name in options.devices.split(",")] if options.devices else list(known)
    if unknown := [name for name in wanted if name not in known]:
        raise UserError(f"{options.matrix} has no device {unknown[0]!r}", fix=f"known are {', '.join(known)}")
    if options.out and len(wanted) > 1 and not re.search(r"\{(device|hexagon)\}", options.out):
        raise UserError(
            f"--out {options.out} names one file for {len(wanted)} devices",
            fix="put {device} or {hexagon} into the name",
        )
    devices = tuple(known[name] for name in dict.fromkeys(wanted))
    check_lab(replace(matrix, models=()), devices)
    date = options.date or f"{datetime.now(UTC):%Y-%m-%d}"
    with open_session(matrix, devices, reports=options.reports, progress=_say) as session:
        ask = partial(take_fingerprint, session, probes=all_probes(), runtime=options.runtime, date=date)
        return tuple(side_by_side([partial(ask, device) for device in devices]))


def _write(out: str | None, fingerprint: Fingerprint) -> None:
    from pytest_devicelab.audit.fingerprint.fingerprint import to_json
    from pytest_devicelab.evidence.atomic import whole_file

    if out is None:
        return
    # A device says itself what Hexagon it has: no path may come of that.
    hexagon = re.sub(r"[^a-z0-9]", "_", (fingerprint.device.hexagon or "none").lower())
    path = Path(out.replace("{device}", fingerprint.device.id).replace("{hexagon}", hexagon))
    with whole_file(path) as file:
        file.write(to_json(fingerprint))
    _say(f"devicelab: wrote {path}")


def _summary(fingerprint: Fingerprint, matches: Sequence[FingerprintDiff]) -> list[str]:
    counts: dict[str, int] = {}
    for answer in fingerprint.probes:
        counts[answer.status] = counts.get(answer.status, 0) + 1
    said = ", ".join(f"{number} {status.replace('_', ' ')}" for status, number in counts.items())
    lines = [f"{fingerprint.title}, runtime {fingerprint.runtime}: {len(fingerprint.probes)} probes: {said}"]
    if not matches:
        return [*lines, "  nearest known chip: nothing could be compared"]
    for diff in matches:
        lines.append(f"  nearest known chip: {diff.sentence()}")
        lines.extend(f"    {line}" for line in _differences(diff))
    return lines


def describe(diff: FingerprintDiff) -> list[str]:
    """Return a comparison as lines: one sentence, then what differs and what could not be compared."""
    lines = [f"reference {diff.reference.title}", f"observed  {diff.observed.title}", diff.sentence()]
    if diff.reference.versions != diff.observed.versions:
        lines.append(
            f"versions differ: {_pairs(diff.reference.versions)} against {_pairs(diff.observed.versions)}"
        )
    lines += _differences(diff, shown=len(diff.different))
    lines += [f"{name}: not compared, {why}" for name, why in diff.not_compared.items()]
    return lines


def _differences(diff: FingerprintDiff, *, shown: int = _SHOWN) -> list[str]:
    lines = [
        f"{observed.name}: {observed.words} (reference: {reference.words})"
        for reference, observed in diff.different[:shown]
    ]
    if len(diff.different) > shown:
        lines.append(f"and {len(diff.different) - shown} more")
    return lines


def table(fingerprints: Sequence[Fingerprint]) -> list[str]:
    """Return one line a probe; where devices gave other bits, one line for each class of them."""
    width = max(len(answer.name) for answer in fingerprints[0].probes)
    lines = []
    for answers in zip(*(one.probes for one in fingerprints), strict=True):
        classes: dict[tuple[str, str], list[tuple[str, Answer]]] = {}
        for one, answer in zip(fingerprints, answers, strict=True):
            classes.setdefault((answer.status, answer.sha256), []).append((one.device.id, answer))
        name = answers[0].name
        for members in classes.values():
            who = f"[{','.join(device for device, _ in members)}] " if len(classes) > 1 else ""
            lines.append(f"{name:{width}}  {who}{members[0][1].words}")
            name = ""
    return lines


def _json_of(fingerprints: Sequence[Fingerprint], matches: dict[str, tuple[FingerprintDiff, ...]]) -> str:
    from pytest_devicelab.audit.fingerprint.fingerprint import to_json

    data = {
        "fingerprints": [json.loads(to_json(one)) for one in fingerprints],
        "nearest": {device: [_as_data(diff) for diff in diffs] for device, diffs in matches.items()},
    }
    return json.dumps(data, indent=1)


def _as_data(diff: FingerprintDiff) -> dict[str, Any]:
    return {
        "schema": DIFF_SCHEMA,
        "reference": diff.reference.title,
        "observed": diff.observed.title,
        "same": diff.same,
        "sentence": diff.sentence(),
        "compared": diff.compared,
        "equal": len(diff.equal),
        "different": [
            {"probe": observed.name, "reference": reference.words, "observed": observed.words}
            for reference, observed in diff.different
        ],
        "not_compared": dict(diff.not_compared),
        "silent": list(diff.silent),
    }


def _pairs(versions: Any) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "none known"


def _say(text: str) -> None:
    print(visible(text, keep="\n"), file=sys.stderr, flush=True)
