"""ONNX → serialized TensorRT engine, its builder's log beside it (`<model>/<target>/<variant>/`)."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from pipeline.atomic import describe_file, write_bytes
from pipeline.environment import now, tools
from pipeline.errors import BuildError, UnsupportedError
from pipeline.plan import Stage, Step
from pipeline.records import Artifact, Outcome, Precision, Variant
from pipeline.staleness import current
from pipeline.trt_adapter import BuildLog, EngineRequest, build_engine, int8_convolutions, load_flavour

if TYPE_CHECKING:
    from pipeline.project import Project
    from pipeline.records import Key
    from pipeline.trt_adapter import BuiltEngine


def make_engine(project: Project, variant: Variant, key: Key) -> Artifact:
    """Build a variant's engine; where a smaller workspace has given the same one, share its file.

    Args:
        project: the variant's graph must be there.
        variant: an engine of the plan.
        key: what the result depends on.

    Returns:
        the artifact, not yet written as a record.

    Raises:
        BuildError: the builder gave no engine. Its log is beside where the engine would be.
        UnsupportedError: the flavour cannot do this, whatever is tried.
        StorageError: the results cannot be written.
    """
    if variant.graph is None or variant.profile is None or variant.workspace is None:
        raise BuildError(f"{variant.id} is no engine")
    flavour = load_flavour()
    if variant.precision is Precision.INT8 and (reason := int8_convolutions(flavour)):
        raise UnsupportedError(reason)
    request = EngineRequest(
        onnx=project.file(project.onnx(variant.graph).file),
        profile=variant.profile,
        workspace_bytes=variant.workspace.bytes,
        compute_capabilities=project.plan.compute_capabilities,
    )
    log = BuildLog()
    began = time.perf_counter()
    try:
        engine = build_engine(flavour, request, log)
    finally:
        write_bytes(project.paths.build_log(variant), log.text().encode())
    seconds = time.perf_counter() - began
    path = project.paths.engine(variant)
    twin = _same_engine(project, variant, engine)
    if twin is None:
        write_bytes(path, engine.plan)
    else:
        path.unlink(missing_ok=True)
    return Artifact(
        key=key,
        built_at=now(),
        toolchain=tools("tensorrt-rtx"),
        variant=variant,
        outcome=Outcome.DONE,
        file=twin.file if twin else describe_file(path, project.paths.root),
        log=describe_file(project.paths.build_log(variant), project.paths.root),
        inputs=engine.inputs,
        outputs=engine.outputs,
        settings=engine.settings,
        memory=engine.memory,
        layers_sha256=engine.layers_sha256,
        same_as=twin.variant.id if twin else None,
        build_seconds=round(seconds, 3),
    )


def _same_engine(project: Project, variant: Variant, engine: BuiltEngine) -> Artifact | None:
    """Return the build with the smallest workspace that has given this very engine, if there is one.

    The plan builds smaller workspaces first, so the answer does not depend on what runs in parallel.
    """
    for smaller in project.plan.family(variant):
        other = current(project, Step(Stage.BUILD, smaller.id), partial(project.artifact, smaller))
        built = other is not None and other.outcome is Outcome.DONE and other.same_as is None
        if other and built and other.layers_sha256 == engine.layers_sha256:
            return other
    return None
