"""The scanner: blocks of any size, lines of any length, and the same events whichever way lines are found."""

from __future__ import annotations

import gzip
import io
import re
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.errors import UserError
from pytest_devicelab.evidence.events import Event
from pytest_devicelab.logs import registry
from pytest_devicelab.logs.blocks import read_blocks
from pytest_devicelab.logs.candidates import HyperscanFinder, PlainFinder, make_finder, make_selector
from pytest_devicelab.logs.columns import read_columns
from pytest_devicelab.logs.compression import open_compressed
from pytest_devicelab.logs.dialect import Dialect, Rule, RuleDialect
from pytest_devicelab.logs.formats import THREADTIME
from pytest_devicelab.logs.framing import split_lines
from pytest_devicelab.logs.registry import DIALECTS, find_dialects
from pytest_devicelab.logs.scanner import LogScanner
from pytest_devicelab.logs.survey import Survey

LITERALS = [trigger.literal for dialect in DIALECTS for trigger in dialect.triggers]
HIT = b"11-20 09:20:00.100  4021  4030 W QNN     : Fallback to CPU for op Gelu\n"
PLAIN = b"11-20 09:20:00.100  4021  4030 I Zygote  : nothing\n"


def scan(data: bytes, *, size: int = 1 << 16, pure: bool = False) -> tuple[list[Event], LogScanner]:
    selector = make_selector(DIALECTS, PlainFinder(LITERALS)) if pure else None
    scanner = LogScanner(source="logcat", dialects=DIALECTS, selector=selector, block_bytes=size)
    return list(scanner.scan(io.BytesIO(data).readinto)), scanner


@pytest.mark.parametrize("pure", [False, True])
@pytest.mark.parametrize("size", [128, 1000, 1 << 16])
def test_only_candidates_are_read(size: int, pure: bool) -> None:
    events, scanner = scan(PLAIN * 50 + HIT + PLAIN * 50 + HIT.rstrip(), size=size, pure=pure)
    assert [(event.line, event.offset) for event in events] == [
        (51, 50 * len(PLAIN)),
        (102, 100 * len(PLAIN) + len(HIT)),
    ]
    assert (scanner.lines, scanner.read, scanner.unparsed, scanner.format) == (102, 2, 0, "threadtime")


PIECES = st.sampled_from(
    [
        HIT,
        PLAIN,
        b"\n",
        b"\r\n",
        b"Node(s) placed on [CPUExecutionProvider]. Number of nodes: 2\n",
        b"  Softmax (a (b))\n",
        b"Following operations are not supported by GPU delegate:\n",
        b"GATHER: no\n",
        b"Replacing 1 out of 2 node(s) with delegate (X) node, yielding 1 partitions\n",
        b"[ 11-20 09:20:00.100  1: 2 W/QNN ]\n",
        b"x" * 200,
        b"<E> Failed to validate op x with error 0xc26\n",
        b"I chatty: uid=1 expire 3 lines\n",
        b"\xff\x00\n",
    ]
)


@given(st.lists(PIECES, max_size=16).map(b"".join), st.integers(256, 2000))
def test_finders_and_block_sizes_agree(data: bytes, size: int) -> None:
    whole, reference = scan(data)
    for events, scanner in (scan(data, pure=True), scan(data, size=size), scan(data, size=size, pure=True)):
        if len(data) > size and max(map(len, data.split(b"\n"))) >= size:
            continue  # what does not fit a block is cut, and reported
        # A short first block can look like another format: only what was told alike must be read alike.
        if scanner.format == reference.format:
            assert events == whole
            assert (scanner.lines, scanner.lost) == (reference.lines, reference.lost)


@given(st.lists(st.binary(min_size=1, max_size=6), min_size=1, max_size=8), st.binary(max_size=200))
def test_both_finders_find_the_same(literals: list[bytes], data: bytes) -> None:
    fast = make_finder(literals)
    assert isinstance(fast, HyperscanFinder | PlainFinder)
    assert sorted(fast.find(bytearray(data), len(data))) == PlainFinder(literals).find(
        bytearray(data), len(data)
    )


