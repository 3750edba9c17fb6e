"""Qualcomm's QAIRT SDK on this machine: which of its files a phone needs, and whether they fit it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from pytest_devicelab.errors import InfrastructureError, TransferError, UserError
from pytest_devicelab.runtimes.kit import Kit, Place, require_machine

_RUNNER = "qnn-net-run"
_BACKEND = "libQnnHtp.so"
_EXTENSIONS = "libQnnHtpNetRunExtensions.so"
_VIEWER = "qnn-profile-viewer"
_READER = "libQnnHtpProfilingReader.so"
_ANDROID = "aarch64-android"
_HOST = "x86_64-linux-clang"
PROFILE_LOG = "qnn-profiling-data_0.log"
_VIEW_TIMEOUT_S = 60.0
_VERSION = re.compile(r"\d+\.\d+\.\d+(\.\d+)?")
_VARIABLES = ("QAIRT_SDK_ROOT", "QNN_SDK_ROOT")


@dataclass(frozen=True, slots=True, kw_only=True)
class QairtSdk:
    """An SDK as its archive unpacks: `bin/<target>/`, `lib/<target>/`, `lib/hexagon-v<nn>/`.

    Attributes:
        version: `2.51.0` with a build number behind it; empty when the SDK does not say.
    """

    root: Path
    version: str

    def find(self, *places: str) -> Path | None:
        """Return the first of these files that is there, by its path below the SDK."""
        return next((path for place in places if (path := self.root / place).is_file()), None)


def find_sdk(written: Path | None, environment: Mapping[str, str]) -> Path | None:
    """Return the SDK's folder: what the matrix says, else `$QAIRT_SDK_ROOT`, else `$QNN_SDK_ROOT`, else None.

    Raises:
        UserError: what was named is no SDK.
    """
    told = [("qairt_sdk in the matrix", written)] if written else []
    told += [(f"${name}", Path(environment[name])) for name in _VARIABLES if environment.get(name)]
    if not told:
        return None
    who, root = told[0]
    if not (root / "bin").is_dir() or not (root / "lib").is_dir():
        raise UserError(
            f"{who} names {root}, which is no QAIRT SDK",
            why="it has no folders bin and lib" if root.is_dir() else "there is no such folder",
            fix="name the folder that `bin`, `lib` and `sdk.yaml` lie in, such as /opt/qcom/aistack/qairt/2.51.0.260101",
        )
    return root


def open_sdk(root: Path) -> QairtSdk:
    """Return the SDK in a folder, with its version from `sdk.yaml`, or from the folder's name."""
    version = ""
    try:
        said = yaml.safe_load((root / "sdk.yaml").read_text("utf-8"))
        version = str(said.get("version", "")) if isinstance(said, dict) else ""
    except (OSError, ValueError, yaml.YAMLError):
        pass  # older SDKs have no such file; the folder is named by the version
    found = _VERSION.search(version) or _VERSION.search(root.resolve().name)
    return QairtSdk(root=root, version=found[0] if found else "")


def htp_kit(place: Place, *, compiler: str, options: Mapping[str, str], graph: str) -> Kit | None:
    """Return what qnn-net-run needs on a phone to run a context binary on its HTP.

    Args:
        place: the phone; its chip is known to have a Hexagon.
        compiler: QAIRT version the context binary was made with.
        options: the model's, by the names of the QNN execution provider.
        graph: name of the graph in the context binary.

    Returns:
        None where there is no SDK: the phone has qnn-net-run on its own.

    Raises:
        InfrastructureError: a file is missing or for another machine, or the SDK is older than the context binary.
    """
    if place.sdk is None:
        return None
    assert place.soc is not None
    assert place.soc.hexagon is not None
    sdk, arch = open_sdk(place.sdk), place.soc.hexagon.removeprefix("V")
    skel, stub = f"libQnnHtpV{arch}Skel.so", f"libQnnHtpV{arch}Stub.so"
    wanted = {
        _RUNNER: (f"bin/{_ANDROID}/{_RUNNER}",),
        **{name: (f"lib/{_ANDROID}/{name}",) for name in (_BACKEND, stub, "libQnnSystem.so", _EXTENSIONS)},
        skel: (f"lib/hexagon-v{arch}/{place.spec.process_domain}/{skel}",),
    }
    files = {name: path for name, places in wanted.items() if (path := sdk.find(*places)) is not None}
    missing = {name: places for name, places in wanted.items() if name not in files}
    if missing:
        raise _missing(place, sdk, missing)
    for name, path in files.items():
        require_machine(path, place, machine="hexagon" if name == skel else None)
    _require_new_enough(place, sdk, compiler)
    viewer = sdk.find(f"bin/{_HOST}/{_VIEWER}")
    return Kit(
        program=_RUNNER,
        files=files,
        texts={
            "backend.json": json.dumps(_backend_config(place.folder), indent=1),
            "htp.json": json.dumps(_htp_config(place, options, graph), indent=1),
        },
        environment={
            "LD_LIBRARY_PATH": place.folder,
            # FastRPC separates with semicolons; the vendor's own folders stay reachable.
            "ADSP_LIBRARY_PATH": f"{place.folder};/vendor/dsp/cdsp;/vendor/lib/rfsa/adsp;/system/lib/rfsa/adsp;/dsp",
        },
        arguments=(f"--config_file={place.folder}/backend.json",),
        # The phone's runner leaves the vendor's own format; the viewer on this machine makes a table of it.
        evidence_files=(PROFILE_LOG,),
        host_tools={_VIEWER: viewer} if viewer is not None else {},
        version=sdk.version or "unknown",
    )


