"""The stage `build`: engines, Torch-TensorRT modules and other artifacts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.records import CPU_TARGET, Backend, EngineFlavour
from pipeline.config.axes import named_inputs, own_sizes
from pipeline.config.values import QUANTIZED_PRECISIONS
from pipeline.planning.freshness import failed_or_lacked_before
from pipeline.planning.keys import code_version, driver_presence, gpu_type, installed_for, make_key
from pipeline.planning.spec import VARIANT, StageSpec
from pipeline.records import Artifact
from pipeline.stages.common import inputs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from model_artifacts.records import AxisRange, BatchRange, Key, Variant
    from pipeline.planning.paths import Paths
    from pipeline.planning.plan import Plan
    from pipeline.planning.project import Project
    from pipeline.planning.schedule import Schedule
    from pipeline.planning.spec import Input
    from pipeline.planning.steps import Step
    from pipeline.planning.targets import GpuTarget

VERSION = 5
"""Raise it when Torch-TensorRT gets other instructions for the same model. Since 2 a model is one graph. Since 3 a
trace that computes something else than the network is not used. Since 4 weights that torch computes in every call are
baked first. Since 5 engines of `torch_compile` hold the weights."""

ENGINE_VERSION = 1
"""Raise it when TensorRT gets other instructions for the same graph."""

AXES_VERSION = 3
"""The same for modules with dynamic axes beside the batch. Without it they were skipped. Since 2 a comparison that the
trace does not ask for counts as a branch. Since 3 so does a text of a size, what follows a question for its type, and
a way in a narrow type alone."""

BATCHES_VERSION = 2
"""The same for saved modules with a range of batches alone. 1 compares the trace with the network between its ends.
Since 2 texts and types of sizes count, and ways in a narrow type, as for other axes."""

TENSORS_VERSION = 1
"""The same for modules on a GPU of models that take tensors. Without it they were skipped."""

ENDS_VERSION = 1
"""Raise it when the same `io` gives another graph."""


def _range_fields(project: Project, variant: Variant) -> dict[str, object]:
    """Return the fields of a Torch-TensorRT module with a range of batches, or of other axes."""
    if variant.profile and variant.profile.axes:
        return {"axes": [AXES_VERSION, [[item.input, item.axes] for item in project.config.data.axes]]}
    return {"batches": BATCHES_VERSION} if has_ways(variant) else {}


def has_ways(variant: Variant) -> bool:
    """Return True for a module that is traced once for several sizes: a saved one with a range.

    A recipe is compiled for each of its batch sizes, and judged in it.
    """
    profile = variant.profile
    if profile is None or variant.backend is Backend.TORCH_COMPILE:
        return False
    return bool(profile.axes) or not profile.is_fixed


def _module_key(project: Project, variant: Variant, where: dict[str, object]) -> Key:
    """Return the key of an artifact that torch runs.

    Args:
        project: the source stage must have run.
        variant: the artifact.
        where: the fields of the place where it is built.
    """
    source, has = project.source(), installed_for(project, variant.target)
    compiled = variant.backend.is_torch_tensorrt
    if compiled:
        where["compiler"] = VERSION
    if source.named_inputs:  # such models had no module once
        where["inputs"] = [spec.name for spec in source.named_inputs]
        where |= {"tensors": TENSORS_VERSION} if variant.target != CPU_TARGET else {}
    where |= _range_fields(project, variant) if compiled else {}
    return make_key(
        variant=variant.id,
        model=source.key.digest,
        weights=source.weights.sha256,
        workspace=variant.workspace,
        profile=variant.profile,
        torch=has.torch,
        torch_tensorrt=has.torch_tensorrt if compiled else None,
        tensorrt=has.tensorrt if compiled else None,
        settings=project.config.torch_tensorrt.build_settings if compiled else None,
        **where,
    )


def build_key(project: Project, variant: Variant) -> Key:
    """Return the key of an artifact."""
    where: dict[str, object] = {}
    if variant.target != CPU_TARGET:
        where = {"gpu": gpu_type(project.plan.gpu(variant.target)), "driver": driver_presence(project, variant)}
    if variant.graph is None:
        return _module_key(project, variant, where)
    graph = project.onnx(variant.graph)
    if not variant.io.is_plain:
        where["io"] = [variant.io.model_dump(mode="json"), ENDS_VERSION]
        where["preprocessing"] = project.source().preprocessing
    if axes := axes_of(project, variant.profile) if variant.profile else project.config.axes:
        where["axes"] = [axis.model_dump(mode="json") for axis in axes]
    if variant.backend is Backend.ONNXRUNTIME_TENSORRT:
        workers = project.plan.workers_of(variant.target)
        machine = workers.machine if workers else project.plan.host
        where["tensorrt"] = machine.tensorrt(EngineFlavour.TENSORRT)
        where |= {"workspace": variant.workspace, "profile": variant.profile}
    if variant.backend is not Backend.TENSORRT:
        return make_key(
            variant=variant.id,
            onnx=graph.canonical_sha256,
            file=graph.file.sha256,
            **where,
        )
    target = project.plan.engine_target(variant)
    settings = project.config.tensorrt
    return make_key(
        variant=variant.id,
        onnx=graph.canonical_sha256,
        workspace=variant.workspace,
        profile=variant.profile,
        compute_capabilities=target.compute_capabilities,
        gpu=None if target.compute_capabilities else gpu_type(target.gpu),
        flavour=target.flavour,
        flavour_version=target.flavour_version,
        cuda_major=target.cuda_major,
        settings=settings.key_settings,
        weights_apart=bool(target.gpu) if settings.refit or settings.strip_plan else None,  # refitting needs a GPU
        **_trial(variant, target),
        **{name: where[name] for name in ("io", "preprocessing", "axes") if name in where},
        **code_version(ENGINE_VERSION),
    )


def _trial(variant: Variant, target: GpuTarget) -> dict[str, object]:
    """Return the key's field for engines that are tried first: TensorRT-RTX builds some quantised layers with a GPU."""
    tried = target.flavour is EngineFlavour.TENSORRT_RTX and variant.precision in QUANTIZED_PRECISIONS
    return {"has_gpu": True} if tried and target.compute_capabilities and target.gpu else {}


