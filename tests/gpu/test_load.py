"""Engines under load on a real GPU: short runs of LoadGen, and the settings that Triton gets of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.records import Scenario
from pipeline.config.benchmark import LoadConfig
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.records import Outcome
from pipeline.stages import STAGES
from pipeline.stages.load.stage import load_variant

if TYPE_CHECKING:
    from pipeline.records import Artifact

pytest.importorskip("mlperf_loadgen", reason="the extra `load` is not installed here")

BOUND = 100.0


def briefly(project: Project, *scenarios: Scenario) -> Project:
    """Return the project with short runs and a bound that every GPU keeps."""
    short = LoadConfig(
        scenarios=scenarios,
        p99_ms=(BOUND,),
        contexts=(1, 2),
        max_delay_ms=(0.0,),
        min_duration_seconds=0.2,
        confirmation_seconds=0.5,
        max_duration_seconds=5.0,
    )
    config = project.config.model_copy(update={"load": short})
    return Project(Plan(config, project.plan.host), project.paths, STAGES, project.config_file)


def test_an_engine_serves_within_its_bound(project: Project, ranged: Artifact) -> None:
    """Every scenario of an engine of several batch sizes has a result, and a server's keeps its bound."""
    report = load_variant(briefly(project, *Scenario), ranged.variant)
    assert report.outcome is Outcome.DONE, report.reason
    assert report.load is not None
    assert report.notes == ()
    assert [item.scenario for item in report.load.results] == list(Scenario)
    server = report.load.server()
    assert server is not None
    assert server.p99_ms <= BOUND
    assert server.queries >= 1000
    offline = max(run.rate_per_s for run in report.runs if run.scenario is Scenario.OFFLINE)
    assert 0.05 * offline < server.rate_per_s < 1.3 * offline
    assert report.load.device.startswith(project.plan.host.gpus[0].name)


def test_an_engine_of_one_size_serves_single_images(project: Project, fixed: Artifact) -> None:
    """Nothing is joined for an engine of batch 1, and its server runs single images by all contexts."""
    report = load_variant(briefly(project, Scenario.SERVER), fixed.variant)
    assert report.outcome is Outcome.DONE, report.reason
    assert report.load is not None
    assert {run.settings.batch for run in report.runs} == {1}
    assert report.load.server() is not None
