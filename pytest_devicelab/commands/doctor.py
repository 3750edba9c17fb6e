"""`devicelab doctor`: everything a lab needs, looked at, each with its fix."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

SCHEMA = "devicelab.doctor/1"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser("doctor", help="check everything a lab needs, and say how to fix it")
    parser.add_argument("--matrix", type=Path, metavar="MATRIX", help="check this matrix and its files too")
    parser.add_argument(
        "--reports", type=Path, default=Path("reports"), metavar="DIR", help="default: reports"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print a line for each thing as it is found; status 1 when one fails, for then no session can run."""
    from dataclasses import asdict

    from pytest_devicelab.errors import visible
    from pytest_devicelab.lab.checkup import check_up

    found = []
    for finding in check_up(reports=options.reports, matrix=options.matrix):
        found.append(finding)
        if not options.json:
            # Devices, adb and other people's files have a say in it.
            text, fix = (visible(each, keep="\n") for each in (finding.text, finding.fix))
            text = text.replace("\n", "\n" + " " * 17)
            print(f"{finding.grade:4} {finding.name:11} {text}", flush=True)
            if fix:
                print(f"{'':16} fix: {fix}", flush=True)
    if options.json:
        print(json.dumps({"schema": SCHEMA, "findings": [asdict(finding) for finding in found]}, indent=1))
    return int(any(finding.grade == "fail" for finding in found))
