"""A short search on this GPU: engines are timed, a setting of the builder is tried, and the winner is explained."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from model_artifacts.host.environment import installed
from model_artifacts.records import Clock
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.tune.records import Trial
from pipeline.tune.tuning import Wishes, tune
from tests.gpu.conftest import TINY_ON_A_GPU

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.skipif(not installed("torch"), reason="the network is made with torch")
def test_a_search_times_engines_that_passed_and_goes_on(tmp_path: Path) -> None:
    """Winners are of this GPU, by its clock; a second run with the same budget makes no trial again."""
    config = tmp_path / "pipeline.yaml"
    text = TINY_ON_A_GPU.replace("[fp32, fp16, int8]", "[fp16, int8]").replace("[inductor, onnxruntime]", "[]")
    config.write_text(text.replace("[1, {min: 1, opt: 2, max: 4}]", "[1]").replace("batches: [1, 2]", "batches: [1]"))
    project = Project.load(config, STAGES)
    wishes = Wishes(budget_seconds=150.0)
    stream = io.StringIO()
    record = tune(project, wishes, stream)
    trials = [project.read(path, Trial) for path in sorted((project.paths.tune / "trials").glob("*.json"))]
    assert any(trial.passed and trial.point.choices for trial in trials), stream.getvalue()
    latency = next(answer for answer in record.answers if answer.objective == "latency at batch 1")
    winner = latency.standings[0]
    assert winner.clock is Clock.GPU_GRAPH
    assert winner.restarts == project.config.benchmark.restarts
    assert next(trial for trial in trials if trial.number == winner.trial).passed
    assert (project.paths.root / latency.snippet).is_file()
    again = tune(project, wishes, io.StringIO())
    assert again.answers == record.answers
