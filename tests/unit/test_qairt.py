from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_devicelab.errors import UserError
from pytest_devicelab.matrix.soc import find_soc
from pytest_devicelab.matrix.specs import DeviceSpec, Source
from pytest_devicelab.runtimes.kit import Place
from pytest_devicelab.runtimes.qairt import find_sdk, htp_kit, open_sdk
from tests.e2e.stub_sdk import build_sdk


def tree(root: Path) -> Path:
    for name in ("bin", "lib"):
        (root / name).mkdir(parents=True)
    return root


def test_the_matrix_comes_before_the_environment(tmp_path: Path) -> None:
    first, second, third = (tree(tmp_path / name) for name in ("a", "b", "c"))
    both = {"QAIRT_SDK_ROOT": str(second), "QNN_SDK_ROOT": str(third)}
    assert find_sdk(first, both) == first
    assert find_sdk(None, both) == second
    assert find_sdk(None, {"QNN_SDK_ROOT": str(third)}) == third
    assert find_sdk(None, {"QNN_SDK_ROOT": ""}) is None


def test_a_folder_that_is_no_sdk_is_refused_by_the_name_of_who_named_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\$QNN_SDK_ROOT names .*\n  why: it has no folders bin and lib"):
        find_sdk(None, {"QNN_SDK_ROOT": str(tmp_path)})
    with pytest.raises(UserError, match=r"qairt_sdk in the matrix .*\n  why: there is no such folder"):
        find_sdk(tmp_path / "absent", {})


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("version: 2.51.0.260929\n", "2.51.0.260929"),
        ("version: v2.31.0\n", "2.31.0"),
        ("version: [1, 2]\n", "2.44.0.1"),
        ("- a list\n", "2.44.0.1"),
        ("!!python/object/apply:os.system [id]\n", "2.44.0.1"),
        (None, "2.44.0.1"),
    ],
)
def test_the_version_is_read_from_the_sdk_else_from_its_folder(
    tmp_path: Path, text: str | None, version: str
) -> None:
    root = tree(tmp_path / "2.44.0.1")
    if text is not None:
        (root / "sdk.yaml").write_text(text)
    assert open_sdk(root).version == version


@pytest.mark.parametrize(
    ("options", "graph", "core"),
    [
        ({}, {}, {"perf_profile": "burst"}),
        (
            {"htp_graph_finalization_optimization_mode": "3", "vtcm_mb": "4", "rpc_control_latency": "100"},
            {"O": 3, "vtcm_mb": 4},
            {"perf_profile": "burst", "rpc_control_latency": 100},
        ),
        # What the provider calls its default has no value of its own in the settings, or means another one there.
        (
            {
                "htp_graph_finalization_optimization_mode": "0",
                "vtcm_mb": "0",
                "rpc_control_latency": "0",
                "htp_performance_mode": "default",
                "enable_htp_fp16_precision": "1",
            },
            {},
            {},
        ),
    ],
)
def test_settings_say_what_was_chosen_and_nothing_else(
    tmp_path: Path, options: dict[str, str], graph: dict[str, Any], core: dict[str, Any]
) -> None:
    phone = DeviceSpec(id="p", kind="adb", source=Source(file="m", line=1, column=1))
    place = Place(
        spec=phone,
        soc=find_soc("SM8650")[0],
        abis=("arm64-v8a",),
        folder="/kit",
        sdk=build_sdk(tmp_path / "sdk"),
    )
    kit = htp_kit(place, compiler="v2.51.0.1", options=options, graph="g")
    assert kit is not None
    settings = json.loads(kit.texts["htp.json"])
    assert settings["graphs"] == [{"graph_names": ["g"], **graph}]
    (device,) = settings["devices"]
    assert device == {"dsp_arch": "v75", "pd_session": "unsigned", "cores": [{"core_id": 0, **core}]}
