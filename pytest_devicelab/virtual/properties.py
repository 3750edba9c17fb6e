"""Android properties of a virtual device: one file each, below `dev/__properties__` of its root.

Plain files, so that `getprop` can be a few lines of shell. Rules as Android's init has them: a `ro.` property
is set once, others hold up to 91 bytes, `persist.` ones outlive a reboot. Stricter than Android: a value is
one line, and any user may set any property that is not read-only.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pytest_devicelab.errors import UserError
from pytest_devicelab.matrix.soc import Soc
from pytest_devicelab.matrix.specs import DeviceSpec

# Source: AOSP PROP_VALUE_MAX is 92 with the closing NUL.
MAX_VALUE_BYTES = 91
_NAME = re.compile(r"[A-Za-z0-9_@:-]+(?:\.[A-Za-z0-9_@:-]+)*", re.ASCII)
# A file name on Linux holds no more, and each property is a file.
_MAX_NAME_BYTES = 255


def store(root: Path) -> Path:
    """Return the folder that holds the properties of the device in `root`."""
    return root / "dev" / "__properties__"


def read(root: Path) -> dict[str, str]:
    """Return all properties of a device, sorted by name."""
    try:
        names = sorted(path.name for path in store(root).iterdir() if _valid_name(path.name))
    except FileNotFoundError:
        return {}
    values = {name: _read_value(store(root) / name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def get(root: Path, name: str, default: str = "") -> str:
    """Return a property of a device, or `default` where it is unset, empty or no valid name."""
    value = _read_value(store(root) / name) if _valid_name(name) else None
    return value or default


def set(root: Path, name: str, value: str) -> None:
    """Set a property of a device.

    Raises:
        UserError: Android would refuse: the name or value is not valid, or a `ro.` property is set already.
    """
    data = check(name, value)
    target = store(root) / name
    descriptor, name_of_temporary = tempfile.mkstemp(prefix=".property.", dir=root / "dev")
    temporary = Path(name_of_temporary)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        if name.startswith("ro."):
            target.hardlink_to(temporary)
        else:
            temporary.replace(target)
    except FileExistsError:
        raise _refused(name, value, "a ro. property is set once", "choose another name") from None
    finally:
        temporary.unlink(missing_ok=True)


def replace_all(root: Path, values: Mapping[str, str]) -> None:
    """Make `values` the only properties of a device, as a boot does.

    Raises:
        UserError: one of them is not valid.
    """
    contents = {name: check(name, value) for name, value in values.items()}
    folder = store(root)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)


def check(name: str, value: str) -> bytes:
    """Return the value as it is stored.

    Raises:
        UserError: the name or the value is not one Android accepts.
    """
    if not _valid_name(name):
        raise _refused(name, value, "the name is not valid", "use letters, digits and _ @ : - . inside of it")
    try:
        data = value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise _refused(name, value, "the value is no text", "use characters that exist") from None
    if "\n" in value or "\0" in value:
        raise _refused(name, value, "the value has more than one line, or a NUL", "use one line of text")
    if len(data) > MAX_VALUE_BYTES and not name.startswith("ro."):
        raise _refused(
            name, value, f"{len(data)} bytes; at most {MAX_VALUE_BYTES} are allowed", "shorten the value"
        )
    return data


def defaults(spec: DeviceSpec, soc: Soc) -> dict[str, str]:
    """Return the properties a virtual device starts with.

    They say what a phone with that chip says, and `ro.devicelab.simulated=1`, which no phone says.
    `spec.properties` come last and win.
    """
    qualcomm = (soc.manufacturer or "").upper() in ("QTI", "QUALCOMM")
    slug = re.sub(r"[^a-z0-9]+", "_", soc.name.lower()).strip("_")
    release, product = android_release(spec.sdk), f"devicelab_{slug}"
    build = f"VIRT.{spec.sdk}.001"
    found = {
        "ro.soc.model": soc.name,
        "ro.soc.manufacturer": soc.manufacturer or "",
        "ro.board.platform": soc.platform or "",
        "ro.hardware": "qcom" if qualcomm else soc.platform or slug,
        "ro.boot.hardware": "qcom" if qualcomm else soc.platform or slug,
        "ro.boot.serialno": spec.id,
        "ro.boot.verifiedbootstate": "orange",
        "ro.serialno": spec.id,
        "ro.product.model": f"Virtual {soc.marketing or soc.name}",
        "ro.product.name": product,
        "ro.product.device": slug,
        "ro.product.board": soc.platform or "",
        "ro.product.manufacturer": "pytest-devicelab",
        "ro.product.brand": "devicelab",
        "ro.product.cpu.abi": "arm64-v8a",
        "ro.product.cpu.abilist": "arm64-v8a",
        "ro.product.cpu.abilist64": "arm64-v8a",
        "ro.build.version.sdk": str(spec.sdk),
        "ro.build.version.release": release,
        "ro.build.version.security_patch": "2026-11-01",
        "ro.build.id": build,
        "ro.build.type": "userdebug",
        "ro.build.tags": "test-keys",
        "ro.build.fingerprint": f"devicelab/{product}/{slug}:{release}/{build}/1:userdebug/test-keys",
        "ro.build.description": f"{product}-userdebug {release} {build} 1 test-keys",
        "ro.debuggable": "1",
        "ro.secure": "1",
        "ro.adb.secure": "0",
        "ro.crypto.state": "encrypted",
        "ro.devicelab.simulated": "1",
        "ro.devicelab.engine": spec.engine,
        "persist.sys.timezone": "UTC",
        "persist.sys.locale": "en-US",
        "service.adb.root": "0",
        "dev.bootcomplete": "1",
        "sys.boot_completed": "1",
        "init.svc.adbd": "running",
        "init.svc.logd": "running",
    }
    return {name: value for name, value in found.items() if value} | dict(spec.properties)


def android_release(sdk: int) -> str:
    """Return the Android version of an API level, `14` for 34.

    Source: developer.android.com, uses-sdk-element, API levels; from 33 on they are 20 apart.
    """
    if sdk >= 33:
        return str(sdk - 20)
    return {32: "12", 31: "12", 30: "11", 29: "10", 28: "9"}.get(sdk, "8")


def _valid_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and len(name) <= _MAX_NAME_BYTES


def _read_value(path: Path) -> str | None:
    # Whatever else a process on the device put there is no property, and a FIFO would block us.
    if not path.is_file():
        return None
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes().decode("utf-8", "surrogateescape")
    return None


def _refused(name: str, value: str, why: str, fix: str) -> UserError:
    return UserError(f"property {name!r} cannot be set to {value!r}", why=why, fix=fix, name=name)
