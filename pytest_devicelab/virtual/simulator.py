"""Sessions on Qualcomm's HTP simulator, through ONNX Runtime and the `onnxruntime-qnn` wheel.

The engine inside a virtual device and the compiler on the host open their sessions here, so that both
stand for a chip in exactly the same way.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_devicelab.errors import UserError
from pytest_devicelab.matrix.soc import Soc

EP_NAME = "QNNExecutionProvider"

# The architectures the x86 library simulates; it takes any other for its default without an error.
# Source: measured with onnxruntime-qnn 2.7.0 (QAIRT 2.51).
SIMULATED_HEXAGONS = ("V68", "V69", "V73", "V75", "V79", "V81")

# Quantize and dequantize the graph's edges on the NPU, as qnn-net-run does; at ONNX Runtime's own default
# of 1 the CPU does it, and the whole graph is not on the NPU.
DEFAULT_OPTIONS: Mapping[str, str] = {"offload_graph_io_quantization": "0"}

# What a job may set. The chip, the library's path, logging and profiling are ours to set; options for other
# backends, Windows or debugging dumps have no meaning here. The provider ignores a name it does not know.
# Source: ONNX Runtime documentation, "QNN Execution Provider", configuration options.
JOB_OPTIONS = frozenset(
    {
        "enable_block_quant_weight_optimization",
        "enable_htp_fp16_clamp_overflow",
        "enable_htp_fp16_precision",
        "enable_htp_spill_fill_buffer",
        "extended_udma",
        "htp_bf16_enable",
        "htp_graph_finalization_optimization_mode",
        "htp_performance_mode",
        "offload_graph_io_quantization",
        "qnn_context_priority",
        "rpc_control_latency",
        "vtcm_mb",
    }
)

_VERBOSE = 0


def require_simulator() -> tuple[Any, Any]:
    """Import what the simulator needs.

    Returns:
        The modules `onnxruntime` and `onnxruntime_qnn`.

    Raises:
        UserError: either is not installed; the message says how to install them.
    """
    return _require("onnxruntime"), _require("onnxruntime_qnn")


def library_folder() -> Path:
    """Return the folder of the vendor libraries; raises UserError when the wheel is missing."""
    return Path(_require("onnxruntime_qnn").get_library_path()).parent


def _require(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            "the HTP simulator is not installed",
            why=str(error),
            fix="pip install 'pytest-devicelab[virtual]' (x86-64 Linux, glibc >= 2.35); the CPU stands in "
            "for an NPU only on a device whose matrix entry says `engine: cpu`",
        ) from None


def objection(soc: Soc) -> str:
    """Say why the simulator cannot stand for this chip; empty when it can."""
    known = " ".join(SIMULATED_HEXAGONS)
    if not soc.has_hexagon:
        return f"{soc.name} has no Hexagon NPU; the HTP simulator knows {known}"
    if soc.hexagon not in SIMULATED_HEXAGONS:
        return f"the Hexagon of {soc.name} is {soc.hexagon or 'unknown'}; the HTP simulator knows {known}"
    if soc.qnn_id is None:
        return f"the QNN id (soc_model) of {soc.name} is unknown, and the HTP simulator needs it"
    return ""


def unknown_options(options: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of options no job may set, sorted."""
    return tuple(sorted(set(options) - JOB_OPTIONS))


def open_session(
    model: Path | bytes,
    soc: Soc,
    options: Mapping[str, str],
    *,
    entries: Mapping[str, str] | None = None,
    profile: Path | None = None,
    trace: bool = False,
) -> Any:
    """Open a session that computes as this chip, logging everything to the process's own output.

    The log is always verbose, because it alone proves which chip was simulated and says why a node was
    refused; whoever shows it filters it. It costs nothing that could be measured.

    Args:
        model: an ONNX file, or the bytes of one.
        soc: a chip `objection` has nothing against.
        options: of the QNN execution provider, over `DEFAULT_OPTIONS`.
        entries: further session configuration entries.
        profile: CSV file for the op profile, whose rows then name their ONNX nodes; None for no profile.
        trace: write `qnn_op_trace.json`, which ONNX nodes each operator came from, to the working folder.

    Returns:
        An `onnxruntime.InferenceSession` that records its graph assignment.
    """
    ort, qnn = require_simulator()
    ort.disable_telemetry_events()
    # QNN's own messages only pass through the default logger.
    ort.set_default_logger_severity(_VERBOSE)
    settings = ort.SessionOptions()
    settings.log_severity_level = _VERBOSE
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for key, value in (entries or {}).items():
        settings.add_session_config_entry(key, value)
    settings.add_provider_for_devices(
        _devices(ort, qnn), _provider_options(qnn, soc, options, profile, trace=trace)
    )
    return ort.InferenceSession(model if isinstance(model, bytes) else str(model), settings)


def versions() -> Mapping[str, str]:
    """Return the versions of the libraries that decide what the simulator computes."""
    return {
        name: importlib.metadata.version(name) for name in ("onnx", "onnxruntime", "onnxruntime-qnn", "numpy")
    }


def _devices(ort: Any, qnn: Any) -> list[Any]:
    def found() -> list[Any]:
        return [device for device in ort.get_ep_devices() if device.ep_name == EP_NAME]

    if not found():
        ort.register_execution_provider_library(EP_NAME, qnn.get_library_path())
    return found()


def _provider_options(
    qnn: Any, soc: Soc, options: Mapping[str, str], profile: Path | None, *, trace: bool
) -> Mapping[str, str]:
    chosen = {
        **DEFAULT_OPTIONS,
        **options,
        "backend_path": qnn.get_qnn_htp_path(),
        "soc_model": str(soc.qnn_id),
        "htp_arch": (soc.hexagon or "").removeprefix("V"),
    }
    if profile is not None:
        chosen |= {"profiling_level": "detailed", "profiling_file_path": str(profile)}
    if trace or profile is not None:
        chosen["enable_framework_op_trace"] = "1"
    return chosen
