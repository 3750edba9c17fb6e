from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.evidence import codec
from pytest_devicelab.evidence.measurements import Figure, Latency
from pytest_devicelab.evidence.record import RunRecord, TensorRecord
from pytest_devicelab.verdicts.comparison import Comparison
from pytest_devicelab.verdicts.verdict import Verdict
from tests.unit.session_builders import comparison, record, verdicts


def read(raw: bytes) -> RunRecord:
    return codec.decode(RunRecord, codec.parse(raw, file="f.json", schema="s"), file="f.json")


def written(value: RunRecord) -> dict[str, Any]:
    return {"schema": "s", **codec.encode(value)}


def test_a_record_comes_back_equal() -> None:
    before = record("digits_int8", "s24")
    assert read(codec.dump(written(before))) == before


@pytest.mark.parametrize("value", [comparison("digits_a16w8"), *verdicts("digits_ln_axis1")[:3]])
def test_comparisons_and_verdicts_come_back_equal(value: Comparison | Verdict) -> None:
    assert codec.decode(type(value), json.loads(codec.dump(codec.encode(value))), file="f.json") == value


_ABOVE_0 = st.floats(min_value=1e-6, max_value=1e12)
_WORDS = st.text(min_size=1)
st.register_type_strategy(
    Figure, st.builds(Figure, why=_WORDS) | st.builds(Figure, value=_ABOVE_0, source=_WORDS, why=st.just(""))
)
st.register_type_strategy(
    Latency,
    st.builds(Latency, why=_WORDS)
    | st.builds(
        Latency,
        inferences=st.integers(1, 10**6),
        warm_up=st.integers(0, 10**6),
        mean_us=_ABOVE_0,
        p99_us=st.none() | _ABOVE_0,
        source=_WORDS,
        why=st.just(""),
    ),
)


@settings(max_examples=60, deadline=None)
@given(st.from_type(RunRecord))
def test_any_record_survives_the_way_to_disk_and_back(before: RunRecord) -> None:
    # Compared as JSON, where a NaN equals itself.
    assert codec.encode(read(codec.dump(written(before)))) == codec.encode(before)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_truncated_record_is_an_error_that_names_the_file(data: st.DataObject) -> None:
    raw = codec.dump(written(record("digits_int8", "s24"))).rstrip()
    kept = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(InfrastructureError, match=r"evidence file f\.json"):
        read(raw[:kept])


def _set(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        target: Any = data
        for part in parents:
            target = target[int(part) if part.isdigit() else part]
        target[last] = value

    return change


def _drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.pop(name)


@pytest.mark.parametrize(
    ("change", "field", "why"),
    [
        (_set("passed", True), "passed", "no such field"),
        (_set("device/passed", True), "device.passed", "no such field"),
        (_drop("outputs"), "outputs", "missing"),
        (_set("samples", "12"), "samples", "a whole number was expected, found '12'"),
        (_set("samples", True), "samples", "a whole number was expected, found True"),
        (_set("samples", 1.0), "samples", "a whole number was expected, found 1.0"),
        (_set("status", "green"), "status", "one of ok, refused, failed was expected, found 'green'"),
        (_set("status", ["ok"]), "status", "one of ok, refused, failed was expected, found ['ok']"),
        (_set("error", None), "error", "text was expected, found null"),
        (_set("device", []), "device", "an object was expected, found a list"),
        (_set("outputs", {}), "outputs", "a list was expected, found an object"),
        (_set("outputs/0/shape", [1, "x"]), "outputs[0].shape[1]", "a whole number"),
        (
            _set("outputs/0/quantization/scale", "big"),
            "outputs[0].quantization.scale",
            "a number was expected",
        ),
        (_set("outputs/0/quantization/scale", 10**400), "outputs[0].quantization.scale", "too large"),
        (_set("refused_ops", [["Conv", "c"]]), "refused_ops[0]", "3 items were expected, found 2"),
        (_set("options", {"a": 1}), "options.a", "text was expected"),
        (_set("options", 3), "options", "an object was expected"),
        (_set("device/simulated", 1), "device.simulated", "true or false was expected"),
        (_set("schema", "devicelab.run/2"), "schema", "expected `s`"),
        (_drop("schema"), "schema", "expected `s`, found None"),
    ],
)
def test_an_edited_record_is_an_error_that_names_the_field(
    change: Callable[[dict[str, Any]], None], field: str, why: str
) -> None:
    data = written(record("digits_int8", "s24"))
    change(data)
    with pytest.raises(InfrastructureError) as caught:
        read(json.dumps(data).encode())
    assert caught.value.evidence == {"file": "f.json", "field": field}
    assert why in caught.value.why
    assert f"f.json, field `{field}`" in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[1]", "an object was expected, found a list"),
        (b'{"schema": "s", "id": "a", "id": "b"}', "a key is given twice"),
        (b'{"schema": "s", "id": NaN}', "NaN is not JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"schema": "s", "id": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_what_is_not_an_evidence_file_is_an_error(raw: bytes, why: str) -> None:
    with pytest.raises(InfrastructureError, match=r"evidence file f\.json") as caught:
        read(raw)
    assert why in caught.value.why


def test_non_finite_numbers_are_text_that_reads_back_as_numbers() -> None:
    data = codec.encode({"a": float("nan"), "b": float("inf"), "c": [float("-inf")]})
    assert data == {"a": "NaN", "b": "Infinity", "c": ["-Infinity"]}
    assert codec._value(float, "-Infinity", "x") == float("-inf")


def test_numpy_scalars_are_written_as_the_numbers_they_are() -> None:
    data = {"count": np.int64(3), "drop": np.float32(0.5), "same": np.bool_(True), "nan": np.float64("nan")}
    assert json.loads(codec.dump(codec.encode(data))) == {"count": 3, "drop": 0.5, "same": True, "nan": "NaN"}


@pytest.mark.parametrize("value", [object(), {1: "a"}, b"bytes", TensorRecord])
def test_what_has_no_json_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        codec.encode(value)
