"""Decodes the devices of a matrix."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import get_args

import yaml

from pytest_devicelab.errors import UserError
from pytest_devicelab.matrix.cursor import Cursor
from pytest_devicelab.matrix.faults import decode_fault
from pytest_devicelab.matrix.kind_names import kind_names
from pytest_devicelab.matrix.runtime_names import runtime_names
from pytest_devicelab.matrix.soc import SIMULATED_HEXAGONS, Soc, find_soc, soc_from_properties
from pytest_devicelab.matrix.specs import Compiler, DeviceKind, DeviceSpec, ProcessDomain, TransportName
from pytest_devicelab.matrix.suggest import did_you_mean, show

COMPILERS: tuple[Compiler, ...] = get_args(Compiler)
PROCESS_DOMAINS: tuple[ProcessDomain, ...] = get_args(ProcessDomain)
TRANSPORTS: tuple[TransportName, ...] = get_args(TransportName)
ENGINES = ("htp", "cpu")

ID = re.compile(r"[a-z0-9][a-z0-9_.]{0,63}")
ID_RULE = "is not an id: up to 64 of a-z 0-9 _ . (no '-', which pytest puts between ids)"
_SERIAL = re.compile(r"[A-Za-z0-9._:][A-Za-z0-9._:-]{0,127}")
_ATTRIBUTE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+-]{0,127}")
_ATTRIBUTE_RULE = "is not an attribute of AI Hub: letters, digits and _ . : + -"
_HUB_OS = re.compile(r"[0-9][0-9.]{0,15}|\[[0-9.]{0,15},[0-9.]{0,15}\)")
_PROPERTY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,127}")
_CALLABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*")

# What a selector may say instead of the property's own name.
_SELECTOR_WORDS = MappingProxyType(
    {"soc": "ro.soc.model", "model": "ro.product.model", "sdk": "ro.build.version.sdk"}
)
_ONLY_FOR: MappingProxyType[str, DeviceKind] = MappingProxyType(
    {
        "engine": "virtual",
        "faults": "virtual",
        "properties": "virtual",
        "sdk": "virtual",
        "serial": "adb",
        "serials": "adb",
        "selector": "adb",
        "units": "virtual",
        "chipset": "aihub",
        "os": "aihub",
        "attributes": "aihub",
        "compiler": "aihub",
        "timeout_s": "aihub",
        "process_domain": "adb",
    }
)
_PROGRAM = re.compile(r"/[A-Za-z0-9_./+-]{1,255}")
# What the lab may do to a device beside it to get it back.
_RECOVERY = ("power_cycle", "reboot")
_KEYS = ("soc", "name", "group", "runtime", "runners", "transport", *_RECOVERY, *_ONLY_FOR)
_HUB = re.compile(r"[0-9]{1,3}(-[0-9]{1,3}(\.[0-9]{1,3})*)?")
_HUB_RULE = 'is not the place of a USB hub as `uhubctl` prints it, such as "1-1.4"'


def decode_device(cursor: Cursor, notes: list[str]) -> DeviceSpec | None:
    """Return one device of the matrix, or None when it has no usable id or kind; mistakes are noted.

    Args:
        cursor: an item of `devices`.
        notes: gets a remark for each chip that was named in an unusual way.
    """
    fields = cursor.fields(required=("id", "kind"), optional=_KEYS)
    device_id = fields["id"].text(ID, ID_RULE)
    kind = fields["kind"].word(kind_names())
    soc = _soc(fields["soc"], notes)
    selector = _selector(fields["selector"], notes)
    engine = _engine(fields["engine"])
    name, serial = fields["name"].text(), fields["serial"].text(_SERIAL, "is not an adb serial")
    serials = tuple(item.text(_SERIAL, "is not an adb serial") for item in fields["serials"].items())
    units = fields["units"].integer(1, 64)
    runtime, sdk = fields["runtime"].word(runtime_names()), fields["sdk"].integer(21, 99)
    properties, runners = _properties(fields["properties"]), _runners(fields["runners"])
    domain = fields["process_domain"].word(PROCESS_DOMAINS)
    transport = fields["transport"].word(TRANSPORTS)
    power_cycle, may_reboot = _power_cycle(fields["power_cycle"]), fields["reboot"].word(("true", "false"))
    faults = tuple(fault for item in fields["faults"].items() if (fault := decode_fault(item)) is not None)
    chipset = fields["chipset"].text(_ATTRIBUTE, _ATTRIBUTE_RULE)
    hub_os = fields["os"].text(_HUB_OS, 'is not a version such as "14", or an interval such as "[13,15)"')
    asked = tuple(item.text(_ATTRIBUTE, _ATTRIBUTE_RULE) for item in fields["attributes"].items())
    attributes = tuple(each for each in asked if each is not None)
    compiler, timeout_s = fields["compiler"].word(COMPILERS), fields["timeout_s"].number(1, 86_400)
    if kind is None:
        return None
    _check_kind(cursor, kind, fields)
    if kind == "virtual" and soc is not None:
        _check_engine(fields, soc, engine)
    if device_id is None:
        return None
    return DeviceSpec(
        id=device_id,
        kind=kind,
        source=cursor.source,
        soc=soc or soc_from_properties(selector),
        group=fields["group"].text(ID, ID_RULE),
        serial=serial,
        serials=tuple(each for each in serials if each is not None),
        units=units or 1,
        name=name,
        selector=MappingProxyType(selector),
        properties=MappingProxyType(properties),
        engine=engine or "htp",
        runtime=runtime,
        runners=MappingProxyType(runners),
        sdk=sdk or 34,
        chipset=chipset,
        hub_os=hub_os,
        attributes=attributes,
        compiler=compiler or "hub",
        timeout_s=timeout_s or 3600.0,
        transport=transport or "adb",
        faults=faults,
        process_domain=domain or "unsigned",
        power_cycle=power_cycle,
        reboot=None if may_reboot is None else may_reboot == "true",
    )


def _power_cycle(cursor: Cursor) -> tuple[str, ...]:
    """Return a command as the matrix spells it, or `uhubctl`'s for a port of a hub; empty for none, or a mistake."""
    if not isinstance(cursor.node, yaml.MappingNode):
        words = [item.text() for item in cursor.items()]
        if isinstance(cursor.node, yaml.SequenceNode) and not words:
            cursor.fail("is empty: name a program and its arguments")
        return tuple(word for word in words if word is not None)
    fields = cursor.fields(required=("hub", "port"))
    hub, port = fields["hub"].text(_HUB, _HUB_RULE), fields["port"].integer(1, 63)
    if hub is None or port is None:
        return ()
    return ("uhubctl", "--location", hub, "--ports", str(port), "--action", "cycle")


