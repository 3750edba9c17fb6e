"""One virtual device: a root folder, a log daemon, and an adb daemon on a loopback port."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
from collections.abc import Coroutine, Sequence
from pathlib import Path

from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.matrix.faults import parse_fault
from pytest_devicelab.matrix.specs import FaultSpec, Phase
from pytest_devicelab.virtual import image, properties
from pytest_devicelab.virtual.adbd import Connection, Service, Stream
from pytest_devicelab.virtual.control import ControlSocket
from pytest_devicelab.virtual.faults.board import FaultBoard
from pytest_devicelab.virtual.faults.condition import CLOCK_FILE
from pytest_devicelab.virtual.faults.link import Link
from pytest_devicelab.virtual.faults.storage import Storage
from pytest_devicelab.virtual.logd import LogDaemon
from pytest_devicelab.virtual.namespace import View, open_view
from pytest_devicelab.virtual.ports import LOOPBACK, ReverseTable, forward_service
from pytest_devicelab.virtual.processes import end_all
from pytest_devicelab.virtual.shell import Console
from pytest_devicelab.virtual.sync import SyncService
from pytest_devicelab.virtual.tools import trouble

# Every adb server takes what listens on an odd port in here for an emulator, and lists it a second time.
_EMULATOR_PORTS = range(5555, 5586, 2)
# The host must read our last words before the connection goes.
_LAST_WORDS_S = 0.1
_BANNER = ("ro.product.name", "ro.product.model", "ro.product.device")
_ROOT_PROPERTY = "service.adb.root"
_POWER_POLL_S = 0.25
# How the lab removes a run's folder, and puts a property back that it had set for the run.
_RESTORE = re.compile(r"rm -rf /data/local/tmp/devicelab/runs/[^\s&;]+\Z|^back [a-z]", re.MULTILINE)
# A runner that is started, not a file that is named after one.
_RUN = re.compile(
    r"(?:^|[:;&|]|\bexec)\s*(?:\S*/)?(?:qnn-net-run|ort-run|litert-run|qnn_executor_runner)(?:\s|$)"
)

_log = logging.getLogger(__name__)


class VirtualDevice:
    """An Android-shaped device in reach of any adb server on this machine.

    Args:
        device_id: its name in messages.
        root: its root folder, built by `image.build_image`.
        namespace: as for `namespace.open_view`.
        port: the TCP port to listen on, or 0 for a free one; kept as long as the device lives.
        faults: what is wrong with it from the start.
    """

    def __init__(
        self,
        device_id: str,
        root: Path,
        *,
        namespace: bool | None = None,
        port: int = 0,
        faults: Sequence[FaultSpec] = (),
    ) -> None:
        self.id = device_id
        self.root = root.resolve()
        self.port = port
        self._namespace = namespace
        self.link = Link()
        self.storage = Storage()
        self.log = LogDaemon(self.root)
        self._first_faults = faults
        self._faults = FaultBoard(device_id, self)
        self._sync = SyncService(self.root, self.storage, self._faults.saw)
        commands = {"drop": self.drop, "offline": self.offline, "online": self.online}
        self._control = ControlSocket(self.root, commands, self._fault)
        self._connections: dict[Connection, ReverseTable] = {}
        self._view: View | None = None
        self._console: Console | None = None
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Go online.

        Raises:
            InfrastructureError: the port is taken, or the mount namespace insisted on is not to be had.
        """
        self._view = await open_view(self.root, namespace=self._namespace)
        environment = image.environment(self.root) | {"VROOT": self._view.visible_root}
        self._console = Console(root=self.root, environment=environment, view=self._view)
        await self.log.start()
        await self._control.start()
        for stale in (trouble.FILE, CLOCK_FILE):
            (self.root / stale).unlink(missing_ok=True)
        await self.online()
        self.later(self._watch_power())
        for fault in self._first_faults:
            self._faults.arm(fault)

    async def close(self) -> None:
        """Go offline. Processes that left their shell run on until `processes.end_all`. Safe to call twice."""
        self._faults.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._control.close()
        await self.offline()
        await self.log.close()
        if self._view is not None:
            await self._view.close()
            self._view = None

    async def online(self) -> None:
        """Listen for hosts, on the same port as ever."""
        if self._socket is None:
            self._socket = self._bind()
        await self._accept()

    async def offline(self) -> None:
        """Stop listening and cut every connection, as when the device is switched off."""
        self._pause()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        await self.drop()

    async def drop(self) -> None:
        """Cut every connection, as when a cable is pulled; hosts may connect again at once."""
        connections = list(self._connections)
        for connection in connections:
            connection.abort()
        await asyncio.gather(*(connection.finished() for connection in connections))

    def banner(self) -> str:
        """Return what the device calls itself in the handshake."""
        return ";".join(f"{name}={_plain(properties.get(self.root, name))}" for name in _BANNER)

    def connected(self, connection: Connection) -> None:
        """Take note of a host."""
        self._faults.saw("connect")
        self._connections[connection] = ReverseTable(connection)

    def disconnected(self, connection: Connection) -> None:
        """Take note that a host is gone; the ports it served go with it."""
        self._connections.pop(connection).close()

    def service(self, connection: Connection, name: str) -> Service | None:
        """Return what serves a stream of that name, None for what this device does not have."""
        if (phase := _phase(name)) is not None:
            self._faults.saw(phase)
        kind = name.partition(":")[0]
        if kind == "sync":
            return self._sync
        if kind in ("root", "unroot"):
            return self._root_service(as_root=kind == "root")
        if kind == "reboot":
            return self._reboot_service
        assert self._console is not None
        reverse = self._connections[connection]
        return self._console.service(name) or forward_service(name) or reverse.service(name)

    def _bind(self) -> socket.socket:
        refused: list[socket.socket] = []  # held on to, so that the kernel does not offer them again
        with contextlib.ExitStack() as cleanup:
            while True:
                # The protocol is named because asyncio turns Nagle's algorithm off only where it is: without that,
                # every command takes 40 ms more (measured: 44 ms against 4).
                listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    listener.bind((LOOPBACK, self.port))
                    listener.listen()
                except OSError as error:
                    listener.close()
                    raise InfrastructureError(
                        f"virtual device {self.id}: cannot listen on {LOOPBACK}:{self.port}",
                        why=error.strerror or str(error),
                        fix="end what listens there, or let the device choose a port",
                    ) from error
                bound: int = listener.getsockname()[1]
                if self.port or bound not in _EMULATOR_PORTS:
                    self.port = bound
                    return listener
                refused.append(cleanup.enter_context(listener))

    async def _accept(self) -> None:
        if self._server is None and self._socket is not None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: Connection(self), sock=self._socket.dup())

    def _pause(self) -> None:
        """Let no host in for a while.

        Those that knock wait in the socket's queue: an adb server that is refused comes back seconds later.
        """
        if self._server is not None:
            self._server.close()
            self._server = None

    def _root_service(self, *, as_root: bool) -> Service:
        async def serve(stream: Stream) -> None:
            if (properties.get(self.root, _ROOT_PROPERTY) == "1") == as_root:
                await stream.write(
                    b"adbd is already running as root\n" if as_root else b"adbd not running as root\n"
                )
                return
            image.become(self.root, "root" if as_root else "shell")
            await stream.write(b"restarting adbd as root\n" if as_root else b"restarting adbd as non root\n")
            stream.close()
            self.later(self._restart())

        return serve

    async def _reboot_service(self, stream: Stream) -> None:
        stream.close()
        self.later(self.reboot())

    def later(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Do something in the background; it is cancelled when the device closes."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.error("device=%s work in the background failed", self.id, exc_info=error)

    async def _watch_power(self) -> None:
        """Reboot when a process on the device asks init for it, as the `reboot` program does."""
        while True:
            await asyncio.sleep(_POWER_POLL_S)
            if properties.get(self.root, "sys.powerctl").startswith("reboot"):
                await self.reboot()

    async def reboot(self, *, down_s: float = 0.0) -> None:
        """Restart: end all that runs, reset what a boot resets, and be away for `down_s` seconds."""
        self._pause()
        try:
            self._hang_up()
            await self.drop()
            end_all([self.root])
            image.boot(self.root)
            if down_s:
                await self.offline()
                await asyncio.sleep(down_s)
        finally:
            await self.online()

    async def _restart(self) -> None:
        """Restart the adb daemon alone."""
        self._pause()
        try:
            await asyncio.sleep(_LAST_WORDS_S)
            self._hang_up()
            await self.drop()
        finally:
            await self._accept()

    def _hang_up(self) -> None:
        for connection in list(self._connections):
            connection.close()

    def _fault(self, words: Sequence[str]) -> str:
        """Carry out `list`, `clear [NAME]`, or `NAME key=value ...`; returns what to say."""
        match words:
            case ["list"]:
                return self._faults.describe()
            case ["clear"]:
                self._faults.clear()
            case ["clear", name]:
                self._faults.clear(parse_fault(name, ()).fault)
            case [name, *values]:
                self._faults.arm(parse_fault(name, values))
            case _:
                raise InfrastructureError("no fault was named")
        return ""


def _phase(name: str) -> Phase | None:
    """Return what a host begins with a service of that name, as far as it tells: `run`, `log` or `restore`."""
    if not name.startswith(("shell", "exec")):
        return None
    if _RUN.search(name):
        return "run"
    if "logcat" in name:
        return "log"
    return "restore" if _RESTORE.search(name) else None


def _plain(value: str) -> str:
    """Return a value that cannot break the banner: it is a list of `name=value;`."""
    return "".join(
        character if character.isprintable() and character not in ";=" else "_" for character in value
    )
