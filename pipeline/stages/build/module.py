"""Model → Torch-TensorRT module, or a recipe if it cannot be saved (`<model>/<target>/<variant>/`)."""

from __future__ import annotations

import dataclasses
import shutil
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch

from model_artifacts.errors import BuildError, UnsupportedError, storage_errors
from model_artifacts.host import cuda
from model_artifacts.host.environment import installed_torch_tensorrt, missing_gpu, now, tools
from model_artifacts.host.factory_code import code_of
from model_artifacts.host.files import keeping, replacing
from model_artifacts.host.hashes import describe_file
from model_artifacts.records import Backend, EngineFlavour, ModuleContents, Recipe, Setting, Variant
from model_artifacts.sessions import torch_tensorrt_runtime
from model_artifacts.sessions.feeds.checks import shape_of as shape_at
from model_artifacts.sessions.torch_model import ready_to_compile
from model_artifacts.tensorrt.flavour import weight_warnings
from pipeline.adapters import torch_tensorrt_builder
from pipeline.adapters.torch_tensorrt_builder import ModuleRequest
from pipeline.planning.steps import Step
from pipeline.records import Artifact, Outcome
from pipeline.stages.build.sizes import inputs_with_ranges, outputs_with_axes, require_every_way
from pipeline.stages.build.spec import has_ways
from pipeline.stages.common.model import restore_model
from pipeline.stages.common.probe import inputs_of, shape_of
from pipeline.system.isolation import run_isolated
from pipeline.system.locks import exclusive, shared

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

    from torch import nn

    from model_artifacts.records import Gpu, Key, TensorSpec
    from pipeline.planning.project import Project


class _Compiled(NamedTuple):
    """The result of the process that compiled."""

    contents: ModuleContents
    settings: tuple[Setting, ...]
    outputs: tuple[TensorSpec, ...] = ()
    """The module's outputs, with the names of the axes that follow its inputs."""


def make_module(project: Project, variant: Variant, key: Key) -> Artifact:
    """Compile a variant in a process of its own, and save the module or its recipe.

    A module of the backend torch_compile is compiled here, too. That shows the operators that stay in PyTorch, and a
    model that cannot be compiled fails now.

    Args:
        project: the project, with the source stage's results.
        variant: a Torch-TensorRT module of the plan.
        key: the module's staleness key.

    Returns:
        the artifact, not yet written as a record.

    Raises:
        BuildError: the model cannot be traced, compiled or saved, or no part of it became an engine.
        CrashedError: the process died or took too long.
        UnsupportedError: this host cannot compile the variant.
        StorageError: the results cannot be written.
    """
    gpu = project.plan.gpu(variant.target)
    if gpu is None:
        raise UnsupportedError(missing_gpu())
    torch_tensorrt_runtime.check_libraries(project.plan.host.torch, installed_torch_tensorrt())
    torch_tensorrt_builder.check_format(variant.backend, installed_torch_tensorrt())
    path = project.paths.recipe(variant) if variant.backend is Backend.TORCH_COMPILE else project.paths.module(variant)
    # TensorRT-RTX times no tactics in a build, so that other steps may use the GPU meanwhile.
    work = exclusive if torch_tensorrt_builder.times_tactics() else shared
    with work(gpu), replacing(path) as temporary:
        began = time.perf_counter()
        made = _make_apart(project, variant, gpu, temporary)
        seconds = time.perf_counter() - began
        if variant.backend is Backend.TORCH_COMPILE:
            temporary.write_text(recipe_of(project, variant, made.settings).to_json(), encoding="utf-8")
    return Artifact(
        key=key,
        built_at=now(),
        toolchain=(*tools(), *made.contents.libraries),
        variant=variant,
        outcome=Outcome.DONE,
        file=describe_file(path, project.paths.root),
        log=describe_file(project.paths.build_log(variant), project.paths.root),
        inputs=inputs_with_ranges(project, variant),
        outputs=made.outputs,
        settings=made.settings,
        module=made.contents,
        build_seconds=round(seconds, 3),
        weight_warnings=weight_warnings(project.paths.build_log(variant).read_text(errors="replace")),
    )


def request_of(project: Project, variant: Variant, gpu: Gpu) -> ModuleRequest:
    """Return the request for a variant's module."""
    if variant.profile is None or variant.workspace is None:
        raise BuildError(f"{variant.id} is no module with a profile and a workspace")
    settings, source = project.config.torch_tensorrt, project.source()
    return ModuleRequest(
        backend=variant.backend,
        precision=variant.precision,
        profile=variant.profile,
        inputs=inputs_with_ranges(project, variant),
        workspace_bytes=variant.workspace.bytes,
        gpu=gpu,
        settings=settings,
        timing_cache=_timings_of(project, gpu),
        # The library's key ignores the workspace and the attributes of a model's operators.
        engine_cache=project.paths.engine_cache(variant) / source.key.digest[:16] if settings.engine_cache else None,
    )


