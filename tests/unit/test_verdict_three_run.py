from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from pytest_devicelab.errors import TensorMismatch
from pytest_devicelab.verdicts.three_run import FULL_COUNT, LEAST_COUNT, apply_three_run

Floats = npt.NDArray[np.float64]

SAMPLES, CLASSES = 400, 10
STEP = 0.004
"""One 8-bit step as a share of the output's range: the tolerance."""


def three_runs(samples: int = SAMPLES, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Float, quantized on the CPU, and a sound chip: errors of one size, partly shared, and clipped outliers."""
    rng = np.random.default_rng(seed)
    reference = rng.uniform(0.0, 1.0, (samples, CLASSES))
    reference[0, 0], reference[0, 1] = 0.0, 1.0
    shared, own, other = (rng.normal(0.0, STEP, reference.shape) for _ in range(3))
    shared[1, 2] = -0.06  # one value beyond the calibrated range, clipped by both
    return reference, reference + shared + 0.7 * own, reference + shared + 0.7 * other


def scaled(device: Floats) -> Floats:
    return device * 1.05


def offset(device: Floats) -> Floats:
    return device + 3 * STEP


def one_channel_silent(device: Floats) -> Floats:
    device[:, 3] = 0.0
    return device


def one_channel_off_scale(device: Floats) -> Floats:
    device[:, 3] *= 1.1
    return device


def three_samples_destroyed(device: Floats) -> Floats:
    device[5:8] = device[5:8, ::-1]
    return device


def one_element_far_off(device: Floats) -> Floats:
    device[7, 7] += 0.4
    return device


def samples_shifted(device: Floats) -> Floats:
    return np.roll(device, 1, axis=0)


def stuck(device: Floats) -> Floats:
    return np.full_like(device, 0.5)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("samples", [LEAST_COUNT, 16, 64, SAMPLES])
def test_a_sound_chip_passes_although_elements_break_the_element_wise_rule(samples: int, seed: int) -> None:
    result = apply_three_run(*three_runs(samples, seed), tolerance=STEP)
    assert result.outcome == "pass", result.reason
    assert result.worst_element is not None
    assert result.worst_element > STEP
    assert result.elements_beyond is not None
    assert result.elements_beyond > 0.0


@pytest.mark.parametrize(
    "defect",
    [
        scaled,
        offset,
        one_channel_silent,
        one_channel_off_scale,
        three_samples_destroyed,
        one_element_far_off,
        samples_shifted,
        stuck,
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_a_planted_defect_fails(defect: Callable[[Floats], Floats], seed: int) -> None:
    reference, quantized, device = three_runs(seed=seed)
    result = apply_three_run(reference, quantized, defect(device), tolerance=STEP)
    assert result.outcome == "fail", result.reason
    assert "would have passed" in result.reason


@pytest.mark.parametrize("defect", [one_channel_silent, three_samples_destroyed, samples_shifted, stuck])
def test_gross_defects_show_on_few_samples(defect: Callable[[Floats], Floats]) -> None:
    reference, quantized, device = three_runs(LEAST_COUNT)
    assert apply_three_run(reference, quantized, defect(device), tolerance=STEP).outcome == "fail"


def test_it_names_where_the_defect_is() -> None:
    reference, quantized, device = three_runs()
    assert "(index 3 of axis 1)" in (
        apply_three_run(reference, quantized, one_channel_off_scale(device), tolerance=STEP).reason
    )
    reference, quantized, device = three_runs()
    device[6] = device[6, ::-1]
    assert "(sample 6)" in apply_three_run(reference, quantized, device, tolerance=STEP).reason


def test_a_device_nearer_to_float_than_the_cpu_passes() -> None:
    reference, quantized, _ = three_runs()
    result = apply_three_run(reference, quantized, reference, tolerance=0.0)
    assert result.outcome == "pass"
    assert result.worst is not None
    assert result.worst < 0.0


def test_the_tolerance_it_names_is_the_smallest_that_passes() -> None:
    reference, quantized, device = three_runs()
    failed = apply_three_run(reference, quantized, offset(device), tolerance=STEP)
    assert failed.enough is not None
    assert apply_three_run(reference, quantized, offset(device), tolerance=failed.enough).outcome == "pass"
    below = failed.enough - 1e-5
    assert apply_three_run(reference, quantized, offset(device), tolerance=below).outcome == "fail"


def test_worked_by_hand() -> None:
    reference = np.tile(np.array([0.0, 16.0]), (FULL_COUNT, 1))
    device = reference + np.array([0.0, 1.0])  # RMS over a sample: 1 / sqrt(2); over the channel: 1
    result = apply_three_run(reference, reference, device, tolerance=1 / 16)
    assert result.outcome == "pass"
    assert (result.worst, result.tolerance, result.worst_element) == (1 / 16, 1 / 16, 1 / 16)
    assert apply_three_run(reference, reference, device, tolerance=0.0624).outcome == "fail"


def test_the_limit_widens_with_few_samples_and_says_so() -> None:
    samples = FULL_COUNT // 4
    result = apply_three_run(*three_runs(samples), tolerance=STEP)
    assert result.tolerance == pytest.approx(2 * STEP)
    assert "widened from 0.40%: few samples" in result.reason


def test_too_few_samples_are_inconclusive() -> None:
    result = apply_three_run(*three_runs(LEAST_COUNT - 1), tolerance=STEP)
    assert (result.outcome, "too few" in result.reason) == ("inconclusive", True)


def test_few_samples_of_large_outputs_are_judged_by_their_channels() -> None:
    rng = np.random.default_rng(1)
    reference = rng.uniform(0.0, 1.0, (2, 3, 16, 16))
    quantized = reference + rng.normal(0.0, STEP, reference.shape)
    device = reference + rng.normal(0.0, STEP, reference.shape)
    assert apply_three_run(reference, quantized, device, tolerance=STEP).outcome == "pass"
    device[:, 2] += 4 * STEP
    assert "index 2 of axis 1" in apply_three_run(reference, quantized, device, tolerance=STEP).reason


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_nan_and_infinity_from_the_device_fail(wrong: float) -> None:
    reference, quantized, device = three_runs()
    device[3, 3] = wrong
    result = apply_three_run(reference, quantized, device, tolerance=1.0)
    assert (result.outcome, "1 of 4,000" in result.reason) == ("fail", True)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_nan_and_infinity_on_the_cpu_leave_no_yardstick(which: int, wrong: float) -> None:
    runs = three_runs()
    runs[which][3, 3] = wrong
    assert apply_three_run(*runs, tolerance=STEP).outcome == "inconclusive"


def test_a_constant_float_output_leaves_no_yardstick() -> None:
    constant = np.ones((SAMPLES, CLASSES))
    assert apply_three_run(constant, constant, constant, tolerance=STEP).outcome == "inconclusive"


@pytest.mark.parametrize("shape", [(0, 10), ()])
def test_nothing_is_inconclusive(shape: tuple[int, ...]) -> None:
    nothing = np.zeros(shape)
    assert apply_three_run(nothing, nothing, nothing, tolerance=STEP).outcome == "inconclusive"


def test_shapes_must_agree() -> None:
    reference, quantized, device = three_runs()
    with pytest.raises(TensorMismatch, match="the same samples"):
        apply_three_run(reference, quantized, device[:10], tolerance=STEP)


def test_another_model_is_no_float_reference() -> None:
    reference, quantized, device = three_runs()
    other = np.random.default_rng(5).permutation(reference.reshape(-1)).reshape(reference.shape)
    found = apply_three_run(other, quantized, device, tolerance=STEP)
    assert found.outcome == "inconclusive"
    assert "no closer to the float model than a constant" in found.reason
