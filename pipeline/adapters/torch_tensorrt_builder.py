"""PyTorch module → module with TensorRT engines, by any version of Torch-TensorRT: settings, compilation and files."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
import os
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from model_artifacts.errors import BuildError, UnsupportedError, one_line, shortened
from model_artifacts.host.environment import installed_torch_tensorrt
from model_artifacts.records import Backend, Precision, Setting
from model_artifacts.sessions.feeds.checks import shape_of
from model_artifacts.sessions.torch_tensorrt_runtime import (
    BUILDER_LOGGER,
    ENGINE_CACHES,
    device_of,
    reason_of,
    untraceable,
)
from model_artifacts.tensorrt.flavour import BuildLog
from pipeline.adapters.tensorrt_builder import explain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType
    from typing import Any

    from torch import nn

    from model_artifacts.records import AxisRange, BatchRange, Gpu, TensorSpec, Tool
    from pipeline.config.settings import TorchTensorRTConfig


@dataclass(frozen=True)
class ModuleRequest:
    """The description of a module to compile."""

    backend: Backend
    """`torch_compile`, or one of `dynamo`'s."""
    precision: Precision
    profile: BatchRange
    inputs: tuple[TensorSpec, ...]
    """The inputs in the module's order, with the ranges of their dynamic axes beside the batch."""
    workspace_bytes: int
    gpu: Gpu
    settings: TorchTensorRTConfig
    timing_cache: Path | None
    """The file of the timing cache. None if its TensorRT times no tactics."""
    engine_cache: Path | None
    """The variant's folder of engines. None keeps no engines."""

    @property
    def has_axes(self) -> bool:
        """True if inputs have dynamic axes beside the batch."""
        return any(spec.ranges for spec in self.inputs)


class Compiled(NamedTuple):
    """A module that runs TensorRT engines, with its settings."""

    module: nn.Module
    settings: tuple[Setting, ...]


class Options(NamedTuple):
    """The keyword arguments for one version, with every setting as applied or unsupported."""

    arguments: dict[str, object]
    settings: tuple[Setting, ...]


def options_of(request: ModuleRequest, known: frozenset[str], *, tunes: bool) -> Options:
    """Return a request's settings as keyword arguments of a version. Pure.

    The precision is the module's own, because engines are strongly typed: by a setting until 2.12, always from 2.13 on.

    Args:
        request: the module to compile.
        known: the names of the version's settings.
        tunes: True if its TensorRT times tactics. TensorRT-RTX does not, and ignores settings for that.
    """
    wanted: dict[str, object] = {
        "workspace_size": request.workspace_bytes,
        "min_block_size": request.settings.min_block_size,
        "disable_tf32": request.precision is Precision.FP32,
        "use_explicit_typing": True,
        "pass_through_build_failures": True,
        # The default is one file for the whole host. Builds in parallel would read it half-written.
        "timing_cache_path": str(request.timing_cache or os.devnull),
    }
    if request.settings.optimization_level is not None:
        wanted["optimization_level"] = request.settings.optimization_level
    if request.settings.require_full_compilation:
        wanted["require_full_compilation"] = True
    if request.engine_cache is not None:
        wanted |= {
            **dict.fromkeys(sorted(ENGINE_CACHES), True),
            "engine_cache_dir": str(request.engine_cache),
            "immutable_weights": False,  # with immutable weights, the default, the library caches no engines
        }
    refused = {name: "this version has no such setting" for name in wanted if name not in known}
    if "use_explicit_typing" in refused:
        refused["use_explicit_typing"] = "this version has no such setting: its engines are always strongly typed"
    if not tunes:
        refused |= {name: reason for name, reason in _IGNORED.items() if wanted.get(name, False) is not False}
    if request.backend is Backend.TORCH_COMPILE and "require_full_compilation" in wanted:
        refused["require_full_compilation"] = "torch_compile leaves to PyTorch what it cannot convert"
    private = {"timing_cache_path", "engine_cache_dir"}  # paths of this host
    settings = tuple(
        Setting(name=name, value=_shown(value), applied=name not in refused, note=refused.get(name, ""))
        for name, value in wanted.items()
        if name not in private
    )
    return Options({name: value for name, value in wanted.items() if name not in refused}, settings)