def view_profile(kit: Kit, folder: Path, table: str) -> None:
    """Make a table of the profile the phone's runner left, where there is one and the SDK has the viewer.

    Args:
        kit: what the run was made with.
        folder: where the runner's files lie; the table goes there too.
        table: its name.

    Raises:
        TransferError: the viewer does not read it.
    """
    viewer, log = kit.host_tools.get(_VIEWER), folder / PROFILE_LOG
    if viewer is None or not log.is_file():
        return
    libraries = viewer.parents[2] / "lib" / _HOST
    reader = libraries / _READER
    # Paths of the user's own SDK and of our own session; no shell reads them.
    command = [str(viewer), "--input_log", str(log), "--output", str(folder / table)]
    command += ["--reader", str(reader)] if reader.is_file() else []
    try:
        subprocess.run(
            command,
            env={**os.environ, "LD_LIBRARY_PATH": str(libraries)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=_VIEW_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or b""
        raise TransferError(
            f"{log}: qnn-profile-viewer does not read it",
            why=f"{error}: {said.decode('utf-8', 'replace').strip()}"[:500],
            fix=f"try it by hand: {shlex.join(command)}",
        ) from error


def _missing(place: Place, sdk: QairtSdk, missing: Mapping[str, tuple[str, ...]]) -> InfrastructureError:
    assert place.soc is not None
    lacking = " and no ".join(places[0] for places in missing.values())
    versions = sorted(path.name for path in (sdk.root / "lib").glob("hexagon-v*"))
    return InfrastructureError(
        f"device {place.spec.id}: the QAIRT SDK lacks {', '.join(missing)}",
        why=f"{sdk.root} (version {sdk.version or 'unknown'}) has no {lacking}"
        f"; {place.soc.name} has Hexagon {place.soc.hexagon}, the SDK is for {', '.join(versions) or 'none'}",
        fix="take an SDK that knows this chip"
        + ("; signed skels come with the phone's vendor" if place.spec.process_domain == "signed" else ""),
    )


def _require_new_enough(place: Place, sdk: QairtSdk, compiler: str) -> None:
    """A context binary needs a runtime at least as new as the compiler that made it."""
    made, there = _numbers(compiler), _numbers(sdk.version)
    if made and there and there < made:
        raise InfrastructureError(
            f"device {place.spec.id}: the QAIRT SDK is older than the context binary",
            why=f"compiled with QAIRT {compiler}, {sdk.root} is {sdk.version}",
            fix="take an SDK at least as new, or an older onnxruntime-qnn, which carries the compiler",
        )


def _numbers(version: str) -> tuple[int, ...]:
    """Return the first three numbers of a version; nothing when there is none. Build numbers are dates."""
    found = _VERSION.search(version)
    return tuple(int(part) for part in found[0].split(".")[:3]) if found else ()


def _backend_config(folder: str) -> dict[str, object]:
    return {
        "backend_extensions": {
            "shared_library_path": f"{folder}/{_EXTENSIONS}",
            "config_file_path": f"{folder}/htp.json",
        }
    }


def _htp_config(place: Place, options: Mapping[str, str], graph: str) -> dict[str, object]:
    """Return the settings of the HTP backend, from the options the context binary was compiled with.

    Precision is the compiler's: from QAIRT 2.35 on, older than any compiler here, the settings have no key for it.

    Source: QAIRT documentation of the HTP backend: `graphs` takes graph_names, vtcm_mb and O (2 or 3; 1 is internal),
    `devices` dsp_arch, pd_session and, for each core, perf_profile (none of which is `default`) and rpc_control_latency.
    """
    assert place.soc is not None
    assert place.soc.hexagon is not None
    graphs: dict[str, object] = {"graph_names": [graph]}
    if (level := _chosen(options, "htp_graph_finalization_optimization_mode")) > 1:
        graphs["O"] = level
    if vtcm := _chosen(options, "vtcm_mb"):
        graphs["vtcm_mb"] = vtcm
    core: dict[str, object] = {"core_id": 0}
    if (mode := options.get("htp_performance_mode", "burst")) != "default":
        core["perf_profile"] = mode
    if latency := _chosen(options, "rpc_control_latency"):
        core["rpc_control_latency"] = latency
    device: dict[str, object] = {
        "dsp_arch": place.soc.hexagon.lower(),
        "pd_session": place.spec.process_domain,
        "cores": [core],
    }
    return {"graphs": [graphs], "devices": [device]}


def _chosen(options: Mapping[str, str], name: str) -> int:
    """Return an option's number; 0 where it is left to the vendor, which in the settings file is to say nothing."""
    return int(options.get(name, "0"))
