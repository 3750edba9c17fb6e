from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_devicelab.virtual.adbd import FEATURES, Connection, Service, Stream, StreamClosed
from pytest_devicelab.virtual.faults.link import Link
from pytest_devicelab.virtual.wire import (
    MAX_PAYLOAD_BYTES,
    VERSION,
    VERSION_CHECKSUM,
    Command,
    Packet,
    PacketReader,
    WireError,
    encode_header,
)

_PACKETS = st.lists(
    st.tuples(
        st.sampled_from(list(Command)),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=200),
    ),
    max_size=6,
)


def _encode(command: Command, arg0: int, arg1: int, payload: bytes = b"", *, checksum: bool = False) -> bytes:
    return encode_header(command, arg0, arg1, payload, checksum=checksum) + payload


def _feed(reader: PacketReader, data: bytes, step: int) -> list[Packet]:
    """Hand over bytes as a socket does: never more than the reader has room for, often less."""
    packets = []
    while data:
        room = reader.buffer()
        size = min(len(room), len(data), step)
        room[:size] = data[:size]
        data = data[size:]
        packet = reader.received(size)
        if packet is not None:
            packets.append(packet)
    return packets


@given(packets=_PACKETS, step=st.integers(1, 300))
def test_packets_survive_any_fragmentation(packets: list[tuple[Command, int, int, bytes]], step: int) -> None:
    found = _feed(PacketReader(), b"".join(_encode(*packet) for packet in packets), step)
    assert [(p.command, p.arg0, p.arg1, bytes(p.payload)) for p in found] == packets


def test_a_packet_in_hand_is_not_overwritten_by_the_next_one() -> None:
    data = _encode(Command.WRTE, 1, 2, b"first") + _encode(Command.WRTE, 1, 2, b"other")
    first, second = _feed(PacketReader(), data, 7)
    assert bytes(first.payload) == b"first"
    assert bytes(second.payload) == b"other"


def test_header_is_what_protocol_txt_says() -> None:
    header = encode_header(Command.OPEN, 7, 9, b"\x01\xff", checksum=True)
    assert header[:4] == b"OPEN"
    assert [int.from_bytes(header[at : at + 4], "little") for at in range(0, 24, 4)] == [
        0x4E45504F,
        7,
        9,
        2,
        0x100,
        0x4E45504F ^ 0xFFFFFFFF,
    ]
    assert encode_header(Command.OPEN, 7, 9, b"\x01\xff", checksum=False)[16:20] == bytes(4)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (bytes(24), "bad magic"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n", "bad magic"),
        (
            _encode(Command.OKAY, 0, 0)[:12] + b"\x01\0\x10\0" + _encode(Command.OKAY, 0, 0)[16:],
            "1048577 bytes",
        ),
        (b"NOPE" + bytes(16) + (0x45504F4E ^ 0xFFFFFFFF).to_bytes(4, "little"), "unknown command"),
    ],
)
def test_what_is_no_packet_is_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        _feed(PacketReader(), data, 5)


class _Transport(asyncio.Transport):
    """Keeps what the device sent."""

    def __init__(self) -> None:
        super().__init__()
        self._reader = PacketReader()
        self.aborted = False
        self.sent: list[Packet] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += _feed(self._reader, bytes(data), 1 << 20)

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


