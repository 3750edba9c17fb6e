"""What devices say, in errors and on terminals: the lines that say why, and nothing a terminal would obey."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.logs.last_words import last_words, plain

# As onnxruntime 1.31 prints it, colours and all.
_TELEMETRY = (
    b"\x1b[0;93m2026-11-21 06:40:11.123456789 [W:onnxruntime:Default, telemetry_1ds.cc:600 Start] off\x1b[m\n"
)


@pytest.mark.parametrize(
    ("stderr", "stdout", "said"),
    [
        (b"", b"", ""),
        (b"ort-run: no such model\n", b"", "ort-run: no such model"),
        (_TELEMETRY + b"ort-run: no such model\n" + _TELEMETRY, b"", "ort-run: no such model"),
        (_TELEMETRY, b"out of memory\n", "out of memory"),
        (
            b" <W> Initializing HtpProvider\n <E> Skel failed to load 4000\n",
            b"",
            " <E> Skel failed to load 4000",
        ),
        (b"INFO: Created XNNPACK delegate.\r\nERROR: no op\r\n", b"", "ERROR: no op"),
        (
            b"W0000 00:00:1763.5 1 a.cc:1] odd\nE0000 00:00:1763.5 1 a.cc:1] bad\n",
            b"",
            "E0000 00:00:1763.5 1 a.cc:1] bad",
        ),
        (
            b"I 00:00:00.001 executorch:a.cpp:1] x\nE 00:00:00.002 executorch:a.cpp:9] y\n",
            b"",
            "E 00:00:00.002 executorch:a.cpp:9] y",
        ),
        (b"\xff\xfe broken \xe2\x80\xae text", b"", "\ufffd\ufffd broken \\u202e text"),
    ],
)
def test_the_lines_that_say_why(stderr: bytes, stdout: bytes, said: str) -> None:
    assert last_words(stderr, stdout) == said


def test_chatter_is_better_than_silence() -> None:
    assert (
        last_words(_TELEMETRY, b"")
        == "2026-11-21 06:40:11.123456789 [W:onnxruntime:Default, telemetry_1ds.cc:600 Start] off"
    )


def test_a_flood_is_cut_and_its_end_is_kept() -> None:
    said = last_words(b"x" * 3_000_000 + b"\nat last\n", b"")
    assert len(said) == 2000
    assert said.endswith("\nat last")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x9b31mred", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPq...\x1b\\after", "after"),
        ("\x1b(Bascii", "ascii"),
        ("\x1b]0;endless", "0;endless"),
        ("bell\x07 back\b return\rover del\x7f", "bell\\x07 back\\x08 return\\rover del\\x7f"),
        ("a\r\nb\tc\n", "a\nb\tc\n"),
        ("\u202egnp.exe \u2066 \u200b \ud800", "\\u202egnp.exe \\u2066 \\u200b \\ud800"),
    ],
)
def test_nothing_a_terminal_obeys_is_left(said: str, shown: str) -> None:
    assert plain(said) == shown


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.one_of(st.sampled_from("\x1b[]\x07\\P0m;\x9b\x9d\x90 a\n"), st.characters())))
def test_whatever_is_said_an_error_prints(text: str) -> None:
    error = InfrastructureError(f"device s24: {text}", why=text, fix=text)
    assert all(char.isprintable() or char in "\n\t" for char in str(error))
    assert plain(plain(text)) == plain(text)
    json.dumps(str(error)).encode()


@settings(max_examples=60, deadline=None)
@given(st.binary(), st.binary())
def test_whatever_a_runner_printed_can_be_shown(stderr: bytes, stdout: bytes) -> None:
    said = last_words(stderr, stdout)
    assert all(char.isprintable() or char in "\n\t" for char in said)
