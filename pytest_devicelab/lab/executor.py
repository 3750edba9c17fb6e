"""Where runs are carried out: beside this host, or wherever a package that brings its own kind of device does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, cast

from pytest_devicelab.errors import UserError
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.lab.request import RunRequest
from pytest_devicelab.matrix.brought import calling, load_brought, require_members
from pytest_devicelab.matrix.specs import DeviceSpec, MatrixSpec

GROUP = "devicelab.executors"
"""Entry points of this group name, for a kind of device, a callable that takes an `ExecutorContext`."""

LOCAL_KINDS = frozenset({"virtual", "adb"})
"""Kinds of device that an adb server beside this host reaches: those a test can hold in its hands."""


class Executor(Protocol):
    """Carries runs out on the devices of one kind. Called from several threads at once."""

    def carry_out(self, spec: DeviceSpec, request: RunRequest) -> RunRecord:
        """Return the record of a run; it is in the session's store by then.

        A device out of reach, a full queue or a deadline gives a record of status `failed`, a model that is refused one
        of status `refused`; neither raises.
        """

    def close(self) -> None:
        """Let go of what is held between runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorContext:
    """What an executor is given.

    Attributes:
        matrix: the device matrix.
        store: the session's folder: records go there, and whatever has to survive until the session is resumed.
        cache: a folder that outlives sessions.
        progress: to be told what is being done.
    """

    matrix: MatrixSpec
    store: SessionStore
    cache: Path
    progress: Callable[[str], None]


def require_executor(kind: str) -> None:
    """Require that devices of a kind that is not local can be driven here, before anything is started.

    An entry point may have a function `require()` that says what is missing; so what only a run can tell does not
    have to be waited for.

    Raises:
        UserError: nothing installed brings that kind, or what it needs is missing.
    """
    make = load_brought(GROUP, kind)
    if make is None:
        raise UserError(
            f"nothing installed carries out runs on devices of kind {kind!r}",
            why=f"no package has an entry point {kind!r} in the group {GROUP!r}",
            fix="install the package that brings that kind of device",
        )
    require: Callable[[], None] | None = getattr(make, "require", None)
    if require is not None:
        calling(require, GROUP, kind)


def make_executor(kind: str, context: ExecutorContext) -> Executor:
    """Return an executor for devices of a kind that is not local.

    Raises:
        UserError: no installed package brings that kind, what one brings cannot be used, or what it needs is missing.
    """
    make = load_brought(GROUP, kind)
    if make is not None:
        found = calling(partial(make, context), GROUP, kind)
        require_members(found, Executor, GROUP, kind)
        return cast("Executor", found)
    raise UserError(
        f"{context.matrix.path}: nothing installed carries out runs on devices of kind {kind!r}",
        why=f"no package has an entry point {kind!r} in the group {GROUP!r}",
        fix="install the package that brings that kind of device",
    )
