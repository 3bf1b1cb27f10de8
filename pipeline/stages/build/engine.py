"""ONNX → serialized TensorRT engine, with its builder's log beside it (`<model>/<target>/<variant>/`)."""

from __future__ import annotations

import logging
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from model_artifacts.errors import BuildError, CrashedError, RecordError, RunError, UnsupportedError
from model_artifacts.host import cuda
from model_artifacts.host.environment import missing_gpu, now, tools
from model_artifacts.host.files import keeping, write_bytes
from model_artifacts.host.hashes import describe_file, sha256_of
from model_artifacts.host.progress import Bars
from model_artifacts.records import EngineFlavour, Precision, Setting, Tool, Variant, is_applied
from model_artifacts.tensorrt.flavour import BuildLog, load_flavour, weight_warnings
from model_artifacts.tensorrt.refitter import refit_engine
from pipeline.adapters.tensorrt_builder import BuiltEngine, EngineRequest, build_engine, graph_file
from pipeline.planning.freshness import current
from pipeline.planning.steps import Step
from pipeline.records import Artifact, Outcome
from pipeline.stages.build.ends import Ends, ends_in_words, named_as, require_ends, with_own_ends
from pipeline.stages.build.spec import axes_of
from pipeline.system.isolation import run_isolated
from pipeline.system.locks import exclusive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from model_artifacts.records import FileRecord, Key, TensorSpec
    from pipeline.planning.project import Project

logger = logging.getLogger(__name__)
T = TypeVar("T")

_REFITTED = "refitted"
"""The setting by which a record marks an engine whose weights were replaced."""


def make_engine(project: Project, variant: Variant, key: Key) -> Artifact:
    """Build a variant's engine, or share the file of a smaller workspace that gave the same engine.

    An earlier engine is refitted instead if only its weights have changed, and if the flavour refits faster than it
    builds.

    The builder works in a process of its own, so that its crash does not end this one. A builder that times tactics has
    the GPU to itself.

    Args:
        project: the project, with the variant's graph.
        variant: an engine of the plan.
        key: the engine's staleness key.

    Returns:
        the artifact, not yet written as a record.

    Raises:
        BuildError: the builder returned no engine. Its log lies beside the engine's place.
        CrashedError: the builder died, or took too long. Its log lies there, too.
        UnsupportedError: the flavour or the GPU cannot build this variant.
        StorageError: the results cannot be written.
    """
    with with_own_ends(project, variant, request_of(project, variant)) as request:
        return _make_engine(project, variant, key, request)


def _make_engine(project: Project, variant: Variant, key: Key, request: EngineRequest) -> Artifact:
    target = project.plan.engine_target(variant)
    times_tactics = target.flavour is EngineFlavour.TENSORRT
    if times_tactics and request.gpu is None:
        raise UnsupportedError(missing_gpu())
    timings = project.paths.timing_cache(target.flavour, target.flavour_version, request.gpu, request.settings)
    with exclusive(request.gpu if times_tactics else None):
        began = time.perf_counter()
        former = _former(project, variant, key)
        engine = _refit_apart(project, former, request) if former else None
        engine = engine or _apart(_build, project, variant, request, timings)
        if engine.timing_cache:
            write_bytes(timings, engine.timing_cache)
        seconds = time.perf_counter() - began
    outputs = _outputs_of(project, variant, engine)
    ends = ends_in_words(project, variant, engine.inputs, outputs)
    require_ends(ends, Ends(engine.inputs, outputs))
    twin = _same_engine(project, variant, engine)
    file = _store(project, variant, engine, twin)
    log = project.paths.build_log(variant)
    return Artifact(
        key=key,
        built_at=now(),
        toolchain=(*tools(), Tool(name=target.flavour.value, version=engine.built_for.version)),
        variant=variant,
        outcome=Outcome.DONE,
        file=file,
        log=describe_file(log, project.paths.root),
        inputs=tuple(spec.with_ranges(variant.profile.axes if variant.profile else ()) for spec in ends.inputs),
        outputs=ends.outputs,
        settings=engine.settings,
        memory=engine.memory,
        built_for=engine.built_for,
        timing_cache_sha256=sha256_of(timings) if engine.timing_cache else None,
        structure_sha256=_structure(project, variant),
        layers_sha256=engine.layers_sha256,
        same_as=twin.variant.id if twin else None,
        build_seconds=round(seconds, 3),
        weight_warnings=weight_warnings(log.read_text(errors="replace")),
    )


def _outputs_of(project: Project, variant: Variant, engine: BuiltEngine) -> tuple[TensorSpec, ...]:
    """Return an engine's outputs, whose dynamic axes are those of its graph."""
    if variant.graph is None or variant.profile is None or not project.config.axes:
        return engine.outputs
    return named_as(engine.outputs, project.onnx(variant.graph).outputs, variant.profile.axes)


def _store(project: Project, variant: Variant, engine: BuiltEngine, twin: Artifact | None) -> FileRecord | None:
    """Write an engine's file, or remove an earlier one if a twin's file is shared; return its record."""
    path = project.paths.engine(variant)
    if twin is None:
        write_bytes(path, engine.plan)
        return describe_file(path, project.paths.root)
    path.unlink(missing_ok=True)
    return twin.file


