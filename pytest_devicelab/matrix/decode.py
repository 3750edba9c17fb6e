"""Reads a device matrix: YAML in, frozen specs out, or every mistake at once with its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType

import yaml

from pytest_devicelab.matrix.cursor import Cursor
from pytest_devicelab.matrix.decode_device import ID, ID_RULE, decode_device
from pytest_devicelab.matrix.decode_health import decode_health
from pytest_devicelab.matrix.decode_logging import decode_logging
from pytest_devicelab.matrix.decode_model import decode_model
from pytest_devicelab.matrix.issues import Issues
from pytest_devicelab.matrix.reader import read_document
from pytest_devicelab.matrix.servers import device_name, is_loopback
from pytest_devicelab.matrix.specs import AdbServerSpec, DeviceSpec, LabSpec, MatrixSpec, ModelSpec, Retries
from pytest_devicelab.matrix.suggest import did_you_mean, show

SCHEMA = "devicelab.matrix/1"
_HOST = re.compile(r"[A-Za-z0-9:][A-Za-z0-9.:_-]{0,252}")
_ADB_PORT = 5037
_ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}:[0-9]{1,5}")


def load_matrix(path: Path) -> MatrixSpec:
    """Return what a device matrix says.

    Args:
        path: the YAML file; paths in it are relative to its folder.

    Raises:
        MatrixError: it cannot be read, or has mistakes: all of them are listed as `file:line:col: ...`,
            and kept as `evidence["issues"]`, a tuple of `(Source, message)` in the order of the file.
    """
    issues = Issues(str(path))
    node = read_document(path, issues)
    root = Cursor(path="", node=node, source=issues.at(node.start_mark), issues=issues)
    notes: list[str] = []
    fields = root.fields(
        required=("schema", "devices", "models"), optional=("lab", "logging", "log_profiles", "qairt_sdk")
    )
    schema = fields["schema"].text()
    if schema is not None and schema != SCHEMA:
        fields["schema"].fail(f"{show(schema)} is not what this version reads: write schema: {SCHEMA}")
    lab = _lab(fields["lab"])
    logging = decode_logging(fields["logging"], fields["log_profiles"])

    device_items, model_items = _some(fields["devices"]), _some(fields["models"])
    ids = _check_unique(device_items, "id")
    _check_unique(device_items, "serial", lambda item, serial: device_name(serial, _host_of(item, lab)))
    _check_serials(device_items, lab)
    for item in device_items:
        _check_group(item, lab)
    _check_unique(model_items, "id")
    decoded_devices = [decode_device(item, notes) for item in device_items]
    decoded_models = [decode_model(item, path.absolute().parent, ids, notes) for item in model_items]
    devices = tuple(spec for spec in decoded_devices if spec is not None)
    models = tuple(spec for spec in decoded_models if spec is not None)
    _check_runtimes(devices, models, issues)
    _check_units(device_items, devices)
    _check_networks(model_items)
    sdk = fields["qairt_sdk"].text()
    issues.check()
    return MatrixSpec(
        path=path,
        qairt_sdk=path.absolute().parent / sdk if sdk is not None else None,
        lab=lab,
        devices=devices,
        models=models,
        logging=logging,
        notes=tuple(dict.fromkeys(notes)),
    )


def _lab(cursor: Cursor) -> LabSpec:
    fields = cursor.fields(
        optional=("adb", "groups", "run_timeout_s", "retries", "health", "fixed_performance", "cluster")
    )
    groups: dict[str, AdbServerSpec | None] = {}
    for name, group in fields["groups"].entries().items():
        if not ID.fullmatch(name):
            group.fail(f"{show(name)} {ID_RULE}")
        groups[name] = _server(group.fields(required=("adb",))["adb"])
    timeout_s = fields["run_timeout_s"].number(1, 86_400)
    return LabSpec(
        adb=_server(fields["adb"]),
        groups=MappingProxyType(groups),
        retries=_retries(fields["retries"]),
        health=decode_health(fields["health"]),
        fixed_performance=fields["fixed_performance"].word(("on", "off")) == "on",
        cluster=fields["cluster"].text(_ADDRESS, "is not HOST:PORT"),
        run_timeout_s=timeout_s or LabSpec().run_timeout_s,
    )


def _retries(cursor: Cursor) -> Retries:
    fields = cursor.fields(optional=("per_run", "per_session"))
    per_run, per_session = fields["per_run"].integer(0, 10), fields["per_session"].integer(0, 10_000)
    usual = Retries()
    return Retries(
        per_run=usual.per_run if per_run is None else per_run,
        per_session=usual.per_session if per_session is None else per_session,
    )


def _server(adb: Cursor) -> AdbServerSpec | None:
    """Return the adb server that is named, or None for a private one."""
    if isinstance(adb.node, yaml.MappingNode):
        entries = adb.fields(required=("host",), optional=("port",))
        host = entries["host"].text(_HOST, "is not a host name or address")
        port = entries["port"].integer(1, 65535)
        return AdbServerSpec(host=host, port=port or _ADB_PORT) if host is not None else None
    if (word := adb.text()) not in {None, "private"}:
        adb.fail(f"{show(word)} is not private or {{host: ..., port: ...}}{did_you_mean(word, ['private'])}")
    return None


def _host_of(item: Cursor, lab: LabSpec) -> str:
    """Return the host of the adb server that reaches an item of `devices`."""
    group = item.entries().get("group")
    name = group.text() if group is not None else None
    server = lab.adb if name is None else lab.groups.get(name)
    return server.host if server is not None else "localhost"


def _check_group(item: Cursor, lab: LabSpec) -> None:
    """Note a group that the lab does not have, or whose server cannot reach the device."""
    entries = item.entries()
    group, kind = entries.get("group"), entries.get("kind")
    name = group.text() if group is not None else None
    if group is None or name is None:
        return
    if name not in lab.groups:
        group.fail(
            f"{show(name)} is none of lab.groups ({', '.join(lab.groups) or 'which has none'})"
            f"{did_you_mean(name, lab.groups)}"
        )
    elif kind is not None and kind.text() == "virtual" and not is_loopback(_host_of(item, lab)):
        group.fail(
            "is reached by a server on another host, and a virtual device listens on this one: remove it"
        )


def _some(cursor: Cursor) -> tuple[Cursor, ...]:
    """Return the items of a list that must not be empty: a matrix that tests nothing would be green."""
    items = cursor.items()
    if isinstance(cursor.node, yaml.SequenceNode) and not items:
        cursor.fail("is empty, so nothing would be tested: add one")
    return items


def _check_serials(items: Sequence[Cursor], lab: LabSpec) -> None:
    """Note each of several serials that another device, or the same, has already."""
    taken: dict[str, str] = {}
    for item in items:
        entries = item.entries()
        single, several = entries.get("serial"), entries.get("serials")
        for cursor in (*([single] if single else []), *(several.items() if several else [])):
            text = cursor.text()
            if text is None:
                continue
            found = device_name(text, _host_of(item, lab))
            # Two of `serial` are noted already.
            if found in taken and cursor is not single:
                cursor.fail(f"duplicate serial {show(text)}: {taken[found]} has it")
            taken.setdefault(found, cursor.path)


def _check_units(items: Sequence[Cursor], devices: Sequence[DeviceSpec]) -> None:
    """Note each device whose id is that of a unit of another."""
    units = {name: spec.id for spec in devices for name in spec.unit_ids[1:]}
    for item in items:
        cursor = item.entries().get("id")
        text = cursor.text() if cursor is not None else None
        if cursor is not None and text in units:
            cursor.fail(f"is what a unit of {units[text]} is called: choose another id")


def _check_networks(items: Sequence[Cursor]) -> None:
    """Note each network that one model alone names: it has nothing to be compared with, or is misspelled."""
    named: dict[str, list[Cursor]] = {}
    for item in items:
        cursor = item.entries().get("network")
        text = cursor.text() if cursor is not None else None
        if cursor is not None and text is not None:
            named.setdefault(text, []).append(cursor)
    for text, cursors in named.items():
        if len(cursors) == 1:
            others = [other for other in named if other != text]
            cursors[0].fail(
                f"no other model is of network {show(text)}, so nothing would be compared: give a second one the same, "
                f"or remove the key{did_you_mean(text, others)}"
            )


def _check_unique(
    items: Sequence[Cursor], key: str, meaning: Callable[[Cursor, str], str] = lambda item, text: text
) -> frozenset[str]:
    """Note each item whose `key` means what an earlier item's does; return all meanings."""
    first: dict[str, Cursor] = {}
    for item in items:
        cursor = item.entries().get(key)
        text = cursor.text() if cursor is not None else None
        if cursor is None or text is None:
            continue
        found = meaning(item, text)
        if found in first:
            cursor.fail(
                f"duplicate {key} {show(text)}: {first[found].path} in line {first[found].source.line} has it"
            )
        first.setdefault(found, cursor)
    return frozenset(first)


def _check_runtimes(devices: Sequence[DeviceSpec], models: Sequence[ModelSpec], issues: Issues) -> None:
    """Note chips without Hexagon that would be asked to run `qnn`, which compiles for nothing else."""
    for device in devices:
        if device.engine != "cpu" or device.soc is None or device.soc.has_hexagon:
            continue
        qnn = device.runtime == "qnn" or (device.runtime is None and any(m.runtime == "qnn" for m in models))
        if qnn:
            message = f"device {device.id}: {device.soc.name} has no Hexagon to run qnn: add runtime: ort"
            issues.add(device.source, message)
