"""The cable of a device: all its adb connections obey it, so a fault of the link is one change here."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

# How much of a slow link's second goes through at once: smooth enough, and few wake-ups.
_SLICE_S = 0.05

Bytes = bytes | bytearray | memoryview


@dataclass(slots=True, kw_only=True)
class Cut:
    """What happens to the connection over which the last of `left_bytes` goes, in whichever direction."""

    left_bytes: int
    kind: Literal["drop", "stall"]


@dataclass(slots=True, kw_only=True, eq=False)
class Link:
    """How a device's cable is just now.

    Attributes:
        frozen: nothing goes through, and nothing is lost.
        bytes_per_s: in each direction of each connection; None for as fast as it goes.
        cut: None where no connection is to end.
        authorized: whether the device accepts the host's key.
    """

    frozen: bool = False
    bytes_per_s: int | None = None
    cut: Cut | None = None
    authorized: bool = True
    valves: set[Valve] = field(default_factory=set)

    def changed(self) -> None:
        """Let every connection go by what this says now."""
        for valve in tuple(self.valves):
            valve.adjust()

    @property
    def slice_bytes(self) -> int | None:
        """The most that may go through at once; None for any number."""
        return None if self.bytes_per_s is None else max(1, int(self.bytes_per_s * _SLICE_S))


class Valve:
    """What the link does to one connection's bytes."""

    def __init__(self, link: Link, transport: asyncio.Transport) -> None:
        self._link = link
        self._transport = transport
        self._unsent: deque[Bytes] = deque()
        self._stalled = False
        self._receiving: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None
        link.valves.add(self)
        if link.frozen:
            self.adjust()

    def close(self) -> None:
        """Forget the connection, which is gone."""
        self._link.valves.discard(self)
        self._unsent.clear()
        for timer in (self._receiving, self._sending):
            if timer is not None:
                timer.cancel()

    def admit(self, buffer: memoryview) -> memoryview:
        """Return as much of a receive buffer as may be filled at once; never empty."""
        bounds = (self._link.slice_bytes, self._link.cut.left_bytes if self._link.cut else None)
        return buffer[: min([len(buffer), *(bound for bound in bounds if bound is not None)])]

    def received(self, size_bytes: int) -> bool:
        """Take note of bytes from the host; False when they were the last, and nobody is to read them."""
        if self._spend(size_bytes):
            self._end(abort=True)
            return False
        if self._link.bytes_per_s is not None:
            wait_s = size_bytes / self._link.bytes_per_s
            self._receiving = asyncio.get_running_loop().call_later(wait_s, self._received_slice)
            self.adjust()
        return True

    def send(self, data: Bytes) -> None:
        """Send bytes to the host, now or as the link allows."""
        if not self._stalled:
            self._unsent.append(data)
            self._flush()

    def adjust(self) -> None:
        """Read from the host, or stop to, and send what waits, as the link is now."""
        if self._link.frozen or self._stalled or self._receiving is not None:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
        self._flush()

    def _received_slice(self) -> None:
        self._receiving = None
        self.adjust()

    def _sent_slice(self) -> None:
        self._sending = None
        self._flush()

    def _flush(self) -> None:
        while self._unsent and self._sending is None and not self._link.frozen:
            data = memoryview(self._unsent.popleft())
            slice_bytes = self._link.slice_bytes
            if slice_bytes is not None and len(data) > slice_bytes:
                self._unsent.appendleft(data[slice_bytes:])
                data = data[:slice_bytes]
            left = self._link.cut.left_bytes if self._link.cut else len(data)
            self._transport.write(data[:left])
            if self._spend(len(data)):
                self._end(abort=False)
                return
            if self._link.bytes_per_s is not None:
                wait_s = len(data) / self._link.bytes_per_s
                self._sending = asyncio.get_running_loop().call_later(wait_s, self._sent_slice)

    def _spend(self, size_bytes: int) -> bool:
        """Count bytes towards a cut; True when this connection is the one that ends."""
        if self._link.cut is None:
            return False
        self._link.cut.left_bytes -= size_bytes
        return self._link.cut.left_bytes <= 0

    def _end(self, *, abort: bool) -> None:
        assert self._link.cut is not None
        kind, self._link.cut = self._link.cut.kind, None
        self._unsent.clear()
        if kind == "stall":
            self._stalled = True
            self.adjust()
        elif abort:
            self._transport.abort()
        else:
            self._transport.close()  # what was written before goes out first: the cut is at the byte, not before

    def revive(self) -> None:
        """Cut a connection that stalled, so that the host makes a new one."""
        if self._stalled:
            self._transport.abort()
