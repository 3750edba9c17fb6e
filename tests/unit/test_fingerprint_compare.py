from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_devicelab import cli
from pytest_devicelab.audit.fingerprint.catalogue import all_probes
from pytest_devicelab.audit.fingerprint.compare import compare, known_fingerprints, nearest
from pytest_devicelab.audit.fingerprint.fingerprint import (
    Answer,
    Fingerprint,
    from_json,
    read_fingerprint,
    to_json,
)
from pytest_devicelab.errors import InfrastructureError, UserError
from pytest_devicelab.evidence.record import DeviceIdentity

CHIPS = ("V68", "V69", "V73", "V75", "V79", "V81")
NEWER = {frozenset({"V68", "V69"}), frozenset({"V73", "V75", "V79", "V81"})}
ALL_EQUAL = {frozenset(CHIPS)}


def answer(name: str, status: str = "answered", sha256: str = "aa", asked: str = "1") -> Answer:
    facts = {"rounding": "half up"} if status == "answered" else {}
    return Answer(name=name, op="Add", dtype="uint8", asked=asked, status=status, sha256=sha256, facts=facts)  # type: ignore[arg-type]


def fingerprint(answers: Sequence[Answer], hexagon: str = "V75", *, simulated: bool = True) -> Fingerprint:
    device = DeviceIdentity(
        id=f"unit_{hexagon.lower()}", kind="virtual", soc="SM8650", hexagon=hexagon, simulated=simulated
    )
    return Fingerprint(
        device=device, runtime="ort", date="2026-11-20", versions={"numpy": "2"}, probes=tuple(answers)
    )


def test_equal_and_different_bits() -> None:
    reference = fingerprint([answer("a"), answer("b")])
    diff = compare(reference, fingerprint([answer("a"), answer("b", sha256="bb")], simulated=False))
    assert (diff.equal, [pair[0].name for pair in diff.different], diff.same) == (("a",), ["b"], False)
    assert diff.sentence() == "V75 silicon equals V75 simulator on 1 of 2 probes; 1 differ"


def test_words_play_no_part() -> None:
    told = replace(answer("a"), facts={"rounding": "floor"})
    assert compare(fingerprint([answer("a")]), fingerprint([told])).same is True


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        (answer("a", "refused", ""), answer("a", "refused", ""), "equal"),
        (answer("a", "refused", ""), answer("a"), "different"),
        (answer("a", "unstable", ""), answer("a"), "different"),
        (answer("a", "unstable", ""), answer("a", "unstable", ""), "silent"),
        (answer("a", "not_on_npu", ""), answer("a", "not_on_npu", ""), "silent"),
        (answer("a", "not_on_npu", ""), answer("a"), "not_compared"),
        (answer("a", asked="1"), answer("a", asked="2"), "not_compared"),
        (answer("a"), answer("b"), "not_compared"),
        (answer("a", "unknown", "aa"), answer("a", "unknown", "aa"), "equal"),
    ],
)
def test_what_counts_as_a_comparison(first: Answer, second: Answer, outcome: str) -> None:
    diff = compare(fingerprint([first]), fingerprint([second]))
    filled = {name for name in ("equal", "different", "not_compared", "silent") if getattr(diff, name)}
    assert filled == {outcome}
    assert diff.same == {"equal": True, "different": False}.get(outcome)


def test_comparing_nothing_is_not_the_same() -> None:
    assert compare(fingerprint([]), fingerprint([])).same is None


def test_the_nearest_chip_is_named_with_the_count_and_ties_are_all_named() -> None:
    names = [f"p{index}" for index in range(10)]
    known = [
        fingerprint([answer(name, sha256="old") for name in names], "V69"),
        fingerprint([answer(name, sha256="new") for name in names], "V73"),
        fingerprint([answer(name, sha256="new") for name in names], "V75"),
    ]
    silicon = [answer(name, sha256="new" if name != "p3" else "own") for name in names]
    found = nearest(fingerprint(silicon, "", simulated=False), known)
    assert [diff.reference.device.hexagon for diff in found] == ["V73", "V75"]
    assert found[0].sentence().endswith("silicon equals V73 simulator on 9 of 10 probes; 1 differ")


def test_a_device_with_no_answers_is_near_to_nothing() -> None:
    silent = fingerprint([answer("a", "not_on_npu", "")])
    assert nearest(silent, [fingerprint([answer("a")])]) == ()


def test_json_keeps_everything() -> None:
    whole = fingerprint(
        [
            answer("a"),
            replace(answer("b", "undecided"), open={"rounding": ("half up", "ceil")}),
            replace(answer("c", "refused", ""), note="finalize error 1002"),
        ]
    )
    again = from_json(to_json(whole), file="x")
    assert to_json(again) == to_json(whole)
    assert [probe.words for probe in again.probes] == [
        "answered: rounding half up",
        "undecided: rounding half up or ceil",
        "refused: finalize error 1002",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "devicelab.session/1"},
        {"probes": "many"},
        {"probes": [{"name": "a"}]},
        {"probes": [7]},
        {"versions": [1]},
    ],
)
def test_damaged_files_are_refused(change: dict[str, object]) -> None:
    data = {**json.loads(to_json(fingerprint([answer("a")]))), **change}
    with pytest.raises(InfrastructureError):
        from_json(json.dumps(data).encode(), file="x.json")


def test_a_probe_listed_twice_is_refused() -> None:
    raw = to_json(fingerprint([answer("a"), answer("a", sha256="bb")]))
    with pytest.raises(InfrastructureError, match="listed twice"):
        from_json(raw, file="x.json")


