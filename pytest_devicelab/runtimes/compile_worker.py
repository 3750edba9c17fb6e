"""The process that compiles one model: the vendor's compiler may crash or hang without taking pytest along.

Run as `python -m pytest_devicelab.runtimes.compile_worker MODEL JOB.json` in an empty folder; everything the
libraries say goes to its standard output and error. It leaves `context_qnn.bin`, and `result.json` whatever
happened; no `result.json` means that it crashed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_devicelab.matrix.soc import Soc
from pytest_devicelab.virtual.onnx_model import load_model, op_types
from pytest_devicelab.virtual.placement import node_placements, partition_count
from pytest_devicelab.virtual.profile import source_name
from pytest_devicelab.virtual.simulator import open_session

# ONNX Runtime names the binary after the wrapper model it writes beside it.
_WRAPPER = "context.onnx"
BINARY = "context_qnn.bin"
RESULT = "result.json"
_TRACE = Path("qnn_op_trace.json")


def main(argv: Sequence[str]) -> int:
    """Compile the model named first for the job in the file named second."""
    model, job = Path(argv[0]), json.loads(Path(argv[1]).read_text("utf-8"))
    try:
        result = _compile(model, Soc(**job["soc"]), job["options"])
    except Exception as error:  # onnxruntime's errors have no base class of their own
        result = {"error": str(error)}
    Path(RESULT).write_text(json.dumps(result), "utf-8")
    return 0


def _compile(model: Path, soc: Soc, options: Mapping[str, str]) -> Mapping[str, Any]:
    ops = op_types(load_model(model))
    entries = {
        "ep.context_enable": "1",
        "ep.context_file_path": str(Path(_WRAPPER).absolute()),
        "ep.context_embed_mode": "0",
    }
    session = open_session(model, soc, options, entries=entries, trace=True)
    return {
        "placement": [[node.node, node.op, node.unit] for node in node_placements(session, ops)],
        "partitions": partition_count(session),
        "sources": _sources(ops),
    }


def _sources(ops: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
    """Return which ONNX nodes each operator of the compiled graph came from."""
    if not _TRACE.exists():
        return {}
    trace = json.loads(_TRACE.read_text("utf-8"))
    return {
        mapping["dst_name"]: list(
            # A source is listed once for every tensor it shares with the operator.
            dict.fromkeys(
                source_name(source["name"], ops) for source in mapping["sources"] if source["type"] == "OP"
            )
        )
        for subgraph in trace["subgraph_traces"]
        for mapping in subgraph["op_mappings"]
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
