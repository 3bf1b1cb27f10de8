"""Variant → artifact of any backend, or the record of a build that failed or was skipped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.errors import BuildError, UnsupportedError
from model_artifacts.host.environment import installed, missing_gpu, now, tools
from model_artifacts.host.hashes import describe_file
from model_artifacts.host.record_files import refuse_newer
from model_artifacts.host.terminal import size_phrase
from model_artifacts.records import CPU_TARGET, Backend, Layout, Variant
from pipeline.planning.keys import key_of
from pipeline.planning.steps import Step
from pipeline.records import Artifact, Outcome
from pipeline.stages.build.spec import axes_of
from pipeline.stages.common.console import say_outcome
from pipeline.stages.common.outcomes import attempt

if TYPE_CHECKING:
    from model_artifacts.records import AxisRange, Key, ModuleContents
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Console
    from pipeline.stages.common.outcomes import Ending


_NO_MODULE = "the model is an ONNX file, and PyTorch runs none: this needs a network of torch (`model.factory`)"
_NO_RECIPE_OF_TENSORS = (
    "the model takes the tensors of `data.tensors`, and a recipe of torch_compile describes images alone: take the "
    "saved modules (dynamo), the engines or the ONNX files"
)
_NO_LAYOUT_OF_TENSORS = "the model takes the tensors of `data.tensors`, and only images lie in channels_last"

_NO_RECIPE_OF_SIZES = (
    "torch_compile builds an engine for each shape of a batch when it first comes, and this profile takes samples of "
    "several sizes: a call in a deployment would build for seconds, and no gate would have judged that engine. Take "
    "the saved modules (dynamo) or the engines, or give it profiles of the batch alone (`torch_tensorrt.profiles`)"
)

_PLAIN_ALONE = (
    "graphs with dynamic axes beside the batch take normalised float32 images and give the network's own outputs"
)

_ONE_PROFILE = (
    "only engines have a profile for each batch size; this is made for one range of batch sizes: write {min, opt, max}"
)
_OWN_ENDS = "Torch-TensorRT's modules take normalised float32 images and give the network's own outputs"


def build_variant(project: Project, variant: Variant) -> Artifact:
    """Build a variant, and record its outcome: done, or skipped or failed with a reason.

    Raises:
        RecordError: the source or the graph is missing.
        KilledError: on a worker of a farm, something outside has ended the builder.
        StorageError: the results cannot be written.
    """
    refuse_newer(project.paths.artifact(variant))
    key = key_of(project, Step("build", variant.id))
    build = attempt(lambda: _build(project, variant, key), BuildError, on_worker=project.on_worker, full_reason=True)
    artifact = build.result or _unbuilt(project, variant, key, build.ending)
    return project.write(project.paths.artifact(variant), artifact)


def _build(project: Project, variant: Variant, key: Key) -> Artifact:
    if project.config.axes and not variant.io.is_plain:
        raise UnsupportedError(_PLAIN_ALONE)
    if variant.backend is Backend.TENSORRT:
        from pipeline.stages.build.engine import make_engine  # noqa: PLC0415 - other variants need no TensorRT

        return make_engine(project, variant, key)
    if variant.profile and variant.profile.tuned:
        raise UnsupportedError(_ONE_PROFILE)
    if variant.backend.is_module:
        _require_module(project, variant)
    if variant.target != CPU_TARGET:
        _require_gpu(project, variant)
    if variant.backend.is_torch_tensorrt:
        from pipeline.stages.build.module import make_module  # noqa: PLC0415 - other variants need no torch

        return make_module(project, variant, key)
    if variant.backend.is_module:
        return _weights(project, variant, key)
    return _onnx(project, variant, key)


def _require_module(project: Project, variant: Variant) -> None:
    """Refuse a torch module of a model, an input, an output or a profile that none is made for."""
    source = project.source()
    if source.onnx:
        raise UnsupportedError(_NO_MODULE)
    if not variant.io.is_plain:
        raise UnsupportedError(_OWN_ENDS)
    in_time = variant.backend is Backend.TORCH_COMPILE
    if in_time and source.named_inputs:
        raise UnsupportedError(_NO_RECIPE_OF_TENSORS)
    if variant.layout is Layout.CHANNELS_LAST and source.named_inputs:
        raise UnsupportedError(_NO_LAYOUT_OF_TENSORS)
    if in_time and variant.profile and variant.profile.axes:
        raise UnsupportedError(_NO_RECIPE_OF_SIZES)


def _require_gpu(project: Project, variant: Variant) -> None:
    if project.plan.gpu(variant.target) is None:
        raise UnsupportedError(missing_gpu())
    if variant.backend.is_module and not installed("torch"):
        raise UnsupportedError("torch is not installed here")


def _onnx(project: Project, variant: Variant, key: Key) -> Artifact:
    """Return the artifact of an ONNX file, which is the graph's own file."""
    if variant.graph is None:
        raise BuildError(f"{variant.id} names no graph")
    graph = project.onnx(variant.graph)
    # FP32 around the quantised layers, because a CPU gains nothing from FP16
    file = graph.opset17 if graph.opset17 and variant.target == CPU_TARGET else graph.file
    artifact = Artifact(
        key=key,
        built_at=now(),
        toolchain=graph.toolchain,
        variant=variant,
        outcome=Outcome.DONE,
        file=file,
        inputs=tuple(spec.with_ranges(_axes_of(project, variant)) for spec in graph.inputs),
        outputs=graph.outputs,
    )
    if variant.io.is_plain:
        return artifact
    from pipeline.stages.build.ends import store_graph  # noqa: PLC0415 - only graphs with other ends are written

    return store_graph(project, artifact)


