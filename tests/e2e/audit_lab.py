"""Matrices for experiments: the deep model on devices with known faults, and the project's own fixtures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.unit.deep_model import deep_model, inputs

FIXTURES = Path(__file__).parents[2] / "fixtures"
LAYERS = 30
SAMPLES = 4

_DEEP = """
schema: devicelab.matrix/1
devices:
  - {id: sound, kind: virtual, soc: Tensor G4, engine: cpu, runtime: ort}
  - {id: twin, kind: virtual, soc: Tensor G4, engine: cpu, runtime: ort}
  - {id: planted, kind: virtual, soc: SM8650, engine: "tests.e2e.audit_engines:planted", runtime: ort}
  - {id: fusing, kind: virtual, soc: SM8650, engine: "tests.e2e.audit_engines:fusing", runtime: ort}
  - {id: refusing, kind: virtual, soc: SM8650, engine: "tests.e2e.audit_engines:refusing", runtime: ort}
  - {id: restless, kind: virtual, soc: SM8650, engine: "tests.plugin.engines:restless", runtime: ort}
models:
  - {id: deep, path: deep.onnx, inputs: deep.npz, runtime: ort}
"""

_DIGITS = """
schema: devicelab.matrix/1
devices:
  - {{id: v69, kind: virtual, soc: SM8450}}
  - {{id: v75, kind: virtual, soc: SM8650}}
  - {{id: v79, kind: virtual, soc: SM8750}}
models:
  - &cnn
    id: cnn
    path: {fixtures}/digits_cnn/int8.onnx
    reference: {fixtures}/digits_cnn/float.onnx
    inputs: {fixtures}/digits_eval.npz
    options: {{offload_graph_io_quantization: 0}}
  - &transformer
    <<: *cnn
    id: transformer
    path: {fixtures}/digits_transformer/int8.onnx
    reference: {fixtures}/digits_transformer/float.onnx
  - {{<<: *transformer, id: transformer_ort, runtime: ort}}
"""


def deep_matrix(folder: Path, layers: int = LAYERS) -> Path:
    (folder / "deep.onnx").write_bytes(deep_model(layers, 5))
    np.savez(folder / "deep.npz", x=inputs(SAMPLES, 5))
    path = folder / "matrix.yaml"
    path.write_text(_DEEP)
    return path


def digits_matrix(folder: Path) -> Path:
    path = folder / "matrix.yaml"
    path.write_text(_DIGITS.format(fixtures=FIXTURES))
    return path
