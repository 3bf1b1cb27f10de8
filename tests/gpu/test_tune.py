"""A short search on this GPU: engines are timed, settings of the builder are tried, and the winner is explained."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from model_artifacts.host import cuda
from model_artifacts.host.environment import installed
from model_artifacts.records import Clock, Precision
from model_artifacts.tensorrt.flavour import BuildLog, load_flavour, make_logger
from pipeline.adapters.tensorrt_settings import BuilderSettings
from pipeline.config.tensorrt import TensorRTConfig
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.tune.foresight import library_of
from pipeline.tune.records import Trial
from pipeline.tune.space import BUILDER_CHOICES
from pipeline.tune.tuning import Wishes, tune
from tests.gpu.conftest import TINY_ON_A_GPU
from tests.support.engine_requests import request_for

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.records import Gpu
    from model_artifacts.tensorrt.flavour import Flavour
    from pipeline.tune.foresight import Library
    from pipeline.tune.records import Choice


def cuda_gpu(folder: Path) -> Gpu:
    """Return this host's first GPU."""
    config = folder / "pipeline.yaml"
    config.write_text(TINY_ON_A_GPU)
    return Project.load(config, STAGES).plan.host.gpus[0]


@pytest.fixture(scope="module")
def flavour(tmp_path_factory: pytest.TempPathFactory) -> Flavour:
    """The TensorRT of this host, on its first GPU; nothing is built for it."""
    folder = tmp_path_factory.mktemp("flavour")
    cuda.use(cuda_gpu(folder))
    return load_flavour(Project.load(folder / "pipeline.yaml", STAGES).plan.engine_targets[0].flavour)


@pytest.fixture(scope="module")
def library(flavour: Flavour, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Answers of its library about all choices; build routes, too, where it has them."""
    found = library_of(flavour.name, cuda_gpu(tmp_path_factory.mktemp("library")), BUILDER_CHOICES, "doit tune")
    assert found.remark == ""
    assert bool(found.routes) == hasattr(flavour.module.IBuilderConfig, "all_build_routes")
    return found


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
    throughput = next(answer for answer in record.answers if answer.objective == "throughput")
    numbers = [rate.streams for rate in throughput.streams]
    assert numbers == [1, 2, 4, 8] or "not in the finals" in stream.getvalue()
    assert {1, project.config.benchmark.streams} <= {*numbers}
    assert throughput.standings[0].streams in {None, *numbers}
    again = tune(project, wishes, io.StringIO())
    assert again.answers == record.answers


@pytest.mark.parametrize("choice", BUILDER_CHOICES, ids=lambda choice: choice.text)
def test_each_choice_is_applied_and_read_back_or_was_foretold(
    library: Library, flavour: Flavour, tmp_path: Path, choice: Choice
) -> None:
    """A builder's configuration takes it, without a build; what the library lacks was known before."""
    gpu = cuda_gpu(tmp_path)
    name = choice.setting.partition(".")[2]
    written = list(choice.value) if isinstance(choice.value, tuple) else choice.value
    tiled = {"tiling_optimization_level": "fast"} if name == "l2_limit_for_tiling" else {}
    request = replace(
        request_for(tmp_path / "none.onnx", Precision.FP16),
        gpu=gpu,
        compute_capabilities=() if flavour.tunes else (gpu.compute_capability,),
        settings=TensorRTConfig.model_validate({name: written, **tiled}),
    )
    builder = flavour.module.Builder(make_logger(flavour.module, BuildLog()))
    network = builder.create_network(0)
    network.add_input("image", flavour.module.float16, (-1, 3, 32, 32))
    config = builder.create_builder_config()
    found = BuilderSettings(flavour, builder, network, config, request, b"").apply()
    (setting,) = (item for item in found if item.name == name)
    assert setting.applied == (choice not in library.refused), setting.note
    assert setting.note == library.refused.get(choice, "")
