"""One run on its way: the controller says every second that it waits, and says so when it does not any more."""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pytest_devicelab.cluster.head import HeadWatch
from pytest_devicelab.cluster.parcel import Parcel
from pytest_devicelab.cluster.unit import WATCH
from pytest_devicelab.errors import DeadlineExceeded, InfrastructureError, SessionEnded
from pytest_devicelab.lab.request import RunRequest

_BEAT_S = 1.0
_LOAD_S = 3.0
# How long a lab host may take to say that it has ended a run.
_ENDING_S = 10.0


class NotCarriedOut(InfrastructureError):
    """A lab host took a run and has no record of it: the process that was at it died, or it took us for dead."""


def send(
    ray: Any,
    unit: Any,
    request: RunRequest,
    files: Mapping[str, bytes],
    session: str,
    *,
    retries_used: int,
    head: HeadWatch,
    ended: threading.Event,
    name: str,
    allowed_s: float,
) -> Parcel:
    """Have a unit carry a run out, and return what it answers.

    However this ends without an answer, by the deadline, a lost head or the end of the session, the run is ended on the
    lab host too.

    Args:
        ray: the module, connected.
        unit: handle of the unit.
        request: the run.
        files: the model's, by their path beside it.
        session: id of ours.
        retries_used: how many retries that session has taken.
        head: tells when there is no cluster any more.
        ended: set when nobody waits for runs any more.
        name: of the unit, for people.
        allowed_s: how long it may take with all runs that are before it.

    Raises:
        DeadlineExceeded: there is no answer in time; says whether the lab host has ended the run.
        SessionEnded: the session has.
        NotCarriedOut: the lab host could not.
        InfrastructureError: the head is lost.
        RayError: the unit is lost.
    """
    ticket = secrets.token_hex(8)
    deadline = time.monotonic() + allowed_s
    unit.beat.options(concurrency_group=WATCH).remote(ticket)
    answer = unit.run.remote(ticket, request, files, session, retries_used)
    try:
        while not ray.wait([answer], timeout=_BEAT_S)[0]:
            if head.lost:
                raise head.error()
            if ended.is_set():
                raise session_ended(name)
            if time.monotonic() >= deadline:
                break
            unit.beat.options(concurrency_group=WATCH).remote(ticket)
        else:
            parcel: Parcel = ray.get(answer)
            return parcel
    except ray.exceptions.RayTaskError as error:
        raise NotCarriedOut(
            f"the lab host of {name} could not carry the run out",
            why=str(error.cause if error.cause is not None else error)[-500:],
            fix="see the logs of Ray on that lab host, which has to have the same version of pytest-devicelab",
        ) from None
    except ray.exceptions.RayError:
        raise
    except BaseException:
        unit.cancel.options(concurrency_group=WATCH).remote(ticket)
        raise
    unit.cancel.options(concurrency_group=WATCH).remote(ticket)
    said = bool(ray.wait([answer], timeout=_ENDING_S)[0])
    raise DeadlineExceeded(
        f"no answer from {name} within {allowed_s:g} s",
        why="the run was ended there"
        if said
        else f"its host did not say within {_ENDING_S:g} s that it ended the run",
        fix="see what that lab host does",
    )


def session_ended(where: str) -> SessionEnded:
    """Return the error of a run that nobody waits for any more, for a unit or a kind of unit."""
    return SessionEnded(
        f"the session ended while a run was waited for, on {where}",
        why="pytest was interrupted, or no test asks for it any more",
        fix="resume the session: it is made then",
    )


def loads(ray: Any, units: Mapping[str, Any]) -> dict[str, float]:
    """Return how many runs are waited for at each unit, by name, whoever sent them; infinity for one that does not say.

    Args:
        ray: the module, connected.
        units: handles by name.
    """
    asked = {unit.load.options(concurrency_group=WATCH).remote(): name for name, unit in units.items()}
    found = dict.fromkeys(units, math.inf)
    for answer in ray.wait(list(asked), num_returns=len(asked), timeout=_LOAD_S)[0] if asked else ():
        with suppress(ray.exceptions.RayError):
            found[asked[answer]] = float(ray.get(answer))
    return found
