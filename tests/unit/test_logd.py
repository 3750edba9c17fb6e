from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.virtual import logd
from pytest_devicelab.virtual.engine import LogLine
from pytest_devicelab.virtual.log_buffer import (
    MIN_LIMIT_BYTES,
    Entry,
    RingBuffer,
    decode_record,
    make_entry,
    trim,
)
from pytest_devicelab.virtual.tools import logclient
from pytest_devicelab.virtual.tools.logcat import Printer, describe_size
from pytest_devicelab.virtual.tools.logcat_format import (
    STYLES,
    LineFormat,
    add_option,
    encode_binary,
    format_record,
)
from pytest_devicelab.virtual.tools.logcat_options import (
    Command,
    UsageError,
    buffers_of,
    decode_size,
    decode_start,
    filters_of,
    parse_command,
)
from pytest_devicelab.virtual.tools.logclient import LogRecord

pytestmark = pytest.mark.usefixtures("in_utc")

NOON = 1_763_640_000_123_456_789  # 2025-11-20 12:00:00 UTC


@pytest.fixture(scope="module")
def in_utc() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def record(message: str = "hello", **changes: Any) -> LogRecord:
    base = LogRecord("main", "I", "QNN", message, 1234, 1250, 2000, NOON)
    return base._replace(**changes)


def formatted(options: str, of: LogRecord) -> bytes:
    line_format = LineFormat(boot_ns=NOON - 5_000_000_000)
    for option in options.split():
        line_format = add_option(line_format, option)
    return format_record(line_format, of)


# --- ring buffers


@given(
    sizes=st.lists(st.integers(29, 5000), max_size=120),
    limits=st.lists(st.integers(1, 400_000), min_size=1, max_size=4),
)
def test_a_ring_buffer_holds_the_newest_entries_that_fit(sizes: list[int], limits: list[int]) -> None:
    buffer = RingBuffer(limit_bytes=2 * MIN_LIMIT_BYTES)
    for sequence, size in enumerate(sizes, start=1):
        if sequence % 40 == 0:
            buffer.resize(limits[sequence // 40 % len(limits)])
        buffer.append(Entry(sequence=sequence, pid=1, time_ns=0, size_bytes=size, wire=b""))
        kept = [entry.sequence for entry in buffer.entries]
        assert kept == list(range(sequence - len(kept) + 1, sequence + 1))
        assert buffer.dropped == sequence - len(kept)
        assert buffer.used_bytes == sum(sizes[sequence - len(kept) : sequence]) <= buffer.limit_bytes
        dropped_size = sizes[buffer.dropped - 1] if buffer.dropped else None
        # Nothing was dropped that would still fit, unless a smaller limit was in force meanwhile.
        if dropped_size is not None and sequence < 40:
            assert buffer.used_bytes + dropped_size > buffer.limit_bytes


def test_limits_stay_between_64_kib_and_256_mib() -> None:
    buffer = RingBuffer()
    buffer.resize(1)
    assert buffer.limit_bytes == 64 * 1024
    buffer.resize(1 << 40)
    assert buffer.limit_bytes == 256 * 1024 * 1024


def test_clearing_is_not_losing() -> None:
    buffer = RingBuffer()
    buffer.append(make_entry(1, record()))
    assert buffer.clear() == 1
    assert (buffer.used_bytes, buffer.dropped, list(buffer.entries)) == (0, 0, [])


def test_an_entry_is_charged_header_priority_tag_message_and_two_nuls() -> None:
    assert make_entry(1, record("hello", tag="QNN")).size_bytes == 28 + 1 + 4 + 6
    assert make_entry(1, record("x" * 9000)).size_bytes == 28 + 4068


@pytest.mark.parametrize("length", [4061, 4062, 4063, 4064, 20000])
def test_the_payload_is_cut_at_4068_bytes(length: int) -> None:
    cut = trim(record("é" * length, tag="QNN"))
    message = cut.message.encode("utf-8", "surrogateescape")
    assert 1 + len(b"QNN\0") + len(message) == 4068
    assert message == ("é" * length).encode()[: len(message)]


def test_a_nul_ends_tag_and_message() -> None:
    assert trim(record("a\0b", tag="t\0u"))[2:4] == ("t", "a")


@pytest.mark.parametrize(
    "change",
    [
        {"buffer": "security"},
        {"priority": "X"},
        {"priority": ""},
        {"priority": "VD"},
        {"tag": None},
        {"message": 3},
        {"pid": "1"},
        {"pid": -1},
        {"uid": True},
        {"time_ns": 1 << 63},
        {"extra": 1},
    ],
)
def test_what_is_no_record_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"record|buffer"):
        decode_record(record()._asdict() | change)


# --- formats


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("threadtime", b"11-20 12:00:00.123  1234  1250 I QNN     : hello\n"),
        ("brief", b"I/QNN     ( 1234): hello\n"),
        ("process", b"I( 1234) hello  (QNN)\n"),
        ("tag", b"I/QNN     : hello\n"),
        ("thread", b"I( 1234: 1250) hello\n"),
        ("raw", b"hello\n"),
        ("time", b"11-20 12:00:00.123 I/QNN     ( 1234): hello\n"),
        ("long", b"[ 11-20 12:00:00.123  1234: 1250 I/QNN      ]\nhello\n\n"),
        ("threadtime year", b"2025-11-20 12:00:00.123  1234  1250 I QNN     : hello\n"),
        ("threadtime usec", b"11-20 12:00:00.123456  1234  1250 I QNN     : hello\n"),
        ("threadtime nsec", b"11-20 12:00:00.123456789  1234  1250 I QNN     : hello\n"),
        ("threadtime zone UTC", b"11-20 12:00:00.123 +0000  1234  1250 I QNN     : hello\n"),
        ("threadtime epoch", b"         1763640000.123  1234  1250 I QNN     : hello\n"),
        ("threadtime monotonic", b"     5.000  1234  1250 I QNN     : hello\n"),
        ("threadtime uid", b"11-20 12:00:00.123 shell  1234  1250 I QNN     : hello\n"),
        ("brief uid", b"I/QNN     (shell: 1234): hello\n"),
        ("brief color", b"\x1b[32mI/QNN     ( 1234): hello\x1b[0m\n"),
    ],
)
def test_each_format_of_logcat(options: str, expected: bytes) -> None:
    assert formatted(options, record()) == expected


