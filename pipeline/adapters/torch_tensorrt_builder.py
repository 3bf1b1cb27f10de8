"""The one place that knows Torch-TensorRT's versions: which settings each has, and how it compiles, saves and loads."""

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

from model_artifacts.errors import BuildError, UnsupportedError, one_line
from model_artifacts.host.environment import installed_torch_tensorrt
from model_artifacts.records import Backend, Precision, Setting
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

    from model_artifacts.records import BatchRange, Gpu, Tool
    from pipeline.config.settings import TorchTensorRTConfig


@dataclass(frozen=True)
class ModuleRequest:
    """What to compile, and how."""

    mode: Backend
    precision: Precision
    profile: BatchRange
    input_shape: tuple[int, int, int]
    """(channels, height, width)."""
    workspace_bytes: int
    gpu: Gpu
    settings: TorchTensorRTConfig
    timing_cache: Path | None
    """None where its TensorRT times no tactics."""
    engine_cache: Path | None
    """The variant's own folder; None keeps no engines."""


class Compiled(NamedTuple):
    """A module that runs TensorRT engines, and how it was made."""

    module: nn.Module
    settings: tuple[Setting, ...]


class Options(NamedTuple):
    """The keyword arguments of one version, and what became of every setting."""

    arguments: dict[str, object]
    settings: tuple[Setting, ...]


def options_of(request: ModuleRequest, known: frozenset[str], *, tunes: bool) -> Options:
    """Return a request's settings as a version takes them. Pure.

    Precision is the module's own: engines are strongly typed, by a setting until 2.12 and always from 2.13 on.

    Args:
        request: what to compile.
        known: the names of that version's settings.
        tunes: its TensorRT times tactics; TensorRT-RTX does not, and ignores what is for that.
    """
    wanted: dict[str, object] = {
        "workspace_size": request.workspace_bytes,
        "min_block_size": request.settings.min_block_size,
        "disable_tf32": request.precision is Precision.FP32,
        "use_explicit_typing": True,
        "pass_through_build_failures": True,
        # The default is one file of the host, which builds that run side by side would read half-written.
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
            "immutable_weights": False,  # by default they are, and the library neither keeps nor takes such engines
        }
    refused = {name: "this version has no such setting" for name in wanted if name not in known}
    if "use_explicit_typing" in refused:
        refused["use_explicit_typing"] = "this version has no such setting: its engines are always strongly typed"
    if not tunes:
        refused |= {name: why for name, why in _IGNORED.items() if wanted.get(name, False) is not False}
    if request.mode is Backend.TORCH_COMPILE and "require_full_compilation" in wanted:
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
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def times_tactics() -> bool:
    """Return whether the installed Torch-TensorRT times kernels while it builds: TensorRT-RTX compiles them later."""
    return installed_torch_tensorrt().name == "torch-tensorrt"


_PACKAGES_CRASH = {("torch-tensorrt-rtx", "2.11")}
"""Whose AOTInductor packages end the process that loads them by SIGSEGV, unless it has made them.

Seen on an H100 with torch 2.11, also after CUDA was used there; pytorch/TensorRT#3879 is alike.
"""


def check_format(mode: Backend, library: Tool) -> None:
    """Check that what a version saves can be loaded again.

    Raises:
        UnsupportedError: it cannot.
    """
    if mode is Backend.DYNAMO_AOTI and (library.name, ".".join(library.version.split(".")[:2])) in _PACKAGES_CRASH:
        raise UnsupportedError(
            f"an AOTInductor package of {library.name} {library.version} crashes every process that loads it",
            fix="take `exported_program`, or another version",
        )


def known_settings(library: ModuleType) -> frozenset[str]:
    """Return the names of the installed version's settings; what it does not know it would drop in silence."""
    fields = {field.name for field in dataclasses.fields(library.dynamo.CompilationSettings)}
    parameters = inspect.signature(library.dynamo.compile).parameters.values()
    return frozenset(fields | {item.name for item in parameters if item.kind is not item.VAR_KEYWORD})


