"""`devicelab matrix`: check a device matrix and show what it means."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_devicelab.matrix.specs import DeviceSpec


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser("matrix", help="check a device matrix and show what it means")
    parser.add_argument("path", type=Path, nargs="?", default=Path("device_matrix.yaml"), metavar="MATRIX")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print devices, models and notes."""
    from pytest_devicelab.matrix.decode import load_matrix

    matrix = load_matrix(options.path)
    for device in matrix.devices:
        print(f"device {device.id}: {device.kind}, {_chip(device)}, {_numerics(device)}")
    for model in matrix.models:
        print(f"model  {model.id}: {model.path}, runtime {model.runtime}")
    for note in matrix.notes:
        print(f"note   {note}")
    return 0


def _chip(device: DeviceSpec) -> str:
    soc = device.soc
    if soc is None:
        return "chip not named"
    npu = f"Hexagon {soc.hexagon or 'unknown'}" if soc.has_hexagon else "no Hexagon"
    return f"{soc.name} ({soc.marketing or 'marketing name unknown'}, {npu})"


def _numerics(device: DeviceSpec) -> str:
    return f"simulated, engine {device.engine}" if device.simulated else "silicon"
