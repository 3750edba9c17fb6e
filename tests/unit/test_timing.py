from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.evidence.events import Event
from pytest_devicelab.logs.scan import scan_log
from pytest_devicelab.matrix.specs import MeasureSpec
from pytest_devicelab.runtimes.executorch import ExecutorchRuntime
from pytest_devicelab.runtimes.litert import LitertRuntime
from pytest_devicelab.runtimes.ort import OrtRuntime
from pytest_devicelab.runtimes.qnn import QnnRuntime
from pytest_devicelab.runtimes.runtime import Job, Prepared
from pytest_devicelab.runtimes.timing import (
    Measures,
    Timing,
    read_average,
    read_profile_times,
    read_timing_json,
)

PLAN = MeasureSpec(inferences=2, warm_up=1)
HEAD = "Msg Timestamp,Message,Time,Unit of Measurement,Timing Source,Event Level,Event Identifier"
PHONE = [
    "1,INIT,331158,US,NETRUN,ROOT,",
    "1,INIT,4235,US,BACKEND,ROOT,QNN (load binary) time",
    *(
        row
        for netrun in (9000, 2952, 3000)
        for row in (
            f"2,EXECUTE,{netrun},US,NETRUN,ROOT,Graph 0: model",
            "2,EXECUTE,149241,CYCLES,BACKEND,ROOT,Accelerator (execute) time (cycles)",
            "2,EXECUTE,1851,US,BACKEND,ROOT,QNN accelerator (execute) time",
            f"2,EXECUTE,{netrun - 50},US,BACKEND,ROOT,QNN (execute) time",
        )
    ),
]


def table(rows: list[str]) -> bytes:
    return "\n".join([HEAD, *rows, ""]).encode()


def test_a_phones_profile_counts_the_runners_own_time() -> None:
    found = read_profile_times(table(PHONE), PLAN)
    assert (found.latency.min_us, found.latency.max_us, found.latency.inferences) == (2952.0, 3000.0, 2)
    assert (found.latency.source, found.load_us.value) == ("profile of qnn-net-run, NetRun", 331158.0)


def test_lines_of_the_viewer_above_its_table_are_passed_over() -> None:
    lines = ["qnn-profile-viewer", "", HEAD.replace(",", ", "), *PHONE]
    assert read_profile_times("\n".join(lines).encode(), PLAN) == read_profile_times(table(PHONE), PLAN)


def test_a_profile_without_the_runners_own_time_counts_the_backends() -> None:
    found = read_profile_times(table([row for row in PHONE if "NETRUN" not in row]), PLAN)
    assert (found.latency.min_us, found.load_us.value) == (2902.0, 4235.0)
    assert "QNN (execute) time" in found.latency.source


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (table(PHONE[:-4]), "2 inferences where 3"),
        (table(PHONE + PHONE[-4:]), "4 inferences where 3"),
        (table([row.replace("3000", "-3000") for row in PHONE]), "-3000 us is no time"),
        (table([row.replace("3000", "nan") for row in PHONE]), "nan us is no time"),
        (table([row.replace(",US,", ",MS,") for row in PHONE]), "0 inferences where 3"),
        (table([row.replace("3000", "soon") for row in PHONE]), "no table of events (ValueError)"),
        (b"not,a,profile\n1,2,3\n", "no table of events (KeyError)"),
        (b"", "0 inferences where 3"),
    ],
)
def test_a_profile_that_makes_no_sense_gives_no_latency(content: bytes, why: str) -> None:
    found = read_profile_times(content, PLAN)
    assert found.latency.mean_us is None
    assert why in found.latency.why


@given(st.binary(max_size=400) | st.text(max_size=400).map(lambda text: f"{HEAD}\n{text}".encode()))
def test_whatever_a_profile_says_is_a_latency_or_a_reason(content: bytes) -> None:
    _a_figure_or_a_reason(read_profile_times(content, PLAN))


def _a_figure_or_a_reason(found: Timing) -> None:
    assert found.latency.why if found.latency.mean_us is None else found.latency.mean_us > 0
    assert found.load_us.why if found.load_us.value is None else found.load_us.value > 0