def test_a_multi_line_message_repeats_the_prefix() -> None:
    assert formatted("tag", record("a\n\nb\n")) == b"I/QNN     : a\nI/QNN     : \nI/QNN     : b\n"


def test_an_empty_message_prints_nothing_except_in_long() -> None:
    assert formatted("brief", record("")) == b""
    assert formatted("long", record("")).endswith(b" ]\n\n\n")


def test_widths_count_bytes_and_bad_utf8_survives() -> None:
    assert formatted("tag", record("\udcff", tag="äöü")) == b"I/" + "äöü".encode() + b"  : \xff\n"


def test_an_unknown_user_is_a_number_and_root_has_a_name() -> None:
    assert formatted("process uid", record(uid=10123)).startswith(b"I(10123: 1234)")
    assert formatted("process uid", record(uid=0)).startswith(b"I( root: 1234)")


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="Invalid parameter 'pretty' to -v"):
        add_option(LineFormat(), "pretty")


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)


@given(
    message=TEXT,
    tag=st.text(st.characters(exclude_characters="\0\n", exclude_categories=["Cs"]), max_size=12),
    pid=st.integers(0, 4_194_304),
    tid=st.integers(0, 4_194_304),
    priority=st.sampled_from("VDIWEF"),
)
def test_threadtime_gives_back_every_line_of_the_message(
    message: str, tag: str, pid: int, tid: int, priority: str
) -> None:
    written = record(message, tag=tag, pid=pid, tid=tid, priority=priority)
    lines = formatted("threadtime UTC", written).split(b"\n")
    assert lines.pop() == b""
    padded = tag.encode() + b" " * (8 - len(tag.encode()))
    prefix = f"11-20 12:00:00.123 {pid:>5} {tid:>5} {priority} ".encode() + padded + b": "
    assert all(line.startswith(prefix) for line in lines)
    assert b"\n".join(line.removeprefix(prefix) for line in lines) == message.removesuffix("\n").encode()


@given(message=TEXT, style=st.sampled_from(STYLES))
def test_no_format_loses_a_byte_of_the_message(message: str, style: str) -> None:
    shown = formatted(f"{style} UTC", record(message))
    for line in message.split("\n"):
        assert line.encode() in shown or message == ""


