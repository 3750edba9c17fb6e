from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.devices.logcat import cut_window

BEGIN, END = b"begin 5f2c", b"end 5f2c"


def log(*lines: bytes) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def test_it_holds_the_lines_between_the_markers() -> None:
    text = log(b"old", b"I devicelab: begin 5f2c", b"one", b"two", b"I devicelab: end 5f2c", b"new")
    assert cut_window(text, BEGIN, END) == log(b"one", b"two")


def test_without_a_beginning_the_log_was_overwritten() -> None:
    assert cut_window(log(b"one", b"I devicelab: end 5f2c"), BEGIN, END) is None
    assert cut_window(b"", BEGIN, END) is None


def test_without_an_end_it_holds_the_rest() -> None:
    assert cut_window(log(b"x: begin 5f2c", b"one", b"two"), BEGIN, END) == log(b"one", b"two")
    assert cut_window(log(b"x: begin 5f2c") + b"cut of", BEGIN, END) == b"cut of"


@pytest.mark.parametrize("text", [log(b"begin 5f2c", b"end 5f2c"), log(b"begin 5f2c"), b"begin 5f2c"])
def test_an_empty_window_is_not_a_lost_one(text: bytes) -> None:
    assert cut_window(text, BEGIN, END) == b""


def test_an_earlier_run_of_the_same_token_is_left_out() -> None:
    text = log(b"begin 5f2c", b"first try", b"begin 5f2c", b"second try", b"end 5f2c")
    assert cut_window(text, BEGIN, END) == log(b"second try")


def test_an_end_before_the_beginning_is_another_runs() -> None:
    assert cut_window(log(b"end 5f2c", b"begin 5f2c", b"one"), BEGIN, END) == log(b"one")


LINES = st.lists(
    st.binary(max_size=30).filter(lambda line: b"\n" not in line and b"5f2c" not in line), max_size=8
)


@given(before=LINES, inside=LINES, after=LINES)
def test_any_bytes_come_out_as_they_were(
    before: list[bytes], inside: list[bytes], after: list[bytes]
) -> None:
    text = log(*before, b"I x: " + BEGIN, *inside, b"I x: " + END, *after)
    assert cut_window(text, BEGIN, END) == log(*inside)
