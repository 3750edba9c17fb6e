"""The adb server: a private one for a session, or one that is already running."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from pytest_devicelab.devices.adb_stream import open_server
from pytest_devicelab.errors import DeadlineExceeded, InfrastructureError, UserError

# adb 36 is what adbutils bundles. Older servers wedge when many devices drop at once (measured with 29), and the
# environment switches below that keep a private server private are not all known to them.
OLDEST_ADB = (31, 0)
_START_TIMEOUT_S = 15.0
_CLOSE_TIMEOUT_S = 3.0
# The server, and beside it one who waits for standard input to close, which it does with the process that holds the
# other end however that ends. (Linux could tell the server itself, but by the thread that started it, not the process.)
_GUARDED = """
exec 3<&0
"$@" </dev/null 3<&- & server=$!
{ cat <&3 >/dev/null; kill "$server"; } 2>/dev/null & exec 3<&-
wait "$server"
"""


def find_adb() -> Path:
    """Return the adb binary: $DEVICELAB_ADB, else the one inside adbutils, else the one on PATH.

    Raises:
        UserError: there is none, it does not run, or it is too old.
    """
    chosen = os.environ.get("DEVICELAB_ADB") or _bundled_adb() or shutil.which("adb")
    if not chosen or not Path(chosen).is_file():
        raise UserError(
            f"adb was not found{f' at {chosen}' if chosen else ''}",
            why="neither adbutils nor PATH has it" if not chosen else "$DEVICELAB_ADB names no file",
            fix="reinstall adbutils (its wheel carries adb), or put Android's platform-tools on PATH",
        )
    version = adb_version(Path(chosen))
    if version < OLDEST_ADB:
        raise UserError(
            f"adb at {chosen} is too old",
            why=f"it is version {'.'.join(map(str, version))}; {'.'.join(map(str, OLDEST_ADB))} or newer is needed",
            fix="unset DEVICELAB_ADB to use the adb inside adbutils, or update platform-tools",
        )
    return Path(chosen)


def adb_version(adb: Path) -> tuple[int, ...]:
    """Return the version of an adb binary, such as `(36, 0, 0)`.

    Raises:
        UserError: it does not run, or says no version.
    """
    try:
        done = subprocess.run([adb, "version"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"adb at {adb} does not run", why=str(error), fix="reinstall adbutils") from error
    said = done.stdout.decode("utf-8", "replace")
    found = re.search(r"^Version (\d+(?:\.\d+)*)", said, re.MULTILINE)
    if not found:
        raise UserError(
            f"{adb} is not adb",
            why=f"`adb version` printed {said[:80]!r}",
            fix="correct $DEVICELAB_ADB",
        )
    return tuple(int(part) for part in found[1].split("."))


def _bundled_adb() -> str | None:
    import adbutils

    binary = Path(adbutils.__file__).parent / "binaries" / "adb"
    return str(binary) if binary.is_file() else None


class AdbServer:
    """An adb server of our own on a free port, with its own keys: nobody's running adb is disturbed.

    It ends with `close()`, and with this process however that ends.

    Args:
        home: an empty folder for its keys and log.
        adb: the binary; found where None.
    """

    def __init__(self, home: Path, *, adb: Path | None = None) -> None:
        self._adb = adb or find_adb()
        self._home = home
        self.host = "127.0.0.1"
        self.port = _free_port()
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self._home.mkdir(parents=True, exist_ok=True)
        self._log = self._home / "adb-server.log"
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                ["/bin/sh", "-c", _GUARDED, "adb", self._adb, "-P", str(self.port), "nodaemon", "server"],
                env=private_environment(self._home, self.port),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us, and the group can be ended as one
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and process.poll() is None:
            try:
                socket.create_connection((self.host, self.port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return process
        _end(process)
        raise InfrastructureError(
            "the private adb server did not start",
            why=self._log.read_text(errors="replace")[-500:] or f"no answer on port {self.port}",
            fix=f"try `{self._adb} nodaemon server` by hand",
        )

    def connect(self, address: str, *, timeout_s: float = 15.0) -> None:
        """Connect a device that is reached over TCP.

        Raises:
            InfrastructureError: the server could not reach it.
        """
        connect_device(self.host, self.port, address, timeout_s=timeout_s)

    def revive(self) -> bool:
        """Start the server again if it died; says whether it did. Not for several threads at once.

        It gets its own port and keys. Where somebody else listens on that port by now, none is started: to take it for
        ours would hand our devices to a stranger.

        Raises:
            InfrastructureError: it does not start, or the port is somebody else's.
        """
        if self._process.poll() is None:
            return False
        with socket.socket() as probe:
            taken = probe.connect_ex((self.host, self.port)) == 0
        if taken:
            raise InfrastructureError(
                f"the private adb server died, and its port {self.port} is in use",
                why="somebody else listens there by now, or a part of the server survived",
                fix="run the session again",
            )
        _end(self._process)
        self._process = self._start()
        return True

    def close(self) -> None:
        """End the server; never raises."""
        _end(self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect_device(host: str, port: int, address: str, *, timeout_s: float = 15.0) -> None:
    """Tell an adb server to connect a device over TCP; `InfrastructureError` when it could not.

    Not with `adb connect`, which starts a server where none answers at `localhost`, and ends one of another version.
    """
    try:
        with open_server(host, port, f"connect {address}", timeout_s) as stream:
            stream.command(f"host:connect:{address}")
            said = stream.sized_text().strip()
    except DeadlineExceeded:
        said = f"no answer within {timeout_s:g} s"
    if not re.match(r"(already )?connected to ", said):
        raise InfrastructureError(
            f"adb could not connect to {address}", why=said, fix="check that the device listens there"
        )


def disconnect_device(host: str, port: int, address: str, *, timeout_s: float = 5.0) -> None:
    """Have an adb server forget a device over TCP; never raises. It would go on looking for it, and find another's."""
    with suppress(InfrastructureError), open_server(host, port, f"disconnect {address}", timeout_s) as stream:
        stream.command(f"host:disconnect:{address}")
        stream.sized_text()


def private_environment(home: Path, port: int) -> dict[str, str]:
    """Return the environment of an adb that shares nothing with the user's own.

    Source: measured with adb 36: ADB_MDNS=0 opens no port 5353; ADB_LOCAL_TRANSPORT_MAX_PORT below 5555 stops the
    scan for emulators, which would list a device on such a port twice.
    """
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    return kept | {
        "HOME": str(home),
        "ANDROID_ADB_SERVER_PORT": str(port),
        "ADB_MDNS": "0",
        "ADB_LOCAL_TRANSPORT_MAX_PORT": "5553",
        "ADB_LIBUSB": "0",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(_CLOSE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