def test_the_binary_form_has_the_header_of_logger_entry() -> None:
    data = encode_binary(record("hello", buffer="crash"))
    length, header_size, pid, tid, sec, nsec, log_id, uid = struct.unpack_from("<HHiIIIII", data)
    assert (header_size, pid, tid, log_id, uid) == (28, 1234, 1250, 4, 2000)
    assert sec * 10**9 + nsec == NOON
    assert data[28:] == b"\x04QNN\0hello\0"
    assert length == len(data) - 28


# --- the command line


def test_flags_values_and_filters_may_be_mixed() -> None:
    command = parse_command(
        ["-dv", "brief", "QNN:I", "--pid=7", "-t5", "-b", "main,crash", "*:S", "--", "-x"]
    )
    assert command.flags == {"d"}
    assert command.values == (("v", "brief"), ("pid", "7"), ("t", "5"), ("b", "main,crash"))
    assert command.filters == ("QNN:I", "*:S", "-x")


@pytest.mark.parametrize("arguments", [["-Z"], ["--nonsense"], ["-b"], ["--pid"]])
def test_a_bad_option_is_refused(arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_command(arguments)


def test_buffers() -> None:
    assert buffers_of(parse_command([])) == ["main", "system", "crash"]
    assert buffers_of(parse_command(["-b", "crash", "-b", "main,crash"])) == ["crash", "main"]
    assert set(buffers_of(parse_command(["-b", "all"]))) == set(logclient.BUFFERS)
    with pytest.raises(UsageError, match="Unknown buffer 'nope'"):
        buffers_of(parse_command(["-b", "nope"]))


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ([], "", {"*": "V"}),
        (["-s", "QNN:i", "ort"], "", {"*": "S", "QNN": "I", "ort": "V"}),
        (["QNN:D,ort:E *:W"], "ignored:E", {"*": "W", "QNN": "D", "ort": "E"}),
        ([], "QNN:E *:S", {"*": "S", "QNN": "E"}),
        (["*"], "", {"*": "D"}),
        (["a:b:W"], "", {"*": "V", "a:b": "W"}),
    ],
)
def test_filterspecs(arguments: list[str], environment: str, expected: dict[str, str]) -> None:
    assert filters_of(parse_command(arguments), environment) == expected


@pytest.mark.parametrize("spec", ["QNN:X", ":I"])
def test_a_bad_filterspec_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="Invalid filter expression"):
        filters_of(parse_command([spec]), "")


def test_start_times() -> None:
    assert decode_start("20") == {"tail": 20}
    assert decode_start("0") == {"tail": 1}
    assert decode_start("1763640000.123") == {"since_ns": 1_763_640_000_123_000_000}
    with pytest.raises(UsageError, match="not in time format"):
        decode_start("yesterday")
    with pytest.raises(UsageError, match="not in time format"):
        decode_start("13-40 12:00:00.0")


def test_a_start_time_without_a_year_is_the_latest_such_day() -> None:
    assert decode_start("2025-11-20 12:00:00.123456789") == {"since_ns": NOON}
    for days_ago in (0, 1, 200, 360):
        moment = int(time.time()) - days_ago * 86400
        text = time.strftime("%m-%d %H:%M:%S", time.localtime(moment))
        assert decode_start(f"{text}.5") == {"since_ns": moment * 10**9 + 500_000_000}


@pytest.mark.parametrize(("text", "size"), [("64K", 65536), ("4M", 4 << 20), ("100000", 100_000)])
def test_buffer_sizes(text: str, size: int) -> None:
    assert decode_size(text) == size


@pytest.mark.parametrize("text", ["", "4X", "-4M", "1K", "1G"])
def test_bad_buffer_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="-G <size>"):
        decode_size(text)


def test_sizes_are_described_as_logcat_does() -> None:
    assert [describe_size(size) for size in (111, 262144, 4 << 20)] == ["111 B", "256 KiB", "4 MiB"]


def test_dividers_mark_where_a_buffer_begins(tmp_path: Path) -> None:
    records = [
        record("1"),
        record("2", buffer="crash"),
        record("3"),
        record("4", tag="hidden", buffer="radio"),
    ]

    def shown(*arguments: str) -> str:
        path = tmp_path / "out"
        with path.open("wb") as out:
            Printer(parse_command(list(arguments)), LineFormat(style="raw"), out).show(records)
        return path.read_text()

    begun = "--------- beginning of "
    assert shown("hidden:S") == f"{begun}main\n1\n{begun}crash\n2\n3\n{begun}radio\n"
    assert "--------- switch to main\n3" in shown("-D")
    assert shown("-m", "1", "-e", "[23]") == f"{begun}main\n{begun}crash\n2\n"
    assert shown("-m", "1", "-e", "[23]", "--print") == f"{begun}main\n1\n{begun}crash\n2\n"


