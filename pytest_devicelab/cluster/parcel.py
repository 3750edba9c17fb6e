"""What goes between a controller and a lab host: files as bytes, the record as our own JSON, read strictly."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pytest_devicelab.cluster.names import host_of, serial_of
from pytest_devicelab.errors import InfrastructureError
from pytest_devicelab.evidence import codec
from pytest_devicelab.evidence.arrays import tensor_sha256
from pytest_devicelab.evidence.record import RunRecord
from pytest_devicelab.evidence.store import SessionStore
from pytest_devicelab.matrix.specs import DeviceSpec

_NAME = re.compile(r"(?:attempt-[0-9]{1,4}/)?[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", re.ASCII)
_SCHEMA = "devicelab.run/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """One run as a lab host hands it back.

    Attributes:
        record: `RunRecord` as JSON.
        files: evidence beside it, by its path in the run's folder.
        arrays: outputs as .npy files, by the sha256 of their data.
    """

    record: bytes
    files: Mapping[str, bytes]
    arrays: Mapping[str, bytes]


def pack(record: RunRecord, store: SessionStore) -> Parcel:
    """Return a run that lies in a store on this host, with all that belongs to it."""
    folder = store.run_folder(record.id)
    names = {
        *record.files.values(),
        *(name for attempt in record.attempts for name in attempt.files.values()),
    }
    return Parcel(
        record=codec.dump({"schema": _SCHEMA, **codec.encode(record)}),
        files={name: (folder / name).read_bytes() for name in sorted(names) if (folder / name).is_file()},
        arrays={
            tensor.sha256: (store.root / "arrays" / f"{tensor.sha256}.npy").read_bytes()
            for tensor in record.outputs
            if store.arrays.has(tensor.sha256)
        },
    )


def read(parcel: Parcel, *, run_id: str, host: str) -> RunRecord:
    """Return the record in a parcel.

    Raises:
        InfrastructureError: it is damaged, or another run's.
    """
    record = codec.decode(RunRecord, codec.parse(parcel.record, file=host, schema=_SCHEMA), file=host)
    if record.id != run_id:
        raise codec.damaged(host, f"run {run_id} was asked for, {record.id[:80]!r} came", field="id")
    return record


def unpack(
    parcel: Parcel, record: RunRecord, spec: DeviceSpec, store: SessionStore, *, unit: str
) -> RunRecord:
    """Write a run into the controller's store, and return its record there, which is on disk by then.

    Args:
        parcel: what came.
        record: the record in it.
        spec: the device as the controller's matrix has it.
        store: the controller's.
        unit: name of the unit it came from; what lasts of it goes before the serial.

    Raises:
        InfrastructureError: a file is named elsewhere, or an output is damaged or missing.
    """
    host = host_of(unit)
    folder = store.run_folder(record.id)
    write_evidence(folder, parcel.files, host)
    for sha256, content in parcel.arrays.items():
        array = _read_array(content, host)
        if tensor_sha256(array) != sha256:
            raise codec.damaged(host, f"an output does not have the sha256 {sha256[:16]} it is sent as")
        store.arrays.write(array)
    missing = [tensor.name for tensor in record.outputs if not store.arrays.has(tensor.sha256)]
    if missing:
        raise codec.damaged(host, f"outputs {missing} did not come along")
    here = {
        "cluster.host": host,
        "cluster.unit": record.device.id,
        "cluster.serial": record.device.serial,
    }
    record = replace(
        record,
        session=store.id,
        device=replace(
            record.device, id=spec.id, kind=spec.kind, serial=serial_of(unit, record.device.serial)
        ),
        telemetry={**record.telemetry, **here},
    )
    store.write_record(record)
    return record


def write_evidence(folder: Path, files: Mapping[str, bytes], host: str) -> None:
    """Write files that came from a lab host into the folder of their run.

    Raises:
        InfrastructureError: one is named elsewhere.
    """
    for name, content in files.items():
        if not _NAME.fullmatch(name):
            raise InfrastructureError(
                f"lab host {host} sent a file named {name[:80]!r}",
                why="evidence lies in its run's own folder, by a plain name",
                fix="see what runs on that host",
            )
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def _read_array(content: bytes, host: str) -> np.ndarray:
    try:
        array: np.ndarray = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # the header is parsed as Python, and fails in as many ways as Python
        raise codec.damaged(host, f"an output is no .npy file: {error}") from None
    return array