def test_what_follows_a_trigger_is_seen_across_blocks() -> None:
    listing = b"Node(s) placed on [CPUExecutionProvider]. Number of nodes: 40\n"
    nodes = b"".join(b"  Softmax (node%d)\n" % number for number in range(40))
    events, scanner = scan(listing + nodes + b"other\n" * 500, size=128)
    assert [event.kind for event in events] == ["placement", *["cpu_fallback"] * 40]
    assert scanner.read <= 1 + 4 * 40


def test_a_line_longer_than_a_block_is_reported_in_bounded_memory() -> None:
    def pieces() -> Iterator[bytes]:
        yield HIT
        yield from (b"y" * 65536 for _ in range(1000))
        yield b" Fallback to CPU\n" + HIT

    feed = pieces()

    def read_into(view: memoryview) -> int:
        piece = next(feed, b"")
        view[: len(piece)] = piece
        return len(piece)

    scanner = LogScanner(source="logcat", dialects=DIALECTS, block_bytes=1 << 17)
    tracemalloc.start()
    events = list(scanner.scan(read_into))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [event.kind for event in events] == ["cpu_fallback", "lost_records", "cpu_fallback"]
    assert [event.line for event in events] == [1, 2, 3]
    assert events[2].offset == len(HIT) + 65536 * 1000 + len(b" Fallback to CPU\n")
    assert (scanner.lines, scanner.lost) == (3, 1)
    assert peak < 8 << 20


def test_blocks_are_whole_lines() -> None:
    data = b"one\ntwo\nthree"
    blocks = [
        (bytes(block.data[: block.end]), block.offset)
        for block in read_blocks(io.BytesIO(data).readinto, size=6)
    ]
    assert blocks == [(b"one\n", 0), (b"two\n", 4), (b"three", 8)]


FILLERS = (b" ", b"a_", b"1", b"(", b": ", b"-> a", b"{ name: a, type: ", b"I/a: ", b"\xff")


@pytest.mark.parametrize("filler", FILLERS)
def test_hostile_lines_take_linear_time(filler: bytes) -> None:
    finder = make_finder(LITERALS)

    def seconds(size: int) -> float:
        lines = [literal + filler * (size // len(filler)) + literal for literal in LITERALS]
        data = b"\n".join([*lines, b"11-20 09:20:00.100  1  2 I " + filler * size])
        scanner = LogScanner(
            source="logcat",
            dialects=DIALECTS,
            selector=make_selector(DIALECTS, finder),
            survey=Survey(),
        )
        started = time.process_time()
        list(scanner.scan(io.BytesIO(data).readinto))
        return time.process_time() - started

    # Eight times the bytes: a quadratic pattern would take 64 times as long. Half a second is noise.
    assert seconds(16_000) < 20 * seconds(2_000) + 0.5


LAYOUTS = ("11-20 09:20:00.100", "2026-11-20 09:20:00.100123", "11-20 09:20:00.100 +0200")


@pytest.mark.parametrize("stamp", LAYOUTS)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 99_999),
            st.sampled_from("VDIWEFX"),
            st.sampled_from(["QNN", "a b", "tag:x", "t" * 20, ""]),
            st.sampled_from([": text", ": a: b", ":", " no colon", ": text\r", ":x y"]),
        ),
        max_size=12,
    )
)
def test_columns_say_what_the_framing_says(stamp: str, rows: list[tuple[int, str, str, str]]) -> None:
    text = "".join(
        f"{stamp} {pid:5d} {pid // 2:5d} {level} {tag:8s}{rest}\n" for pid, level, tag, rest in rows
    )
    data = (text + "--------- beginning of main\n\nloose\n").encode()
    columns = read_columns(data, len(data))
    lines = list(split_lines(data))
    assert len(columns.start) == len(lines)
    for row, line in enumerate(lines):
        record = THREADTIME.frame_one(line)
        if columns.regular[row]:
            assert record is not None
            assert (columns.pid[row], columns.tid[row]) == (record.pid, record.tid)
            assert chr(columns.priority[row]) == record.priority
            assert data[columns.tag[row] : columns.tag_end[row]].decode().strip() == record.tag
            assert data[columns.message[row] : columns.end[row]].decode() == record.message
        else:
            assert record is None or not record.priority