# --- the daemon

Scenario = Callable[[logd.LogDaemon], Awaitable[None]]


def with_daemon(root: Path, scenario: Scenario) -> None:
    async def run() -> None:
        daemon = logd.LogDaemon(root)
        await daemon.start()
        try:
            async with asyncio.timeout(20):
                await scenario(daemon)
        finally:
            await daemon.close()

    asyncio.run(run())


def read_all(root: Path, **request: Any) -> list[LogRecord]:
    query = {"op": "read", "buffers": list(logclient.BUFFERS)} | request
    return [item for batch in logclient.read_batches(str(root), query) for item in batch]


def test_what_was_written_can_be_read_in_order_of_arrival(tmp_path: Path) -> None:
    lines = [
        LogLine(tag="QNN", priority="W", message="é\n\udcff"),
        LogLine(tag="b", priority="I", message="2"),
    ]

    async def scenario(daemon: logd.LogDaemon) -> None:
        assert await asyncio.to_thread(logd.write, tmp_path, lines, 10, 11) == 2
        daemon.append(record("kernel says", buffer="kernel"))
        daemon.append(record("last"))
        found = await asyncio.to_thread(read_all, tmp_path)
        assert [item.message for item in found] == ["é\n\udcff", "2", "kernel says", "last"]
        assert found[0][:6] == ("main", "W", "QNN", "é\n\udcff", 10, 11)
        assert found[0].uid == 2000
        only_main = await asyncio.to_thread(read_all, tmp_path, buffers=["main"])
        assert [item.message for item in only_main] == ["é\n\udcff", "2", "last"]

    with_daemon(tmp_path, scenario)


def test_tail_since_and_pid(tmp_path: Path) -> None:
    async def scenario(daemon: logd.LogDaemon) -> None:
        for number in range(6):
            daemon.append(record(str(number), pid=number % 2, time_ns=NOON + number))

        async def messages(**request: Any) -> str:
            return "".join(item.message for item in await asyncio.to_thread(read_all, tmp_path, **request))

        assert await messages(tail=2) == "45"
        assert await messages(since_ns=NOON + 3) == "345"
        assert await messages(pid=1) == "135"
        assert await messages(pid=1, tail=1) == "5"
        assert await messages(tail=100) == "012345"

    with_daemon(tmp_path, scenario)


def test_a_follower_gets_what_comes_later_and_hears_when_the_daemon_ends(tmp_path: Path) -> None:
    async def scenario(daemon: logd.LogDaemon) -> None:
        seen: list[str] = []

        def follow() -> None:
            query = {"op": "read", "buffers": ["main"], "follow": True}
            for batch in logclient.read_batches(str(tmp_path), query):
                seen.extend(item.message for item in batch)

        daemon.append(record("before"))
        follower = asyncio.create_task(asyncio.to_thread(follow))
        for number in range(50):
            await asyncio.sleep(0.001)
            daemon.append(record(str(number)))
        while len(seen) < 51:
            await asyncio.sleep(0.01)
        assert seen == ["before", *map(str, range(50))]
        await daemon.close()
        with pytest.raises(logclient.LogInterrupted):
            await follower

    with_daemon(tmp_path, scenario)


def test_a_follower_that_leaves_is_forgotten(tmp_path: Path) -> None:
    async def scenario(daemon: logd.LogDaemon) -> None:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "dev" / "socket" / "logd")
        writer.write(logclient.encode_line({"op": "read", "buffers": ["main"], "follow": True}))
        daemon.append(record("one"))
        assert b"one" in await reader.readline()
        assert len(daemon._readers) == 1
        writer.close()
        await writer.wait_closed()
        while daemon._readers:
            await asyncio.sleep(0.01)

    with_daemon(tmp_path, scenario)


