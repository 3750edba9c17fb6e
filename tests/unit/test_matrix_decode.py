from __future__ import annotations

import dataclasses
import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_devicelab.errors import MatrixError
from pytest_devicelab.matrix import issues as issues_module
from pytest_devicelab.matrix import reader
from pytest_devicelab.matrix.decode import load_matrix
from pytest_devicelab.matrix.specs import (
    AdbServerSpec,
    Gates,
    LabSpec,
    LogProfile,
    MatrixSpec,
    Source,
    log_profile,
)

REPOSITORY = Path(__file__).parents[2]
FILES = ("m.onnx", "float.onnx", "in.npz", "labels.npy")

# Line numbers below count from here: `devices` is line 4, `models` line 8.
GOOD = """\
schema: devicelab.matrix/1
logging: warn
lab: {adb: private, run_timeout_s: 60}
devices:
  - {id: s24, kind: virtual, soc: SM8650, sdk: 33, properties: {ro.x: 1}}
  - {id: phone, kind: adb, serial: "1234567890", runtime: ort}
  - {id: hub, kind: aihub, name: Galaxy}
models:
  - id: net
    path: m.onnx
    reference: float.onnx
    inputs: in.npz
    labels: labels.npy
    variant: int8
    runtime: ort
    samples: 8
    options: {vtcm_mb: 4}
    expect: {fallbacks: [{op: Conv, reason: known, node: c1, devices: [s24]}]}
    gates: {accuracy_drop: 0.5, agreement: bitwise, three_run_tolerance: 0.1}
"""

MINIMAL = """\
schema: devicelab.matrix/1
devices:
  - {id: s24, kind: virtual, soc: SM8650}
models:
  - {id: net, path: m.onnx}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def load(folder: Path, text: str | bytes) -> MatrixSpec:
    path = folder / "m.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_matrix(path)


def mistakes(folder: Path, text: str | bytes) -> list[str]:
    """Every mistake as `line:col: message`, as rendered for the user and as kept in the evidence."""
    with pytest.raises(MatrixError) as raised:
        load(folder, text)
    found = raised.value.evidence["issues"]
    for source, message in found[: issues_module.MAX_SHOWN_ISSUES]:
        assert f"{source}: {message}" in raised.value.why or message == raised.value.why
    return [f"{source.line}:{source.column}: {message}" for source, message in found]


# What a good matrix says


def test_every_key_arrives_in_the_specs(folder: Path) -> None:
    matrix = load(folder, GOOD)
    assert matrix.logging == LogProfile(level="warn")
    assert matrix.lab == LabSpec(adb=None, run_timeout_s=60)
    assert matrix.notes == ()
    virtual, phone, hub = matrix.devices
    assert (virtual.id, virtual.kind, virtual.sdk, virtual.engine) == ("s24", "virtual", 33, "htp")
    assert virtual.soc is not None
    assert (virtual.soc.name, virtual.soc.hexagon) == ("SM8650", "V75")
    assert dict(virtual.properties) == {"ro.x": "1"}
    assert virtual.source == Source(file=str(folder / "m.yaml"), line=5, column=5)
    assert (phone.serial, phone.runtime, phone.soc) == ("1234567890", "ort", None)
    assert (hub.kind, hub.name) == ("aihub", "Galaxy")
    (model,) = matrix.models
    assert (model.path, model.reference) == (folder / "m.onnx", folder / "float.onnx")
    assert (model.inputs, model.labels) == (folder / "in.npz", folder / "labels.npy")
    assert (model.variant, model.runtime, model.samples) == ("int8", "ort", 8)
    assert dict(model.options) == {"vtcm_mb": "4"}
    (fallback,) = model.expected_fallbacks
    assert (fallback.op, fallback.reason, fallback.node, fallback.devices) == (
        "Conv",
        "known",
        "c1",
        ("s24",),
    )
    assert model.gates == Gates(accuracy_drop=0.5, agreement="bitwise", three_run_tolerance=0.1)


def test_what_is_left_out_has_the_documented_default(folder: Path) -> None:
    matrix = load(folder, MINIMAL)
    assert matrix.logging == log_profile("verbose")
    assert matrix.lab == LabSpec()
    assert matrix.devices[0].sdk == 34
    model = matrix.models[0]
    assert (model.runtime, model.gates, model.reference, model.samples) == ("qnn", Gates(), None, None)


def test_specs_hash_and_cannot_be_changed(folder: Path) -> None:
    matrix = load(folder, GOOD)
    assert len({*matrix.devices, *matrix.models, *load(folder, GOOD).devices}) == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        matrix.devices[0].id = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        matrix.models[0].options["x"] = "1"  # type: ignore[index]


def test_lab_can_name_a_running_adb_server(folder: Path) -> None:
    def server(text: str) -> AdbServerSpec | None:
        return load(folder, MINIMAL + text).lab.adb

    assert server("lab: {adb: {host: lab7, port: 5038}}\n") == AdbServerSpec(host="lab7", port=5038)
    assert server("lab: {adb: {host: '::1'}}\n") == AdbServerSpec(host="::1", port=5037)


DEEP = '{level: info, properties: {debug.nn.vlog: all, debug.nn.perf: "1"}, farf: "0x1f", buffer: 4M}'


@pytest.mark.parametrize("text", [f"logging: {DEEP}", f"log_profiles: {{deep: {DEEP}}}\nlogging: deep"])
def test_a_log_profile_in_place_or_by_name(folder: Path, text: str) -> None:
    profile = load(folder, f"{MINIMAL}{text}\n").logging
    properties = {"debug.nn.vlog": "all", "debug.nn.perf": "1"}
    assert profile == LogProfile(level="info", properties=properties, farf="0x1f", buffer_bytes=4 << 20)
    assert hash(profile)


def test_what_a_log_profile_leaves_out(folder: Path) -> None:
    assert load(folder, f"{MINIMAL}logging: {{farf: '0x1f'}}\n").logging == dataclasses.replace(
        log_profile("verbose"), farf="0x1f"
    )
    assert log_profile("verbose").properties["debug.nn.vlog"] == "all"
    assert not load(folder, f"{MINIMAL}logging: {{properties: {{}}}}\n").logging.properties
    assert not load(folder, f"{MINIMAL}logging: {{level: info}}\n").logging.properties


@pytest.mark.parametrize("word", ["off", "Off", '"off"', "error", "info"])
def test_logging_off_is_the_word_although_yaml_reads_a_boolean(folder: Path, word: str) -> None:
    assert load(folder, MINIMAL + f"logging: {word}\n").logging.level == word.lower().strip('"')


def test_paths_are_relative_to_the_matrix_not_to_the_working_directory(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "m.yaml").write_text(MINIMAL)
    matrix = load_matrix(Path("m.yaml"))
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert matrix.models[0].path == folder / "m.onnx"
    assert str(matrix.devices[0].source) == "m.yaml:3:5"


def test_anchors_aliases_and_merge_keys_save_writing(folder: Path) -> None:
    text = """\
