"""What a lab needs of this machine, checked one by one, each with its fix."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

from pytest_devicelab.devices.adb_server import adb_version, find_adb
from pytest_devicelab.devices.adb_stream import list_attached
from pytest_devicelab.errors import DevicelabError, InfrastructureError, UserError
from pytest_devicelab.lab.checkup_devices import check_devices
from pytest_devicelab.lab.finding import Finding
from pytest_devicelab.lab.lease_desk import RECORD_BYTES
from pytest_devicelab.lab.lease_seat import lease_folder
from pytest_devicelab.lab.preflight import check_lab
from pytest_devicelab.matrix.decode import load_matrix
from pytest_devicelab.virtual.namespace import open_view
from pytest_devicelab.virtual.paths import DEVICE_FOLDERS

OLDEST_PYTHON = (3, 11)
OLDEST_GLIBC = (2, 35)
"""Source: the onnxruntime-qnn wheel is tagged manylinux_2_34 and its HTP simulator asks for symbols of 2.35."""
_USERS_ADB_PORT = 5037
_ELSEWHERE = "make room, or name another place with TMPDIR"
# A session keeps the compiled models, the outputs of every device and the devices' storage.
_TIGHT_BYTES, _TOO_FULL_BYTES = 2 * 1024**3, 200 * 1024**2


def check_up(*, reports: Path, matrix: Path | None) -> Iterator[Finding]:
    """Yield what was found, one thing at a time, in an order in which they may be fixed.

    Args:
        reports: where sessions will go.
        matrix: a device matrix to check too, with the files it names.
    """
    yield _python(sys.version_info[:3])
    yield _adb()
    yield _other_server(_USERS_ADB_PORT)
    yield _usb(Path("/dev/bus/usb"))
    yield _libc(platform.machine(), platform.libc_ver())
    yield _simulator()
    yield _namespaces()
    yield _leases()
    yield _disk("reports", reports)
    yield _temporary()
    if matrix is not None:
        yield from _matrix(matrix)


def _python(version: tuple[int, ...]) -> Finding:
    text = f"{'.'.join(map(str, version))} at {sys.executable}"
    if version < OLDEST_PYTHON:
        return Finding(name="Python", grade="fail", text=text, fix="use Python 3.11 or newer")
    return Finding(name="Python", grade="ok", text=text)


def _adb() -> Finding:
    try:
        adb = find_adb()
        return Finding(name="adb", grade="ok", text=f"{'.'.join(map(str, adb_version(adb)))} at {adb}")
    except UserError as error:
        return _from_error("adb", "fail", error)


def _other_server(port: int) -> Finding:
    """A phone on USB belongs to the adb server that opened it first; a private one then does not see it."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            pass
        attached = list_attached("127.0.0.1", port, timeout_s=3)
    except InfrastructureError as error:
        text = f"something listens on port {port}, and does not answer as adb does ({error.why})"
        return Finding(
            name="adb servers", grade="warn", text=text, fix=f"see what it is: `ss -ltnp sport = :{port}`"
        )
    except OSError:
        return Finding(
            name="adb servers", grade="ok", text=f"none on port {port}: nobody else has the phones"
        )
    usb = [serial for serial, _ in attached if ":" not in serial and not serial.startswith("emulator-")]
    text = f"one on port {port} has {len(attached)} devices, {len(usb)} of them on USB"
    if not usb:
        return Finding(name="adb servers", grade="ok", text=text)
    fix = f"write `lab: {{adb: {{host: 127.0.0.1, port: {port}}}}}` into the matrix, or say `adb kill-server`"
    return Finding(name="adb servers", grade="warn", text=text, fix=fix)


