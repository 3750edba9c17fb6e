"""The qnn runtime: a context binary, run whole on the NPU by qnn-net-run. It has no CPU to fall back to."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

from pytest_devicelab.errors import CompileRefused, InfrastructureError, ModelError, TransferError
from pytest_devicelab.evidence.events import Event
from pytest_devicelab.matrix.soc import Soc
from pytest_devicelab.matrix.specs import DeviceSpec, MeasureSpec
from pytest_devicelab.runtimes.compile import FIX_SHAPES, OPEN, compile_context
from pytest_devicelab.runtimes.host import declared_inputs, run_on_host
from pytest_devicelab.runtimes.inputs import Arrays
from pytest_devicelab.runtimes.kit import Kit, Place
from pytest_devicelab.runtimes.names import file_problem, require_listable
from pytest_devicelab.runtimes.qairt import PROFILE_LOG, htp_kit, view_profile
from pytest_devicelab.runtimes.runtime import DeclaredInput, Job, Leftovers, OutputFile, Prepared
from pytest_devicelab.runtimes.timing import Timing, no_timing, read_profile_times
from pytest_devicelab.virtual.onnx_model import (
    load_model,
    op_types,
    open_inputs,
    output_quantization,
    signature,
)
from pytest_devicelab.virtual.profile import op_rows
from pytest_devicelab.virtual.tools.raw_files import native_file

_PROFILE = "qnn-profiling-data_0.csv"
_RENAME = "rename the outputs of the model, or run it under `runtime: ort`"
# What qnn-net-run calls the levels the matrix names. It knows no `off`: errors are the least it says.
_LOG_LEVELS = {"off": "error", "error": "error", "warn": "warn", "info": "info", "verbose": "verbose"}


class QnnRuntime:
    """qnn-net-run with a context binary compiled on the host for the chip."""

    name = "qnn"
    evidence_files: tuple[str, ...] = (_PROFILE,)
    suffixes: tuple[str, ...] = (".onnx",)
    timing_files: tuple[str, ...] = (_PROFILE, PROFILE_LOG)

    def require(self) -> None:
        """Ask for nothing: which of the packages are needed depends on the devices, and preflight says it."""

    def declared_inputs(self, model: Path) -> Mapping[str, DeclaredInput]:
        """Return what the ONNX model declares; its outputs must be such that each gets a file of its own."""
        declared, loaded = declared_inputs(model), load_model(model)
        if found := open_inputs(loaded):
            raise ModelError(
                f"{model}: the model leaves dimensions of its inputs open",
                why=f"{', '.join(found)}: {OPEN}",
                fix=FIX_SHAPES,
            )
        # Those may be named on the command line, where `;` ends the names of a graph.
        require_listable(model, (name for name, each in declared.items() if each.dtype != "float32"), (";",))
        if problem := file_problem([output.name for output in loaded.graph.output]):
            raise ModelError(f"{model}: qnn-net-run cannot write its outputs", why=problem, fix=_RENAME)
        return declared

    def run_on_host(self, model: Path, inputs: Arrays) -> Arrays:
        """Run the ONNX model on ONNX Runtime's CPU provider."""
        return run_on_host(model, inputs)

    def backend(self, spec: DeviceSpec, soc: Soc | None) -> str:
        """Say `htp`; `InfrastructureError` on a device whose NPU is not known to be a Hexagon."""
        if (
            soc is None
            or not soc.has_hexagon
            or soc.hexagon is None
            or (spec.simulated and spec.engine == "cpu")
        ):
            raise InfrastructureError(
                f"device {spec.id} has no Hexagon NPU that qnn could use",
                why=f"chip {soc.name if soc else 'unknown'}, Hexagon {soc.hexagon if soc else None}",
                fix=f"give device {spec.id} `runtime: ort` in the matrix, so that its models run there on the CPU",
            )
        return "htp"

    def prepare(
        self, model: Path, soc: Soc | None, options: Mapping[str, str], *, backend: str, cache: Path
    ) -> Prepared:
        """Compile the whole model for the chip; `CompileRefused` names the operators that did not go."""
        assert soc is not None, "backend() has refused a device whose chip is unknown"
        # Under qnn every model is strict: the whole graph compiles for the NPU, or nothing runs.
        compiler_options = {key: value for key, value in options.items() if key != "strict"}
        compiled = compile_context(model, soc, compiler_options, cache / "contexts")
        graph = load_model(model)
        if problem := file_problem([tensor.name for tensor in compiled.info.graphs[0].outputs]):
            raise CompileRefused(
                f"qnn-net-run cannot write the outputs of {model.name}", why=problem, fix=_RENAME
            )
        declared = {tensor.name: tensor.dtype for tensor in signature(graph)[0]}
        taken = compiled.info.graphs[0].inputs
        grids = output_quantization(graph)
        return Prepared(
            file=compiled.path,
            outputs=tuple(
                OutputFile(
                    name=tensor.name,
                    file=native_file(tensor.name, tensor.dtype),
                    dtype=tensor.dtype,
                    shape=tensor.shape,
                    quantization=tensor.quantization or grids.get(tensor.name),
                )
                for tensor in compiled.info.graphs[0].outputs
            ),
            options=compiled.options,
            versions=compiled.versions,
            log=compiled.log,
            op_types=op_types(graph),
            # Files hold what the model declares. Where the compiler moved the quantization of an input out of the
            # graph, the model declares float32 and the graph takes integers: then the runner quantizes.
            native_inputs=tuple(
                tensor.name
                for tensor in taken
                if tensor.dtype == declared.get(tensor.name) and tensor.dtype != "float32"
            ),
            op_sources=compiled.sources,
            graphs=tuple(graph.name for graph in compiled.info.graphs),
        )

    def kit(self, prepared: Prepared, place: Place) -> Kit | None:
        """Return qnn-net-run and the HTP libraries of the phone's Hexagon; None for a device that has its own.

        A phone with a runner of its own in the matrix has its libraries, too: one SDK's runner with another's libraries
        would be neither.
        """
        if place.spec.kind != "adb" or self.name in place.spec.runners:
            return None
        compiler = prepared.versions.get("qairt", "")
        return htp_kit(place, compiler=compiler, options=prepared.options, graph=prepared.graphs[0])

    def command(self, prepared: Prepared, job: Job) -> tuple[str, ...]:
        """Return qnn-net-run's command line."""
        level = f"--log_level={_LOG_LEVELS[job.log_level]}"
        return (*_common(prepared, job), "--profiling_level=detailed", level)

    def timed_command(self, prepared: Prepared, job: Job, plan: MeasureSpec) -> tuple[str, ...]:
        """Return it with the least profile that has times; it has no warm-up of its own."""
        return (
            *_common(prepared, job),
            f"--num_inferences={plan.warm_up + plan.inferences}",
            "--keep_num_outputs=1",
            "--profiling_level=basic",
            "--log_level=error",
        )

    def read_timing(
        self, prepared: Prepared, folder: Path, events: Iterable[Event], plan: MeasureSpec
    ) -> Timing:
        """Read the profile; one in the vendor's own format needs the viewer of the SDK."""
        profile = folder / _PROFILE
        if not profile.exists() and prepared.kit is not None:
            try:
                view_profile(prepared.kit, folder, _PROFILE)
            except TransferError as error:
                return no_timing(f"{error.what.rpartition('/')[2]}: {error.why}"[:300])
        if not profile.exists():
            return no_timing(
                "qnn-net-run's profile is in the vendor's format, and no SDK here has qnn-profile-viewer to read it"
                if (folder / PROFILE_LOG).exists()
                else "qnn-net-run left no profile"
            )
        return read_profile_times(profile.read_bytes(), plan)

    def read_outputs(self, prepared: Prepared, folder: Path) -> tuple[OutputFile, ...]:
        """Return what the context binary itself says it writes."""
        assert prepared.outputs is not None
        return prepared.outputs

    def read_leftovers(self, prepared: Prepared, folder: Path) -> Leftovers:
        """Read the op profile. There is no placement to read: the whole graph runs on the NPU or not at all."""
        profile = folder / _PROFILE
        if prepared.kit is not None and not profile.exists():
            view_profile(prepared.kit, folder, _PROFILE)
        if not profile.exists():
            return Leftovers()
        try:
            ops = op_rows(profile.read_bytes(), prepared.op_types, origins=prepared.op_sources)
        except (KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:
            raise TransferError(
                f"{profile}: not an op profile",
                why=f"{type(error).__name__}: {error}"[:500],
                fix="the runner stopped early, or its tools are of a version that writes another format",
            ) from error
        return Leftovers(ops=ops)


def _common(prepared: Prepared, job: Job) -> tuple[str, ...]:
    kit = prepared.kit
    return (
        job.program or (f"{job.kit_folder}/{kit.program}" if kit else "qnn-net-run"),
        f"--retrieve_context={job.model}",
        f"--backend={job.kit_folder}/libQnnHtp.so" if kit else "--backend=libQnnHtp.so",
        *(kit.arguments if kit else ()),
        f"--input_list={job.input_list}",
        f"--output_dir={job.output_dir}",
        *(
            # Names belong to a graph, also where there is one only. Source: Qualcomm's own wrapper of qnn-net-run.
            [f"--native_input_tensor_names={prepared.graphs[0]}:{','.join(prepared.native_inputs)}"]
            if prepared.native_inputs
            else []
        ),
        *(
            ["--use_native_output_files"]
            if any(output.dtype != "float32" for output in prepared.outputs or ())
            else []
        ),
    )