def test_files_that_are_not_fingerprints_are_the_user_s_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_fingerprint(tmp_path / "absent.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match="not a fingerprint"):
        read_fingerprint(tmp_path / "other.json")


def test_diff_command_says_same_different_or_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "one": [answer("a")],
        "same": [answer("a")],
        "other": [answer("a", sha256="bb")],
        "silent": [answer("a", "not_on_npu", "")],
    }
    for name, answers in files.items():
        (tmp_path / f"{name}.json").write_bytes(to_json(fingerprint(answers)))

    def diff(name: str, *more: str) -> int:
        return cli.main(
            ["fingerprint", "--diff", str(tmp_path / "one.json"), str(tmp_path / f"{name}.json"), *more]
        )

    assert [diff("same"), diff("other"), diff("silent")] == [0, 1, 2]
    assert cli.main(["fingerprint", "--diff", str(tmp_path / "one.json"), str(tmp_path / "absent")]) == 4
    capsys.readouterr()
    diff("other", "--json")
    data = json.loads(capsys.readouterr().out)
    assert (data["same"], data["equal"], data["compared"]) == (False, 0, 1)
    assert data["different"] == [
        {"probe": "a", "reference": "answered: rounding half up", "observed": "answered: rounding half up"}
    ]


# What the package carries, against what is known of the chips from elsewhere.


def known() -> dict[str, Fingerprint]:
    return {str(one.device.hexagon): one for one in known_fingerprints()}


def bits(name: str) -> dict[str, str]:
    return {
        chip: {probe.name: probe for probe in one.probes}[name].sha256 or "refused"
        for chip, one in known().items()
    }


def classes(name: str) -> set[frozenset[str]]:
    found: dict[str, set[str]] = {}
    for chip, digest in bits(name).items():
        found.setdefault(digest, set()).add(chip)
    return {frozenset(chips) for chips in found.values()}


def test_all_simulated_chips_are_known_and_say_where_they_come_from() -> None:
    assert tuple(sorted(known())) == CHIPS
    for one in known().values():
        assert one.device.simulated
        assert one.device.serial == ""
        assert {"onnxruntime", "onnxruntime-qnn"} <= set(one.versions)
        assert one.date


def test_the_known_fingerprints_answer_this_catalogue() -> None:
    names = [probe.name for probe in all_probes()]
    assert len(names) == len(set(names)) >= 200
    for one in known().values():
        assert [probe.name for probe in one.probes] == names
        assert not [probe.name for probe in one.probes if probe.status in ("unstable", "not_on_npu")]


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("scale", [4, 8])
def test_requantization_rounds_half_up(chip: str, scale: int) -> None:
    probes = {probe.name: probe for probe in known()[chip].probes}
    found = probes[f"requantize_ties_uint8_zero128_by{scale}"]
    assert (found.status, found.facts) == ("answered", {"rounding": "half up"})


@pytest.mark.parametrize("op", ["conv", "matmul", "gemm"])
def test_int8_products_part_between_v69_and_v73(op: str) -> None:
    assert classes(f"{op}_scale_uint8_by777p7") == NEWER


@pytest.mark.parametrize(
    "name",
    [
        "add_scale_uint8",
        "mul_scale_uint8",
        "table_softmax_uint8",
        "table_sigmoid_uint8",
        "table_tanh_uint8",
        "table_gelu_uint8",
        "table_hardswish_uint8",
        "table_layernormalization_uint8",
        "average_3x3_uint8",
        "resize_half_pixel_uint8",
    ],
)
def test_other_int8_operators_agree_on_every_chip(name: str) -> None:
    assert classes(name) == ALL_EQUAL


def test_16_bit_edges_set_v81_apart() -> None:
    assert classes("dequantize_uint16") == {frozenset(CHIPS[:-1]), frozenset({"V81"})}


@pytest.mark.parametrize("op", ["conv", "matmul", "softmax", "sigmoid"])
def test_v68_computes_float_models_in_its_own_way(op: str) -> None:
    assert frozenset({"V68"}) in classes(f"single_{op}")


@pytest.mark.parametrize("op", ["gelu", "instancenormalization"])
def test_v68_refuses_what_it_cannot_finalize(op: str) -> None:
    found = {probe.name: probe for probe in known()["V68"].probes}[f"single_{op}"]
    assert (found.status, found.sha256, found.note) == ("refused", "", "finalize error 1002")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("quantize_ties_uint8", {"rounding": "half away from zero"}, None),
        ("requantize_ties_uint8_to_uint16_by4", {"rounding": "half down"}, None),
        ("matmul_accumulator_uint16", {"accumulator": "low 8 bits dropped"}, None),
        ("half_add_ties", {"rounding": "half away from zero"}, {"rounding": "half even"}),
        ("half_add_overflow", {"overflow": "exponent 31 holds numbers"}, {"overflow": "infinity"}),
        ("fused_conv_relu_uint8_by16", {"between": "separate: rounded"}, {}),
    ],
)
def test_what_the_reference_page_says_of_the_chips(
    name: str, old: dict[str, str], new: dict[str, str] | None
) -> None:
    for chip, one in known().items():
        facts = {probe.name: probe for probe in one.probes}[name].facts
        assert facts == (old if chip in ("V68", "V69") or new is None else new), chip


def test_the_known_fingerprints_stay_small() -> None:
    assert sum(len(to_json(one)) for one in known().values()) < 300_000