schema: devicelab.matrix/1
x-defaults: &defaults {kind: virtual, sdk: 30, soc: &chip SM8650}
x-more: &more {sdk: 31, engine: cpu}
devices:
  - {<<: *defaults, id: one}
  - {<<: [*defaults, *more], id: two, soc: SM8750}
  - {id: three, kind: virtual, soc: *chip}
models:
  - {id: net, path: m.onnx}
"""
    one, two, three = load(folder, text).devices
    assert (one.sdk, one.engine) == (30, "htp")
    assert two.soc is not None
    assert (two.sdk, two.engine, two.soc.name) == (30, "cpu", "SM8750")
    assert three.soc == one.soc


def test_a_selector_takes_short_words_and_properties(folder: Path) -> None:
    phone = "{id: p, kind: adb, selector: {soc: snapdragon 8 gen 3, sdk: 34, ro.product.brand: samsung}}"
    device = load(folder, MINIMAL.replace("{id: s24, kind: virtual, soc: SM8650}", phone)).devices[0]
    assert dict(device.selector) == {
        "ro.soc.model": "SM8650",
        "ro.build.version.sdk": "34",
        "ro.product.brand": "samsung",
    }
    assert device.soc is not None
    assert device.soc.name == "SM8650"


def test_an_invented_chip_name_is_resolved_and_noted(folder: Path) -> None:
    matrix = load(folder, MINIMAL.replace("SM8650", "Snapdragon 8 Gen 4"))
    assert matrix.devices[0].soc is not None
    assert matrix.devices[0].soc.name == "SM8750"
    (note,) = matrix.notes
    assert note.startswith(f"{folder / 'm.yaml'}:3:35: no chip was released as 'Snapdragon 8 Gen 4'")


def test_an_option_nobody_here_knows_is_passed_on_and_noted(folder: Path) -> None:
    matrix = load(folder, MINIMAL.replace("m.onnx", "m.onnx, options: {brand_new: 1e5}"))
    assert dict(matrix.models[0].options) == {"brand_new": "1e5"}
    assert "option 'brand_new' is unknown to this version" in matrix.notes[0]


@pytest.mark.parametrize(
    ("gates", "expected"),
    [
        ("{bitwise: required}", "bitwise"),
        ("{agreement: bitwise, bitwise: required}", "bitwise"),
        ("{agreement: three_run}", "three_run"),
        ("{accuracy_drop: 1e-2}", "three_run"),
    ],
)
def test_spellings_of_agreement(folder: Path, gates: str, expected: str) -> None:
    model = load(folder, MINIMAL.replace("m.onnx", f"m.onnx, gates: {gates}")).models[0]
    assert model.gates.agreement == expected
    assert model.gates.accuracy_drop == 0.01


@pytest.mark.parametrize("engine", ["cpu", "my_engines.fast:run", "engine:f"])
def test_engines(folder: Path, engine: str) -> None:
    matrix = load(folder, MINIMAL.replace("SM8650", f'SM8650, engine: "{engine}"'))
    assert matrix.devices[0].engine == engine


def test_a_reason_may_be_written_over_several_lines(folder: Path) -> None:
    text = """
    expect:
      fallbacks:
        - op: Conv
          reason: >
            first line
            second line
