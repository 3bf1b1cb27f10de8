"""Engines with each pair of settings on a real GPU: built, recorded, loaded, and right."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import pytest

from model_artifacts.records import BatchRange, Precision, is_applied
from model_artifacts.sessions.engine import open_engine
from model_artifacts.tensorrt.flavour import BuildLog
from pipeline.adapters.tensorrt_builder import EngineRequest, build_engine, graph_file, unsupported
from pipeline.config.settings import Gate
from pipeline.config.tensorrt import TensorRTConfig
from pipeline.planning.plan import Arithmetic
from pipeline.stages.validate.gates import bounds_of
from tests.support.logits import distance, images, reference

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from model_artifacts.records import Graph
    from model_artifacts.tensorrt.flavour import Flavour
    from pipeline.planning.project import Project

RANGE = "a batch range"
FIXED = BatchRange(min=2, opt=2, max=2)
SETTINGS: Mapping[str, Mapping[str, object]] = {
    "version_compatible": {"version_compatible": True},
    "refit": {"refit": True},
    "strip_plan": {"strip_plan": True},
    "ampere_plus": {"hardware_compatibility": "ampere_plus"},
    "same_compute_capability": {"hardware_compatibility": "same_compute_capability"},
    "level 2": {"optimization_level": 2},
    "weight_streaming": {"weight_streaming": True},
    "tuning": {
        "max_num_tactics": 4,
        "avg_timing_iterations": 2,
        "attempt": 2,
        "max_aux_streams": 0,
        "sparse_weights": True,
        "strict_nans": True,
        "tiling_optimization_level": "fast",
        "l2_limit_for_tiling": "4MiB",
    },
    RANGE: {},
}
COMPATIBLE = {"ampere_plus", "same_compute_capability"}
"""Values of one setting, which exclude each other."""
EVERY = tuple(name for name in SETTINGS if name != "same_compute_capability")
PAIRS = [pair for pair in combinations(SETTINGS, 2) if not COMPATIBLE.issuperset(pair)]


@pytest.fixture(scope="module")
def timings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A timing cache, by which the builds share what they measure."""
    file = tmp_path_factory.mktemp("timings") / "timing.cache"
    file.touch()
    return file


def graph_of(project: Project, precision: Precision) -> Graph:
    """Return the project's graph of a precision."""
    return next(item.graph for item in project.plan.variants if item.graph and item.graph.precision is precision)


def request_of(project: Project, precision: Precision, profile: BatchRange, settings: TensorRTConfig) -> EngineRequest:
    """Return the description of an engine of the project's graph."""
    record = project.onnx(graph_of(project, precision))
    return EngineRequest(
        onnx=project.file(record.file),
        onnx_opset17=project.file(record.opset17) if record.opset17 else None,
        precision=precision,
        profile=profile,
        workspace_bytes=2**26,
        compute_capabilities=project.plan.engine_targets[0].compute_capabilities,
        gpu=project.plan.host.gpus[0],
        settings=settings,
    )


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
def test_a_rebuild_with_its_own_timings_is_the_same_engine(
    project: Project, flavour: Flavour, precision: Precision
) -> None:
    """An attempt begins without timings; a rebuild finds its own, and takes the same tactics."""
    request = request_of(project, precision, FIXED, TensorRTConfig(attempt=2))
    if reason := unsupported(flavour, request):
        pytest.skip(reason)
    if not (flavour.tunes and flavour.strongly_typed):
        pytest.skip(f"{flavour} times no tactics, or may take others by the same timings")
    first = build_engine(flavour, request, BuildLog())
    again = build_engine(flavour, request, BuildLog(), timings=first.timing_cache)
    told = [{item.name: item.value for item in engine.settings} for engine in (first, again)]
    assert [values["timing_cache"] for values in told] == ["from the start", "continued"]
    assert [values["attempt"] for values in told] == ["2", "2"]
    assert again.layers_sha256 == first.layers_sha256


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
@pytest.mark.parametrize("names", [*PAIRS, EVERY], ids="+".join)
def test_settings_go_together(
    project: Project, flavour: Flavour, timings: Path, precision: Precision, names: tuple[str, ...]
) -> None:
    """An engine with two settings, or with all, has a record of each, and keeps its precision's gate."""
    asked = {key: value for name in names for key, value in SETTINGS[name].items()}
    graph, gpu = graph_of(project, precision), project.plan.host.gpus[0]
    profile = BatchRange(min=1, opt=2, max=4) if RANGE in names else FIXED
    request = request_of(project, precision, profile, TensorRTConfig.model_validate(asked))
    if reason := unsupported(flavour, request):
        pytest.skip(reason)
    engine = build_engine(flavour, request, BuildLog(), timings=timings.read_bytes())
    timings.write_bytes(engine.timing_cache)
    assert set(asked) <= {setting.name for setting in engine.settings}
    assert all(setting.applied or setting.note for setting in engine.settings)
    weights = graph_file(flavour, request) if is_applied("strip_plan", engine.settings) else None
    with open_engine(flavour, engine.plan, engine.built_for, gpu, weights) as opened, opened.session() as run:
        got = run(images(project, 2))
    bounds = bounds_of(Gate(), project.rounding(Arithmetic(graph, precision)), project.config.gates.rounding)
    assert bounds.sample_l2 is not None
    assert distance(got, reference(project, 2)) < bounds.sample_l2