def _axes_of(project: Project, variant: Variant) -> tuple[AxisRange, ...]:
    """Return the dynamic axes of an ONNX file: as its profile has them, or all profiles if it takes any batch."""
    return axes_of(project, variant.profile) if variant.profile else project.config.axes


def _weights(project: Project, variant: Variant, key: Key) -> Artifact:
    """Return the artifact of a baseline: the weights. The manifest's factory makes the module from them."""
    source = project.source()
    return Artifact(
        key=key,
        built_at=now(),
        toolchain=tools("torch"),
        variant=variant,
        outcome=Outcome.DONE,
        file=source.weights,
        inputs=source.inputs,
        outputs=source.outputs,
    )


def _unbuilt(project: Project, variant: Variant, key: Key, ending: Ending) -> Artifact:
    """Return the record of a build without a result, and remove the files of an earlier one."""
    paths = project.paths
    for path in (paths.engine(variant), paths.graph(variant), paths.module(variant), paths.recipe(variant)):
        path.unlink(missing_ok=True)
    log = project.paths.build_log(variant)
    kept = ending.outcome is Outcome.FAILED and log.is_file()
    if not kept:
        log.unlink(missing_ok=True)
    return Artifact(
        key=key,
        built_at=now(),
        variant=variant,
        outcome=ending.outcome,
        reason=ending.reason,
        retryable=ending.retryable,
        log=describe_file(log, project.paths.root) if kept else None,
    )


def run(project: Project, variant: Variant, console: Console) -> int:
    """Build a variant, and print its size, its contents and the time that the build took."""
    artifact = build_variant(project, variant)
    return say_outcome(console, artifact.outcome, artifact.reason, _description(artifact))


def _description(artifact: Artifact) -> str:
    if artifact.file is None:
        return ""
    shared = f", the same engine as {artifact.same_as}" if artifact.same_as else ""
    memory = f", {size_phrase(artifact.memory.activation_bytes)} of activations" if artifact.memory else ""
    split = artifact.built_for.parts_phrase if artifact.built_for else ""
    memory += f", {split}" if split else ""
    size = f"{size_phrase(artifact.file.bytes)}{memory}{_contents(artifact.module)}"
    return f"{size}, built in {artifact.build_seconds:.1f} s{shared}"


_SHOWN = 5
"""The number of operators that a line names; the record has all."""


def _contents(module: ModuleContents | None) -> str:
    """Return the number of engines in a module, and the operators that stay in PyTorch."""
    if module is None:
        return ""
    times = {item.name: f" ×{item.calls}" for item in module.calls if item.calls > 1}
    ordered = [item.name for item in module.calls] or module.torch_operators
    stayed = [name + times.get(name, "") for name in ordered]
    more = ", …" if len(stayed) > _SHOWN else ""
    left = f"; in PyTorch stayed {', '.join(stayed[:_SHOWN])}{more}" if stayed else ""
    return f", {module.segments} TensorRT {'engine' if module.segments == 1 else 'engines'}{left}"
