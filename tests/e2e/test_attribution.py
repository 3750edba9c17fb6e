"""Real models, computed by Qualcomm's HTP simulator: whose loss is it?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pytest_devicelab.audit.graph import parse_graph
from pytest_devicelab.matrix.soc import find_soc
from pytest_devicelab.runtimes.host import run_on_host
from pytest_devicelab.tensors.classes import equivalence_classes
from pytest_devicelab.verdicts.attribution import Attribution, attribute
from pytest_devicelab.virtual.engine import EngineJob
from pytest_devicelab.virtual.engines.htp import run_htp
from pytest_devicelab.virtual.onnx_model import output_quantization

FIXTURES = Path(__file__).parents[2] / "fixtures"
CHIPS = {"s21": "V68", "s24": "V75"}
SOCS = {"s21": "SM8350", "s24": "SM8650"}
ALL = 540


def on_chip(model: Path, device: str, images: npt.NDArray[np.float32], work: Path) -> npt.NDArray[np.float64]:
    (work / device).mkdir()
    job = EngineJob(
        model=model,
        format="onnx",
        inputs=tuple({"image": image[None]} for image in images),
        soc=find_soc(SOCS[device])[0],
        work=work / device,
        options={"offload_graph_io_quantization": "0"},
    )
    return np.concatenate([outputs["logits"] for outputs in run_htp(job).outputs]).astype(np.float64)


def attributed(name: str, work: Path, *, samples: int = ALL) -> Attribution:
    """Attribute a fixture's loss over two chips."""
    model = FIXTURES / f"{name}.onnx"
    with np.load(FIXTURES / "digits_eval.npz", allow_pickle=False) as file:
        images = file["image"][:samples]
    outputs = {device: on_chip(model, device, images, work) for device in CHIPS}
    classes = equivalence_classes({device: (array.tobytes().hex(),) for device, array in outputs.items()})
    exact, quantized = (
        run_on_host(path, {"image": images})["logits"].astype(np.float64)
        for path in (model.with_name("float.onnx"), model)
    )
    return attribute(
        exact,
        quantized,
        {devices: outputs[devices[0]] for devices in classes},
        chips=CHIPS,
        rng=np.random.default_rng(0),
        step=output_quantization(parse_graph(model.read_bytes()).model)["logits"].scale,
        labels=np.load(FIXTURES / "digits_labels.npy", allow_pickle=False),
    )


@pytest.mark.parametrize("name", ["digits_cnn/int8", "digits_transformer/int8"])
def test_what_a_sound_model_loses_is_the_quantization(name: str, tmp_path: Path) -> None:
    found = attributed(name, tmp_path)
    assert found.accuracy is not None
    assert (found.signal.cause, found.accuracy.cause) == ("quantization", "nothing")
    assert [share.chip for share in found.signal.shares] == ["V68", "V75"]
    for share in found.signal.shares:
        assert share.loss is not None
        assert abs(share.loss.value) < 0.6
        assert share.decision == "none"
    assert found.signal.quantization is not None
    assert found.signal.quantization.low > 10.0
    assert "is quantization" in found.line


def test_a_loss_that_all_chips_share_and_the_cpu_does_not_is_not_blamed_on_the_quantization(
    tmp_path: Path,
) -> None:
    found = attributed("digits_cnn/int8_bn", tmp_path)
    assert (found.signal.cause, found.accuracy and found.accuracy.cause) == ("every_chip", "every_chip")
    for share in found.signal.shares:
        assert share.loss is not None
        assert 22.0 < share.loss.low < share.loss.high < 27.0
    assert "not the quantization" in found.signal.reason
    assert found.signal.quantized_level is not None
    assert found.signal.quantized_level > 30.0, "on the CPU the same model is sound"


def test_a_few_images_settle_a_large_loss_and_not_a_small_one(tmp_path: Path) -> None:
    for name in ("sound", "broken"):
        (tmp_path / name).mkdir()
    assert attributed("digits_cnn/int8_bn", tmp_path / "broken", samples=30).signal.cause == "every_chip"
    small = attributed("digits_cnn/int8", tmp_path / "sound", samples=30).signal
    assert small.cause == "inconclusive"
    assert small.samples_needed is not None
    assert 30 < small.samples_needed < ALL
