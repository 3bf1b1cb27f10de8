"""ONNX → serialized TensorRT engine, its builder's log beside it (`<model>/<target>/<variant>/`)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pipeline.atomic import describe_file, read_record, sha256_of, write_bytes
from pipeline.environment import now, tools
from pipeline.errors import BuildError, RecordError, UnsupportedError
from pipeline.records import Artifact, Outcome, Precision, Variant
from pipeline.trt_adapter import BuildLog, EngineRequest, build_engine, int8_convolutions, load_flavour

if TYPE_CHECKING:
    from pipeline.project import Project
    from pipeline.records import FileRecord, Key
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
    graph = project.onnx(variant.graph).canonical_sha256 if variant.graph else ""
    for smaller in project.plan.family(variant):
        try:
            other = read_record(project.paths.artifact(smaller), Artifact)
        except RecordError:
            continue
        same_graph = any(field.name == "onnx" and graph in field.value for field in other.key.fields)
        whole = other.file is not None and other.same_as is None and _is_whole(project, other.file)
        if other.outcome is Outcome.DONE and whole and same_graph and other.layers_sha256 == engine.layers_sha256:
            return other
    return None


def _is_whole(project: Project, file: FileRecord) -> bool:
    path = project.file(file)
    return path.is_file() and sha256_of(path) == file.sha256
