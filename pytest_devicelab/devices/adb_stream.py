"""A connection to the adb server, or through it to one service of a device, with one deadline for all of it.

Source: AOSP adb, SERVICES.TXT and protocol.txt.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pytest_devicelab.errors import AdbServerLost, DeadlineExceeded, DeviceLost, InfrastructureError

# A command line is one message to the server, whose length is four hex digits.
_LONGEST_SERVICE_BYTES = 0xFFFF
# A server on this host or in the next rack answers at once; a host that is switched off never does.
SERVER_ANSWERS_S = 5.0
# Source: AOSP adb, ConnectionState.
_PROMPT = "unlock it and accept the prompt 'Allow USB debugging?'"
_REBOOT = "reboot it into Android"
_FIXES = (
    ("unauthorized", _PROMPT),
    ("authorizing", _PROMPT),
    ("offline", "plug it in anew, or `adb reconnect offline`"),
    (
        "no permissions",
        "allow this user to use it: a udev rule, or the group plugdev; then `adb kill-server`",
    ),
    ("recovery", _REBOOT),
    ("sideload", _REBOOT),
    ("bootloader", _REBOOT),
    ("not attached", "plug it in, and see whether `adb devices -l` lists it"),
)


class Stream:
    """What is sent and read within one deadline, however slowly bytes trickle.

    Args:
        sock: the connection.
        deadline: of `time.monotonic`.
        what: what is being done, for messages; `timeout_s`: how long it was given.
    """

    def __init__(self, sock: socket.socket, *, deadline: float, what: str, timeout_s: float) -> None:
        self._sock = sock
        self._deadline = deadline
        self._what = what
        self._timeout_s = timeout_s

    def _arm(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise too_late(self._what, self._timeout_s)
        self._sock.settimeout(left)

    def send(self, data: bytes | memoryview) -> None:
        """Send all of it."""
        self._arm()
        try:
            self._sock.sendall(data)
        except TimeoutError:
            raise too_late(self._what, self._timeout_s) from None
        except OSError as error:
            raise self.lost(str(error)) from error

    def read(self, size: int) -> bytes:
        """Return exactly `size` bytes."""
        buffer = bytearray(size)
        self.read_into(memoryview(buffer))
        return bytes(buffer)

    def read_into(self, view: memoryview) -> None:
        """Fill the view."""
        filled = 0
        while filled < len(view):
            filled += self._receive(view[filled:])

    def read_some(self, limit: int) -> bytes:
        """Return what comes next, at least one byte and at most `limit`."""
        buffer = bytearray(limit)
        return bytes(buffer[: self._receive(memoryview(buffer))])

    def _receive(self, view: memoryview) -> int:
        while True:
            self._arm()
            try:
                # The adb server sends in small pieces and waits for each to be acknowledged, which the kernel would
                # put off by 40 ms. Linux forgets the setting, so it is made again for every read.
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                count = self._sock.recv_into(view)
            except TimeoutError:
                continue  # _arm raises once the deadline is really past
            except OSError as error:
                raise self.lost(str(error)) from error
            if count == 0:
                raise self.lost("the connection ended early")
            return count

    def command(self, service: str) -> None:
        """Ask for a service and wait for the server's OKAY."""
        self.send(self.message(service))
        status = self.read(4)
        if status == b"FAIL":
            raise self.lost(self.sized_text())
        if status != b"OKAY":
            raise self.lost(f"the adb server answered {status!r}")

    def message(self, service: str) -> bytes:
        """Return a service as the server takes it, its length in four hex digits before it."""
        # File names on a device are bytes; surrogates stand for those that are not UTF-8.
        payload = service.encode("utf-8", "surrogateescape")
        if b"\0" in payload or len(payload) > _LONGEST_SERVICE_BYTES:
            raise InfrastructureError(
                f"{self._what} cannot be sent",
                why=f"{len(payload):,} bytes; adb takes {_LONGEST_SERVICE_BYTES:,} without a zero byte",
                fix="push long input as a file",
            )
        return b"%04x" % len(payload) + payload

    def sized_text(self) -> str:
        """Return a text that the server sends with its length in four hex digits."""
        digits = self.read(4)
        if not re.fullmatch(rb"[0-9a-fA-F]{4}", digits):
            raise self.lost(f"the adb server sent {digits!r} for a length")
        return self.read(int(digits, 16)).decode("utf-8", "replace")

    def lost(self, why: str) -> DeviceLost:
        """Return the error of a device that went away."""
        return DeviceLost(
            f"{self._what} failed: the device went away",
            why=why,
            fix="check the cable or the network, and what `adb devices -l` says of it",
        )


@contextmanager
def open_server(host: str, port: int, what: str, timeout_s: float) -> Iterator[Stream]:
    """Connect to an adb server; raises `AdbServerLost` when none answers.

    Args:
        host: its address.
        port: its port.
        what: what is being done, for messages.
        timeout_s: for all of it.
    """
    deadline = time.monotonic() + timeout_s
    try:
        sock = socket.create_connection((host, port), timeout=min(timeout_s, SERVER_ANSWERS_S))
    except (OSError, UnicodeError) as error:  # the latter for a name that is none, such as `lab..local`
        raise no_server(host, port, what, str(error)) from error
    with sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield Stream(sock, deadline=deadline, what=what, timeout_s=timeout_s)


def no_server(host: str, port: int, what: str, why: str) -> AdbServerLost:
    """Return the error of an adb server that does not answer."""
    return AdbServerLost(
        f"{what} failed: no adb server at {host}:{port}",
        why=why,
        fix="start it there with `adb start-server` (`adb -a` for other hosts to reach it), "
        "or leave `lab: {adb: private}` in the matrix",
    )


def list_attached(host: str, port: int, *, timeout_s: float = 10.0) -> tuple[tuple[str, str], ...]:
    """Return serial and state (`device`, `offline`, `unauthorized`, ...) of all devices an adb server knows, sorted.

    Raises:
        DeviceLost: there is no server.
    """
    with open_server(host, port, "list of devices", timeout_s) as stream:
        stream.command("host:devices")
        rows = [line.split("\t", 1) for line in stream.sized_text().splitlines()]
    return tuple(sorted((row[0], row[1]) for row in rows if len(row) == 2))


def fix_of_state(state: str) -> str:
    """Return what to do about a device that an adb server lists in a state it cannot be used in."""
    return next((fix for known, fix in _FIXES if state.startswith(known)), "look at `adb devices -l`")


def too_late(what: str, timeout_s: float) -> DeadlineExceeded:
    """Return the error of something that did not end in time."""
    return DeadlineExceeded(
        f"{what} took longer than its deadline",
        why=f"no end after {timeout_s:g} s; adb itself never times out",
        fix="look at the device; raise lab.run_timeout_s in the matrix if the work is just long",
        timeout_s=timeout_s,
    )
