"""What the commands that experiment on devices share: which model, which devices, and a lab to run them in."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pytest_devicelab.errors import DevicelabError, UserError

if TYPE_CHECKING:
    from pytest_devicelab.lab.session import LabSession
    from pytest_devicelab.matrix.specs import DeviceSpec, ModelSpec

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A lab that is up, with the model and the devices of one experiment."""

    session: LabSession
    model: ModelSpec
    devices: tuple[DeviceSpec, ...]


def add_options(parser: argparse.ArgumentParser, *, samples: int) -> None:
    """Declare the options of an experiment; `samples` is how many inputs it uses unless told otherwise."""
    parser.add_argument("model", metavar="MODEL", help="id of a model in the matrix")
    parser.add_argument(
        "--devices", required=True, metavar="A,B", help="ids of devices; the first is the reference"
    )
    parser.add_argument("--matrix", type=Path, default=Path("device_matrix.yaml"), metavar="MATRIX")
    parser.add_argument(
        "--samples", type=_count, default=samples, metavar="N", help=f"inputs to use (default: {samples})"
    )
    parser.add_argument(
        "--reports", type=Path, default=Path("reports"), metavar="DIR", help="default: reports"
    )
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="SESSION",
        help="folder of an experiment to go on with: what ran is not run again",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


@contextmanager
def bench(options: argparse.Namespace, *, compares: bool) -> Iterator[Bench]:
    """Bring up the lab of an experiment; `UserError` for whatever is wrong with what was asked for.

    Args:
        options: as `add_options` declares them.
        compares: whether the experiment holds devices against each other, and so needs two.
    """
    from pytest_devicelab.audit.graph import read_model
    from pytest_devicelab.lab.open import open_session
    from pytest_devicelab.lab.preflight import check_lab
    from pytest_devicelab.matrix.decode import load_matrix

    matrix = load_matrix(options.matrix)
    model = _pick(options.model, {each.id: each for each in matrix.models}, "model", options.matrix)
    known = {each.id: each for each in matrix.devices}
    wanted = [name.strip() for name in options.devices.split(",")]
    if len(set(wanted)) != len(wanted):
        raise UserError(f"--devices {options.devices} names a device twice", fix="name each device once")
    devices = tuple(_pick(name, known, "device", options.matrix) for name in wanted)
    if compares and len(devices) < 2:
        raise UserError(
            f"--devices {options.devices} names one device, and it takes two to compare",
            why="the first is the reference that the others are held against",
            fix=f"name another: --devices {options.devices},OTHER",
        )
    matrix = replace(matrix, devices=devices, models=(model,))
    check_lab(matrix, devices)
    read_model(
        model.path
    )  # every experiment takes the model apart: what cannot be is refused before a lab is up
    with open_session(
        matrix, devices, reports=options.reports, resume=options.resume, progress=_say
    ) as session:
        print(f"devicelab: evidence in {session.store.root}", file=sys.stderr)
        yield Bench(session=session, model=model, devices=devices)


def or_inconclusive(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Return a command that answers 2, "it cannot be said", where it broke off; a mistake of the user's stays one."""

    def guarded(options: argparse.Namespace) -> int:
        try:
            return run(options)
        except UserError:
            raise
        except DevicelabError as error:
            _say(f"devicelab: {error}")
            return 2

    return guarded


def _pick(name: str, known: dict[str, T], what: str, matrix: Path) -> T:
    from pytest_devicelab.matrix.suggest import did_you_mean, show

    if name not in known:
        raise UserError(
            f"{matrix} has no {what} {show(name)}{did_you_mean(name, list(known))}",
            fix=f"known are {', '.join(known)}",
        )
    return known[name]


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


def _say(text: str) -> None:
    from pytest_devicelab.report.phrases import visible

    print(visible(text, keep="\n"), file=sys.stderr)
