"""What `qnn-net-run` and `ort-run` share: the device they run on, its engine, its log."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pytest_devicelab.errors import InfrastructureError, UserError
from pytest_devicelab.virtual import logd, properties
from pytest_devicelab.virtual.engine import (
    Engine,
    EngineJob,
    EngineRefused,
    EngineResult,
    LogLine,
)
from pytest_devicelab.virtual.engines.resolve import resolve_engine
from pytest_devicelab.virtual.image import DeviceFacts, read_device
from pytest_devicelab.virtual.runtime_log import LEVELS, priority_shown
from pytest_devicelab.virtual.tools import trouble
from pytest_devicelab.virtual.tools.raw_files import RunnerError

# Source: AOSP packages/modules/NeuralNetworks, common/Utils.cpp, initVLogMask.
_VLOG_FLAGS = frozenset(
    {"1", "all", "model", "compilation", "execution", "cpuexe", "manager", "driver", "memory"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """The virtual device this process runs on."""

    root: Path
    facts: DeviceFacts

    def engine(self, name: str = "") -> Engine:
        """Return the device's engine, or the one named; raises RunnerError when it cannot be had."""
        try:
            return resolve_engine(name or self.facts.engine)
        except UserError as error:
            raise RunnerError(str(error)) from error

    def log(self, lines: Iterable[LogLine]) -> None:
        """Put lines into the device's logcat."""
        logd.write(self.root, lines, pid=os.getpid(), tid=threading.get_native_id())

    def logcat_level(self, level: str) -> str:
        """Return the level logcat is served at: everything when `debug.nn.vlog` is on, else `level`."""
        return "verbose" if vlog_enabled(properties.get(self.root, "debug.nn.vlog")) else level


def open_station() -> Station:
    """Find the device this process runs on; raises RunnerError outside of one."""
    folder = os.environ.get("DEVICELAB_VDEVICE")
    if not folder:
        raise RunnerError("this program runs on a virtual device only: DEVICELAB_VDEVICE is not set")
    try:
        return Station(root=Path(folder), facts=read_device(Path(folder)))
    except InfrastructureError as error:
        raise RunnerError(str(error)) from error


def vlog_enabled(value: str) -> bool:
    """Say whether a value of `debug.nn.vlog` switches anything on; unknown flags (`0`, `true`) do not."""
    return not _VLOG_FLAGS.isdisjoint(re.split(r"[ ,:]+", value.strip()))


def run_job(
    station: Station,
    engine: Engine,
    job: EngineJob,
    *,
    logcat: str,
    program: str,
    show: Callable[[LogLine], None] | None = None,
) -> EngineResult:
    """Run a job and put what its libraries say into the device's logcat.

    Args:
        station: the device.
        engine: what computes.
        job: the job; its log level covers `logcat`.
        logcat: the chattiest level logcat gets.
        program: tag of the lines that say why a job was refused.
        show: gets every line too, as far as the job's log level goes.

    Raises:
        RunnerError: the engine refused the job, or what it needs is missing.
    """
    began_s = time.monotonic()
    try:
        result = engine(job)
    except EngineRefused as error:
        message = f"{error} (error code {error.code})"
        reason = [LogLine(tag=program, priority="E", message=line) for line in message.splitlines()]
        _pass_on(station, error.log, logcat, show)
        station.log(reason)
        raise RunnerError(message) from error
    except UserError as error:
        raise RunnerError(str(error)) from error
    _pass_on(station, result.log, logcat, show)
    if slow := trouble.read(str(station.root)).get("throttle"):
        time.sleep((slow["slowdown"] - 1) * (time.monotonic() - began_s))
    if trouble.take_crash(str(station.root)):
        _crash(station, show)
    return result


def _crash(station: Station, show: Callable[[LogLine], None] | None) -> NoReturn:
    """Say what a phone says when its NPU's processor went down, and fail.

    Source: the lines and codes that phones' users report; see the kernel and QNN dialects of `logs`.
    """
    kernel = (
        "qcom_q6v5_pas 32300000.remoteproc: fatal error received: QDSP6:Exception:Simulated by a fault",
        "remoteproc remoteproc1: crash detected in cdsp: type fatal error",
        "remoteproc remoteproc1: handling crash #1 in cdsp",
        "remoteproc remoteproc1: recovering cdsp",
    )
    spoken = [LogLine(tag="remoteproc", priority="E", message=line) for line in kernel]
    logd.write(station.root, spoken, pid=0, tid=0, uid=0, buffer="kernel")
    lines = [
        LogLine(tag="QnnDsp", priority="E", message=" <E> SSR Detected, session must be re-created"),
        LogLine(tag="QnnDsp", priority="E", message=" <E> Failed to execute graph with err 6031"),
    ]
    _pass_on(station, lines, "error", show)
    raise RunnerError("Graph execution failed: SSR detected (error code 6031)")


def _pass_on(
    station: Station, lines: Sequence[LogLine], logcat: str, show: Callable[[LogLine], None] | None
) -> None:
    station.log([line for line in lines if priority_shown(line.priority, logcat)])
    if show is not None:
        for line in lines:
            show(line)


def chattier(first: str, second: str) -> str:
    """Return the chattier of two log levels."""
    return max(first, second, key=LEVELS.index)


@contextmanager
def work_folder() -> Iterator[Path]:
    """Give an empty folder for an engine, gone at the end.

    It is the process's temporary folder meanwhile: the vendor's libraries leave files in it.
    """
    with tempfile.TemporaryDirectory(prefix="devicelab-run-") as work:
        os.environ["TMPDIR"] = work
        yield Path(work)
