"""Whether the head of a cluster still answers: Ray ends every process of a cluster a minute after its head is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pytest_devicelab.cluster.ray_edge import answers
from pytest_devicelab.errors import InfrastructureError

PATIENCE_S = 10.0
"""How long a head may be silent. Well below the 60 s after which Ray calls `_exit` in this process.

Source: Ray, src/ray/common/ray_config_def.h, gcs_rpc_server_reconnect_timeout_s.
"""
_POLL_S = 1.0


class HeadWatch:
    """Looks after the head of a cluster from a thread, and leaves the cluster when the head is gone.

    Args:
        address: HOST:PORT of the head.
        leave: disconnects this process from the cluster; called once, from the thread.
    """

    def __init__(self, address: str, leave: Callable[[], None]) -> None:
        self._address = address
        self._leave = leave
        self._lost = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="devicelab-ray-head")
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether the head is gone; it may be another that answers there later."""
        return self._lost.is_set()

    def error(self) -> InfrastructureError:
        """Return what whoever needed the cluster fails with."""
        return InfrastructureError(
            f"the head of the Ray cluster at {self._address} is gone",
            why="nothing answers there any more",
            fix="start it again, join the lab hosts again, and continue with --devicelab-resume",
        )

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()

    def wait_left(self) -> None:
        """Wait until this process has left a cluster whose head is lost."""
        self._thread.join()

    def _watch(self) -> None:
        seen = time.monotonic()
        while not self._stop.wait(_POLL_S):
            if answers(self._address):
                seen = time.monotonic()
            elif time.monotonic() - seen > PATIENCE_S:
                self._lost.set()
                self._leave()
                return
