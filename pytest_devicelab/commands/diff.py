"""`devicelab diff REF OBS`: compare tensor files bit for bit; exit 0 identical, 1 different, 2 not comparable."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_devicelab.errors import TensorMismatch

if TYPE_CHECKING:
    from pytest_devicelab.audit.file_diff import FileDiff, TensorComparison

SCHEMA = "devicelab.diff/1"
_IDENTICAL, _DIFFERENT, _NOT_COMPARABLE = 0, 1, 2
_HEAD = (
    "tensor",
    "dtype",
    "shape",
    "different",
    "bits",
    "max ULP",
    "max LSB",
    "max abs",
    "SQNR dB",
    "cosine",
)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "diff",
        help="compare tensor files bit for bit: .npy, .npz, .raw, .h5, or folders of them",
        epilog="exit status: 0 identical, 1 different, 2 not comparable",
    )
    parser.add_argument("reference", type=Path, metavar="REF", help="the golden file or folder")
    parser.add_argument("observed", type=Path, metavar="OBS", help="what is held against it")
    parser.add_argument("--json", action="store_true", help="print everything, for a program to read")
    parser.add_argument(
        "--dtype", metavar="NAME", help="of raw files without a FILE.json, such as uint8 or bfloat16"
    )
    parser.add_argument("--shape", type=_shape, metavar="N,N,...", help="of raw files without a FILE.json")
    parser.add_argument("--lsb", type=_step, metavar="SCALE", help="one quantization step of float tensors")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the differences."""
    from pytest_devicelab.audit.file_diff import diff_files
    from pytest_devicelab.audit.tensor_files.source import TensorSpec
    from pytest_devicelab.tensors.formats import format_named

    try:
        number = None if options.dtype is None else format_named(options.dtype)
        spec = TensorSpec(number=number, shape=options.shape, scale=options.lsb)
        found = diff_files(options.reference, options.observed, spec=spec, lsb=options.lsb)
    except TensorMismatch as error:
        if options.json:
            print(json.dumps(_failure(options, error)))
        print(f"devicelab: {_printable(str(error), keep=chr(10))}", file=sys.stderr)
        return _NOT_COMPARABLE
    print(json.dumps(_data(options, found)) if options.json else "\n".join(_lines(found)))
    if not found.comparable:
        return _NOT_COMPARABLE
    return _IDENTICAL if found.identical else _DIFFERENT


def _data(options: argparse.Namespace, found: FileDiff) -> dict[str, Any]:
    from pytest_devicelab.evidence import codec

    return {
        "schema": SCHEMA,
        "reference": str(options.reference),
        "observed": str(options.observed),
        "identical": found.identical,
        "tensors": [
            {"name": each.name, "dtype": each.dtype, "shape": list(each.shape), **codec.encode(each.diff)}
            for each in found.tensors
        ],
        "only_in_reference": list(found.only_in_reference),
        "only_in_observed": list(found.only_in_observed),
        "not_comparable": codec.encode(found.not_comparable),
    }


def _failure(options: argparse.Namespace, error: TensorMismatch) -> dict[str, Any]:
    refused = {"name": str(options.observed), "what": error.what, "why": error.why, "fix": error.fix}
    return {
        "schema": SCHEMA,
        "reference": str(options.reference),
        "observed": str(options.observed),
        "identical": False,
        "tensors": [],
        "only_in_reference": [],
        "only_in_observed": [],
        "not_comparable": [refused],
    }


def _lines(found: FileDiff) -> list[str]:
    lines = _table([_HEAD, *(_row(each) for each in found.tensors)]) if found.tensors else []
    lines += [f"only in the reference: {_printable(name)}" for name in found.only_in_reference]
    lines += [f"only in the observed: {_printable(name)}" for name in found.only_in_observed]
    for each in found.not_comparable:
        lines.append(f"not comparable: {_printable(each.name)}: {_printable(each.why or each.what)}")
    return [*lines, _sentence(found)]


def _row(each: TensorComparison) -> tuple[str, ...]:
    diff = each.diff
    return (
        _printable(each.name),
        each.dtype,
        "x".join(map(str, each.shape)) or "scalar",
        f"{diff.elements_different:,} of {diff.elements:,}",
        f"{diff.bits_different:,}",
        "-" if diff.max_ulp is None else f"{diff.max_ulp:,}",
        _number(diff.max_lsb),
        _number(diff.max_abs),
        _number(diff.sqnr_db, ".2f"),
        _number(diff.cosine, ".8f"),
    )


def _number(value: float | None, form: str = ".6g") -> str:
    return "-" if value is None else f"{value:{form}}"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # The first three columns are names, the others numbers.
    return [
        "  ".join(
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _sentence(found: FileDiff) -> str:
    if found.not_comparable:
        return f"Not comparable: {len(found.not_comparable)} of the tensors could not be compared."
    if not found.tensors:
        return "Not comparable: the two have no tensor in common, and comparing nothing is never equal."
    changed = [each for each in found.tensors if not each.diff]
    missing = len(found.only_in_reference) + len(found.only_in_observed)
    if found.identical:
        elements = sum(each.diff.elements for each in found.tensors)
        return f"Identical: no bit differs in {elements:,} elements of {_count(len(found.tensors))}."
    absent = f"{_count(missing)} {'is' if missing == 1 else 'are'} on one side only" if missing else ""
    if not changed:
        return f"Different: {absent}; what both have is identical."
    worst = min(changed, key=lambda each: math.inf if each.diff.sqnr_db is None else each.diff.sqnr_db)
    told = f"{_count(len(changed))} of {len(found.tensors)} differ{'s' if len(changed) == 1 else ''}"
    # The signal-to-noise ratio is what two tensors of unlike units can be ranked by.
    return (
        f"Different: {told}{f', and {absent}' if absent else ''}; "
        f"{_printable(worst.name)}{' differs most and' if len(changed) > 1 else ''} {worst.diff.tolerance}."
    )


def _count(tensors: int) -> str:
    return f"{tensors} tensor{'' if tensors == 1 else 's'}"


def _printable(text: str, *, keep: str = "") -> str:
    """Return text from a file without what a terminal would obey."""
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode()
        for each in text
    )


def _shape(text: str) -> tuple[int, ...]:
    sizes = [size.strip() for size in text.strip("[]() ").split(",") if size.strip()]
    if not all(size.isascii() and size.isdigit() for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is no shape: it takes sizes from 0 on, such as 1,10")
    return tuple(map(int, sizes))


def _step(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no quantization step: it takes a number above 0")
    return value
