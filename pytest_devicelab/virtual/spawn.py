"""Start the process that serves the virtual lab, and end it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.matrix.specs import DeviceSpec
from pytest_devicelab.virtual.farm import device_root
from pytest_devicelab.virtual.processes import end_all
from pytest_devicelab.virtual.serve import PORTS_FILE, write_specs

_LOG_FILE = "serve.log"
_NAMESPACE = {None: "auto", True: "require", False: "never"}
_CLOSE_TIMEOUT_S = 15.0
_POLL_S = 0.02


class ServedFarm:
    """Virtual devices that are up in a process of their own, which ends with this one at the latest.

    Attributes:
        state: folder of the devices, and of `serve.log`, what the process had to say.
        ports: TCP port on 127.0.0.1 of each device, by id.
    """

    def __init__(self, process: subprocess.Popen[bytes], state: Path, ports: Mapping[str, int]) -> None:
        self._process = process
        self.state = state
        self.ports = ports

    @property
    def pid(self) -> int:
        """Process id of the serving process."""
        return self._process.pid

    def root(self, device_id: str) -> Path:
        """Return the root folder of a device."""
        return device_root(self.state, device_id)

    def close(self) -> None:
        """End the process and all that runs on its devices. Never raises; safe to call twice."""
        _end(self._process)
        if self._process.returncode:  # it crashed or was killed, and could not clean up
            end_all(self.root(device_id).resolve() for device_id in self.ports)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def spawn(
    specs: Sequence[DeviceSpec],
    state: Path,
    *,
    timeout_s: float,
    namespace: bool | None = None,
    ports: Mapping[str, int] | None = None,
) -> ServedFarm:
    """Start the virtual devices and wait until all of them listen.

    Args:
        specs: the devices.
        state: folder for them; made where missing.
        timeout_s: the longest to wait for all devices, in seconds.
        namespace: True insists on mount namespaces, False does without, None takes them where allowed.
        ports: TCP ports by device id; devices not named choose their own.

    Raises:
        InfrastructureError: they did not all come up; says what the process wrote last.
    """
    state.mkdir(parents=True, exist_ok=True)
    (state / PORTS_FILE).unlink(missing_ok=True)
    write_specs(state / "specs.json", specs)
    fixed = [f"--port={name}={port}" for name, port in (ports or {}).items()]
    with (state / _LOG_FILE).open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "pytest_devicelab.virtual.serve"),
                *("--state", str(state), "--specs", str(state / "specs.json")),
                *("--namespace", _NAMESPACE[namespace], *fixed),
            ],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            # Ctrl-C in a terminal is for us; the devices stay up until our clean-up is done with them.
            start_new_session=True,
        )
    try:
        found = _wait_for_ports(process, state, len(specs), timeout_s)
    except BaseException:
        _end(process)
        raise
    return ServedFarm(process, state, found)


def _wait_for_ports(
    process: subprocess.Popen[bytes], state: Path, devices: int, timeout_s: float
) -> Mapping[str, int]:
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(FileNotFoundError):
            ports: dict[str, int] = json.loads((state / PORTS_FILE).read_bytes())
            return ports
        status = process.poll()
        if status is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            continue
        outcome = f"nothing in {timeout_s:g} s" if status is None else f"exit status {status}"
        raise InfrastructureError(
            f"the virtual lab of {devices} devices did not come up",
            why=f"{outcome}; it said:\n{_tail(state / _LOG_FILE)}",
            fix=f"read {state / _LOG_FILE}",
            log=str(state / _LOG_FILE),
        )


def _tail(path: Path, size_bytes: int = 2000) -> str:
    return path.read_bytes()[-size_bytes:].decode("utf-8", "replace").strip() or "(nothing)"


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    for insist in (process.terminate, process.kill):
        try:
            process.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            insist()
        else:
            return
    process.wait()