def test_a_reader_too_slow_for_the_buffer_is_cut_off_instead_of_losing_lines(tmp_path: Path) -> None:
    async def scenario(daemon: logd.LogDaemon) -> None:
        with logclient.connect(str(tmp_path)) as connection:
            query = {"op": "read", "buffers": ["main"], "follow": True}
            connection.sendall(logclient.encode_line(query))
            for number in range(2000):
                daemon.append(record(f"{number} " + "x" * 3900))
                await asyncio.sleep(0)

            def drain() -> list[int]:
                with connection.makefile("rb") as stream:
                    return [
                        int(json.loads(line)["message"].split()[0]) for line in stream if line[-1:] == b"\n"
                    ]

            got = await asyncio.to_thread(drain)
        assert got == list(range(got[0], got[0] + len(got)))
        assert got[-1] < 1999

    with_daemon(tmp_path, scenario)


def test_clear_and_sizes(tmp_path: Path) -> None:
    async def scenario(daemon: logd.LogDaemon) -> None:
        daemon.append(record())
        daemon.append(record(buffer="crash"))
        root = str(tmp_path)
        assert await asyncio.to_thread(logclient.ask, root, {"op": "clear", "buffers": ["main"]}) == {
            "cleared": 1
        }
        assert [item.buffer for item in await asyncio.to_thread(read_all, tmp_path)] == ["crash"]
        request = {"op": "resize", "buffers": ["main"], "limit": 1 << 20}
        assert await asyncio.to_thread(logclient.ask, root, request) == {
            "main": {"limit": 1 << 20, "used": 0}
        }
        answer = await asyncio.to_thread(logclient.ask, root, {"op": "size", "buffers": ["main", "crash"]})
        assert answer["crash"] == {"limit": 256 * 1024, "used": 39}

    with_daemon(tmp_path, scenario)


def test_the_loop_that_runs_the_daemon_may_ask_for_a_clear(tmp_path: Path) -> None:
    async def scenario(daemon: logd.LogDaemon) -> None:
        daemon.append(record("old"))
        logd.clear(tmp_path)
        while await asyncio.to_thread(read_all, tmp_path):
            await asyncio.sleep(0.01)

    with_daemon(tmp_path, scenario)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\n",
        b"not json\n",
        b"[" * 60_000 + b"\n",
        b"x" * 200_000 + b"\n",
        b"3\n",
        b'{"op": "format"}\n',
        b'{"op": "read"}\n',
        b'{"op": "read", "buffers": [["main"]]}\n',
        b'{"op": "read", "buffers": ["main"], "tail": "all"}\n',
        b'{"op": "resize", "buffers": ["main"], "limit": "big"}\n',
        b'{"op": "write"}\n{"buffer": "main"}\n',
        b'{"op": "write"}\n' + logclient.encode_line(record("\ud800")._asdict()),
    ],
)
def test_what_is_no_request_is_dropped_and_hurts_nobody(tmp_path: Path, sent: bytes) -> None:
    async def scenario(daemon: logd.LogDaemon) -> None:
        daemon.append(record("kept"))
        reader, writer = await asyncio.open_unix_connection(tmp_path / "dev" / "socket" / "logd")
        try:
            writer.write(sent)
            writer.write_eof()
            assert await reader.read() == b""
        except ConnectionError:
            pass  # it hung up before it had read all of it
        finally:
            writer.close()
        assert [item.message for item in await asyncio.to_thread(read_all, tmp_path)] == ["kept"]

    with_daemon(tmp_path, scenario)


def test_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    root = tmp_path / ("deep" * 20) / ("er" * 40)

    async def scenario(daemon: logd.LogDaemon) -> None:
        lines = [LogLine(tag="t", priority="I", message="deep")]
        assert await asyncio.to_thread(logd.write, root, lines, 1, 1) == 1
        assert [item.message for item in await asyncio.to_thread(read_all, root)] == ["deep"]

    with_daemon(root, scenario)


def test_a_socket_left_by_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "dev" / "socket"
    folder.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(folder / "logd"))

    async def scenario(daemon: logd.LogDaemon) -> None:
        daemon.append(record("alive"))
        assert len(await asyncio.to_thread(read_all, tmp_path)) == 1

    with_daemon(tmp_path, scenario)
    assert not (folder / "logd").exists()


def test_without_a_daemon_a_writer_learns_that_nothing_was_stored(tmp_path: Path) -> None:
    assert logd.write(tmp_path, [LogLine(tag="t", priority="I", message="m")], 1, 1) == 0


def test_all_options_of_a_command_are_found() -> None:
    command = Command(frozenset(), (("v", "time,uid"), ("v", "usec"), ("t", "1"), ("T", "2")), ())
    assert command.all("v") == ["time", "uid", "usec"]
    assert command.last("t", "T") == "2"
    assert command.last("e") is None
