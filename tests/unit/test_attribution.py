from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from pytest_devicelab.errors import TensorMismatch
from pytest_devicelab.evidence.codec import decode, dump, encode, parse
from pytest_devicelab.verdicts.attribution import Attribution, attribute
from pytest_devicelab.verdicts.comparison import Comparison
from pytest_devicelab.verdicts.ledger import LEAST_SAMPLES, Loss, Share, describe

Floats = npt.NDArray[np.float64]

STEP = 0.1
CHIPS = {"s21": "V68", "s22": "V69", "s23": "V73", "s24": "V75"}
OLD, NEW = ("s21", "s22"), ("s23", "s24")


class Lab:
    """Runs of a made-up classifier whose errors are known: what is added to float is what was lost."""

    def __init__(self, samples: int = 300, seed: int = 0) -> None:
        self.draw = np.random.default_rng(seed)
        self.labels = self.draw.integers(0, 10, size=samples)
        self.float = self.draw.normal(size=(samples, 10))
        self.float[np.arange(samples), self.labels] += 8.0

    def noisy(self, rms: float) -> Floats:
        noisy: Floats = self.float + self.draw.normal(scale=rms, size=self.float.shape)
        return noisy

    def attribute(
        self, quantized: Floats, observed: Mapping[tuple[str, ...], Floats], *, labels: bool = False
    ) -> Attribution:
        return attribute(
            self.float,
            quantized,
            observed,
            chips=CHIPS,
            rng=np.random.default_rng(1),
            step=STEP,
            labels=self.labels if labels else None,
        )


def test_a_loss_the_cpu_shows_too_is_the_quantization() -> None:
    lab = Lab()
    found = lab.attribute(lab.noisy(0.2), {NEW: lab.noisy(0.2), OLD: lab.noisy(0.2)})
    assert found.signal.cause == "quantization"
    assert [share.chip for share in found.signal.shares] == ["V68/V69", "V73/V75"], (
        "in the order of the chips"
    )
    # Rounding to the output's steps alone errs by STEP / sqrt(12), the quantized model by 0.2.
    assert found.signal.quantization is not None
    assert found.signal.quantization.value == pytest.approx(
        20 * math.log10(0.2 / (STEP / math.sqrt(12))), abs=0.3
    )
    assert "it is the quantization" in found.signal.reason


def test_a_loss_of_one_chip_is_that_chips() -> None:
    lab = Lab()
    quantized = lab.noisy(0.2)
    found = lab.attribute(quantized, {NEW: quantized, OLD: lab.noisy(0.4)})
    old, new = found.signal.shares
    assert found.signal.cause == "chip"
    assert (old.decision, new.decision) == ("chip", "none")
    assert old.loss is not None
    assert old.loss.low < 20 * math.log10(2) < old.loss.high
    assert old.p_value is not None
    assert old.p_value < 0.001
    assert (new.loss, new.p_value) == (Loss(value=0.0, low=0.0, high=0.0), 1.0)
    assert found.signal.spread == pytest.approx(old.loss.value)
    assert "V68/V69 add more than 1 dB" in found.signal.reason
    assert "V73/V75 not shown to" in found.signal.reason


def test_a_loss_of_all_chips_that_the_cpu_does_not_show_is_not_the_quantization() -> None:
    lab = Lab()
    found = lab.attribute(lab.noisy(0.2), {NEW: lab.noisy(2.0), OLD: lab.noisy(2.0)})
    assert found.signal.cause == "every_chip"
    assert "not the quantization but what the devices share" in found.signal.reason


def test_chips_that_all_lose_but_not_alike_are_told_apart() -> None:
    lab = Lab()
    found = lab.attribute(lab.noisy(0.2), {NEW: lab.noisy(0.5), OLD: lab.noisy(2.0)})
    assert found.signal.cause == "chip"
    assert "not all alike" in found.signal.reason
    assert found.signal.spread_p is not None
    assert found.signal.spread_p < 0.001


def test_one_device_cannot_show_that_all_lose_it() -> None:
    lab = Lab()
    assert lab.attribute(lab.noisy(0.2), {("s24",): lab.noisy(2.0)}).signal.cause == "chip"


def test_nothing_lost_is_said_so() -> None:
    lab = Lab()
    rounded = STEP * np.rint(lab.float / STEP)
    found = lab.attribute(rounded, {NEW: rounded}, labels=True)
    assert (found.signal.cause, found.signal.line) == ("nothing", "no dB lost")
    assert found.accuracy is not None
    assert found.line == "no dB lost; no points of top-1 lost"