def test_survey_counts_what_nobody_asked_for() -> None:
    earlier = PLAIN.replace(b"09:20", b"09:19")
    data = PLAIN + HIT + b"loose\n" + earlier + PLAIN + b"11-20 09:20:00.100 123456 7 I A: wide\n\n"
    survey = Survey()
    scanner = LogScanner(source="logcat", dialects=DIALECTS, survey=survey)
    assert len(list(scanner.scan(io.BytesIO(data).readinto))) == 1
    assert (scanner.lines, scanner.read) == (7, 1)
    assert (survey.records, survey.unparsed, survey.backwards) == (6, 1, 1)


def zstd(data: bytes) -> bytes:
    packed: bytes = pytest.importorskip("zstandard").ZstdCompressor(write_checksum=True).compress(data)
    return packed


PACKERS = [pytest.param(lambda data: gzip.compress(data, 1), id="gzip"), pytest.param(zstd, id="zstd")]


def unpacked(packed: bytes) -> tuple[int, str]:
    """Return how many events a compressed log has, and why it ends early."""
    reader = open_compressed(io.BytesIO(packed), packed[:4])
    assert reader is not None
    scanner = LogScanner(source="logcat", dialects=DIALECTS)
    return len(list(scanner.scan(reader.readinto))), reader.broken


def noisy(lines: int) -> bytes:
    return b"".join(HIT.rstrip() + b" %x\n" % (number * 2654435761 % 2**32) for number in range(lines))


@pytest.mark.parametrize("pack", PACKERS)
def test_compressed_logs_of_several_members(pack: Callable[[bytes], bytes]) -> None:
    assert unpacked(pack(noisy(2000)) + pack(HIT) + pack(HIT)) == (2002, "")


@pytest.mark.parametrize("pack", PACKERS)
def test_a_compressed_log_that_breaks_off_says_so(pack: Callable[[bytes], bytes]) -> None:
    found, broken = unpacked(pack(noisy(20_000))[:-20])
    assert 0 < found <= 20_000
    assert broken == "the compressed data ends in the middle"


@pytest.mark.parametrize("pack", PACKERS)
def test_damaged_compression_is_said(pack: Callable[[bytes], bytes]) -> None:
    packed = pack(noisy(20_000))
    middle = len(packed) // 2
    _, broken = unpacked(packed[:middle] + b"\xff" * 400 + packed[middle + 400 :])
    assert broken


def test_not_compressed() -> None:
    assert open_compressed(io.BytesIO(HIT), HIT[:4]) is None


class Entry:
    value = "vendor.logs:DIALECT"

    def __init__(self, name: str, found: object) -> None:
        self.name = name
        self._found = found

    def load(self) -> object:
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


def rules(name: str, literal: bytes = b"BEEP") -> Dialect:
    rule = Rule(kind="throttling", literals=(literal,), pattern=re.compile("BEEP"))
    return RuleDialect(name=name, rules=(rule,))


def test_an_installed_package_adds_a_dialect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [Entry("beeps", rules("beeps"))])
    scanner = LogScanner(source="logcat", dialects=find_dialects())
    (event,) = scanner.scan(io.BytesIO(b"BEEP\n").readinto)
    assert (event.dialect, event.kind) == ("beeps", "throttling")


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (ValueError("no such chip"), "ValueError: no such chip"),
        (object(), "object has not all of name, triggers and reader"),
        (rules("ort"), "there is another dialect called 'ort'"),
        (rules("beeps", b""), "it has no trigger, or an empty one"),
        (RuleDialect(name="beeps", rules=()), "it has no trigger, or an empty one"),
    ],
)
def test_a_dialect_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, found: object, why: str
) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [Entry("beeps", found)])
    with pytest.raises(UserError, match=r"log dialect beeps \(vendor.logs:DIALECT\)") as caught:
        find_dialects()
    assert why in caught.value.why
