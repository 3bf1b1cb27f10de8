"""Requests of engines from the tiny project, and their builds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from model_artifacts.records import BatchRange, Graph, Precision
from model_artifacts.tensorrt.flavour import BuildLog, Flavour
from pipeline.adapters.tensorrt_builder import BuiltEngine, EngineRequest, build_engine
from pipeline.config.tensorrt import TensorRTConfig

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning.project import Project


MIB = 2**20
RANGE = BatchRange(min=1, opt=2, max=4)


def request_of(
    project: Project,
    graph: Graph = Graph.FP32,
    profile: BatchRange = RANGE,
    workspace_bytes: int = 16 * MIB,
    compute_capabilities: tuple[int, ...] = (80, 86, 89, 120),
) -> EngineRequest:
    """Return a request to build one of the tiny model's graphs."""
    return EngineRequest(
        onnx=project.file(project.onnx(graph).file),
        precision=graph.precision,
        profile=profile,
        workspace_bytes=workspace_bytes,
        compute_capabilities=compute_capabilities,
        gpu=None,
        settings=TensorRTConfig(),
    )


def with_setting(request: EngineRequest, name: str, value: object) -> EngineRequest:
    """Return a request with a setting of the builder."""
    return replace(request, settings=request.settings.model_copy(update={name: value}))


def request_for(file: Path, precision: Precision = Precision.FP32) -> EngineRequest:
    """Return a request to build a file."""
    return EngineRequest(file, precision, RANGE, MIB, (80,), None, TensorRTConfig())


def build(flavour: Flavour, request: EngineRequest) -> BuiltEngine:
    """Build an engine."""
    return build_engine(flavour, request, BuildLog())