def compile_ahead(library: ModuleType, module: nn.Module, request: ModuleRequest) -> Compiled:
    """Trace a module and build its engines.

    Args:
        library: Torch-TensorRT.
        module: on the GPU, in its precision, with contiguous weights; float32 in, float32 out.
        request: what to compile.

    Raises:
        BuildError: torch cannot trace it, or TensorRT cannot build it.
    """
    options = options_of(request, known_settings(library), tunes=times_tactics())
    # The largest batch: torch takes one of a single image for a size that is always 1.
    example = torch.zeros(request.profile.max, *request.input_shape, device=device_of(request.gpu))
    shapes = None
    if not request.profile.is_fixed:
        shapes = ({0: torch.export.Dim("batch", min=request.profile.min, max=request.profile.max)},)
    try:
        program = torch.export.export(module, (example,), dynamic_shapes=shapes)
    except Exception as exc:
        raise untraceable(exc) from exc
    device = library.Device(gpu_id=request.gpu.index)
    with compiling("Torch-TensorRT cannot compile the model", request.workspace_bytes), detailed_layers(library):
        compiled = library.dynamo.compile(
            program, arg_inputs=[_input(library, request)], device=device, **options.arguments
        )
    return Compiled(compiled, options.settings)


class _Keeper(logging.Handler):
    """Appends to a log what a library says through Python's."""

    def __init__(self, log: BuildLog) -> None:
        super().__init__(logging.ERROR)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.add("ERROR", record.getMessage())


@contextlib.contextmanager
def compiling(what: str, workspace_bytes: int) -> Iterator[None]:
    """Translate what the library raises: where TensorRT's builder gave no engine, it fails at what is None.

    Args:
        what: fails.
        workspace_bytes: what the builder is given.

    Raises:
        BuildError: with the builder's reason where it gave one.
    """
    log = BuildLog()
    logger, keeper = logging.getLogger(BUILDER_LOGGER), _Keeper(log)
    logger.addHandler(keeper)
    try:
        yield
    except torch._dynamo.exc.Unsupported as exc:  # noqa: SLF001 - there is no public name
        raise untraceable(exc) from exc
    except Exception as exc:
        raise explain(log, workspace_bytes) or _not_compiled(what, exc, log.errors()) from exc
    finally:
        logger.removeHandler(keeper)


def _not_compiled(what: str, error: Exception, said: list[str]) -> BuildError:
    if not said and "deserialize_cuda_engine" in str(error):
        fix = "give `workspaces` in pipeline.yaml more, which is what it lacks most often"
        return BuildError(what, got="TensorRT's builder gave no engine, and no reason", fix=fix)
    return BuildError(what, got="; ".join([reason_of(error), *(words[:300] for words in said[:1])]))


@contextlib.contextmanager
def detailed_layers(library: ModuleType) -> Iterator[None]:
    """Have engines built that tell the types of their layers; the library has a switch for it in its debugger only."""
    debugger = getattr(library.dynamo, "Debugger", None)
    if debugger is None:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        watch = debugger(log_level="error", save_engine_profile=True, engine_builder_monitor=False, logging_dir=folder)
        with watch:
            yield


def _input(library: ModuleType, request: ModuleRequest) -> Any:  # noqa: ANN401 - untyped
    profile = request.profile
    low, best, high = ((size, *request.input_shape) for size in (profile.min, profile.opt, profile.max))
    if profile.is_fixed:
        return library.Input(shape=low, dtype=torch.float32)
    return library.Input(min_shape=low, opt_shape=best, max_shape=high, dtype=torch.float32)


def save(library: ModuleType, compiled: nn.Module, request: ModuleRequest, path: Path) -> None:
    """Write a compiled module: an ExportedProgram, or an AOTInductor package.

    Raises:
        BuildError: it cannot be saved, or this version does not know the format.
    """
    form = "aot_inductor" if request.mode is Backend.DYNAMO_AOTI else "exported_program"
    try:
        library.save(compiled, str(path), output_format=form, arg_inputs=[_input(library, request)])
    except Exception as exc:
        raise BuildError(f"Torch-TensorRT cannot save the module as {form}", got=one_line(exc)) from exc
