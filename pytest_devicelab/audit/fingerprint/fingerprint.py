"""Fingerprint: what one chip answered to every probe, and where that comes from; as data and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pytest_devicelab.errors import InfrastructureError, UserError
from pytest_devicelab.evidence import codec
from pytest_devicelab.evidence.record import DeviceIdentity

SCHEMA = "devicelab.fingerprint/1"

Status = Literal["answered", "undecided", "unknown", "unstable", "not_on_npu", "refused"]
_OPTIONAL: Mapping[str, Any] = {"sha256": "", "facts": {}, "open": {}, "note": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A chip's answer to one probe.

    Attributes:
        asked: start of the sha256 of the probe's model and inputs: the same name may ask otherwise one day.
        status: as in `classify.Reading`; `not_on_npu`: the CPU computed it, which says nothing of the chip;
            `refused`: the probe does not compile for the chip, or does not run there.
        sha256: start of the sha256 of the output's bytes; empty where the chip gave none that counts.
        facts: property -> value, decided.
        open: property -> the values that fit.
        note: the nearest explanation where none fits, or the reason of a refusal.
    """

    name: str
    op: str
    dtype: str
    asked: str
    status: Status
    sha256: str = ""
    facts: Mapping[str, str] = field(default_factory=dict, hash=False)
    open: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    note: str = ""

    @property
    def words(self) -> str:
        """The answer on one line."""
        told = [f"{key} {value}" for key, value in self.facts.items()]
        told += [f"{key} {' or '.join(values)}" for key, values in self.open.items()]
        said = "; ".join(told) or self.note
        return f"{self.status.replace('_', ' ')}{': ' if said else ''}{said}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """All answers of one device.

    Attributes:
        runtime: what carried the probes out, `ort` or `qnn`.
        date: the day it was taken, `2026-11-20`, as given by who took it.
        versions: of the libraries that decide the bits.
    """

    device: DeviceIdentity
    runtime: str
    date: str
    versions: Mapping[str, str]
    probes: tuple[Answer, ...]

    @property
    def title(self) -> str:
        """The device in a few words."""
        kind = "simulated" if self.device.simulated else "silicon"
        return f"{self.device.id} ({self.device.soc or 'unknown chip'}, {self.device.hexagon or 'no Hexagon'}, {kind})"


def to_json(fingerprint: Fingerprint) -> bytes:
    """Return a fingerprint as the bytes of a file: one probe a line, what is empty left out."""
    head = codec.encode(fingerprint)
    probes = [
        {key: value for key, value in probe.items() if value or key not in _OPTIONAL}
        for probe in head.pop("probes")
    ]
    lines = ",\n".join(json.dumps(probe, separators=(",", ":")) for probe in probes)
    fields = json.dumps({"schema": SCHEMA, **head}, indent=1)
    return (fields.removesuffix("\n}") + f',\n "probes": [\n{lines}\n ]\n}}\n').encode("ascii")


def from_json(raw: bytes, *, file: str) -> Fingerprint:
    """Read a fingerprint.

    Raises:
        InfrastructureError: the bytes are not a fingerprint; names the file and the field.
    """
    data = codec.parse(raw, file=file, schema=SCHEMA)
    probes = data.get("probes")
    if isinstance(probes, list):
        data["probes"] = [{**_OPTIONAL, **probe} if isinstance(probe, dict) else probe for probe in probes]
    found = codec.decode(Fingerprint, data, file=file)
    names = [probe.name for probe in found.probes]
    if len(set(names)) != len(names):
        raise InfrastructureError(f"{file}: a probe is listed twice", fix="take the fingerprint again")
    return found


def read_fingerprint(path: Path) -> Fingerprint:
    """Read a fingerprint's file; `UserError` when it cannot be read or is something else."""
    try:
        return from_json(path.read_bytes(), file=str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read", why=str(error), fix="name a fingerprint's file") from error
    except InfrastructureError as error:
        raise UserError(
            f"{path} is not a fingerprint",
            why=str(error),
            fix="make one with `devicelab fingerprint --out FILE`",
        ) from error