def test_the_figures_of_the_line_add_up() -> None:
    lab = Lab()
    quantized = lab.noisy(0.2)
    found = lab.attribute(quantized, {NEW: quantized, OLD: lab.noisy(0.4)}).signal
    words = found.line.replace(",", "").split()
    total, own, chip, rest = (float(words[index]) for index in (1, 4, 7, 11))
    assert found.line == (
        f"of {total:.1f} dB lost, {own:.1f} is quantization, {chip:.1f} is V68/V69's arithmetic, 0.0 on V73/V75"
    )
    assert total == pytest.approx(own + chip)
    assert found.reference_level is not None
    assert found.shares[0].level is not None
    assert found.total == pytest.approx(found.reference_level - found.shares[0].level)
    assert rest == 0.0


def test_the_line_of_the_issue() -> None:
    def share(chip: str, value: float) -> Share:
        loss = Loss(value=value, low=value, high=value)
        return Share(
            devices=(chip,), chip=chip, level=30.0, loss=loss, p_value=0.1, effect_size=None, decision="none"
        )

    own = Loss(value=1.8, low=1.7, high=1.9)
    line = describe("dB", own, 31.0, [share("V79", -0.04), share("V73", 0.3)])
    assert line == "of 2.1 dB lost, 1.8 is quantization, 0.3 is V73's arithmetic, 0.0 on V79"
    line = describe("dB", None, 31.04, [share("V73", 0.3)])
    assert line == "quantization leaves 31.0 dB, 0.3 dB more go to V73's arithmetic"
    line = describe("dB", own, 31.0, [share("V73", 0.3), share("V79", 0.3)])
    assert line == "of 2.1 dB lost, 1.8 is quantization, 0.3 is every chip's arithmetic"
    line = describe("dB", own, 31.0, [share("V73", -0.3)])
    assert line == "of 1.5 dB lost, 1.8 is quantization, -0.3 is V73's arithmetic"


def test_points_of_accuracy_are_attributed_where_there_are_labels() -> None:
    lab = Lab(samples=400)
    quantized, broken = lab.float.copy(), lab.float.copy()
    quantized[:4] *= -1  # 1.00 point
    broken[:24] *= -1  # 5.00 points more
    found = lab.attribute(quantized, {NEW: quantized, OLD: broken}, labels=True).accuracy
    assert found is not None
    assert found.cause == "chip"
    assert found.line == (
        "of 6.00 points of top-1 lost, 1.00 is quantization, 5.00 is V68/V69's arithmetic, 0.00 on V73/V75"
    )
    assert (found.reference_level, found.quantized_level) == (100.0, 99.0)
    assert found.shares[0].level == 94.0


def test_without_labels_or_classes_no_points_are_claimed() -> None:
    lab = Lab()
    assert lab.attribute(lab.float, {NEW: lab.float}).accuracy is None
    images = lab.float.reshape(-1, 2, 5)
    found = attribute(
        images, images, {NEW: images}, chips=CHIPS, rng=np.random.default_rng(), labels=lab.labels
    )
    assert found.accuracy is None


def test_too_few_samples_are_inconclusive_with_the_number_needed() -> None:
    lab = Lab(samples=LEAST_SAMPLES - 1)
    found = lab.attribute(lab.noisy(0.2), {NEW: lab.noisy(0.2)}).signal
    assert found.cause == "inconclusive"
    assert found.samples_needed is not None
    assert found.samples_needed >= LEAST_SAMPLES
    assert found.line.startswith(f"inconclusive (19 samples, about {found.samples_needed:,} needed): of ")
    assert str(found.samples_needed) in found.reason


def heavy_tailed(samples: int, seed: int) -> Attribution:
    """Runs alike in which a few samples carry most of the error, so that dozens of them say little."""
    lab = Lab(samples=samples, seed=seed)
    size = lab.draw.lognormal(sigma=0.6, size=(samples, 1))
    quantized, device = (lab.float + 0.2 * size * lab.draw.normal(size=lab.float.shape) for _ in range(2))
    return lab.attribute(quantized, {NEW: device})


def test_the_number_needed_is_of_the_right_order() -> None:
    found = [heavy_tailed(30, seed).signal for seed in range(40)]
    needed = [each.samples_needed for each in found if each.cause == "inconclusive"]
    assert len(needed) > 20
    # It is an estimate from few samples: half of them come out too low, so four times as many are taken.
    enough = 4 * int(np.median([count for count in needed if count is not None]))
    assert enough < 1000
    settled = [heavy_tailed(enough, 1000 + seed).signal.cause for seed in range(20)]
    assert settled.count("quantization") >= 17


def test_sound_chips_are_blamed_no_more_often_than_alpha_says() -> None:
    blamed, different = 0, 0
    for seed in range(150):
        lab = Lab(samples=60, seed=seed)
        found = lab.attribute(lab.noisy(0.2), {("s21",): lab.noisy(0.2), ("s24",): lab.noisy(0.2)}).signal
        blamed += found.cause in ("chip", "every_chip")
        different += any(share.p_value is not None and share.p_value < 0.05 for share in found.shares)
    assert blamed == 0, "1 dB is far beyond what chance gives here"
    assert different / 150 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 150)


