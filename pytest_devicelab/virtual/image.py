"""The Android-shaped folder a virtual device lives in, and the environment of its processes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import site
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest_devicelab
from pytest_devicelab.errors import InfrastructureError, UserError
from pytest_devicelab.matrix.soc import Soc
from pytest_devicelab.matrix.specs import DeviceSpec
from pytest_devicelab.virtual import logd, properties
from pytest_devicelab.virtual.tools import vitals
from pytest_devicelab.virtual.tools.device_path import BOOT_TIME_FILE

_FOLDERS = (
    "data/app",
    "data/local/tmp",
    "data/property",
    "data/system",
    "dev/__properties__",
    "dev/devicelab",
    "dev/socket",
    "proc/sys/kernel",
    "sdcard/Download",
    "system/bin",
    "vendor/bin",
    "vendor/lib64",
)
# Program on the device -> module of `virtual.tools` with its `main(argv) -> exit status`.
_PROGRAMS = {
    "cmd": "cmd",
    "df": "df",
    "dmesg": "dmesg",
    "dumpsys": "dumpsys",
    "free": "usage",
    "log": "log",
    "logcat": "logcat",
    "pidof": "ps",
    "pm": "cmd",
    "ps": "ps",
    "screencap": "screencap",
    "settings": "cmd",
    "uptime": "usage",
}
# These import numpy and a model runtime, so they start a whole Python.
_RUNNERS = {
    "qnn-net-run": "qnn_net_run",
    "ort-run": "ort_run",
    "litert-run": "litert_run",
    "qnn_executor_runner": "qnn_executor_runner",
}
# Programs of the host a device needs: transfers, slots and hashes rest on them.
_NEEDED = ("cat", "chmod", "cp", "ls", "mkdir", "mv", "rm", "sha256sum", "sleep")
_PATH = ("/usr/bin", "/bin")
_SHELL_SCRIPTS = Path(__file__).parent / "tools" / "shell"
_PACKAGE_PARENT = str(Path(pytest_devicelab.__file__).parent.parent)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What the programs on a virtual device need to know of it; `device.json` in its root."""

    id: str
    engine: str
    soc: Soc
    sdk: int


