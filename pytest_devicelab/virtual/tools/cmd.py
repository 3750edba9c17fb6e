"""cmd, pm and settings: the services of a virtual device that take commands."""

# Programs on the device start without pathlib, which alone takes some milliseconds.
# ruff: noqa: PTH105, PTH118, PTH123

from __future__ import annotations

import json
import os
import re
import sys

from pytest_devicelab.virtual.tools import packages, vitals
from pytest_devicelab.virtual.tools.device_path import device_root, host_path

SERVICES = ("battery", "package", "power", "settings", "thermalservice")
FIXED_PERFORMANCE = ("dev", "devicelab", "fixed_performance")
NAMESPACES = ("system", "secure", "global")


def package(words: list[str]) -> int:
    """Run `pm`, which is `cmd package`: list, path, install, uninstall."""
    root = device_root()
    match words:
        case ["list", "packages", *options]:
            wanted = next((word for word in options if not word.startswith("-")), "")
            for name, path in packages.installed(root):
                if wanted in name:
                    sys.stdout.write(f"package:{path}={name}\n" if "-f" in options else f"package:{name}\n")
            return 0
        case ["path", name]:
            found = dict(packages.installed(root)).get(name)
            sys.stdout.write(f"package:{found}\n" if found else "")
            return 0 if found else 1
        case ["install", *options]:
            return _install(root, options)
        case ["uninstall", *_, name]:
            if packages.uninstall(root, name):
                sys.stdout.write("Success\n")
                return 0
            sys.stdout.write(f"Failure [not installed for 0: {name}]\n")
            return 1
    return _refuse(
        "usage: pm [list packages [-f] [FILTER] | path NAME | install [-S SIZE | FILE] | uninstall NAME]"
    )


def _install(root: str, options: list[str]) -> int:
    size = None
    if "-S" in options[:-1]:
        text = options[options.index("-S") + 1]
        if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
            return _refuse(f"Error: invalid size {text!r}")
        size = int(text)
    file = options[-1] if options and size is None and not options[-1].startswith("-") else None
    if size is None and file is None:
        return _refuse("Error: must either specify a package size or an APK file")
    try:
        if file is None:
            packages.install(root, sys.stdin.buffer, size)
        else:
            with open(host_path(file), "rb") as stream:
                packages.install(root, stream, None)
    except (packages.InstallFailed, OSError) as error:
        sys.stdout.write(f"Failure [{error}]\n")
        return 1
    sys.stdout.write("Success\n")
    return 0


def settings(words: list[str]) -> int:
    """Run `settings`: get, put, delete and list of the three namespaces."""
    if len(words) < 2 or words[1] not in NAMESPACES:
        return _refuse("usage: settings [get|put|delete|list] [system|secure|global] [NAME [VALUE]]")
    path = os.path.join(device_root(), "data", "system", f"settings_{words[1]}.json")
    try:
        with open(path, encoding="utf-8") as file:
            values: dict[str, str] = json.load(file)
    except FileNotFoundError:
        values = {}
    match words:
        case ["list", _]:
            sys.stdout.write("".join(f"{name}={value}\n" for name, value in sorted(values.items())))
            return 0
        case ["get", _, name]:
            sys.stdout.write(values.get(name, "null") + "\n")
            return 0
        case ["put", _, name, value, *_]:
            values[name] = value
        case ["delete", _, name]:
            sys.stdout.write(f"Deleted {int(values.pop(name, None) is not None)} rows\n")
        case _:
            return _refuse(f"settings: bad arguments: {' '.join(words)}")
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(values, file)
    os.replace(temporary, path)
    return 0


def thermalservice(words: list[str]) -> int:
    """Run `cmd thermalservice`: override-status and reset."""
    root = device_root()
    state = vitals.read(root, "thermal")
    match words:
        case ["override-status", status] if status in "0123456" and len(status) == 1:
            state["override_status"] = int(status)
        case ["reset"]:
            state["override_status"] = None
        case _:
            return _refuse("usage: cmd thermalservice [override-status 0..6 | reset]")
    vitals.write(root, "thermal", state)
    return 0


def battery(words: list[str]) -> int:
    """Run `cmd battery`: set, unplug and reset."""
    if vitals.set_battery(device_root(), [word for word in words if word != "-f"]):
        return 0
    return _refuse("usage: cmd battery [set NAME VALUE | unplug | reset]")


def power(words: list[str]) -> int:
    """Run `cmd power`: set-fixed-performance-mode-enabled, as a phone that has that mode."""
    match words:
        case ["set-fixed-performance-mode-enabled", "true" | "false" as value]:
            path = os.path.join(device_root(), *FIXED_PERFORMANCE)
            with open(path, "w", encoding="ascii") as file:
                file.write(f"{value}\n")
            return 0
    return _refuse("usage: cmd power set-fixed-performance-mode-enabled true|false")


def _refuse(message: str) -> int:
    sys.stderr.write(message + "\n")
    return 255


def main(argv: list[str]) -> int:
    """Run cmd, pm or settings, whichever `argv[0]` says; returns the exit status."""
    program, *words = argv
    if program == "pm":
        return package(words)
    if program == "settings":
        return settings(words)
    match words:
        case ["-l"]:
            sys.stdout.write("Currently running services:\n" + "".join(f"  {name}\n" for name in SERVICES))
            return 0
        case ["package", *rest]:
            return package(rest)
        case ["settings", *rest]:
            return settings(rest)
        case ["thermalservice", *rest]:
            return thermalservice(rest)
        case ["battery", *rest]:
            return battery(rest)
        case ["power", *rest]:
            return power(rest)
        case [name, *_]:
            sys.stderr.write(f"cmd: Can't find service: {name}\n")
            return 20
    return _refuse("cmd: No service specified; use -l to list all running services.")
