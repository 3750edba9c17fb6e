"""Engines of virtual devices that do whatever a test wants of them. They run in the runner's process on the device."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pytest_devicelab.virtual.control import control
from pytest_devicelab.virtual.engine import EngineJob, EngineRefused, EngineResult, Tensors
from pytest_devicelab.virtual.engines.cpu import run_cpu


def right(job: EngineJob) -> EngineResult:
    """The numbers of the CPU, every node on the NPU."""
    done = run_cpu(job)
    return replace(done, placement=tuple(replace(node, unit="htp") for node in done.placement))


def wrong(job: EngineJob) -> EngineResult:
    """Another class wins every time."""
    return _changed(job, lambda name, tensors: np.roll(tensors[name], 1, axis=-1))


def restless(job: EngineJob) -> EngineResult:
    """Noise of one part in a million, too little for any gate: only the bits tell."""
    noise = np.random.default_rng(int.from_bytes(os.urandom(8)))

    def shaken(name: str, tensors: Tensors) -> npt.NDArray[np.generic]:
        factors = 1 + 1e-6 * noise.standard_normal(tensors[name].shape)
        return (tensors[name].astype(np.float64) * factors).astype(np.float32)

    return _changed(job, shaken)


def mute(job: EngineJob) -> EngineResult:
    """Right numbers, and not a word on where they were computed."""
    return replace(right(job), placement=())


def untimed(job: EngineJob) -> EngineResult:
    """Right numbers, and not a word on how long they took."""
    return replace(right(job), load_us=None, inference_us=())


def slow(job: EngineJob) -> EngineResult:
    """Right numbers, after a while."""
    time.sleep(0.5)
    return right(job)


def crashing(job: EngineJob) -> EngineResult:
    """A fault in the runner itself. What it says tries to steer the terminal."""
    raise RuntimeError("the runner broke \x1b[2Jhere")


def refusing(job: EngineJob) -> EngineResult:
    """A model this chip does not take."""
    raise EngineRefused("Failed to finalize QNN graph", code=1002)


def dropping(job: EngineJob) -> EngineResult:
    """The cable is pulled whenever a model runs; the device comes back at once."""
    control(Path(os.environ["DEVICELAB_VDEVICE"]), "drop")
    return right(job)


def vanishing(job: EngineJob) -> EngineResult:
    """The device goes away in the middle of a run, for good."""
    control(Path(os.environ["DEVICELAB_VDEVICE"]), "offline")
    return right(job)


def _changed(
    job: EngineJob,
    change: Callable[[str, Tensors], npt.NDArray[np.generic]],
) -> EngineResult:
    done = right(job)
    outputs = tuple({name: change(name, tensors) for name in tensors} for tensors in done.outputs)
    return replace(done, outputs=outputs)
