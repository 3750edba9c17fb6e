"""Progress of long work, from every process of a session to the one terminal."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

_INTERVAL_S = 3.0


class ProgressLog:
    """A file every process of a session appends to, one event a line.

    Args:
        path: the file; made when the first line is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str) -> None:
        """Append an event. One `write` in append mode, so that lines of several processes never mix."""
        # A device may have a say in the text, but none over the terminal it is shown on.
        text = "".join(char if char.isprintable() else "?" for char in " ".join(event.split()))
        line = f"{datetime.now(UTC):%H:%M:%S} {text}\n"
        # On a full disk nobody is told, which is no reason to end what is going on.
        with suppress(OSError), self.path.open("ab", buffering=0) as file:
            file.write(line.encode())


class ProgressPrinter:
    """Shows the newest event every few seconds, so that quick steps stay out of the way.

    It writes to a descriptor of its own: pytest captures the standard ones while a test runs.

    Args:
        log: where events are written.
        descriptor: where to print; closed at the end.
        interval_s: seconds between two lines.
    """

    def __init__(self, log: ProgressLog, descriptor: int, *, interval_s: float = _INTERVAL_S) -> None:
        self._log = log
        self._descriptor = descriptor
        self._interval_s = interval_s
        self._end = threading.Event()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._follow, name="devicelab-progress", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop showing events."""
        self._end.set()
        self._thread.join()
        os.close(self._descriptor)

    def _follow(self) -> None:
        shown = b""
        while not self._end.wait(self._interval_s):
            newest = self._newest()
            if newest and newest != shown:
                elapsed = f"\n  [{time.monotonic() - self._began:4.0f} s] ".encode()
                os.write(self._descriptor, elapsed + newest.partition(b" ")[2] + b" ")
                shown = newest

    def _newest(self) -> bytes:
        try:
            lines = self._log.path.read_bytes().splitlines()
        except FileNotFoundError:
            return b""
        return lines[-1] if lines else b""
