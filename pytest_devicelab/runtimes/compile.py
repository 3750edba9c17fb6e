"""ONNX -> QNN context binary for one chip, on the host, cached by content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pytest_devicelab.errors import CompileRefused, DeadlineExceeded, InfrastructureError, UserError
from pytest_devicelab.evidence.record import NodePlacement
from pytest_devicelab.matrix.soc import Soc
from pytest_devicelab.runtimes.compile_worker import BINARY, RESULT
from pytest_devicelab.virtual.context_binary import ContextBinary, read_context_binary
from pytest_devicelab.virtual.onnx_model import (
    edge_conversions,
    external_files,
    load_model,
    op_types,
    open_inputs,
)
from pytest_devicelab.virtual.placement import left_to_cpu
from pytest_devicelab.virtual.runtime_log import RefusedOp, misread_chip, refused_ops
from pytest_devicelab.virtual.simulator import (
    DEFAULT_OPTIONS,
    JOB_OPTIONS,
    objection,
    require_simulator,
    unknown_options,
    versions,
)

OPEN = "QNN compiles fixed shapes, and nobody here chooses one for an open dimension"
FIX_SHAPES = (
    "export the model with fixed shapes and batch 1, or fix them: "
    "python -m onnxruntime.tools.make_dynamic_shape_fixed --input_name NAME --input_shape 1,... MODEL FIXED"
)

_LOG = "compile.log"
_SUMMARY = "summary.json"
# Change it when what an entry of the cache holds, or how it is made, changes.
_CACHE_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledContext:
    """A context binary in the cache.

    Attributes:
        path: the binary; it belongs to the cache and must not be changed.
        info: what the binary says of itself.
        sha256: of its bytes.
        log: what the compiler said when it was made.
        versions: of the tools that made it.
        options: the options that took part, defaults included.
        sources: operator of the compiled graph -> ONNX nodes it came from, `op type:name` where known.
        cached: whether it was there already.
    """

    path: Path
    info: ContextBinary
    sha256: str
    log: bytes
    versions: Mapping[str, str]
    options: Mapping[str, str]
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cached: bool = False


def compile_context(
    model: Path, soc: Soc, options: Mapping[str, str], cache: Path, *, timeout_s: float = 300.0
) -> CompiledContext:
    """Return the context binary of a model for a chip, compiled unless the cache has it.

    The whole graph goes to the NPU or the model is refused, for qnn-net-run has no CPU to fall back to.
    Several processes may call this at once for the same cache.

    Args:
        model: an ONNX file.
        soc: the chip; its Hexagon and QNN id must be known.
        options: of the QNN execution provider, over `simulator.DEFAULT_OPTIONS`.
        cache: folder the binaries are kept in; made if missing.
        timeout_s: deadline of the compiler, and of waiting for another process that compiles the same.

    Raises:
        ModelError: the file is not an ONNX model.
        UserError: the compiler is not installed, or an option is not known.
        CompileRefused: the model does not compile for this chip; `evidence["ops"]`.
        DeadlineExceeded: the compiler took longer than `timeout_s`.
        InfrastructureError: the compiler crashed.
    """
    require_simulator()
    onnx_model = load_model(model)
    _check_request(model, soc, options)
    if left_open := open_inputs(onnx_model):
        # The compiler would refuse every operator, each with "Cannot get shape".
        raise CompileRefused(
            f"{model.name} cannot be compiled for {soc.name}",
            why=f"{', '.join(left_open)}: {OPEN}",
            fix=FIX_SHAPES,
            ops=[],
        )
    chosen = {**DEFAULT_OPTIONS, **options}
    key = _key(model, external_files(onnx_model, model.parent), soc, chosen)
    entry = cache / key
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(cache / f"{key}.lock", timeout=timeout_s):
            if found := _read_entry(entry, cached=True):
                return found
            for left in cache.glob(f".new-{key}-*"):  # by one that was killed: we have the lock
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f".new-{key}-", dir=cache) as work:
                _compile(model.resolve(), soc, chosen, Path(work), timeout_s)
                shutil.rmtree(entry, ignore_errors=True)
                (Path(work) / "entry").replace(entry)
    except Timeout as error:
        raise DeadlineExceeded(
            f"another process has been compiling {model.name} for {soc.name} for over {timeout_s:g} s",
            fix=f"look for a hung process; the lock is {cache / key}.lock",
        ) from error
    made = _read_entry(entry, cached=False)
    if made is None:
        raise InfrastructureError(
            f"the context binary of {model.name} for {soc.name} changed on disk right after it was made",
            why=f"{entry} does not match its own sha256",
        )
    return made


def _check_request(model: Path, soc: Soc, options: Mapping[str, str]) -> None:
    if unknown := unknown_options(options):
        raise UserError(
            f"{model.name}: unknown option of the QNN execution provider: {', '.join(unknown)}",
            fix=f"known are {', '.join(sorted(JOB_OPTIONS))}",
            unknown=unknown,
        )
    if problem := objection(soc):
        raise CompileRefused(f"{model.name} cannot be compiled for {soc.name}", why=problem, ops=[])


def _key(model: Path, weights: tuple[Path, ...], soc: Soc, options: Mapping[str, str]) -> str:
    contents = {
        "format": _CACHE_FORMAT,
        "files": [hashlib.sha256(path.read_bytes()).hexdigest() for path in (model, *weights)],
        "chip": [soc.qnn_id, soc.hexagon],
        "options": dict(options),
        "versions": dict(versions()),
    }
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def _compile(model: Path, soc: Soc, options: Mapping[str, str], work: Path, timeout_s: float) -> None:
    """Compile into `work/entry`, which exists only once everything in it is whole and checked."""
    result, log = _run_worker(model, soc, options, work, timeout_s)
    _check(model, soc, result, log)
    info = read_context_binary(work / BINARY)
    _check_binary(model, soc, info, log)
    binary = (work / BINARY).read_bytes()
    summary = {
        "sha256": hashlib.sha256(binary).hexdigest(),
        "versions": {**versions(), "qairt": info.build_id},
        "options": dict(options),
        "sources": result["sources"],
    }
    entry = work / "entry"
    entry.mkdir()
    (entry / "context.bin").write_bytes(binary)
    (entry / _LOG).write_bytes(log)
    (entry / _SUMMARY).write_text(json.dumps(summary, sort_keys=True), "utf-8")


def _run_worker(
    model: Path, soc: Soc, options: Mapping[str, str], work: Path, timeout_s: float
) -> tuple[Mapping[str, Any], bytes]:
    job = work / "job.json"
    job.write_text(json.dumps({"soc": asdict(soc), "options": dict(options)}), "utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest_devicelab.runtimes.compile_worker",
        str(model),
        str(job.resolve()),
    ]
    log_file = work / _LOG
    with log_file.open("wb") as log:
        try:
            code = subprocess.run(
                command,
                cwd=work,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
                env={**os.environ, "TMPDIR": str(work)},  # the vendor's libraries leave files there
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise DeadlineExceeded(
                f"compiling {model.name} for {soc.name} took longer than {timeout_s:g} s",
                log=log_file.read_bytes(),
            ) from error
    said = log_file.read_bytes()
    if code or not (work / RESULT).exists():
        last = said.decode("utf-8", "replace").strip().splitlines()[-3:]
        raise InfrastructureError(
            f"the compiler crashed on {model.name} for {soc.name}",
            why=f"exit status {code}; it last said:\n" + "\n".join(last),
            log=said,
        )
    return json.loads((work / RESULT).read_text("utf-8")), said


def _check(model: Path, soc: Soc, result: Mapping[str, Any], log: bytes) -> None:
    """Refuse what is not the whole model on the NPU of this very chip."""
    what = f"{model.name} does not compile for {soc.name} ({soc.hexagon})"
    if problem := misread_chip(log, (soc.hexagon or "").removeprefix("V")):
        raise CompileRefused(f"{model.name} cannot be compiled for {soc.name}", why=problem, ops=[], log=log)
    refused = refused_ops(log)
    if "error" in result:
        raise CompileRefused(what, why=result["error"], ops=_evidence(refused), log=log)
    graph = load_model(model)
    placement = [NodePlacement(node=node, op=op, unit=unit) for node, op, unit in result["placement"]]
    stray = left_to_cpu(placement, refused, ops=op_types(graph), edges=edge_conversions(graph))
    if stray or result["partitions"] != 1:
        named = "\n".join(f"{op.op} {op.node}: {op.reason}" for op in stray)
        raise CompileRefused(
            what,
            why=named or f"its graph falls into {result['partitions']} parts",
            fix="change the model, or run it under `runtime: ort`, which leaves such operators to the CPU",
            ops=_evidence(stray),
            log=log,
        )


def _check_binary(model: Path, soc: Soc, info: ContextBinary, log: bytes) -> None:
    """Refuse a binary for another chip, or one whose inputs and outputs are not the model's."""
    what = f"{model.name} does not compile for {soc.name} ({soc.hexagon})"
    if info.hexagon != soc.hexagon or len(info.graphs) != 1:
        found = f"the binary is for {info.hexagon} and holds {len(info.graphs)} graphs"
        raise CompileRefused(what, why=found, ops=[], log=log)
    graph = load_model(model).graph
    constants = {tensor.name for tensor in graph.initializer}
    wanted = {value.name for value in (*graph.input, *graph.output)} - constants
    compiled = {tensor.name for tensor in (*info.graphs[0].inputs, *info.graphs[0].outputs)}
    if compiled != wanted:
        raise CompileRefused(
            what,
            why=f"its inputs and outputs are {sorted(compiled)}, the model's are {sorted(wanted)}",
            fix="set offload_graph_io_quantization to 0, so that the graph's edges are compiled too",
            ops=[],
            log=log,
        )


def _evidence(refused: tuple[RefusedOp, ...]) -> list[dict[str, str]]:
    return [asdict(op) for op in refused]


def _read_entry(entry: Path, *, cached: bool) -> CompiledContext | None:
    """Return an entry of the cache; None when there is none, or its bytes are not those it was made of."""
    with suppress(OSError, ValueError, KeyError):
        path = entry / "context.bin"
        summary = json.loads((entry / _SUMMARY).read_text("utf-8"))
        log = (entry / _LOG).read_bytes()
        if hashlib.sha256(path.read_bytes()).hexdigest() == summary["sha256"]:
            return CompiledContext(
                path=path,
                info=read_context_binary(path),
                sha256=summary["sha256"],
                log=log,
                versions=summary["versions"],
                options=summary["options"],
                sources={name: tuple(nodes) for name, nodes in summary["sources"].items()},
                cached=cached,
            )
    return None