def _check_kind(cursor: Cursor, kind: DeviceKind, fields: dict[str, Cursor]) -> None:
    for key, owner in _ONLY_FOR.items():
        if kind != owner and fields[key].present:
            fields[key].fail(f"is for devices of kind {owner}, this one is {kind}: remove it")
    for key in _RECOVERY:
        if kind == "aihub" and fields[key].present:
            fields[key].fail("is for devices beside this host, this one is of kind aihub: remove it")
    if kind not in ("virtual", "adb") and fields["transport"].present:
        fields["transport"].fail(f"is for devices behind an adb server, this one is {kind}: remove it")
    if kind == "aihub" and fields["group"].present:
        fields["group"].fail("is for devices behind an adb server, this one is aihub: remove it")
    if kind == "cluster" and not fields["soc"].present:
        cursor.fail("a device of the cluster is asked for by its chip: add soc, such as soc: SM8650")
    if kind == "virtual" and not fields["soc"].present:
        cursor.fail("a virtual device needs the chip it stands for: add soc, such as soc: SM8650")
    if kind == "aihub" and not any(fields[key].present for key in ("name", "chipset", "attributes")):
        cursor.fail(
            'which AI Hub device? Add name, such as name: "Samsung Galaxy S25", chipset, or attributes; '
            "`devicelab suggest --aihub=all` prints them"
        )
    told = [key for key in ("serial", "serials", "selector") if fields[key].present]
    if kind == "adb" and not told:
        cursor.fail(
            "which phone? Add serial (see `adb devices`), or selector, such as selector: {soc: SM8650}"
        )
    if len(told) > 1:
        fields[told[-1]].fail(f"{told[0]} already says which phone: keep one of the two")
    if isinstance(fields["serials"].node, yaml.SequenceNode) and not fields["serials"].items():
        fields["serials"].fail("is empty: name the phones that are equal")


def _check_engine(fields: dict[str, Cursor], soc: Soc, engine: str | None) -> None:
    # A wrong engine was reported already; an absent one is `htp`.
    if (engine != "htp" and fields["engine"].present) or soc.hexagon in SIMULATED_HEXAGONS:
        return
    if not soc.has_hexagon:
        fact = "has no Hexagon"
    elif soc.hexagon is None:
        fact = "has no known Hexagon version"
    else:
        fact = f"has Hexagon {soc.hexagon}; the simulator computes for {', '.join(SIMULATED_HEXAGONS)}"
    fields["soc"].fail(f"{soc.name} {fact}: add engine: cpu, runtime: ort")


def _soc(cursor: Cursor, notes: list[str]) -> Soc | None:
    name = cursor.text()
    if name is None:
        return None
    try:
        soc, note = find_soc(name)
    except UserError as error:
        cursor.fail(f"{error.what} ({error.why}): {error.fix}")
        return None
    if note is not None:
        notes.append(f"{cursor.source}: {note}")
    return soc


def _engine(cursor: Cursor) -> str | None:
    engine = cursor.text()
    if engine is None or engine in ENGINES or _CALLABLE.fullmatch(engine):
        return engine
    cursor.fail(f"{show(engine)} is not htp, cpu, or package.module:callable{did_you_mean(engine, ENGINES)}")
    return None


def _selector(cursor: Cursor, notes: list[str]) -> dict[str, str]:
    wanted: dict[str, str] = {}
    entries = cursor.entries()
    if isinstance(cursor.node, yaml.MappingNode) and not entries:
        cursor.fail("is empty: say what the phone must be, such as {soc: SM8650}")
    for key, value in entries.items():
        name = _SELECTOR_WORDS.get(key, key)
        if name == key and not (_PROPERTY.fullmatch(key) and "." in key):
            known = ", ".join(_SELECTOR_WORDS)
            value.fail(f"takes {known}, or an Android property{did_you_mean(key, _SELECTOR_WORDS)}")
        elif key == "soc":
            soc = _soc(value, notes)
            wanted.update({name: soc.name} if soc else {})
        elif (text := value.scalar()) is not None:
            wanted[name] = text
    return wanted


def _properties(cursor: Cursor) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in cursor.entries().items():
        text = value.scalar()
        if not _PROPERTY.fullmatch(key):
            value.fail("is not the name of an Android property")
        elif text is not None:
            found[key] = text
    return found


def _runners(cursor: Cursor) -> dict[str, str]:
    found: dict[str, str] = {}
    names = runtime_names()
    for key, value in cursor.entries().items():
        text = value.text(
            _PROGRAM, "is not the absolute path of a program on the device: / a-z A-Z 0-9 _ . + -"
        )
        if key not in names:
            value.fail(f"{show(key)} is not a runtime: {', '.join(names)}{did_you_mean(key, names)}")
        elif text is not None:
            found[key] = text
    return found
