"""A repro bundle: one zip that shows a difference between devices without this project."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_devicelab.audit.graph import parse_graph
from pytest_devicelab.audit.redact import redact
from pytest_devicelab.audit.smallest import SmallestPart
from pytest_devicelab.errors import DevicelabError
from pytest_devicelab.evidence import codec
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.lab.session import LabSession
from pytest_devicelab.matrix.soc import Soc, soc_from_properties
from pytest_devicelab.matrix.specs import DeviceSpec
from pytest_devicelab.runtimes.compile import compile_context
from pytest_devicelab.virtual.tools.raw_files import native_file

Array = npt.NDArray[np.generic]

SCHEMA = "devicelab.repro/1"
_SCRIPTS = ("reproduce_simulator.py", "reproduce_phone.sh")
# Properties of a phone that decide what it computes; the others say whose it is.
_PROPERTIES = (
    "ro.board.platform",
    "ro.build.version.release",
    "ro.build.version.sdk",
    "ro.product.manufacturer",
    "ro.product.model",
    "ro.soc.manufacturer",
    "ro.soc.model",
)
_SAFE_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", re.ASCII)


def bundle(
    session: LabSession,
    shown: SmallestPart,
    devices: Sequence[DeviceSpec],
    *,
    fingerprints: Mapping[str, bytes] | None = None,
) -> bytes:
    """Return the bundle as the bytes of a zip: the same records always give the same bytes.

    Args:
        session: where the part ran.
        shown: what to show.
        devices: those it ran on.
        fingerprints: JSON of each device's numeric fingerprint, by device id, where one was taken.

    Returns:
        A zip of `README.md`, `model.onnx`, `manifest.json`, inputs, each device's outputs, logs and context binary, and a
        script for the simulator and one for phones. It holds no path, serial number or other trace of this host.
    """
    files: dict[str, bytes] = {"model.onnx": shown.part.model}
    inputs = _inputs(shown, files)
    entries = [_device(session, spec, shown, files) for spec in devices]
    for id_, fingerprint in (fingerprints or {}).items():
        files[f"fingerprints/{id_}.json"] = fingerprint
    manifest = {
        "schema": SCHEMA,
        "model": shown.records[devices[0].id].model.id,
        "node": shown.tap.node,
        "op": shown.tap.op,
        "tensor": shown.tap.tensor,
        "nodes": list(shown.part.nodes),
        "sample": shown.sample,
        "inputs": inputs,
        "devices": entries,
        "differences": {id_: codec.encode(diff) for id_, diff in shown.differences.items()},
    }
    files["manifest.json"] = json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n"
    files["README.md"] = _readme(manifest).encode()
    for name in _SCRIPTS:
        files[name] = resources.files("pytest_devicelab.audit.bundle").joinpath(name).read_bytes()
    return _zip(files)


def _inputs(shown: SmallestPart, files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Add the inputs, as arrays and as the raw files and list that qnn-net-run reads."""
    infos = parse_graph(shown.part.model).infos
    entries, words = [], []
    for number, name in enumerate(shown.part.inputs):
        shape = [size.dim_value or 1 for size in infos[name].type.tensor_type.shape.dim]
        array = shown.feed[name].reshape(shape)
        files[f"inputs/{number}.npy"] = _npy(array)
        files[f"inputs/{number}.raw"] = _raw(array)
        words.append(f"{name}:={number}.raw")
        entries.append(
            {"name": name, "file": f"inputs/{number}.npy", "dtype": array.dtype.name, "shape": shape}
        )
    files["input_list.txt"] = (" ".join(words) + "\n").encode()
    record = next(iter(shown.records.values()))
    outputs = (
        f"{number} {native_file(name, record.output(name).dtype)}"
        for number, name in enumerate(shown.part.outputs)
    )
    files["output_files.txt"] = ("\n".join(outputs) + "\n").encode()
    return entries


def _device(
    session: LabSession, spec: DeviceSpec, shown: SmallestPart, files: dict[str, bytes]
) -> dict[str, Any]:
    """Add what one device gave and said; return its entry of the manifest."""
    record = shown.records[spec.id]
    outputs = []
    for number, name in enumerate(shown.part.outputs):
        array = session.store.read_output(record.output(name))
        files[f"outputs/{spec.id}/{number}.npy"] = _npy(array)
        files[f"outputs/{spec.id}/{number}.raw"] = _raw(array)
        outputs.append(
            {
                "name": name,
                "file": f"outputs/{spec.id}/{number}.npy",
                "sha256": record.output(name).sha256,
            }
        )
    _add_logs(session, record, files)
    soc = spec.soc or soc_from_properties(record.device.properties)
    if record.runtime == "qnn" and soc is not None:
        path = session.store.root / f"{record.model.id}.repro.onnx"
        session.keep_model(path.name, shown.part.model)
        compiled = compile_context(path, soc, record.options, session.cache / "contexts")
        files[f"contexts/{spec.id}.bin"] = compiled.path.read_bytes()
    return {
        "id": spec.id,
        "kind": record.device.kind,
        "simulated": record.device.simulated,
        "engine": _engine(record),
        "soc": record.device.soc,
        "hexagon": record.device.hexagon,
        "chip": _chip(soc),
        "runtime": record.runtime,
        "backend": record.backend,
        "options": dict(sorted(record.options.items())),
        "properties": {
            name: record.device.properties[name] for name in _PROPERTIES if name in record.device.properties
        },
        "versions": dict(sorted(record.versions.items())),
        "outputs": outputs,
    }


