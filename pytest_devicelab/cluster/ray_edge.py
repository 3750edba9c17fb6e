"""The edge to Ray: connect within a deadline of ours, and nothing that Ray would rather tell its makers."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from typing import Any

from pytest_devicelab.errors import InfrastructureError, UserError

NAMESPACE = "devicelab"
"""Namespace of the units' actors in the cluster."""
_ANSWERS_S = 5.0


def require_ray() -> None:
    """Raise UserError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UserError(
            "not installed: ray",
            why="devices of kind cluster, and `devicelab lab join`, run on Ray",
            fix="pip install 'pytest-devicelab[cluster]'",
        )


def connect(address: str) -> Any:
    """Connect this process to a cluster, unless it is, and return the module `ray`.

    Args:
        address: HOST:PORT of the head node.

    Raises:
        InfrastructureError: nobody answers there, or this host has no node of that cluster.
    """
    require_ray()
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWERS_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InfrastructureError(
            f"no Ray cluster answers at {address}",
            why=str(error),
            fix="start its head with `ray start --head --port=6379`, and see docs/how-to/several-hosts.md",
        ) from error
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    if not ray.is_initialized():
        try:
            ray.init(
                address=address,
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InfrastructureError(
                f"this host is not part of the Ray cluster at {address}",
                why=str(error)[:500],
                fix=f"run `ray start --address={address} --num-cpus=0` here first",
            ) from error
    return ray