def test_times_of_a_contract_runner(tmp_path: Path) -> None:
    path = tmp_path / "timing.json"
    path.write_text('{"load_us": 4200, "inference_us": [90, 10.5, 11.5]}')
    found = read_timing_json(path, PLAN, "ort-run")
    assert (found.latency.mean_us, found.load_us.value) == (11.0, 4200.0)
    assert found.latency.source == "timing.json of ort-run"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "left no timing.json"),
        ("{", "not JSON"),
        ("[1]", "not what it should be"),
        ('{"load_us": 1}', "no list of numbers"),
        ('{"load_us": 1, "inference_us": [1, 2, "3"]}', "no list of numbers"),
        ('{"load_us": 1, "inference_us": [1, 2, true]}', "no list of numbers"),
        ('{"load_us": 1, "inference_us": [1, 2]}', "2 inferences where 3"),
        ('{"load_us": 1, "inference_us": [1, 2, NaN]}', "nan us is no time"),
        (f'{{"load_us": 1, "inference_us": [1, 2, 1{"0" * 400}]}}', "inf us is no time"),
    ],
)
def test_a_timing_file_that_makes_no_sense_gives_no_latency(
    tmp_path: Path, text: str | None, why: str
) -> None:
    path = tmp_path / "timing.json"
    if text is not None:
        path.write_text(text)
    found = read_timing_json(path, PLAN, "ort-run")
    assert found.latency.mean_us is None
    assert why in found.latency.why


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.fixed_dictionaries({"load_us": _JSON, "inference_us": _JSON | st.lists(st.floats(), max_size=4)}))
def test_whatever_a_timing_file_says_is_a_latency_or_a_reason(told: dict[str, object]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "timing.json"
        path.write_text(json.dumps(told))
        _a_figure_or_a_reason(read_timing_json(path, PLAN, "ort-run"))


def logged(text: str) -> tuple[Event, ...]:
    line = f"11-21 00:01:15.195  9060  9060 I ExecuTorch: {text}\n"
    return scan_log(line.encode(), source="logcat").events


def test_executorchs_runner_tells_an_average() -> None:
    found = read_average(logged("2 inference took 5.000000 ms, avg 2.500000 ms"), PLAN, "runner")
    assert (found.inferences, found.mean_us, found.median_us) == (2, 2500.0, None)


def test_the_last_line_of_executorchs_runner_is_no_average_of_inferences() -> None:
    """It counts samples: with one, the time of all inferences would pass for that of one."""
    said = (
        "2 inference took 5.000000 ms, avg 2.500000 ms",
        "1 inference took 5.000000 ms, avg 5.000000 ms",
    )
    events = tuple(event for text in said for event in logged(text))
    assert read_average(events, PLAN, "runner").mean_us == 2500.0
    one = read_average(events[1:], MeasureSpec(inferences=1, warm_up=0), "runner")
    assert one.mean_us == 5000.0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("hello", "logged no time"),
        ("7 inference took 5.0 ms, avg 2.5 ms", "7 inferences where 2"),
        ("2 inference took 0.0 ms, avg 0.0 ms", "no time that could be"),
        ("2 inference took 5.0 ms, avg 1.2.3 ms", "no number"),
    ],
)
def test_an_average_that_makes_no_sense_is_none(text: str, why: str) -> None:
    found = read_average(logged(text), PLAN, "runner")
    assert found.mean_us is None
    assert why in found.why


def test_command_lines_that_measure_log_and_profile_the_least() -> None:
    job = Job(model="m", input_list="i", output_dir="o", log_level="verbose", backend="htp")
    prepared = Prepared(file=Path("m"), outputs=None, options={})
    qnn = QnnRuntime().timed_command(prepared, job, PLAN)
    assert {"--num_inferences=3", "--profiling_level=basic", "--log_level=error"} <= set(qnn)
    assert "--profiling_level=detailed" not in qnn
    for runtime in (OrtRuntime(), LitertRuntime()):
        command = runtime.timed_command(prepared, job, PLAN)
        assert {"--repeat=3", "--timing", "--log_level=error"} <= set(command)
        assert "--profile" not in command
    text = ExecutorchRuntime().timed_command(prepared, job, PLAN)[2]
    assert text.endswith("--warm_up=1 --iteration=2")
    assert all(
        isinstance(each, Measures)
        for each in (QnnRuntime(), OrtRuntime(), LitertRuntime(), ExecutorchRuntime())
    )


def test_a_profile_in_the_vendors_format_without_a_viewer_says_so(tmp_path: Path) -> None:
    prepared = Prepared(file=Path("m"), outputs=None, options={})
    assert "left no profile" in QnnRuntime().read_timing(prepared, tmp_path, (), PLAN).latency.why
    (tmp_path / "qnn-profiling-data_0.log").write_bytes(b"\0")
    assert "qnn-profile-viewer" in QnnRuntime().read_timing(prepared, tmp_path, (), PLAN).latency.why