_IGNORED = {
    "disable_tf32": "TensorRT-RTX multiplies FP32 in TF32 whatever the flag says",
    "optimization_level": "TensorRT-RTX builds ahead of time, and has no use for it",
}


def _shown(value: object) -> str:
    """Return a setting's value as text, with on and off for flags."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def times_tactics() -> bool:
    """Return True if the installed Torch-TensorRT times kernels during a build. That of TensorRT-RTX does not."""
    return installed_torch_tensorrt().name == "torch-tensorrt"


_PACKAGES_CRASH = {("torch-tensorrt-rtx", "2.11")}
"""Versions whose AOTInductor packages crash every process that loads them (SIGSEGV), except the one that made them.

Measured on an H100 with torch 2.11, also in processes that used CUDA before. pytorch/TensorRT#3879 is similar.
"""


def check_format(backend: Backend, library: Tool) -> None:
    """Check that a version can load the modules that it saves.

    Args:
        backend: the module's, with its file format.
        library: Torch-TensorRT.

    Raises:
        UnsupportedError: loading crashes the process.
    """
    if backend is Backend.DYNAMO_AOTI and (library.name, ".".join(library.version.split(".")[:2])) in _PACKAGES_CRASH:
        raise UnsupportedError(
            f"an AOTInductor package of {library.name} {library.version} crashes every process that loads it",
            fix="take `exported_program`, or another version",
        )


def known_settings(library: ModuleType) -> frozenset[str]:
    """Return the names of the installed version's settings. The version drops unknown settings without a message."""
    fields = {field.name for field in dataclasses.fields(library.dynamo.CompilationSettings)}
    parameters = inspect.signature(library.dynamo.compile).parameters.values()
    return frozenset(fields | {item.name for item in parameters if item.kind is not item.VAR_KEYWORD})