def _usb(bus: Path) -> Finding:
    """Phones are device nodes that udev must let this user write."""
    nodes = sorted(bus.glob("*/*"))
    if not nodes:
        text = f"no USB here ({bus} is empty or missing): virtual devices and phones over TCP only"
        fix = "fine without phones; in a container, pass /dev/bus/usb in"
        return Finding(name="USB", grade="warn", text=text, fix=fix)
    denied = [node for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
    text = f"{len(nodes) - len(denied)} of {len(nodes)} nodes can be opened"
    # Hubs and keyboards belong to root everywhere; which node is a phone is only known once it is opened.
    if len(denied) == len(nodes):
        fix = (
            "install android-sdk-platform-tools-common (its udev rules), join the group plugdev, log in anew"
        )
        return Finding(name="USB", grade="warn", text=text, fix=fix)
    return Finding(name="USB", grade="ok", text=text)


def _libc(machine: str, libc: tuple[str, str]) -> Finding:
    name, version = libc
    text = f"{machine}, {name or 'a C library that is not glibc'} {version}".strip()
    new_enough = name == "glibc" and tuple(map(int, version.split(".")[:2])) >= OLDEST_GLIBC
    if machine == "x86_64" and new_enough:
        return Finding(name="glibc", grade="ok", text=text)
    fix = "the HTP simulator needs x86-64 and glibc 2.35 (Ubuntu 22.04, Debian 12); else use phones or `engine: cpu`"
    return Finding(name="glibc", grade="warn", text=text, fix=fix)


def _simulator() -> Finding:
    """Loaded in a process of its own: a library that does not fit may end the process that tries."""
    fix = "pip install 'pytest-devicelab[virtual]'; without it, use phones or `engine: cpu`"
    try:
        versions = ", ".join(
            f"{name} {metadata.version(name)}" for name in ("onnxruntime-qnn", "onnxruntime")
        )
    except metadata.PackageNotFoundError as error:
        return Finding(name="simulator", grade="warn", text=f"{error.name} is not installed", fix=fix)
    trouble = _import_trouble("import onnxruntime, onnxruntime_qnn")
    if trouble is not None:
        text = f"{versions}: cannot be imported: {trouble}"
        return Finding(
            name="simulator", grade="fail", text=text, fix="pip install --force-reinstall onnxruntime-qnn"
        )
    return Finding(name="simulator", grade="ok", text=versions)


def _import_trouble(code: str) -> str | None:
    """Return why code does not run in a Python of its own; None when it does."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired as error:
        return f"no end after {error.timeout:g} s"
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return None
    return done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"


def _namespaces() -> Finding:
    """Opened the way a virtual device does: a mount namespace, as root or in a user namespace."""
    try:
        with tempfile.TemporaryDirectory(prefix="dl-") as folder:
            root = Path(folder).resolve()
            for name in DEVICE_FOLDERS:
                (root / name).mkdir()
            asyncio.run(_open_and_close(root))
    except InfrastructureError as error:
        text = f"none to be had ({error.why}): device paths in commands are rewritten instead"
        fix = "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or `docker run --cap-add SYS_ADMIN`"
        return Finding(name="namespaces", grade="warn", text=text, fix=fix)
    except OSError as error:
        text = f"not tried: there is no room for a virtual device ({error})"
        return Finding(name="namespaces", grade="warn", text=text, fix=_ELSEWHERE)
    return Finding(name="namespaces", grade="ok", text="virtual devices get mount namespaces")


async def _open_and_close(root: Path) -> None:
    view = await open_view(root, namespace=True)
    await view.close()


def _leases() -> Finding:
    try:
        folder = lease_folder()
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(
                b"\n" * RECORD_BYTES
            )  # a full disk has room for a file's name, and none for its content
            return Finding(name="leases", grade="ok", text=str(folder))
    except DevicelabError as error:
        return _from_error("leases", "fail", error)
    except OSError as error:
        fix = "set DEVICELAB_LEASES to a folder that all users of these devices can write"
        return Finding(name="leases", grade="fail", text=str(error), fix=fix)


def _temporary() -> Finding:
    try:
        return _disk("temporary files", Path(tempfile.gettempdir()), _ELSEWHERE)
    except FileNotFoundError as error:  # what gettempdir raises where it can write nowhere
        return Finding(
            name="disk", grade="fail", text=f"no temporary files: {error.strerror}", fix=_ELSEWHERE
        )


def _disk(
    what: str, folder: Path, fix: str = "make room, or name another place with --reports DIR"
) -> Finding:
    try:
        there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding(name="disk", grade="fail", text=f"{what} cannot go to {folder}: {error}", fix=fix)
    text = f"{free / 1024**3:.1f} GiB free for {what} at {there}"
    if not there.is_dir():
        return Finding(name="disk", grade="fail", text=f"{what} cannot go to {there}: it is a file", fix=fix)
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding(name="disk", grade="fail", text=f"{text}, and not writable", fix=fix)
    if free >= _TIGHT_BYTES:
        return Finding(name="disk", grade="ok", text=text)
    return Finding(name="disk", grade="fail" if free < _TOO_FULL_BYTES else "warn", text=text, fix=fix)


def _matrix(path: Path) -> Iterator[Finding]:
    try:
        matrix = load_matrix(path)
        check_lab(matrix, matrix.devices)
    except UserError as error:
        yield _from_error("matrix", "fail", error)
        return
    text = f"{path}: {len(matrix.devices)} devices, {len(matrix.models)} models"
    yield Finding(name="matrix", grade="ok", text=text)
    yield from check_devices(matrix)


def _from_error(name: str, grade: Literal["warn", "fail"], error: DevicelabError) -> Finding:
    text = f"{error.what} ({error.why})" if error.why else error.what
    return Finding(name=name, grade=grade, text=text, fix=error.fix or "correct what is said above")
