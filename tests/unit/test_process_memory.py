from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.devices.process_memory import read_memory, sampling_script

HEAD = "Name:\tsh\n"
LOOK = "devicelab look\nName:\tqnn-net-run\nVmHWM:\t   {rss} kB\nPss:             {pss} kB\n"
END = "devicelab exit 0\n"


def test_the_largest_of_all_looks_counts() -> None:
    text = HEAD + LOOK.format(rss=100, pss=90) + LOOK.format(rss=300, pss=70) + END
    rss, pss = read_memory(text)
    assert (rss.value, pss.value) == (300.0, 90.0)
    assert "2 looks" in rss.source
    assert "smaps_rollup" in pss.source


def test_a_look_at_the_shell_before_it_became_the_program_is_none() -> None:
    rss, pss = read_memory(HEAD + LOOK.format(rss=9000, pss=8000).replace("qnn-net-run", "sh") + END)
    assert rss.value is None
    assert "before anybody looked" in rss.why
    assert pss.value is None


def test_a_device_without_smaps_rollup_has_no_pss_and_says_so() -> None:
    rss, pss = read_memory(f"{HEAD}devicelab look\nName:\tx\nVmHWM:\t 5 kB\n{END}")
    assert rss.value == 5.0
    assert "does not show Pss" in pss.why


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (HEAD + LOOK.format(rss=5, pss=5), "ended unseen"),
        (HEAD + LOOK.format(rss=5, pss=5) + "devicelab exit 137\n", "exit status 137"),
        (HEAD + LOOK.format(rss=5, pss=5) + "devicelab child\n" + END, "processes of its own"),
        (HEAD + END, "before anybody looked"),
        (HEAD + LOOK.format(rss=0, pss=5) + END, "0 kB is no size"),
        (HEAD + LOOK.format(rss=-7, pss=5) + END, "does not show VmHWM"),
        (HEAD + LOOK.format(rss="nan", pss=5) + END, "does not show VmHWM"),
        (HEAD + LOOK.format(rss=1 << 60, pss=5) + END, "is no size"),
        (HEAD + LOOK.format(rss=5, pss=5).replace("5 kB\nPss", "5 MB\nPss") + END, "does not show VmHWM"),
        ("", "ended unseen"),
    ],
)
def test_nonsense_gives_no_figure(text: str, why: str) -> None:
    rss, _ = read_memory(text)
    assert rss.value is None
    assert why in rss.why


_LINES = st.sampled_from(
    ["devicelab look", "devicelab exit 0", "Name:\tsh", "Name:\tx", "VmHWM: 7 kB", "Pss: -1 kB", "VmHWM:"]
)


@given(st.lists(_LINES | st.text(max_size=40), max_size=20))
def test_whatever_a_device_prints_is_a_figure_above_0_or_a_reason(lines: list[str]) -> None:
    for figure in read_memory("\n".join(lines)):
        assert figure.why if figure.value is None else figure.value > 0


def test_the_script_looks_at_the_very_program_and_tells_its_end() -> None:
    code = """
import os, time
held = bytearray(40 << 20)
time.sleep(0.4)
raise SystemExit(os.environ["SAID"] != "it's $(x)")
"""
    program = (sys.executable, "-c", code)
    done = subprocess.run(
        ["sh", "-c", sampling_script(program, cwd="/", environment={"SAID": "it's $(x)"})],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    rss, pss = read_memory(done.stdout)
    assert rss.value is not None
    assert rss.value > 40 << 10
    assert pss.value is not None


def test_words_of_the_command_are_never_read_by_the_shell() -> None:
    odd = "a;'b $(touch x) `id` \n"
    words = (sys.executable, "-c", f"import sys; sys.exit(sys.argv[1] != {odd!r})", odd)
    script = sampling_script(words, cwd="/", environment={})
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "devicelab exit 0" in done.stdout


def test_a_program_that_is_killed_has_no_memory() -> None:
    script = sampling_script(("sh", "-c", "sleep 0.2; kill -9 $$"), cwd="/", environment={})
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "exit status 137" in read_memory(done.stdout)[0].why


def test_a_wrapper_has_no_memory() -> None:
    script = sampling_script(
        (sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '0.5'])"), cwd="/", environment={}
    )
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "processes of its own" in read_memory(done.stdout)[0].why