def examples_of(request: ModuleRequest, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Return the inputs that a module is traced with: zeros.

    The batch is the largest, because torch takes a batch of 1 for a constant size. Other axes have the size that the
    engine is tuned for, since Torch-TensorRT tunes it for the sizes of the trace (2.11, `extract_var_range_info`). It
    is not their smallest, at which torch cannot trace them (pytorch/pytorch#176349).
    """

    def size_of(axis: AxisRange) -> int:
        return axis.opt if axis.opt > axis.min else axis.max

    found = []
    for spec in request.inputs:
        sizes = {axis.name: size_of(axis) for axis in spec.ranges}
        shape = (request.profile.max, *(size if isinstance(size, int) else sizes[size] for size in spec.shape[1:]))
        found.append(torch.zeros(shape, dtype=getattr(torch, spec.dtype), device=device))
    return tuple(found)


def dims_of(request: ModuleRequest) -> tuple[dict[int, torch.export.Dim], ...] | None:
    """Return torch's dimension of each dynamic axis by its place, for each input; None if all are fixed.

    One name is one dimension, in whichever inputs it stands.
    """
    profile = request.profile
    batch = {} if profile.is_fixed else {0: torch.export.Dim("batch", min=profile.min, max=profile.max)}
    ranges = {axis.name: axis for spec in request.inputs for axis in spec.ranges}
    dims = {name: torch.export.Dim(name, min=axis.min, max=axis.max) for name, axis in ranges.items()}
    found = tuple(
        batch | {place: dims[size] for place, size in enumerate(spec.shape) if place and isinstance(size, str)}
        for spec in request.inputs
    )
    return found if any(found) else None


def trace(module: nn.Module, request: ModuleRequest, device: torch.device) -> torch.export.ExportedProgram:
    """Trace a module for all sizes of a request.

    What the module asks of dynamic axes beside the batch becomes checks in the trace, which the compiler drops: the
    caller must compare the trace with the network wherever they do not hold. torch alone would refuse networks that
    compute the same there, as with `avg_pool2d(ceil_mode=True)`, and lets a condition on two axes pass.

    Args:
        module: a module on the device, as `ready_to_compile` returns it.
        request: its inputs and its batch range.
        device: where the module is.

    Raises:
        BuildError: torch cannot trace it.
    """
    examples, dims = examples_of(request, device), dims_of(request)
    several = {"inputs": dims} if dims is not None and len(examples) > 1 else dims  # `TypedInputs.forward`
    checks: dict[str, Any] = {"prefer_deferred_runtime_asserts_over_guards": True} if request.has_axes else {}
    try:
        return torch.export.export(module, examples, dynamic_shapes=several, **checks)
    except Exception as exc:
        raise _of_fewer_sizes(exc, request) or untraceable(exc) from exc


def _of_fewer_sizes(exc: Exception, request: ModuleRequest) -> BuildError | None:
    """Return the error of a trace that takes a part of the ranges alone; None for any other failure."""
    violated = [line[4:] for line in str(exc).splitlines() if line.startswith("  - ")]
    if not request.has_axes or not violated:
        return None
    axes = {axis.name: axis for spec in request.inputs for axis in spec.ranges}.values()
    return BuildError(
        "the model does not take every size in its ranges",
        expected=f"{', '.join(f'{axis.name} {axis.min} to {axis.max}' for axis in axes)}, as `profiles` says",
        got=shortened(violated[0]),
        fix="let forward read the size where it needs it (`x.shape[2]`), and take layers that fit all sizes, such as "
        "`AdaptiveAvgPool2d`; or write the batch alone in `profiles`",
    )


def _require_resizes(program: torch.export.ExportedProgram, request: ModuleRequest) -> None:
    """Refuse resizes to a size of the input beside a range of batches.

    Torch-TensorRT's converter raises a TypeError there (2.11 to 2.14, `get_shape_with_dynamic_shape`). Left in PyTorch,
    such a resize would get its sizes from an engine, as tensors on the GPU.
    """
    resizes = [
        str(node.target)
        for node in program.graph.nodes
        if node.op == "call_function" and "upsample" in str(node.target)
        if any(isinstance(size, torch.fx.Node) for size in node.args[1] or ())
    ]
    if resizes and not request.profile.is_fixed:
        raise UnsupportedError(
            "Torch-TensorRT resizes to a size of the input in batches of one size alone",
            expected="a profile with one batch size beside the other axes",
            got=f"{resizes[0]} in batches of {request.profile.min} to {request.profile.max}",
            fix="write such a profile for modules, as `{batch: 8, height: …}` in `profiles` and in "
            "`torch_tensorrt.profiles`; or resize by `scale_factor`",
        )


def compile_ahead(library: ModuleType, module: nn.Module, request: ModuleRequest) -> Compiled:
    """Trace a module and build its engines.

    Args:
        library: Torch-TensorRT.
        module: a module on the GPU, in its precision, with contiguous weights. Inputs and outputs are float32.
        request: its batch range, its settings and the GPU.

    Raises:
        BuildError: torch cannot trace the module, or TensorRT cannot build its engines.
        UnsupportedError: this version cannot convert or save such a module.
    """
    _require_saving(library, request)
    program = trace(module, request, device_of(request.gpu))
    _require_resizes(program, request)
    options = options_of(request, known_settings(library), tunes=times_tactics())
    device = library.Device(gpu_id=request.gpu.index)
    with compiling("Torch-TensorRT cannot compile the model", request.workspace_bytes), detailed_layers(library):
        compiled = library.dynamo.compile(
            program, arg_inputs=_inputs(library, request), device=device, **options.arguments
        )
    return Compiled(compiled, options.settings)


class _LogHandler(logging.Handler):
    """Copies the errors of a Python logger to a build log."""

    def __init__(self, log: BuildLog) -> None:
        super().__init__(logging.ERROR)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.add("ERROR", record.getMessage())


@contextlib.contextmanager
def compiling(failure: str, workspace_bytes: int) -> Iterator[None]:
    """Translate the library's errors. Without an engine from TensorRT's builder it fails with an error about None.

    Args:
        failure: the message of the error.
        workspace_bytes: the builder's limit of scratch memory.

    Raises:
        BuildError: the compilation failed. The error has the builder's reason, if there is one.
    """
    log = BuildLog()
    logger, handler = logging.getLogger(BUILDER_LOGGER), _LogHandler(log)
    logger.addHandler(handler)
    try:
        yield
    except torch._dynamo.exc.Unsupported as exc:  # noqa: SLF001 - there is no public name
        raise untraceable(exc) from exc
    except Exception as exc:
        raise explain(log, workspace_bytes) or _not_compiled(failure, exc, log.errors()) from exc
    finally:
        logger.removeHandler(handler)


def _not_compiled(failure: str, error: Exception, messages: list[str]) -> BuildError:
    """Return the error of a failed compilation, with the builder's first error message."""
    if not messages and "deserialize_cuda_engine" in str(error):
        fix = "raise `workspaces` in pipeline.yaml; too little workspace is the most frequent cause"
        return BuildError(failure, got="TensorRT's builder returned no engine, and no reason", fix=fix)
    return BuildError(failure, got="; ".join([reason_of(error), *(shortened(text) for text in messages[:1])]))


@contextlib.contextmanager
def detailed_layers(library: ModuleType) -> Iterator[None]:
    """Build engines that report the types of their layers. The library's only switch for this is in its debugger."""
    debugger = getattr(library.dynamo, "Debugger", None)
    if debugger is None:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        watch = debugger(log_level="error", save_engine_profile=True, engine_builder_monitor=False, logging_dir=folder)
        with watch:
            yield


def _inputs(library: ModuleType, request: ModuleRequest) -> list[Any]:
    """Return the library's description of each input, for the request's ranges."""
    profile, found = request.profile, []
    ends = ((profile.min, "min"), (profile.opt, "opt"), (profile.max, "max"))
    for spec in request.inputs:
        low, best, high = (shape_of(spec, size, end) for size, end in ends)
        dtype = getattr(torch, spec.dtype)
        if low == high:
            found.append(library.Input(shape=low, dtype=dtype))
        else:
            found.append(library.Input(min_shape=low, opt_shape=best, max_shape=high, dtype=dtype))
    return found


def _names_dims(request: ModuleRequest) -> bool:
    """Return true if a module is saved with torch's dimensions: the library's own of two inputs share no size."""
    return request.has_axes or len(request.inputs) > 1


def _require_saving(library: ModuleType, request: ModuleRequest) -> None:
    """Refuse dynamic axes beside the batch, and several inputs, for a version that saves no torch dimensions."""
    if _names_dims(request) and "dynamic_shapes" not in inspect.signature(library.save).parameters:
        raise UnsupportedError(
            "this version of Torch-TensorRT cannot save modules of several sizes or inputs",
            expected="a `save` that takes `dynamic_shapes`",
            got=f"{library.__name__} without it",
            fix="install Torch-TensorRT 2.11 or newer, or write the batch alone in `profiles`",
        )


def save(library: ModuleType, compiled: nn.Module, request: ModuleRequest, path: Path) -> None:
    """Write a compiled module as an ExportedProgram or as an AOTInductor package, by its backend.

    Raises:
        BuildError: this version cannot save the module in the format.
    """
    form = "aot_inductor" if request.backend is Backend.DYNAMO_AOTI else "exported_program"
    given: dict[str, object] = {"arg_inputs": _inputs(library, request)}
    if _names_dims(request):
        given = {"arg_inputs": [*examples_of(request, device_of(request.gpu))], "dynamic_shapes": dims_of(request)}
    try:
        library.save(compiled, str(path), output_format=form, **given)
    except Exception as exc:
        raise BuildError(f"Torch-TensorRT cannot save the module as {form}", got=one_line(exc)) from exc
