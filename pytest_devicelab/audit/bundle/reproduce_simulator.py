"""Show the difference on Qualcomm's HTP simulator, with `python reproduce_simulator.py`.

It needs numpy, onnxruntime and onnxruntime-qnn (Linux x86-64), and nothing else. It runs model.onnx on
inputs/ as each simulated device of manifest.json did, checks that the bits are the recorded ones, and holds each
device against the first.

Exit status: 0 the recorded bits, and they differ between devices; 1 anything else.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
EP = "QNNExecutionProvider"


def main() -> int:
    """Run every device and print what was found."""
    import numpy as np

    manifest = json.loads((HERE / "manifest.json").read_text("utf-8"))
    feed = {entry["name"]: np.load(HERE / entry["file"], allow_pickle=False) for entry in manifest["inputs"]}
    computed: dict[str, dict[str, Any]] = {}
    as_recorded = True
    for device in manifest["devices"]:
        if device["engine"] not in ("htp", "cpu"):
            print(f"{device['id']}: not simulated here, its recorded output stands for it")
            computed[device["id"]] = recorded(device)
            continue
        outputs = run(device, feed)
        same = all(same_bits(outputs[name], array) for name, array in recorded(device).items())
        print(
            f"{device['id']} ({device['soc']}, {device['hexagon']}): {'' if same else 'NOT '}the recorded bits"
        )
        as_recorded &= same
        computed[device["id"]] = outputs
    parted = compare(computed)
    if not as_recorded:
        print("The bits are not those that were recorded: see `versions` in manifest.json.")
    return 0 if as_recorded and parted else 1


def recorded(device: dict[str, Any]) -> dict[str, Any]:
    """Return the outputs a device gave when the bundle was made."""
    import numpy as np

    return {entry["name"]: np.load(HERE / entry["file"], allow_pickle=False) for entry in device["outputs"]}


def run(device: dict[str, Any], feed: dict[str, Any]) -> dict[str, Any]:
    """Run the model once as a device does."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    if device["engine"] == "htp":
        import onnxruntime_qnn as qnn

        def found() -> list[Any]:
            return [each for each in ort.get_ep_devices() if each.ep_name == EP]

        if not found():
            ort.register_execution_provider_library(EP, qnn.get_library_path())
        options = {**device["options"], "backend_path": qnn.get_qnn_htp_path(), **device["chip"]}
        settings.add_provider_for_devices(found(), options)
        session = ort.InferenceSession(str(HERE / "model.onnx"), settings)
    else:
        session = ort.InferenceSession(str(HERE / "model.onnx"), settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def same_bits(left: Any, right: Any) -> bool:
    """Say whether two arrays hold the same bytes."""
    return bool(left.dtype == right.dtype and left.tobytes() == right.tobytes())


def compare(computed: dict[str, dict[str, Any]]) -> bool:
    """Print how each device differs from the first; return whether any does."""
    import numpy as np

    (first, expected), *others = computed.items()
    parted = False
    for device, outputs in others:
        for name, left in expected.items():
            right = outputs[name]
            different = int(np.count_nonzero(left.reshape(-1) != right.reshape(-1)))
            largest = float(
                np.abs(left.astype(np.float64).reshape(-1) - right.astype(np.float64).reshape(-1)).max()
            )
            print(
                f"{device} against {first}, {name}: {different} of {left.size} elements differ, at most {largest:g}"
            )
            parted |= not same_bits(left.reshape(-1), right.reshape(-1))
    return parted


if __name__ == "__main__":
    sys.exit(main())
