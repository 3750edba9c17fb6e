"""The files that `ort-run` and `litert-run` leave beside the outputs: JSON that a device wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pytest_devicelab.errors import TransferError
from pytest_devicelab.evidence.codec import decode
from pytest_devicelab.evidence.record import NodePlacement
from pytest_devicelab.runtimes.runtime import OutputFile

OUTPUTS, PLACEMENT, OPS, VERSIONS = "outputs.json", "placement.json", "ops.json", "versions.json"

Row = TypeVar("Row")
Json = TypeVar("Json", dict[str, Any], list[Any])


def read_rows(path: Path, cls: type[Row]) -> tuple[Row, ...]:
    """Read a JSON list of rows that a device wrote; an absent file holds none."""
    return tuple(decode(cls, row, file=str(path)) for row in load_json(path, list))


def load_json(path: Path, kind: type[Json]) -> Json:
    """Read a JSON list or object that a device wrote; an absent file is an empty one.

    Raises:
        TransferError: it is not JSON, or not of that kind.
    """
    if not path.exists():
        return kind()
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise TransferError(
            f"{path}: not JSON", why=str(error), fix="the runner stopped early; see stderr.txt"
        ) from error
    if not isinstance(found, kind):
        raise TransferError(
            f"{path}: not what it should be",
            why=f"a JSON {kind.__name__} was expected, found {type(found).__name__}",
            fix="docs/reference/ort-run.md says what a runner writes",
        )
    return found


def read_outputs(path: Path) -> tuple[OutputFile, ...]:
    """Read which outputs a runner says it wrote, each below `Result_<n>/`."""
    rows = (row | {"folder": "Result_{}/"} if isinstance(row, dict) else row for row in load_json(path, list))
    return tuple(decode(OutputFile, row, file=str(path)) for row in rows)


def read_placement(path: Path) -> tuple[NodePlacement, ...]:
    """Read where each node went; how much it computes and what it borders on is not the device's to say."""
    rows = (
        row | {"macs": None, "boundary": None} if isinstance(row, dict) else row
        for row in load_json(path, list)
    )
    return tuple(decode(NodePlacement, row, file=str(path)) for row in rows)


def read_versions(path: Path) -> dict[str, str]:
    """Read library name -> version."""
    return {str(key): str(value) for key, value in load_json(path, dict).items()}


def require_all(outputs: tuple[OutputFile, ...], wanted: list[str], path: Path, program: str) -> None:
    """Require that a runner names every output of the model once, each in a file of its own.

    Raises:
        TransferError: it does not.
    """
    found = sorted(output.name for output in outputs)
    if found != sorted(wanted) or len({output.file for output in outputs}) != len(outputs):
        raise TransferError(
            f"{path}: {program} does not say which outputs there are",
            why=f"it names {found or 'none'}, the model {sorted(wanted)}"
            if found != sorted(wanted)
            else "two outputs are in the same file",
            fix="see stderr.txt beside it",
        )
