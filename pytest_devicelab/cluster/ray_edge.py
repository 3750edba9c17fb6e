"""The edge to Ray: connect within a deadline of ours, and nothing that Ray would rather tell its makers."""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from pytest_devicelab.errors import InfrastructureError, UserError

NAMESPACE = "devicelab"
"""Namespace of the units' actors in the cluster."""
_ANSWERS_S = 5.0
# Source: RFC 9113, 3.4: the preface, and a SETTINGS frame that changes nothing.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_ATTACH_S = 30.0
_LEAVE_S = 20.0

T = TypeVar("T")


def require_ray() -> None:
    """Raise UserError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UserError(
            "not installed: ray",
            why="devices of kind cluster, and `devicelab lab join`, run on Ray",
            fix="pip install 'pytest-devicelab[cluster]'",
        )


def require_token(environment: Mapping[str, str]) -> None:
    """Raise UserError unless this process and what it starts ask each other for the cluster's token.

    A node of Ray listens on all interfaces, and runs whatever it is sent.

    Source: Ray's documentation, ray-security/token-auth.
    """
    if environment.get("RAY_AUTH_MODE") != "token":
        raise UserError(
            "a lab host without a token would run the programs of whoever reaches its ports",
            why=f"RAY_AUTH_MODE is {environment.get('RAY_AUTH_MODE') or 'not set'}, and Ray listens on all interfaces",
            fix="on the head: `ray get-auth-token --generate`; put that file on every host and set RAY_AUTH_MODE=token "
            "there, see docs/how-to/several-hosts.md; or say --without-token on a network that is yours alone",
        )


def connect(address: str) -> Any:
    """Connect this process to a cluster, unless it is, and return the module `ray`.

    Args:
        address: HOST:PORT of the head node.

    Raises:
        InfrastructureError: nobody answers there, or this host has no node of that cluster.
    """
    require_ray()
    try:
        _call(address)
    except (OSError, ValueError, OverflowError) as error:
        raise InfrastructureError(
            f"no Ray cluster answers at {address}",
            why=str(error),
            fix="start its head with `ray start --head --port=6379`, and see docs/how-to/several-hosts.md",
        ) from error
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    def attach() -> None:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )

    if not ray.is_initialized():
        try:
            within(_ATTACH_S, attach, what=f"the Ray cluster at {address} does not take us in")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InfrastructureError(
                f"this host is not part of the Ray cluster at {address}",
                why=str(error)[:500],
                fix=f"run `ray start --address={address} --num-cpus=0` here first, with the RAY_AUTH_MODE and the token "
                "of the cluster",
            ) from error
    return ray


def leave() -> None:
    """Disconnect this process from its cluster; one that has fallen silent is given 20 s to take notice."""
    import ray

    def disconnect() -> None:
        with suppress(Exception):  # what a lost cluster says to it is nobody's concern
            ray.shutdown()

    leaving = threading.Thread(target=disconnect, daemon=True, name="devicelab-ray-leave")
    leaving.start()
    leaving.join(_LEAVE_S)
    if leaving.is_alive():
        # It waits for the head without end, on a lock that Ray wants once more when this process ends.
        atexit.register(_end_at_once, leaving)


def _end_at_once(leaving: threading.Thread) -> None:
    """End this process without Ray's consent, unless it has left by now. It lost its lab: that is no success."""
    if leaving.is_alive():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def answers(address: str) -> bool:
    """Say whether anything takes connections at HOST:PORT, and answers."""
    try:
        _call(address)
    except OSError:
        return False
    return True


def _call(address: str) -> None:
    """Have a few bytes from whoever is there; OSError when nobody is, or says nothing.

    The kernel takes connections also for a process that is stopped. A server of HTTP/2, such as that of gRPC, answers a
    client's preface at once; what another one does with it, be it to hang up, shows that it lives, too.
    """
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=_ANSWERS_S) as connection:
        connection.sendall(_PREFACE)
        connection.recv(1)


def within(limit_s: float, call: Callable[[], T], *, what: str) -> T:
    """Return what a call of Ray's returns, which has no deadline of its own; a thread that hangs is left behind.

    Raises:
        InfrastructureError: it did not return in time; whatever the call itself raises.
    """
    returned: list[T] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            returned.append(call())
        except BaseException as error:  # carried over to whoever waits
            raised.append(error)

    thread = threading.Thread(target=work, daemon=True, name="devicelab-ray")
    thread.start()
    thread.join(limit_s)
    if raised:
        raise raised[0]
    if not returned:
        raise InfrastructureError(
            what, why=f"no answer within {limit_s:g} s", fix="see `ray status` on its head"
        )
    return returned[0]