class _Host:
    """A device with one service, `echo:`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.link = Link()
        self.lost = 0

    def banner(self) -> str:
        return "ro.product.model=Test"

    def service(self, connection: Connection, name: str) -> Service | None:
        return self._service if name == "echo:" else None

    def connected(self, connection: Connection) -> None:
        pass

    def disconnected(self, connection: Connection) -> None:
        self.lost += 1


async def _echo(stream: Stream) -> None:
    while True:
        await stream.write(bytes(await stream.read()))


def _connect(service: Service = _echo) -> tuple[Connection, _Transport, Callable[..., None]]:
    connection, transport = Connection(_Host(service)), _Transport()
    connection.connection_made(transport)

    def say(command: Command, arg0: int, arg1: int, payload: bytes = b"") -> None:
        data = _encode(command, arg0, arg1, payload)
        while data:
            room = connection.get_buffer(-1)
            size = min(len(room), len(data))
            room[:size] = data[:size]
            data = data[size:]
            connection.buffer_updated(size)

    return connection, transport, say


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def _heard(transport: _Transport) -> list[tuple[str, int, int, bytes]]:
    found = [(p.command.name, p.arg0, p.arg1, bytes(p.payload)) for p in transport.sent]
    transport.sent.clear()
    return found


def test_handshake_names_the_device_and_its_features() -> None:
    async def check() -> None:
        _, transport, say = _connect()
        say(Command.CNXN, VERSION, MAX_PAYLOAD_BYTES, b"host::features=shell_v2")
        ((command, version, payload_bytes, banner),) = _heard(transport)
        assert (command, version, payload_bytes) == ("CNXN", VERSION, MAX_PAYLOAD_BYTES)
        assert banner.decode() == f"device::ro.product.model=Test;features={','.join(FEATURES)}"

    asyncio.run(check())


def test_a_stream_lives_from_open_to_clse() -> None:
    async def check() -> None:
        connection, transport, say = _connect()
        say(Command.CNXN, VERSION, MAX_PAYLOAD_BYTES, b"host::")
        _heard(transport)
        say(Command.OPEN, 11, 0, b"echo:\0")
        assert _heard(transport) == [("OKAY", 1, 11, b"")]
        say(Command.WRTE, 11, 1, b"abc")
        await _settle()
        assert _heard(transport) == [("OKAY", 1, 11, b""), ("WRTE", 1, 11, b"abc")]
        say(Command.WRTE, 11, 1, b"def")
        await _settle()
        # Nothing more is written before the host's OKAY, though there is something to write.
        assert _heard(transport) == [("OKAY", 1, 11, b"")]
        say(Command.OKAY, 11, 1)
        await _settle()
        assert _heard(transport) == [("WRTE", 1, 11, b"def")]
        say(Command.CLSE, 11, 1)
        await connection.finished()
        assert _heard(transport) == [("CLSE", 1, 11, b"")]

    asyncio.run(check())


def test_bytes_that_came_before_clse_are_still_read() -> None:
    read: list[bytes] = []

    async def collect(stream: Stream) -> None:
        await asyncio.sleep(0.01)
        while True:
            read.append(bytes(await stream.read()))

    async def check() -> None:
        connection, _, say = _connect(collect)
        say(Command.CNXN, VERSION, MAX_PAYLOAD_BYTES, b"host::")
        say(Command.OPEN, 11, 0, b"echo:\0")
        say(Command.WRTE, 11, 1, b"last words")
        say(Command.CLSE, 11, 1)
        await connection.finished()

    asyncio.run(check())
    assert read == [b"last words"]


def test_an_unknown_service_is_refused() -> None:
    async def check() -> None:
        _, transport, say = _connect()
        say(Command.CNXN, VERSION, MAX_PAYLOAD_BYTES, b"host::")
        _heard(transport)
        say(Command.OPEN, 11, 0, b"jdwp:1\0")
        assert _heard(transport) == [("CLSE", 0, 11, b"")]

    asyncio.run(check())


def test_a_host_with_small_payloads_gets_small_payloads() -> None:
    async def check() -> None:
        _, transport, say = _connect()
        say(Command.CNXN, VERSION, 4096, b"host::")
        _heard(transport)
        say(Command.OPEN, 11, 0, b"echo:\0")
        say(Command.WRTE, 11, 1, bytes(5000))
        await _settle()
        say(Command.OKAY, 11, 1)
        await _settle()
        assert [len(p.payload) for p in transport.sent if p.command is Command.WRTE] == [4096, 904]

    asyncio.run(check())


def test_an_old_host_gets_checksums() -> None:
    class Raw(_Transport):
        raw = b""

        def write(self, data: bytes | bytearray | memoryview) -> None:
            self.raw += bytes(data)

    async def check() -> None:
        connection, transport = Connection(_Host(_echo)), Raw()
        connection.connection_made(transport)
        data = _encode(Command.CNXN, VERSION_CHECKSUM, 4096, b"host::", checksum=True)
        for byte in data:
            connection.get_buffer(-1)[0] = byte
            connection.buffer_updated(1)
        transport.raw = b""
        connection.send(Command.WRTE, 1, 2, b"\x02\x03")
        assert transport.raw[16:20] == b"\x05\0\0\0"

    asyncio.run(check())


@pytest.mark.parametrize(
    "breach",
    [
        [(Command.OPEN, 11, 0, b"echo:\0")],
        [(Command.CNXN, 0x00FFFFFF, MAX_PAYLOAD_BYTES, b"host::")],
        [(Command.CNXN, VERSION, 16, b"host::")],
        [
            (Command.CNXN, VERSION, MAX_PAYLOAD_BYTES, b"host::"),
            (Command.OPEN, 11, 0, b"echo:\0"),
            (Command.WRTE, 11, 1, b"one"),
            (Command.WRTE, 11, 1, b"two, without waiting"),
        ],
    ],
    ids=["no-handshake", "old-version", "tiny-payload", "no-flow-control"],
)
def test_a_host_that_breaks_the_rules_is_dropped(breach: list[tuple[Command, int, int, bytes]]) -> None:
    async def check() -> None:
        connection, transport, say = _connect()
        aborted = []
        for packet in breach:
            say(*packet)
            aborted.append(transport.aborted)
        assert aborted == [False] * (len(breach) - 1) + [True]
        connection.connection_lost(None)
        await connection.finished()

    asyncio.run(check())


def test_a_stream_we_open_waits_for_the_hosts_okay() -> None:
    async def check() -> None:
        connection, transport, say = _connect()
        with pytest.raises(StreamClosed):
            connection.open("tcp:80")
        say(Command.CNXN, VERSION, MAX_PAYLOAD_BYTES, b"host::")
        _heard(transport)
        stream = connection.open("tcp:80")
        writing = asyncio.ensure_future(stream.write(b"hello"))
        await _settle()
        assert _heard(transport) == [("OPEN", 1, 0, b"tcp:80\0")]
        say(Command.OKAY, 42, 1)
        await writing
        assert _heard(transport) == [("WRTE", 1, 42, b"hello")]
        refused = connection.open("tcp:81")
        say(Command.CLSE, 0, 2)
        with pytest.raises(StreamClosed):
            await refused.write(b"hello")

    asyncio.run(check())


def test_a_lost_connection_ends_every_service() -> None:
    async def check() -> None:
        connection, _, say = _connect()
        say(Command.CNXN, VERSION, MAX_PAYLOAD_BYTES, b"host::")
        say(Command.OPEN, 11, 0, b"echo:\0")
        await _settle()
        connection.connection_lost(None)
        await asyncio.wait_for(connection.finished(), 1)

    asyncio.run(check())