def build_image(spec: DeviceSpec, root: Path) -> None:
    """Lay out a virtual device in `root`, and start it.

    An image that is there already is renewed: programs and facts are written again, `data`, `sdcard` and
    persistent properties stay.

    Args:
        spec: a device whose chip is known.
        root: its root folder; made where missing, readable by this user only.

    Raises:
        UserError: the device has no chip, or a property Android would refuse.
        InfrastructureError: the host lacks a program every device needs.
    """
    if spec.soc is None:
        raise UserError(
            f"device {spec.id}: a virtual device needs a chip",
            why="it has no `soc`, so there is nothing to simulate",
            fix="add a chip to the device in the matrix, such as `soc: SM8650`",
        )
    boot_values = properties.defaults(spec, spec.soc)
    for name, value in boot_values.items():
        properties.check(name, value)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in _FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    facts = {"id": spec.id, "engine": spec.engine, "sdk": spec.sdk, "soc": dataclasses.asdict(spec.soc)}
    (root / "device.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    lines = [f"{name}={value}\n" for name, value in sorted(boot_values.items())]
    _build_prop(root).write_bytes("".join(lines).encode("utf-8", "surrogateescape"))
    _write_programs(root / "system" / "bin")
    _write_kernel(spec.soc, root / "proc")
    vitals.write_defaults(str(root), has_npu=spec.soc.has_hexagon)
    boot(root)


def boot(root: Path) -> None:
    """Reset what a reboot resets: properties that do not persist, uptime, and the log.

    Does not wait for the log daemon, so the process that runs the daemon may call it.
    """
    lines = _build_prop(root).read_bytes().decode("utf-8", "surrogateescape").split("\n")
    values = dict(line.split("=", 1) for line in lines if line)
    for name, value in properties.read(root).items():
        # Checked again: a process on the device may have written the file without setprop.
        with contextlib.suppress(UserError):
            properties.check(name, value)
            if name.startswith("persist."):
                values[name] = value
    properties.replace_all(root, values)
    (root / BOOT_TIME_FILE).write_text(str(time.time_ns()), encoding="ascii")
    logd.clear(root)


def become(root: Path, user: str) -> None:
    """Make later processes on the device appear to be `root` or `shell`, as `adb root` and `unroot` do."""
    properties.set(root, "service.adb.root", "1" if user == "root" else "0")


def read_device(root: Path) -> DeviceFacts:
    """Return the facts of the device in `root`.

    Raises:
        InfrastructureError: there is no device image, or it is damaged.
    """
    path = root / "device.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        soc = Soc(**facts["soc"])
        return DeviceFacts(id=facts["id"], engine=facts["engine"], soc=soc, sdk=facts["sdk"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InfrastructureError(
            f"no virtual device in {root}", why=f"device.json: {error}", fix="build its image again"
        ) from error


def environment(root: Path) -> dict[str, str]:
    """Return the environment of every process on the device.

    Nothing of the host's environment is in it, whatever secrets that holds, except where Python itself
    finds its libraries.

    `VROOT` is the path of the device's `/` as a process must write it; whoever gives the process a mount
    namespace replaces it by nothing. `DEVICELAB_VDEVICE` is always the folder on the host.
    """
    found = {
        "PATH": ":".join((str(root / "system" / "bin"), *_PATH)),
        "DEVICELAB_VDEVICE": str(root),
        "VROOT": str(root),
        "ANDROID_ROOT": "/system",
        "ANDROID_DATA": "/data",
        "ANDROID_STORAGE": "/storage",
        "EXTERNAL_STORAGE": "/sdcard",
        "HOME": "/",
        "HOSTNAME": "localhost",
        "LC_ALL": "C.UTF-8",
        "LOGNAME": "shell",
        "SHELL": "/bin/sh",
        "TERM": "dumb",
        "TMPDIR": str(root / "data" / "local" / "tmp"),
        "TZ": "UTC",
        "USER": "shell",
    }
    if library_path := os.environ.get("LD_LIBRARY_PATH"):
        found["LD_LIBRARY_PATH"] = library_path
    return found


def _build_prop(root: Path) -> Path:
    return root / "system" / "build.prop"


def _write_programs(folder: Path) -> None:
    for name in _NEEDED:
        program = shutil.which(name, path=":".join((*_PATH, os.environ.get("PATH", ""))))
        if program is None:
            raise InfrastructureError(
                f"the host has no {name}, which every virtual device needs",
                why=f"it is neither in {' nor '.join(_PATH)} nor on PATH",
                fix="install coreutils",
            )
        _link(folder / name, program)
    _link(folder / "sh", "/bin/sh")
    for script in sorted(_SHELL_SCRIPTS.iterdir()):
        _write_script(folder / script.name, script.read_text(encoding="utf-8"))
    for name, module in _PROGRAMS.items():
        _write_script(folder / name, _program_script(name, module))
    for name, module in _RUNNERS.items():
        _write_script(folder / name, _runner_script(module))


def _program_script(name: str, module: str) -> str:
    # -I -S: no site-packages and nothing from the current folder, which halves the start-up time and
    # keeps a pushed file called json.py from being imported.
    start = (
        f"import sys; sys.path.append({_PACKAGE_PARENT!r}); "
        f"from pytest_devicelab.virtual.tools.launch import launch; launch({name!r}, {module!r})"
    )
    return f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I -S -c {shlex.quote(start)} "$@"\n'


def _runner_script(module: str) -> str:
    lines = ["#!/bin/sh"]
    if _PACKAGE_PARENT not in (*site.getsitepackages(), site.getusersitepackages()):
        lines.append(f"export PYTHONPATH={shlex.quote(_PACKAGE_PARENT)}")
    if site.ENABLE_USER_SITE:
        lines.append(f"export PYTHONUSERBASE={shlex.quote(site.getuserbase())}")
    # -P: nothing is imported from the current folder.
    command = f"exec {shlex.quote(sys.executable)} -P -m pytest_devicelab.virtual.tools.{module}"
    return "\n".join([*lines, f'{command} "$@"', ""])


def _write_script(path: Path, text: str) -> None:
    # A device that is up may be running the old one: replace it, never write into it.
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(0o755)
    temporary.replace(path)


def _link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _write_kernel(soc: Soc, folder: Path) -> None:
    release = "6.1.75-android14-devicelab-simulated"
    built = "#1 SMP PREEMPT Sun Nov  1 00:00:00 UTC 2026"
    (folder / "sys" / "kernel" / "osrelease").write_text(release + "\n", encoding="ascii")
    (folder / "sys" / "kernel" / "version").write_text(built + "\n", encoding="ascii")
    (folder / "version").write_text(f"Linux version {release} (pytest-devicelab) {built}\n", encoding="ascii")
    cores = "".join(f"processor\t: {core}\nFeatures\t: fp asimd asimdhp asimddp\n\n" for core in range(8))
    (folder / "cpuinfo").write_text(f"{cores}Hardware\t: {soc.name} (simulated)\n", encoding="utf-8")
