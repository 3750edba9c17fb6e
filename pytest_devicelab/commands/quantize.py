"""`devicelab quantize`: an INT8 model from a float one, made by Qualcomm AI Hub."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser("quantize", help="quantize a float ONNX model in Qualcomm AI Hub")
    parser.add_argument("model", type=Path, metavar="MODEL", help="the float .onnx file")
    parser.add_argument(
        "--inputs", type=Path, required=True, metavar="FILE", help="calibration data, .npz of arrays [N, ...]"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .onnx file to write")
    parser.add_argument("--samples", type=int, metavar="N", help="use the first N samples only")
    parser.add_argument(
        "--timeout", type=float, default=3600.0, metavar="SECONDS", help="our deadline (default: 3600)"
    )
    parser.add_argument(
        "--reports",
        type=Path,
        default=Path("reports"),
        metavar="DIR",
        help="what was uploaded and asked for is remembered in DIR/cache (default: reports)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the quantized model."""
    from pytest_devicelab.aihub.account import account_file, read_account
    from pytest_devicelab.aihub.edge import HubEdge, require_client
    from pytest_devicelab.aihub.quantize import quantize
    from pytest_devicelab.runtimes.inputs import load_inputs

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    require_client()
    calibration = load_inputs(options.inputs, samples=options.samples)
    edge = HubEdge(read_account(account_file()))
    cache = options.reports / "cache" / "aihub"
    quantize(edge, options.model, calibration, options.out, cache=cache, timeout_s=options.timeout, say=say)
    print(options.out)
    return 0