def _timings_of(project: Project, gpu: Gpu) -> Path | None:
    """Return the timing cache of this TensorRT and GPU, which engines have, too: its kernels are the same.

    An engine in FP16 that was built before saved a module 10 of 26 s (TensorRT 10.6 with Torch-TensorRT 2.11, H200).
    """
    engines = torch_tensorrt_runtime.installed_tensorrt()
    if engines is None or not torch_tensorrt_builder.times_tactics():
        return None
    return project.paths.timing_cache(EngineFlavour(engines.name), engines.version, gpu)


def _make_apart(project: Project, variant: Variant, gpu: Gpu, path: Path) -> _Compiled:
    """Compile in a process of its own. The log is kept in any case."""
    with keeping(project.paths.build_log(variant)) as log:
        return run_isolated(
            _make,
            project,
            variant,
            gpu,
            path,
            timeout_seconds=project.config.torch_tensorrt.build_timeout_seconds,
            log=log,
            rerun=project.command(Step("build", variant.id)),
        )


def _make(project: Project, variant: Variant, gpu: Gpu, path: Path) -> _Compiled:
    library = torch_tensorrt_runtime.load_library()
    cuda.use(gpu)
    request = request_of(project, variant, gpu)
    if request.engine_cache is not None:
        with storage_errors(f"writing {request.engine_cache}"):
            request.engine_cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    outputs = outputs_with_axes(project, request)
    if has_ways(variant):
        require_every_way(project, request)
    model = ready_to_compile(restore_model(project), variant.precision, shape_of(inputs_of(project)))
    module = model.to(torch_tensorrt_runtime.device_of(gpu))
    with _own_timings(request) as own:
        made = (_compile_in_time if variant.backend is Backend.TORCH_COMPILE else _compile_ahead)(
            library, module, own, path
        )
    if made.contents.segments == 0:
        raise BuildError(
            "nothing of the model became a TensorRT engine",
            expected=f"at least one run of {request.settings.min_block_size} operators that TensorRT has",
            got=f"all of it stayed in PyTorch: {', '.join(made.contents.torch_operators) or 'no operators at all'}",
            fix="lower `torch_tensorrt.min_block_size` in pipeline.yaml",
        )
    return made._replace(outputs=outputs)


@contextmanager
def _own_timings(request: ModuleRequest) -> Iterator[ModuleRequest]:
    """Let a build write timings into a copy, which replaces the cache if it succeeds: the library writes in place."""
    if request.timing_cache is None:
        yield request
        return
    with replacing(request.timing_cache) as copy:
        if request.timing_cache.exists():
            shutil.copyfile(request.timing_cache, copy)
        yield dataclasses.replace(request, timing_cache=copy)


def _compile_ahead(library: ModuleType, module: nn.Module, request: ModuleRequest, path: Path) -> _Compiled:
    """Compile a module, and save it."""
    compiled = torch_tensorrt_builder.compile_ahead(library, module, request)
    torch_tensorrt_builder.save(library, compiled.module, request, path)
    return _Compiled(torch_tensorrt_runtime.contents_of(compiled.module), compiled.settings)


def _compile_in_time(library: ModuleType, module: nn.Module, request: ModuleRequest, _: Path) -> _Compiled:
    """Compile a module for each batch size, and return the contents for all of them."""
    known = torch_tensorrt_builder.known_settings(library)
    options = torch_tensorrt_builder.options_of(request, known, tunes=torch_tensorrt_builder.times_tactics())
    parts: list[ModuleContents] = []
    compiled = torch_tensorrt_runtime.compile_in_time(
        library, module, options.arguments, lambda part: parts.append(torch_tensorrt_runtime.contents_of(part))
    )
    with (
        torch.inference_mode(),
        torch_tensorrt_builder.detailed_layers(library),
        torch_tensorrt_runtime.tracing(constant_weights=True),
    ):
        for size in request.profile.sizes:
            _compile_for(compiled, size, request)
    if not parts:
        raise BuildError("torch.compile left the whole model to Python", got="no graph was compiled")
    return _Compiled(torch_tensorrt_runtime.of_all_sizes(parts), options.settings)


def _compile_for(module: nn.Module, size: int, request: ModuleRequest) -> None:
    """Compile a module for a batch size by running one batch."""
    failure = f"Torch-TensorRT cannot compile the model for batches of {size}"
    with torch_tensorrt_builder.compiling(failure, request.workspace_bytes):
        (image,) = request.inputs
        module(torch.zeros(shape_at(image, size, "opt"), device=torch_tensorrt_runtime.device_of(request.gpu)))


def recipe_of(project: Project, variant: Variant, settings: tuple[Setting, ...]) -> Recipe:
    """Return the recipe by which a module is compiled again, given the weights, the factory and these versions."""
    source = project.source()
    return Recipe(
        variant=variant,
        factory=source.factory,
        arguments=source.arguments,
        code=code_of(source.factory),
        replaced_head=source.replaced_head,
        torchvision_weights=source.torchvision_weights,
        logits=source.logits,
        output_names=source.output_names,
        classes=source.classes,
        weights=source.weights,
        input_shape=source.pictures.input_shape,
        warm_up=variant.profile.sizes if variant.profile else (),
        constant_weights=True,
        settings=torch_tensorrt_runtime.without_caches(settings),
        libraries=torch_tensorrt_runtime.libraries(),
    )