def axes_of(project: Project, profile: BatchRange) -> tuple[AxisRange, ...]:
    """Return the range of each dynamic axis of the graphs; one that a profile leaves out has the samples' own size."""
    config = project.config
    if not config.axes:
        return ()
    specs, ranges = project.source().inputs, {axis.name: axis for axis in profile.axes}
    own = own_sizes(specs, named_inputs(specs, config.data.axes, config.axes))
    return tuple(
        ranges.get(axis.name)
        or axis.model_copy(update=dict.fromkeys(("min", "opt", "max"), own.get(axis.name, axis.max)))
        for axis in config.axes
    )


def _requires(schedule: Schedule, variant: Variant) -> tuple[Step, ...]:
    return (schedule.plan.graph_step(variant.graph),) if variant.graph else schedule.of("source")


def _inputs(project: Project, variant: Variant) -> Iterator[Input]:
    yield inputs.source(project, (variant,))
    yield from inputs.graph(project, variant)
    if project.config.tensorrt.refit:
        yield from inputs.artifact_if_whole(project, variant)
    for smaller in project.plan.family(variant):
        yield from inputs.artifact_if_whole(project, smaller)


def _own_files(paths: Paths, variant: Variant) -> tuple[Path, ...]:
    built = paths.engine(variant), paths.graph(variant), paths.module(variant), paths.recipe(variant)
    return (*built, paths.build_log(variant))


def _is_shared(_plan: Plan, variant: Variant) -> bool:
    return variant.backend is Backend.TENSORRT or variant.backend.is_torch_tensorrt


def _lacks_hardware(plan: Plan, variant: Variant) -> bool:
    on_gpu = variant.target != CPU_TARGET and plan.gpu(variant.target) is None
    return on_gpu and variant.backend is not Backend.TENSORRT  # some engines are built without a GPU


SPEC = StageSpec(
    name="build",
    sentence="TensorRT engines and modules for every precision, batch profile and workspace.",
    subjects=VARIANT,
    version=VERSION,
    record=Artifact,
    records=lambda paths, _plan, variant: (paths.artifact(variant),),
    files=lambda paths, _plan, variant: _own_files(paths, variant),
    replaced=_own_files,
    key=build_key,
    run="pipeline.stages.build.stage:run",
    seconds=2,
    requires=_requires,
    follows=lambda schedule, variant: schedule.smaller("build", variant),  # it may share the engine of one of them
    inputs=_inputs,
    retried=failed_or_lacked_before,
    is_shared=_is_shared,
    lacks_hardware=_lacks_hardware,
    in_manifest=True,
    tunes=True,
)
