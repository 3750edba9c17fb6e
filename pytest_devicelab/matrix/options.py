"""Decodes a model's `options`: those of its runtime, and none that nobody would heed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from pytest_devicelab.matrix.cursor import Cursor
from pytest_devicelab.matrix.suggest import did_you_mean, nearest

LITERT_KERNELS = ("xnnpack", "builtin", "reference")
"""What LiteRT computes with, its default first."""

_OPTION = re.compile(r"[a-z][a-z0-9_]{0,63}")
_SWITCH = ("0", "1")
_WHOLE = ("a whole number",)

# Options of the QNN execution provider a matrix may set, with their values where these are few.
# Source: ONNX Runtime's documentation of the QNN execution provider, and onnxruntime-qnn 2.7.
_QNN: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "enable_block_quant_weight_optimization": _SWITCH,
        "enable_htp_fp16_clamp_overflow": _SWITCH,
        "enable_htp_fp16_precision": _SWITCH,
        "enable_htp_graph_splitting": _SWITCH,
        "enable_htp_monolithic_lstm": _SWITCH,
        "enable_htp_shared_memory_allocator": _SWITCH,
        "enable_htp_spill_fill_buffer": _SWITCH,
        "htp_bf16_enable": _SWITCH,
        "htp_graph_finalization_optimization_mode": ("0", "1", "2", "3"),
        "htp_performance_mode": (
            *("burst", "balanced", "default", "high_performance", "high_power_saver", "low_balanced"),
            *("extreme_power_saver", "low_power_saver", "power_saver", "sustained_high_performance"),
        ),
        "offload_graph_io_quantization": _SWITCH,
        "qnn_context_priority": ("low", "normal", "normal_high", "high"),
        "rpc_control_latency": _WHOLE,
        "vtcm_mb": _WHOLE,
        "strict": _SWITCH,  # ours: see runtimes/ort.py
    }
)
# Set by the lab from the device, or naming files and libraries, which a matrix has no business with.
_RESERVED = frozenset(
    {
        *("backend_path", "backend_type", "device_id", "htp_arch", "soc_model", "op_packages"),
        *("profiling_level", "profiling_file_path", "dump_json_qnn_graph", "json_qnn_graph_dir"),
        *("enable_framework_op_trace", "qnn_saver_path", "qnn_ir_backend_path"),
    }
)
# Runtimes whose options are all known. Those of another package may take more than QNN's.
_CLOSED: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"litert": MappingProxyType({"kernels": LITERT_KERNELS}), "executorch": MappingProxyType({})}
)


def decode_options(cursor: Cursor, runtime: str, notes: list[str]) -> dict[str, str]:
    """Return the options of a model; mistakes are noted.

    Args:
        cursor: the value of `options`.
        runtime: of the model. What it would not heed is a mistake: `strict: 1` that nobody reads makes a false green.
        notes: gets a remark for each option this version does not know.
    """
    known = _CLOSED.get(runtime, _QNN)
    found: dict[str, str] = {}
    for name, value in cursor.entries().items():
        text = _value(value, known.get(name, ()))
        if not _OPTION.fullmatch(name):
            value.fail("is not the name of an option: a-z 0-9 _")
        elif name in _RESERVED:
            value.fail("is set by the lab itself, from the device and the run: remove it")
        elif name not in known and runtime in _CLOSED:
            takes = f"takes {', '.join(known)}" if known else "takes none"
            value.fail(f"is no option of runtime {runtime}, which {takes}{did_you_mean(name, known)}")
        elif name not in known:
            if close := nearest(name, known, cutoff=0.85):
                value.fail(f"unknown option (did you mean {close[0]!r}?)")
            else:
                notes.append(
                    f"{value.source}: option {name!r} is unknown to this version; passed on as it is"
                )
        if text is not None:
            found[name] = text
    return found


def _value(value: Cursor, choices: tuple[str, ...]) -> str | None:
    if choices == _WHOLE:
        number = value.integer(0, 10**6)
        return None if number is None else str(number)
    return value.word(choices) if choices else value.scalar()