def request_of(project: Project, variant: Variant) -> EngineRequest:
    """Return the description of a variant's engine for its builder.

    Raises:
        BuildError: the variant is no engine.
        RecordError: the record of its graph is missing or damaged.
    """
    if variant.graph is None or variant.profile is None or variant.workspace is None:
        raise BuildError(f"{variant.id} is no engine")
    target = project.plan.engine_target(variant)
    graph = project.onnx(variant.graph)
    return EngineRequest(
        onnx=project.file(graph.file),
        onnx_opset17=project.file(graph.opset17) if graph.opset17 else None,
        precision=variant.precision,
        profile=variant.profile,
        axes=axes_of(project, variant.profile),
        workspace_bytes=variant.workspace.bytes,
        compute_capabilities=target.compute_capabilities,
        gpu=target.gpu,
        settings=project.config.tensorrt,
    )


def can_be_refitted(former: Artifact, key: Key, structure: str) -> bool:
    """Return true if a new key differs from a former engine's only by the weights, and a refit is faster than a build.

    A refit is faster for TensorRT, not for TensorRT-RTX with its timing cache (on an H100 1.7 s + 2.4 s against 0.3 s).
    Quantised graphs are built again, because their scales belong to the weights.

    Args:
        former: the variant's earlier artifact.
        key: the staleness key of the engine to build.
        structure: the digest of the structure of the graph to build from.
    """
    changed = {field.name for field in {*former.key.fields} ^ {*key.fields}}
    graph = former.variant.graph
    return (
        former.outcome is Outcome.DONE
        and former.same_as is None
        and former.built_for is not None
        and former.built_for.flavour is EngineFlavour.TENSORRT
        and is_applied("refit", former.settings)
        and not is_applied("strip_plan", former.settings)
        and changed == {"onnx"}
        and former.structure_sha256 == structure
        and graph is not None
        and graph.precision not in {Precision.INT8, Precision.FP8}
    )


def _structure(project: Project, variant: Variant) -> str:
    return project.onnx(variant.graph).structure_sha256 if variant.graph else ""


def _former(project: Project, variant: Variant, key: Key) -> Artifact | None:
    """Return a variant's earlier artifact if its file is whole and can be refitted."""
    try:
        former = project.artifact(variant)
    except RecordError:
        return None  # never built, or by another version of this package
    if former.file is None or not can_be_refitted(former, key, _structure(project, variant)):
        return None
    path = project.file(former.file)
    return former if path.is_file() and sha256_of(path) == former.file.sha256 else None


def _refit_apart(project: Project, former: Artifact, request: EngineRequest) -> BuiltEngine | None:
    """Return the former engine with the graph's weights; None if the library refuses, so that it is built again."""
    if former.file is None or former.memory is None or former.built_for is None or former.layers_sha256 is None:
        return None
    try:
        plan = _apart(_refit, project, former.variant, request, project.file(former.file))
    except (RunError, CrashedError) as exc:
        logger.info("%s is built again, because %s", former.variant.id, str(exc).replace("\n", "; "))
        return None
    return BuiltEngine(
        plan=plan,
        memory=former.memory,
        layers_sha256=former.layers_sha256,
        inputs=former.inputs,
        outputs=former.outputs,
        settings=(
            *(setting for setting in former.settings if setting.name != _REFITTED),
            Setting(name=_REFITTED, value=f"from {former.file.sha256[:12]}", applied=True),
        ),
        built_for=former.built_for,
        timing_cache=b"",
        seconds=0.0,
    )


def _refit(name: EngineFlavour, request: EngineRequest, path: Path) -> bytes:
    """Refit an engine. Standard error is the log, as in a build."""
    flavour = load_flavour(name)
    if request.gpu is not None:
        cuda.use(request.gpu)
    return refit_engine(flavour, path.read_bytes(), graph_file(flavour, request), BuildLog(sys.stderr))


def _apart(
    work: Callable[[EngineFlavour, EngineRequest, Path], T],
    project: Project,
    variant: Variant,
    request: EngineRequest,
    file: Path,
) -> T:
    """Build or refit in a process of its own. The log is kept in any case."""
    with keeping(project.paths.build_log(variant)) as log:
        return run_isolated(
            work,
            project.plan.engine_target(variant).flavour,
            request,
            file,
            timeout_seconds=project.config.tensorrt.build_timeout_seconds,
            log=log,
            rerun=project.command(Step("build", variant.id)),
        )


def _build(name: EngineFlavour, request: EngineRequest, timings: Path) -> BuiltEngine:
    """Build an engine. Standard error is the log, so that it also holds the output of native code."""
    flavour = load_flavour(name)
    if request.gpu is not None and not request.compute_capabilities:
        cuda.use(request.gpu)
    stored = timings.read_bytes() if flavour.tunes and timings.is_file() else b""
    with Bars() as progress:
        return build_engine(flavour, request, BuildLog(sys.stderr), progress, stored)


def _same_engine(project: Project, variant: Variant, engine: BuiltEngine) -> Artifact | None:
    """Return the build with the smallest workspace that gave this very engine; None if there is none.

    The plan builds smaller workspaces first, so the answer does not depend on other steps that run at the same time.
    """
    for smaller in project.plan.family(variant):
        other = current(project, Step("build", smaller.id), partial(project.artifact, smaller))
        built = other is not None and other.outcome is Outcome.DONE and other.same_as is None
        if other and built and other.layers_sha256 == engine.layers_sha256:
            return other
    return None