"""
    matrix = load(
        folder, MINIMAL.replace("{id: net, path: m.onnx}", "id: net\n    path: m.onnx").rstrip() + text
    )
    assert matrix.models[0].expected_fallbacks[0].reason == "first line second line"


def test_the_demo_matrix_is_good() -> None:
    matrix = load_matrix(REPOSITORY / "device_matrix.yaml")
    hexagons = [device.soc.hexagon for device in matrix.devices if device.soc is not None]
    assert hexagons == ["V68", "V69", "V73", "V75", "V79", "V81", None]
    assert matrix.notes == ()
    assert [model.id for model in matrix.models if model.expected_fallbacks] == ["digits_channelnorm_int8"]


# Mistakes: (what to replace in GOOD, with what, the one issue that follows)

DEVICE = "{id: s24, kind: virtual, soc: SM8650, sdk: 33, properties: {ro.x: 1}}"
PHONE = '{id: phone, kind: adb, serial: "1234567890", runtime: ort}'
NUMBER_ID = "is not an id: up to 64 of a-z 0-9 _ . (no '-', which pytest puts between ids)"

MISTAKES = {
    "schema missing": ("schema: devicelab.matrix/1\n", "\n", "2:1: the matrix: has no 'schema': add it"),
    "schema wrong": (
        *("matrix/1", "matrix/2"),
        "1:9: schema: 'devicelab.matrix/2' is not what this version reads: write schema: devicelab.matrix/1",
    ),
    "unknown top key": (
        *("logging: warn", "loging: warn"),
        "2:1: unknown key 'loging' in the matrix (did you mean 'logging'?); "
        "the keys here are schema, devices, models",
    ),
    "unknown device key": (
        *("sdk: 33", "sdkk: 33"),
        "5:43: unknown key 'sdkk' in devices[0] (did you mean 'sdk'?); the keys here are id, kind",
    ),
    "duplicate key": (
        *("sdk: 33", "sdk: 33, sdk: 34"),
        "5:52: duplicate key 'sdk': first written in line 5; keep one",
    ),
    "boolean key": (
        *("{ro.x: 1}", "{on: 1}"),
        "5:65: key 'on' is a boolean to YAML: quote it: \"on\"",
    ),
    "list as key": (*("{ro.x: 1}", "{[a]: 1}"), "5:65: a key must be text, is a list"),
    "merge of text": (
        *("sdk: 33", "<<: SM1"),
        "5:47: '<<' takes a mapping or a list of mappings, such as `<<: *defaults`",
    ),
    "duplicate id": (
        *("id: phone", "id: s24"),
        "6:10: devices[1].id: duplicate id 's24': devices[0].id in line 5 has it",
    ),
    "duplicate serial": (
        *(DEVICE, PHONE.replace("phone", "s24")),
        "6:36: devices[1].serial: duplicate serial '1234567890': devices[0].serial in line 5 has it",
    ),
    "serials and serial": (
        *('serial: "1234567890"', 'serial: "1", serials: ["2"]'),
        "6:50: devices[1].serials: serial already says which phone: keep one of the two",
    ),
    "no serials": (
        *('serial: "1234567890"', "serials: []"),
        "6:37: devices[1].serials: is empty: name the phones that are equal",
    ),
    "the same serial twice": (
        *('serial: "1234567890"', 'serials: ["1", "1"]'),
        "6:43: devices[1].serials[1]: duplicate serial '1': devices[1].serials[0] has it",
    ),
    "the id of a unit": (
        *("sdk: 33, properties: {ro.x: 1}}\n  - {id: phone", "units: 2}\n  - {id: s24.2"),
        "6:10: devices[1].id: is what a unit of s24 is called: choose another id",
    ),
    "units of a phone": (
        *('serial: "1234567890"', 'serial: "1", units: 2'),
        "6:48: devices[1].units: is for devices of kind virtual, this one is adb: remove it",
    ),
    "duplicate model": (
        *("models:\n", "models:\n  - {id: net, path: m.onnx, runtime: ort}\n"),
        "10:9: models[1].id: duplicate id 'net': models[0].id in line 9 has it",
    ),
    "id with dash": (*("id: hub", "id: my-hub"), f"7:10: devices[2].id: 'my-hub' {NUMBER_ID}"),
    "id in capitals": (*("id: hub", "id: Hub"), f"7:10: devices[2].id: 'Hub' {NUMBER_ID}"),
    "id with a path": (*("id: hub", "id: ../hub"), f"7:10: devices[2].id: '../hub' {NUMBER_ID}"),
    "id number": (
        *("id: hub", "id: 8650"),
        "7:10: devices[2].id: '8650' is a number to YAML: quote it: \"8650\"",
    ),
    "id missing": (*("id: hub, ", ""), "7:5: devices[2]: has no 'id': add it"),
    "serial number": (
        *('"1234567890"', "1234567890"),
        "6:36: devices[1].serial: '1234567890' is a number to YAML: quote it: \"1234567890\"",
    ),
    "serial like 1e5": (
        *('"1234567890"', "1e5"),
        "6:36: devices[1].serial: '1e5' is a number to some YAML readers: quote it: \"1e5\"",
    ),
    "serial octal": (
        *('"1234567890"', "0123"),
        "6:36: devices[1].serial: '0123' is a number to YAML: quote it: \"0123\"",
    ),
    "serial boolean": (
        *('"1234567890"', "no"),
        "6:36: devices[1].serial: 'no' is a boolean to YAML: quote it: \"no\"",
    ),
    "serial date": (
        *('"1234567890"', "2024-01-01"),
        "6:36: devices[1].serial: '2024-01-01' is a date to YAML: quote it: \"2024-01-01\"",
    ),
    "serial as an option of adb": (
        *('"1234567890"', "-a"),
        "6:36: devices[1].serial: '-a' is not an adb serial",
    ),
    "serial with a tag": (
        *('"1234567890"', "!!binary abcd"),
        "6:36: devices[1].serial: 'abcd' has the tag 'tag:yaml.org,2002:binary': remove it",
    ),
    "name empty": (
        *("name: Galaxy", "name:"),
        "7:33: devices[2].name: has no value: give one, or remove the key",
    ),
    "name blank": (*("name: Galaxy", 'name: " "'), "7:34: devices[2].name: is empty"),
    "name with control characters": (
        *("name: Galaxy", r'name: "a\e[0m"'),
        r"7:34: devices[2].name: 'a\x1b[0m' has a line break or a control character",
    ),
    "name a list": (
        *("name: Galaxy", "name: [a]"),
        "7:34: devices[2].name: must be a single value, is a list",
    ),
    "kind unknown": (
        *("kind: aihub", "kind: aihubb"),
        "7:21: devices[2].kind: 'aihubb' is not one of virtual, adb, aihub, cluster (did you mean 'aihub'?)",
    ),
    "runtime unknown": (
        *("    runtime: ort", "    runtime: qn"),
        "15:14: models[0].runtime: 'qn' is not one of qnn, ort, litert, executorch (did you mean 'qnn'?)",
    ),
    "engine unknown": (
        *("sdk: 33", "engine: htpp"),
        "5:51: devices[0].engine: 'htpp' is not htp, cpu, or package.module:callable (did you mean 'htp'?)",
    ),
    "engine of a phone": (
        *("runtime: ort}", "engine: cpu}"),
        "6:58: devices[1].engine: is for devices of kind virtual, this one is adb: remove it",
    ),
    "serial of a virtual device": (
        *("sdk: 33", "serial: a"),
        "5:51: devices[0].serial: is for devices of kind adb, this one is virtual: remove it",
    ),
    "soc unknown": (
        *("soc: SM8650", "soc: SM8651"),
        "5:35: devices[0].soc: unknown soc 'SM8651' (nothing is known of a chip of that name): "
        "did you mean SM8650 or SM8635 or SDM865?",
    ),
    "soc ambiguous": (
        *("soc: SM8650", "soc: Snapdragon 8 Gen 5"),
        "5:35: devices[0].soc: soc 'Snapdragon 8 Gen 5' may be more than one chip (SM8845: so named in an "
        "ExecuTorch issue; SM8850: so named in LiteRT's README; AI Hub calls it Snapdragon 8 Elite Gen 5): "
        "say which: soc: SM8845 or soc: SM8850",
    ),
    "soc missing": (
        *("soc: SM8650, ", ""),
        "5:5: devices[0]: a virtual device needs the chip it stands for: add soc, such as soc: SM8650",
    ),
    "soc without Hexagon": (
        *("soc: SM8650", "soc: Tensor G4"),
        "5:35: devices[0].soc: Tensor G4 has no Hexagon: add engine: cpu, runtime: ort",
    ),
    "soc with unknown Hexagon": (
        *("soc: SM8650", "soc: SM8735"),
        "5:35: devices[0].soc: SM8735 has no known Hexagon version: add engine: cpu, runtime: ort",
    ),
    "soc with an old Hexagon": (
        *("soc: SM8650", "soc: SDM845"),
        "5:35: devices[0].soc: SDM845 has Hexagon V65; the simulator computes for V68, V69, V73, V75, V79, "
        "V81: add engine: cpu, runtime: ort",
    ),
    "qnn without Hexagon": (
        *("soc: SM8650", "soc: Tensor G4, engine: cpu, runtime: qnn"),
        "5:5: device s24: Tensor G4 has no Hexagon to run qnn: add runtime: ort",
    ),
    "phone not named": (
        *('serial: "1234567890", ', ""),
        "6:5: devices[1]: which phone? Add serial (see `adb devices`), or selector, such as "
        "selector: {soc: SM8650}",
    ),
    "phone named twice": (
        *("runtime: ort}", "selector: {sdk: 34}}"),
        "6:60: devices[1].selector: serial already says which phone: keep one of the two",
    ),
    "selector empty": (
        *('serial: "1234567890"', "selector: {}"),
        "6:38: devices[1].selector: is empty: say what the phone must be, such as {soc: SM8650}",
    ),
    "selector key": (
        *('serial: "1234567890"', "selector: {modell: x}"),
        "6:47: devices[1].selector.modell: takes soc, model, sdk, or an Android property "
        "(did you mean 'model'?)",
    ),
    "property name": (
        *("{ro.x: 1}", "{a b: 1}"),
        "5:70: devices[0].properties.a b: is not the name of an Android property",
    ),
    "property boolean": (
        *("{ro.x: 1}", "{ro.x: yes}"),
        "5:71: devices[0].properties.ro.x: 'yes' is a boolean to YAML: quote it: \"yes\"",
    ),
    "sdk quoted": (
        *("sdk: 33", 'sdk: "33"'),
        "5:48: devices[0].sdk: '33' is not a whole number in plain decimal: remove the quotes",
    ),
    "sdk hexadecimal": (
        *("sdk: 33", "sdk: 0x21"),
        "5:48: devices[0].sdk: '0x21' is not a whole number in plain decimal",
    ),
    "sdk out of range": (*("sdk: 33", "sdk: 3"), "5:48: devices[0].sdk: 3 is out of range: 21 to 99"),
    "hub device without name": (
        *(", name: Galaxy", ""),
        '7:5: devices[2]: which AI Hub device? Add name, such as name: "Samsung Galaxy S25", chipset, or '
        "attributes; `devicelab suggest --aihub=all` prints them",
    ),
    "hub device of an odd chipset": (
        *("name: Galaxy", 'chipset: "a b"'),
        "7:37: devices[2].chipset: 'a b' is not an attribute of AI Hub: letters, digits and _ . : + -",
    ),
    "hub device of an odd os": (
        *("name: Galaxy", 'name: Galaxy, os: "[13,15]"'),
        '7:46: devices[2].os: \'[13,15]\' is not a version such as "14", or an interval such as "[13,15)"',
    ),
    "logging misspelled": (
        *("warn", "wran"),
        "2:10: logging: 'wran' is not one of off, error, warn, info, verbose (did you mean 'warn'?)",
    ),
    "logging boolean": (
        *("warn", "no"),
        "2:10: logging: 'no' is not one of off, error, warn, info, verbose",
    ),
    "log level misspelled": (
        *("logging: warn", "logging: {level: wran}"),
        "2:18: logging.level: 'wran' is not one of off, error, warn, info, verbose (did you mean 'warn'?)",
    ),
    "log profile key": (
        *("logging: warn", "logging: {propertys: {}}"),
        "2:11: unknown key 'propertys' in logging (did you mean 'properties'?); "
        "the keys here are level, properties, farf, buffer",
    ),
    "log property": (
        *("logging: warn", "logging: {properties: {ro.soc.model: x}}"),
        "2:38: logging.properties.ro.soc.model: is none the shell user may set: "
        "debug.*, log.tag.* or persist.log.tag.*",
    ),
    "log property too long": (
        *("logging: warn", f"logging: {{properties: {{debug.x: {'y' * 92}}}}}"),
        "2:33: logging.properties.debug.x: is longer than the 91 bytes a property takes",
    ),
    "farf without quotes": (
        *("logging: warn", "logging: {farf: 0x1f}"),
        "2:17: logging.farf: '0x1f' is a number to YAML: quote it: \"0x1f\"",
    ),
    "farf": (
        *("logging: warn", 'logging: {farf: "31"}'),
        "2:17: logging.farf: '31' is not a mask such as 0x1f",
    ),
    "log buffer unit": (
        *("logging: warn", "logging: {buffer: 16MB}"),
        "2:19: logging.buffer: '16MB' is not a size from 64K to 256M, such as 16M",
    ),
    "log buffer too large": (
        *("logging: warn", "logging: {buffer: 257M}"),
        "2:19: logging.buffer: '257M' is not a size from 64K to 256M, such as 16M",
    ),
    "log profile unknown": (
        *("logging: warn", "log_profiles: {deep: {level: info}}\nlogging: dep"),
        "3:10: logging: 'dep' is not one of off, error, warn, info, verbose, deep (did you mean 'deep'?)",
    ),
    "log profile nobody uses": (
        *("logging: warn", "log_profiles: {deep: {level: loud}}"),
        "2:30: log_profiles.deep.level: 'loud' is not one of off, error, warn, info, verbose",
    ),
    "log profile named like a level": (
        *("logging: warn", "log_profiles: {verbose: {level: info}}"),
        "2:25: log_profiles.verbose: 'verbose' is a level already: give the profile another name",
    ),
    "log profile name": (
        *("logging: warn", "log_profiles: {Deep-er: {level: info}}"),
        "2:25: log_profiles.Deep-er: 'Deep-er' is not a name: up to 64 of a-z 0-9 _ . after a letter or digit",
    ),
    "adb word": (
        *("private", "privat"),
        "3:12: lab.adb: 'privat' is not private or {host: ..., port: ...} (did you mean 'private'?)",
    ),
    "adb host": (
        *("private", "{host: a b}"),
        "3:19: lab.adb.host: 'a b' is not a host name or address",
    ),
    "adb port": (
        *("private", "{host: a, port: 0}"),
        "3:28: lab.adb.port: 0 is out of range: 1 to 65535",
    ),
    "timeout infinite": (
        *("run_timeout_s: 60", "run_timeout_s: .inf"),
        "3:36: lab.run_timeout_s: '.inf' is not a number in plain decimal",
    ),
    "timeout overflow": (
        *("run_timeout_s: 60", "run_timeout_s: 1e999"),
        "3:36: lab.run_timeout_s: 1e999 is out of range: 1 to 86400",
    ),
    "model path missing": (*("    path: m.onnx\n", ""), "9:5: models[0]: has no 'path': add it"),
    "model file type": (*("m.onnx", "m.tflite"), "10:11: models[0].path: 'm.tflite' is not a .onnx file"),
    "inputs file type": (*("in.npz", "in.npy"), "12:13: models[0].inputs: 'in.npy' is not a .npz file"),
    "samples zero": (
        *("samples: 8", "samples: 0"),
        "16:14: models[0].samples: 0 is out of range: 1 to 1000000000",
    ),
    "option misspelled": (
        *("vtcm_mb: 4", "offload_graph_io_quantisation: 0"),
        "17:46: models[0].options.offload_graph_io_quantisation: unknown option "
        "(did you mean 'offload_graph_io_quantization'?)",
    ),
    "option value": (
        *("vtcm_mb: 4", "htp_performance_mode: bust"),
        "17:37: models[0].options.htp_performance_mode: 'bust' is not one of burst, balanced, default, "
        "high_performance, high_power_saver, low_balanced, extreme_power_saver, low_power_saver, "
        "power_saver, sustained_high_performance (did you mean 'burst'?)",
    ),
    "option that is no number": (
        *("vtcm_mb: 4", "vtcm_mb: all"),
        "17:24: models[0].options.vtcm_mb: 'all' is not a whole number in plain decimal",
    ),
    "option boolean": (
        *("vtcm_mb: 4", "offload_graph_io_quantization: no"),
        "17:46: models[0].options.offload_graph_io_quantization: 'no' is not one of 0, 1",
    ),
    "option of the lab": (
        *("vtcm_mb: 4", "op_packages: evil.so"),
        "17:28: models[0].options.op_packages: is set by the lab itself, "
        "from the device and the run: remove it",
    ),
    "option name": (
        *("vtcm_mb: 4", "a|b: 1"),
        "17:20: models[0].options.a|b: is not the name of an option: a-z 0-9 _",
    ),
    "fallback without reason": (
        *(", reason: known", ""),
        "18:26: models[0].expect.fallbacks[0]: has no 'reason': add it",
    ),
    "fallback with empty reason": (
        *("reason: known", 'reason: ""'),
        "18:45: models[0].expect.fallbacks[0].reason: is empty",
    ),
    "fallback operator": (
        *("op: Conv", "op: a conv"),
        "18:31: models[0].expect.fallbacks[0].op: 'a conv' is not an ONNX operator type, "
        "such as LayerNormalization",
    ),
    "fallback on an unknown device": (
        *("devices: [s24]", "devices: [s25]"),
        "18:72: models[0].expect.fallbacks[0].devices[0]: 's25' is not the id of a device "
        "(did you mean 's24'?)",
    ),
    "fallback on no device": (
        *("devices: [s24]", "devices: []"),
        "18:71: models[0].expect.fallbacks[0].devices: is empty, so it would hold nowhere: name devices, "
        "or remove the key for all with an NPU",
    ),
    "gate out of range": (
        *("accuracy_drop: 0.5", "accuracy_drop: 50"),
        "19:28: models[0].gates.accuracy_drop: 50 is out of range: 0 to 1",
    ),
    "gate misspelled": (
        *("agreement: bitwise", "agreement: three_runs"),
        "19:44: models[0].gates.agreement: 'three_runs' is not one of three_run, bitwise "
        "(did you mean 'three_run'?)",
    ),
    "gates contradict": (
        *("agreement: bitwise", "agreement: three_run, bitwise: required"),
        "19:64: models[0].gates.bitwise: contradicts agreement: three_run: keep one of the two",
    ),
    "bitwise neither": (
        *("agreement: bitwise", "bitwise: optional"),
        "19:42: models[0].gates.bitwise: 'optional' is not one of required",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_has_its_place_and_its_fix(folder: Path, name: str) -> None:
    old, new, expected = MISTAKES[name]
    assert GOOD.count(old) == 1
    # Lists of keys grow; that they begin as they should is enough.
    (found,) = mistakes(folder, GOOD.replace(old, new))
    told, _, keys = found.partition("; the keys here are ")
    wanted, _, first_keys = expected.partition("; the keys here are ")
    assert told == wanted
    assert keys.startswith(first_keys)
    assert bool(keys) == bool(first_keys)


@pytest.mark.parametrize("key", ["path", "reference", "inputs", "labels"])
def test_a_missing_file_is_named_with_its_neighbour(folder: Path, key: str) -> None:
    line = next(number for number, line in enumerate(GOOD.splitlines(), 1) if line.startswith(f"    {key}:"))
    name = re.search(rf"    {key}: (\S+)", GOOD)
    assert name is not None
    (found,) = mistakes(folder, GOOD.replace(f" {key}: {name[1]}", f" {key}: x{name[1]}"))
    column = len(f"    {key}: ") + 1
    assert found.startswith(
        f"{line}:{column}: models[0].{key}: no such file: 'x{name[1]}', relative to {folder}"
    )
    assert f"(did you mean {name[1]!r}" in found


def test_a_folder_is_not_a_model(folder: Path) -> None:
    (folder / "d.onnx").mkdir()
    (found,) = mistakes(folder, MINIMAL.replace("m.onnx", "d.onnx"))
    assert "no such file: 'd.onnx'" in found


@pytest.mark.parametrize(("key", "line"), [("devices", 2), ("models", 3)])
def test_a_matrix_that_tests_nothing_is_a_mistake(folder: Path, key: str, line: int) -> None:
    other = {
        "devices": "models: [{id: a, path: m.onnx}]",
        "models": "devices: [{id: a, kind: virtual, soc: SM8650}]",
    }
    text = f"schema: devicelab.matrix/1\n{other[key] if line == 3 else ''}\n{key}: []\n"
    expected = f"3:{len(key) + 3}: {key}: is empty, so nothing would be tested: add one"
    assert expected in mistakes(folder, text)


def test_a_list_must_be_a_list_and_a_mapping_a_mapping(folder: Path) -> None:
    text = "schema: devicelab.matrix/1\ndevices: {a: 1}\nmodels: [5, null]\nlab: []\n"
    assert mistakes(folder, text) == [
        "2:10: devices: must be a list, is a mapping",
        "3:10: models[0]: must be a mapping (key: value), is '5'",
        "3:13: models[1]: must be a mapping (key: value), is 'null'",
        "4:6: lab: must be a mapping (key: value), is a list",
    ]


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(folder: Path) -> None:
    text = GOOD
    chosen = [
        name
        for name in MISTAKES
        if name in {"schema wrong", "logging boolean", "id number", "gates contradict"}
    ]
    for name in chosen:
        text = text.replace(*MISTAKES[name][:2])
    expected = [MISTAKES[name][2] for name in chosen]
    found = mistakes(folder, text)
    assert sorted(found) == sorted(expected)
    assert [int(line.split(":")[0]) for line in found] == [1, 2, 7, 19]


def test_the_message_is_one_line_a_mistake_under_a_headline(folder: Path) -> None:
    with pytest.raises(MatrixError) as raised:
        load(folder, GOOD.replace("kind: aihub", "kind: hub").replace("warn", "wran"))
    lines = str(raised.value).splitlines()
    path = folder / "m.yaml"
    assert lines[0] == f"device matrix {path}: 2 mistakes"
    assert lines[1].startswith(f"  why: {path}:2:10: logging: 'wran' is not one of")
    assert lines[2].startswith(f"       {path}:7:21: devices[2].kind: 'hub' is not one of")
    assert lines[3].startswith("  fix: ")


def test_a_mistake_behind_an_alias_is_told_where_it_is_written(folder: Path) -> None:
    text = GOOD.replace("lab:", "x-d: &d {kund: adb}\nlab:").replace("{id: s24,", "{<<: *d, id: s24,")
    text = text.replace("{id: hub,", "{<<: *d, id: hub,")
    found = mistakes(folder, text)
    assert [line.split(" in ")[0] for line in found] == [
        "3:10: unknown key 'kund'",
        "3:10: unknown key 'kund'",
    ]
    assert ["devices[0]" in found[0], "devices[2]" in found[1]] == [True, True]


# Files that are no matrix at all

NOT_A_MATRIX = {
    "empty": (b"", "1:1: the matrix is empty: start it with `schema: devicelab.matrix/1`"),
    "comments only": (b"# nothing\n", "1:1: the matrix is empty: start it with `schema: devicelab.matrix/1`"),
    "a list": (b"- a\n", "1:1: the matrix: must be a mapping (key: value), is a list"),
    "a word": (b"hello", "1:1: the matrix: must be a mapping (key: value), is 'hello'"),
    "not UTF-8": (b"a: 1\nb\xc3\xa9: \xff\n", "2:5: byte 0xff is not UTF-8: save the file as UTF-8"),
    "UTF-16": ("a: 1".encode("utf-16"), "1:1: byte 0xff is not UTF-8: save the file as UTF-8"),
    "a NUL byte": (b"a: 1\nbc\0", "2:3: character U+0000 cannot be in YAML"),
    "a tab": (
        b"a:\n\tb: 1\n",
        "2:1: not valid YAML: found character '\\t' that cannot start any token while scanning for the next "
        "token: indent with spaces, not tabs",
    ),
    "two documents": (
        b"a: 1\n---\nb: 1\n",
        "2:1: not valid YAML: but found another document expected a single document in the stream: "
        "a matrix is one document: remove the second '---'",
    ),
    "an unknown alias": (
        b"a: *b\n",
        "1:4: not valid YAML: found undefined alias 'b': define it before, with &name",
    ),
    "deep nesting": (
        b"[" * 5000,
        "1:33: not valid YAML: nested more than 32 deep: no part of a matrix is nested like this",
    ),
    "an impossible escape": (
        b'"\\UFFFFFFFF"',
        "1:1: not valid YAML: Python int too large to convert to C int",
    ),
}


@pytest.mark.parametrize("name", NOT_A_MATRIX)
def test_a_file_that_is_no_matrix(folder: Path, name: str) -> None:
    data, expected = NOT_A_MATRIX[name]
    assert mistakes(folder, data) == [expected]


def test_a_byte_order_mark_does_no_harm(folder: Path) -> None:
    assert load(folder, b"\xef\xbb\xbf" + MINIMAL.encode()).devices[0].id == "s24"


def test_a_missing_file_a_directory_and_an_endless_file(folder: Path) -> None:
    def why(path: Path) -> str:
        with pytest.raises(MatrixError) as raised:
            load_matrix(path)
        assert raised.value.evidence["issues"] == (
            (Source(file=str(path), line=1, column=1), raised.value.why),
        )
        return raised.value.why

    (folder / "device_matrix.yaml").write_text(GOOD)
    assert why(folder / "device_matrx.yaml") == "there is no such file (did you mean 'device_matrix.yaml'?)"
    assert why(folder / "nowhere" / "m.yaml") == "there is no such file"
    assert why(folder) == "it is a directory"
    assert why(Path("/dev/zero")) == "it is not a regular file"
    large = folder / "large.yaml"
    large.write_bytes(b"#" * (reader.MAX_BYTES + 1))
    assert why(large) == "it is larger than 256 KiB"


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {k: 1}\n"
        + "".join(f"{new}: &{new} {{<<: [{f'*{old},' * 4}]}}\n" for old, new in pairwise("abcdefghijklmno"))
        + "devices: [{<<: *o}]\n",
        "devices: [&a {<<: [*a, *a]}]\n",
        "x-a: &a {" + ",".join(f"k{i}: 1" for i in range(2000)) + "}\ndevices: [" + "*a," * 5000 + "]",
    ],
    ids=["laughs", "self", "wide"],
)
def test_aliases_cannot_multiply_without_end(folder: Path, text: str) -> None:
    assert any(
        "values, each alias counted" in found or "into itself" in found for found in mistakes(folder, text)
    )


def test_a_file_full_of_mistakes_ends_early(folder: Path) -> None:
    found = mistakes(folder, "".join(f"k{i}: 1\n" for i in range(5000)))
    assert len(found) == issues_module.MAX_ISSUES


# Properties


def anything_but_a_crash(folder: Path, data: bytes) -> None:
    path = folder / "any.yaml"
    path.write_bytes(data)
    try:
        load_matrix(path)
    except MatrixError as error:
        found, message = error.evidence["issues"], str(error)
    else:
        return
    assert found
    assert all(source.line >= 1 and source.column >= 1 for source, _ in found)
    message.encode()


fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_matrix_error(folder: Path, data: bytes) -> None:
    anything_but_a_crash(folder, data)


@fuzz
@given(text=st.text(alphabet=st.sampled_from("ab1-:[]{},&*!|>'\"%@`#?<\\ \n\t\x85\u2028.~="), max_size=120))
def test_arbitrary_yaml_like_text_raises_nothing_but_matrix_error(folder: Path, text: str) -> None:
    anything_but_a_crash(folder, text.encode())


@fuzz
@given(at=st.integers(0, len(GOOD) - 1), length=st.integers(0, 12), text=st.text(max_size=8))
def test_a_damaged_matrix_raises_nothing_but_matrix_error(
    folder: Path, at: int, length: int, text: str
) -> None:
    anything_but_a_crash(folder, (GOOD[:at] + text + GOOD[at + length :]).encode("utf-8", "surrogatepass"))


scalars = st.sampled_from(
    [None, True, 0, -1, 1.5, "", "s24", "m.onnx", "\x1b", "SM8650", "htp", "virtual", "a" * 300]
)
words = st.sampled_from(
    [
        *(
            "schema",
            "devices",
            "models",
            "lab",
            "adb",
            "host",
            "port",
            "logging",
            "log_profiles",
            "level",
            "properties",
            "farf",
            "buffer",
            "id",
            "kind",
            "soc",
            "serial",
        ),
        *(
            "selector",
            "name",
            "runtime",
            "engine",
            "properties",
            "sdk",
            "path",
            "inputs",
            "options",
            "expect",
        ),
        *("fallbacks", "op", "reason", "node", "gates", "bitwise", "agreement", "samples", "<<", "x-a"),
    ]
)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=6)
)


@fuzz
@given(tree=trees)
def test_values_of_any_shape_raise_nothing_but_matrix_error(folder: Path, tree: object) -> None:
    anything_but_a_crash(folder, yaml.safe_dump(tree).encode())


def keys_of(text: str) -> list[tuple[int, int, str]]:
    """Every key a matrix defines, as (offset of its first character, offset past its last, key)."""
    found: list[tuple[int, int, str]] = []

    def walk(node: yaml.Node | None, free: bool) -> None:
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                walk(item, False)
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if not free:
                    found.append((key.start_mark.index, key.end_mark.index, key.value))
                walk(value, key.value in {"properties", "options"})

    walk(yaml.compose(text, Loader=yaml.SafeLoader), False)
    return found


@st.composite
def typos(draw: st.DrawFn) -> tuple[int, int, str, str]:
    """One key of GOOD with a letter dropped, doubled, replaced, or swapped with the next."""
    start, end, key = draw(st.sampled_from(keys_of(GOOD)))
    at = draw(st.integers(0, len(key) - 1))
    letter = draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz_"))
    candidates = [key[:at] + key[at + 1 :], key[:at] + letter + key[at:], key[:at] + letter + key[at + 1 :]]
    candidates.append(key[:at] + key[at + 1 : at + 2] + key[at] + key[at + 2 :])
    known = {known for _, _, known in keys_of(GOOD)} | {"y", "n", "on", "no", "off", "yes", "", "pd"}
    typo = draw(
        st.sampled_from(candidates).filter(lambda word: word not in known and not word.startswith("x-"))
    )
    return start, end, key, typo


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=typos())
def test_every_misspelled_key_is_found_with_the_right_one_suggested(
    folder: Path, change: tuple[int, int, str, str]
) -> None:
    start, end, key, typo = change
    line = GOOD.count("\n", 0, start) + 1
    column = start - (GOOD.rfind("\n", 0, start) + 1) + 1
    found = mistakes(folder, GOOD[:start] + typo + GOOD[end:])
    (reported,) = [
        message for message in found if message.startswith(f"{line}:{column}: unknown key {typo!r} in ")
    ]
    suggestion = re.search(r"\(did you mean (.*?)\?\)", reported)
    assert suggestion is not None
    assert repr(key) in suggestion[1]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("lite.tflite, options: {strict: 1}", "is no option of runtime litert, which takes kernels"),
        ("lite.tflite, options: {kernel: builtin}", "which takes kernels (did you mean 'kernels'?)"),
        ("lite.tflite, options: {kernels: fast}", "'fast' is not one of xnnpack, builtin, reference"),
        ("p.pte, options: {vtcm_mb: 4}", "is no option of runtime executorch, which takes none"),
    ],
)
def test_an_option_that_the_runtime_would_not_heed_is_a_mistake(folder: Path, model: str, said: str) -> None:
    for name in ("lite.tflite", "p.pte"):
        (folder / name).touch()
    (found,) = mistakes(folder, MINIMAL.replace("m.onnx", model))
    assert said in found


def test_the_kernels_of_litert_are_an_option(folder: Path) -> None:
    (folder / "lite.tflite").touch()
    matrix = load(folder, MINIMAL.replace("m.onnx", "lite.tflite, options: {kernels: reference}"))
    assert dict(matrix.models[0].options) == {"kernels": "reference"}
    assert not matrix.notes