def test_a_chip_two_db_worse_is_found_and_its_size_is_told() -> None:
    found = []
    for seed in range(60):
        lab = Lab(samples=200, seed=seed)
        worse = lab.noisy(0.2 * 10 ** (2 / 20))
        found.append(lab.attribute(lab.noisy(0.2), {("s21",): worse, ("s24",): lab.noisy(0.2)}).signal)
    assert sum(each.cause == "chip" and each.shares[0].decision == "chip" for each in found) >= 57
    assert np.mean([each.shares[0].loss.value for each in found if each.shares[0].loss]) == pytest.approx(
        2, abs=0.1
    )


def test_a_real_but_small_share_is_measured_and_not_blamed() -> None:
    lab = Lab(samples=2000)
    quantized = lab.noisy(0.2)
    device = lab.float + 1.05 * (quantized - lab.float)
    found = lab.attribute(quantized, {NEW: device}).signal
    assert found.cause == "quantization"
    assert found.shares[0].p_value is not None
    assert found.shares[0].p_value < 0.001
    assert found.shares[0].loss is not None
    assert found.shares[0].loss.value == pytest.approx(20 * math.log10(1.05))


def test_what_could_have_been_seen_shrinks_with_the_samples() -> None:
    few, many = (
        lab.attribute(lab.noisy(0.2), {NEW: lab.noisy(0.2)}).signal.detectable
        for lab in (Lab(samples=50), Lab(samples=800))
    )
    assert few is not None
    assert many is not None
    assert few / many == pytest.approx(4, rel=0.35)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_device_that_gives_nan_or_infinity_lost_everything(value: float) -> None:
    lab = Lab()
    quantized = lab.noisy(0.2)
    broken = quantized.copy()
    broken[7, 3] = value
    found = lab.attribute(quantized, {NEW: quantized, OLD: broken}).signal
    assert found.cause == "chip"
    assert (found.shares[0].level, found.shares[0].loss, found.shares[0].p_value) == (None, None, None)
    assert "NaN or infinity on V68/V69" in found.line
    assert found.shares[1].decision == "none"


def test_an_error_where_the_cpu_makes_none_is_the_chips() -> None:
    lab = Lab()
    found = lab.attribute(lab.float, {NEW: lab.noisy(0.2), OLD: lab.float}).signal
    assert (found.cause, found.quantized_level) == ("chip", None)
    assert found.line.startswith(
        "quantization costs nothing, 0.0 dB more go to V68/V69's arithmetic, V73/V75 leaves "
    )


def test_a_device_without_any_error_lost_nothing() -> None:
    lab = Lab()
    found = lab.attribute(lab.noisy(0.2), {NEW: lab.float}).signal
    assert found.shares[0].decision == "none"
    assert "no error on V73/V75" in found.line


def test_errors_of_a_single_sample_are_no_proof() -> None:
    lab = Lab()
    quantized, device = lab.float.copy(), lab.float.copy()
    quantized[0] += 0.1
    device[1] += 1.0
    found = lab.attribute(quantized, {NEW: device}).signal
    assert found.cause == "inconclusive"


def test_devices_of_one_chip_in_two_classes_go_by_their_ids() -> None:
    lab = Lab()
    chips = {"desk_a": "V75", "desk_b": "V75", "s21": "V68"}
    found = attribute(
        lab.float,
        lab.noisy(0.2),
        {("desk_a", "s21"): lab.noisy(0.2), ("desk_b",): lab.noisy(0.2)},
        chips=chips,
        rng=np.random.default_rng(0),
    )
    assert [share.chip for share in found.signal.shares] == ["desk_a/V68", "desk_b"]


def test_the_same_generator_gives_the_same_figures() -> None:
    assert heavy_tailed(40, 5) == heavy_tailed(40, 5)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda a: a[:5], "shapes"),
        (lambda a: np.where(a == a[0, 0], np.nan, a), "on the CPU"),
    ],
)
def test_runs_that_are_no_yardstick_are_refused(change: Callable[[Floats], Floats], why: str) -> None:
    lab = Lab()
    with pytest.raises(TensorMismatch, match=why):
        lab.attribute(change(lab.float), {NEW: lab.float})


def test_comparing_nothing_is_refused() -> None:
    lab = Lab(samples=0)
    with pytest.raises(TensorMismatch, match="no samples"):
        lab.attribute(lab.float, {NEW: lab.float})
    with pytest.raises(TensorMismatch, match="no samples, or no devices"):
        Lab().attribute(Lab().float, {})


def test_an_attribution_survives_the_way_to_disk() -> None:
    lab = Lab()
    found = lab.attribute(lab.noisy(0.2), {NEW: lab.noisy(0.2), OLD: lab.noisy(3.0)}, labels=True)
    whole = replace(Comparison(model="m", output="y", classes=(OLD, NEW)), attribution=found)
    data = parse(dump({"schema": "s", **encode(whole)}), file="f", schema="s")
    assert decode(Comparison, data, file="f") == whole
