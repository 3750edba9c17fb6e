from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pytest_devicelab.audit.fingerprint.classify import Reading, classify
from pytest_devicelab.audit.fingerprint.edges import edge_probes
from pytest_devicelab.audit.fingerprint.elementwise import elementwise_probes
from pytest_devicelab.audit.fingerprint.fusion import fusion_probes
from pytest_devicelab.audit.fingerprint.pack import REPEATS, pack_inputs, pack_model
from pytest_devicelab.audit.fingerprint.probe import Array, Candidate, Probe
from pytest_devicelab.audit.fingerprint.products import product_probes
from pytest_devicelab.audit.fingerprint.requantize import requantize_probes
from pytest_devicelab.audit.fingerprint.resampling import resampling_probes
from pytest_devicelab.matrix.soc import find_soc
from pytest_devicelab.virtual.engine import Engine, EngineJob
from tests.unit.rounding_engine import ROUNDERS, Reals, engine

PROBES: Mapping[str, Probe] = {
    probe.name: probe
    for family in (
        requantize_probes,
        edge_probes,
        product_probes,
        elementwise_probes,
        resampling_probes,
        fusion_probes,
    )
    for probe in family()
}
# Probes whose inputs decide every mode, one of each family and dtype.
DECISIVE = (
    "requantize_ties_uint8_zero128_by4",
    "requantize_ties_int8_zero0_by4",
    "requantize_ties_uint16_zero32768_by4",
    "requantize_ties_uint16_to_uint8_by512",
    "quantize_ties_uint8",
    "quantize_ties_uint16",
    "conv_ties_uint8_by4",
    "depthwise_ties_uint8_by4",
    "gemm_ties_uint8_by8",
    "matmul_dynamic_ties_uint8_by4",
    "add_ties_uint8",
    "mul_ties_uint16",
    "average_2x2_uint8",
)


def ask(names: Sequence[str], how: Engine, folder: Path) -> Mapping[str, Sequence[Array]]:
    """Run probes through an engine as the device would: probe -> one output a repetition."""
    probes = [PROBES[name] for name in names]
    model = folder / "pack.onnx"
    model.write_bytes(pack_model(probes))
    inputs = pack_inputs(probes)
    samples = tuple({name: array[i : i + 1] for name, array in inputs.items()} for i in range(REPEATS))
    job = EngineJob(model=model, format="onnx", inputs=samples, soc=find_soc("SM8650")[0], work=folder)
    outputs = how(job).outputs
    return {probe.name: [sample[probe.output] for sample in outputs] for probe in probes}


def readings(names: Sequence[str], how: Engine, folder: Path) -> Mapping[str, Reading]:
    found = ask(names, how, folder)
    return {name: classify(PROBES[name].candidates, found[name]) for name in names}


@pytest.mark.parametrize("mode", ROUNDERS)
def test_every_rounding_mode_is_recovered(mode: str, tmp_path: Path) -> None:
    found = readings(DECISIVE, engine(ROUNDERS[mode]), tmp_path)
    assert {name: reading.facts.get("rounding") for name, reading in found.items()} == dict.fromkeys(
        DECISIVE, mode
    )


@pytest.mark.parametrize("mode", ROUNDERS)
def test_a_rounding_between_two_operators_is_seen(mode: str, tmp_path: Path) -> None:
    (reading,) = readings(["fused_add_add_uint8_by16"], engine(ROUNDERS[mode]), tmp_path).values()
    assert reading.facts.get("between") == "separate: rounded" or "between" in reading.open
    assert mode in (reading.facts.get("rounding"), *reading.open.get("rounding", ()))


def test_double_rounding_is_told_from_single_rounding(tmp_path: Path) -> None:
    (reading,) = readings(["fused_add_add_uint8_by16"], engine(ROUNDERS["half up"]), tmp_path).values()
    assert reading == Reading(
        status="answered", facts={"rounding": "half up", "between": "separate: rounded"}
    )


@pytest.mark.parametrize(("wrap", "expected"), [(False, "saturate"), (True, "wrap")])
def test_overflow_is_recovered(wrap: bool, expected: str, tmp_path: Path) -> None:
    names = [f"requantize_overflow_{dtype}_by_quarter" for dtype in ("uint8", "int8", "uint16", "int16")]
    found = readings(names, engine(np.rint, wrap=wrap), tmp_path)
    assert {reading.facts.get("overflow") for reading in found.values()} == {expected}


def test_a_mixture_of_roundings_is_unknown(tmp_path: Path) -> None:
    def mixed(x: Reals) -> Reals:
        return np.where(x < 0, np.floor(x + 0.5), np.rint(x))

    found = readings(DECISIVE, engine(mixed), tmp_path)
    assert {reading.status for reading in found.values()} == {"unknown"}
    assert all(not reading.facts and not reading.open for reading in found.values())
    assert all("differ, by up to 1 LSB" in reading.nearest for reading in found.values())


def test_one_wrong_element_is_enough_to_know_nothing(tmp_path: Path) -> None:
    name = "requantize_ties_uint8_zero128_by4"
    outputs = ask([name], engine(ROUNDERS["half up"]), tmp_path)[name]
    broken = [output.copy() for output in outputs]
    for output in broken:
        output[0, 77] += 1
    reading = classify(PROBES[name].candidates, broken)
    assert reading.status == "unknown"
    assert reading.nearest == "half up: 1 of 256 differ, by up to 1 LSB"


def test_rounding_by_dice_is_stochastic(tmp_path: Path) -> None:
    dice = np.random.default_rng(5)

    def throw(x: Reals) -> Reals:
        return np.floor(x + dice.random(x.shape))

    (reading,) = readings(["requantize_ties_uint8_zero128_by4"], engine(throw), tmp_path).values()
    assert reading == Reading(status="unstable", facts={"rounding": "stochastic"})


def test_outputs_that_change_by_more_than_a_step_are_only_unstable() -> None:
    outputs = [np.array([[3, 4]], np.uint8), np.array([[3, 9]], np.uint8)]
    assert classify([], outputs) == Reading(status="unstable")


def test_inputs_that_do_not_decide_leave_all_modes_that_fit(tmp_path: Path) -> None:
    name = "requantize_ties_uint8_zero128_by2"  # every remainder is a half: up, and ceil, are the same
    (reading,) = readings([name], engine(ROUNDERS["half up"]), tmp_path).values()
    assert reading == Reading(status="undecided", open={"rounding": ("half up", "ceil")})


def test_without_a_tie_the_answer_is_only_to_nearest(tmp_path: Path) -> None:
    (reading,) = readings(["average_3x3_uint8"], engine(np.rint), tmp_path).values()
    assert reading == Reading(status="answered", facts={"rounding": "to nearest"})


@pytest.mark.parametrize(
    ("expected", "observed", "fits"),
    [
        (np.array([0.0], np.float16), np.array([-0.0], np.float16), False),
        (np.array([np.nan], np.float16), np.array([0x7E01], np.uint16).view(np.float16), True),
        (np.array([0x7F53], np.uint16).view(np.float16), np.array([np.nan], np.float16), False),
        (np.array([1], np.uint8), np.array([1], np.int8), False),
        (np.array([[1]], np.uint8), np.array([1], np.uint8), False),
    ],
)
def test_only_bits_count(expected: npt.NDArray[Any], observed: npt.NDArray[Any], fits: bool) -> None:
    reading = classify([Candidate(facts={"a": "b"}, expected=expected)], [observed])
    assert (reading.status == "answered") is fits


def test_a_probe_nobody_can_explain_is_unknown() -> None:
    assert classify([], [np.array([1], np.uint8)]) == Reading(status="unknown")
