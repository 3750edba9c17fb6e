"""Watches over the private adb server: one that died is started again, with its port, its keys and its devices."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pytest_devicelab.devices.adb_server import AdbServer
from pytest_devicelab.errors import InfrastructureError

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.1
# A server that does not come up is not tried again at once.
_WAIT_AFTER_FAILURE_S = 2.0


class ServerWatch:
    """A thread of the process that owns the server; workers wait in their recovery ladders meanwhile.

    Args:
        server: the server.
        started: called after it was started again, to connect its devices.
    """

    def __init__(self, server: AdbServer, started: Callable[[], None]) -> None:
        self._server = server
        self._started = started
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="adb server watch", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        wait_s = _LOOK_EVERY_S
        while not self._end.wait(wait_s):
            wait_s = _LOOK_EVERY_S
            try:
                if self._server.revive():
                    log.warning(
                        "the private adb server had died, and was started again on port %d", self._server.port
                    )
                    self._started()
            except (InfrastructureError, OSError) as error:
                log.warning("the private adb server died, and does not start: %s", error)
                wait_s = _WAIT_AFTER_FAILURE_S

    def close(self) -> None:
        """Stop watching; to be called before the server is closed."""
        self._end.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
