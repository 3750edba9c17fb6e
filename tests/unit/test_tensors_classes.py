from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.tensors.classes import equivalence_classes


def test_largest_first_then_first_seen() -> None:
    hashes = {"v81": ("c",), "v68": ("a",), "v73": ("b",), "v69": ("a",), "v75": ("b",), "v79": ("b",)}
    assert equivalence_classes(hashes) == (("v73", "v75", "v79"), ("v68", "v69"), ("v81",))


def test_all_outputs_must_agree() -> None:
    assert equivalence_classes({"x": ("a", "b"), "y": ("a", "c")}) == (("x",), ("y",))


def test_no_devices_no_classes() -> None:
    assert equivalence_classes({}) == ()


@pytest.mark.parametrize("second", [(), ("a", "b")])
def test_comparing_nothing_is_refused(second: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="same number of hashes"):
        equivalence_classes({"x": ("a",), "y": second})
    with pytest.raises(ValueError, match="at least one"):
        equivalence_classes({"x": (), "y": ()})


@given(st.dictionaries(st.text(min_size=1), st.tuples(st.sampled_from("abc"))))
def test_every_device_is_in_exactly_the_class_of_its_hash(hashes: dict[str, tuple[str]]) -> None:
    classes = equivalence_classes(dict(hashes))
    assert sorted(device for devices in classes for device in devices) == sorted(hashes)
    assert [len({hashes[device] for device in devices}) for devices in classes] == [1] * len(classes)
    assert len(classes) == len(set(hashes.values()))
    assert list(map(len, classes)) == sorted(map(len, classes), reverse=True)