def _engine(record: RunRecord) -> str | None:
    """Say what computed: an NPU that is simulated computes on the CPU of a device without one."""
    return "cpu" if record.device.simulated and record.backend == "cpu" else record.device.engine


def _chip(soc: Soc | None) -> dict[str, str]:
    """Return the options by which the QNN execution provider is told the chip."""
    if soc is None or soc.qnn_id is None or soc.hexagon is None:
        return {}
    return {"soc_model": str(soc.qnn_id), "htp_arch": soc.hexagon.removeprefix("V")}


def _add_logs(session: LabSession, record: RunRecord, files: dict[str, bytes]) -> None:
    folder = session.store.run_folder(record.id)
    for name in sorted(record.files.values()):
        path = folder / name
        # A record could be edited to name a file elsewhere.
        if _SAFE_FILE.fullmatch(name) and path.is_file() and not path.is_symlink():
            private = (record.device.serial, str(Path.home()))
            files[f"logs/{record.device.id}/{name}"] = redact(path.read_bytes(), private)


def _npy(array: Array) -> bytes:
    target = io.BytesIO()
    np.save(target, np.ascontiguousarray(array), allow_pickle=False)
    return target.getvalue()


def _raw(array: Array) -> bytes:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def _zip(files: Mapping[str, bytes]) -> bytes:
    """Pack files in the order of their names, dated 1980 as the format's first day, so that bytes repeat."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(files):
            if not all(_SAFE_FILE.fullmatch(part) for part in name.split("/")):
                raise DevicelabError(f"{name!r} cannot name a file of a bundle", fix="rename the device")
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3
            entry.external_attr = (0o755 if name in _SCRIPTS else 0o644) << 16
            archive.writestr(entry, files[name])
    return target.getvalue()


def _readme(manifest: Mapping[str, Any]) -> str:
    devices = manifest["devices"]
    reference = devices[0]
    lines = [f"# {manifest['op']} {manifest['node']} gives other bits on other devices", ""]
    for device in devices[1:]:
        diff = manifest["differences"][device["id"]]
        lsb = (
            f", at most {diff['max_lsb']:g} steps of its quantization" if diff["max_lsb"] is not None else ""
        )
        lines.append(
            f"- {_name(device)} against {_name(reference)}: {diff['elements_different']} of {diff['elements']} "
            f"elements of `{manifest['tensor']}` differ{lsb}."
        )
    first = next((each["id"] for each in devices if each["runtime"] == "qnn"), reference["id"])
    lines += [
        "",
        f"`model.onnx` is cut out of {manifest['model']}: {len(manifest['nodes'])} nodes. Its inputs are not invented: "
        f"they are the whole model's, or what {reference['id']} computed in it (sample {manifest['sample']}).",
        "",
        "## See it",
        "",
        "On Qualcomm's HTP simulator (Linux x86-64, Python 3.11 or newer):",
        "",
        f"    pip install {_pinned(devices)}",
        "    python reproduce_simulator.py",
        "",
        "On a phone with one of these chips, and qnn-net-run with its libraries in /data/local/tmp/qnn:",
        "",
        f"    sh reproduce_phone.sh {first} [SERIAL]",
        "",
        "## What is here",
        "",
        "- `manifest.json`: devices, options, versions, and the differences in figures",
        "- `inputs/`, `outputs/<device>/`: `.npy` with shape, `.raw` as qnn-net-run reads and writes them",
        "- `contexts/<device>.bin`: the compiled model for that chip (runtime qnn)",
        "- `logs/<device>/`: what compiler, runtime and device said, without paths of the host",
        "- `fingerprints/<device>.json`: numeric fingerprints, where they were taken",
        "",
    ]
    return "\n".join(lines)


def _pinned(devices: Sequence[Mapping[str, Any]]) -> str:
    """Return what to install to compute as the devices did, in the versions they say; the first that says one decides."""
    used = {name: version for device in reversed(devices) for name, version in device["versions"].items()}
    packages = ("numpy", "onnxruntime", "onnxruntime-qnn")
    return " ".join(f"{name}=={used[name]}" if name in used else name for name in packages)


def _name(device: Mapping[str, Any]) -> str:
    chip = f"{device['soc'] or 'chip unknown'}, {device['hexagon'] or 'no Hexagon'}"
    return f"{device['id']} ({chip}{', simulated' if device['simulated'] else ''})"
