from __future__ import annotations

import numpy as np
import pytest

from pytest_devicelab.audit.divergence import first_divergence
from pytest_devicelab.audit.layers import compare_layer
from pytest_devicelab.audit.taps import find_taps, tap_model
from tests.unit.deep_model import deep_model, inputs, layer_names, plant, run

LAYERS = 50


@pytest.mark.parametrize("seed", [1, 2])
def test_a_fault_in_one_layer_of_fifty_is_found_every_time(seed: int) -> None:
    """100 of 100: each of the 50 layers of two models gets a fault of one step, in one element of it."""
    model, x = deep_model(LAYERS, seed), inputs(4, seed)
    tapped = tap_model(model)
    sound = run(tapped.model, x)
    assert all(np.unique(sound[tap.tensor]).size > 8 for tap in tapped.taps)  # no layer is saturated or dead
    found = []
    for node in layer_names(LAYERS):
        observed = run(plant(tapped.model, node), x)
        layers = [compare_layer(tap, sound[tap.tensor], observed[tap.tensor]) for tap in tapped.taps]
        first = first_divergence(
            layers, ("a",), ("b",), samples=4, depth=len(tapped.taps), taps_changed_output=False
        )
        found.append((first.node, first.elements_different <= 4) if first else None)
    assert found == [(node, True) for node in layer_names(LAYERS)]


def test_nothing_is_found_where_nothing_is_planted() -> None:
    tapped = tap_model(deep_model(LAYERS, 1))
    runs = [run(tapped.model, inputs(4, 1)) for _ in range(2)]
    layers = [compare_layer(tap, *(each[tap.tensor] for each in runs)) for tap in tapped.taps]
    assert len(layers) == LAYERS + 1
    assert first_divergence(layers, ("a",), ("b",), samples=4, depth=51, taps_changed_output=False) is None


def test_every_layer_of_the_deep_model_is_tapped() -> None:
    taps = find_taps(deep_model(LAYERS, 1))
    assert [tap.node for tap in taps] == ["layer0_Q", *layer_names(LAYERS)]
