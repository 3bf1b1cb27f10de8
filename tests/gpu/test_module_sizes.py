"""Torch-TensorRT modules of several lengths and image sizes on a real GPU: proven at each, right at those between."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import model_artifacts
from model_artifacts.host.environment import installed
from model_artifacts.records import Backend, Layout, Precision, Status
from pipeline.cli.main import main
from pipeline.planning.project import Project
from pipeline.records import Outcome
from pipeline.stages import STAGES
from pipeline.stages.common.opening import open_module
from tests.gpu.conftest import doit, needs_torch_tensorrt
from tests.gpu.test_sizes import KINDS as OF_ENGINES
from tests.gpu.test_sizes import RANGES, Kind, Made, assert_right
from tests.support import segments

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.deployment.loading import Loading
    from model_artifacts.records import Variant

pytestmark = [pytest.mark.skipif(not installed("torch"), reason="torch is not installed here"), needs_torch_tensorrt]


def _maps(folder: Path) -> str:
    """Return a segmenter without a resize, for a range of batches."""
    segments.write_images(folder, 40)
    text = re.sub(r"profiles: .*", f"profiles: [{{batch: {{min: 1, opt: 2, max: 4}}, {RANGES}}}]", _configured(folder))
    return text.replace("precisions: [fp32, fp16]", "precisions: [fp16]")


def _resized(folder: Path) -> str:
    """Return a segmenter that resizes its maps to the image's size, which takes one batch size."""
    text = _maps(folder).replace("segments:Segmenter", "sized_segmenters:Sampled")
    return text.replace("batch: {min: 1, opt: 2, max: 4}", "batch: 3").replace("batches: [2]", "batches: [3]")


def _configured(folder: Path) -> str:
    return re.sub(r" classes: \[.*?\],", "", segments.configuration(folder))


KINDS = {
    **OF_ENGINES,
    "maps": OF_ENGINES["maps"]._replace(text=_maps),
    "resized": Kind(_resized, OF_ENGINES["maps"].sizes),
}


def counts(made: Made) -> tuple[int, ...]:
    """Return batch sizes to run in turns."""
    return (3,) if made.kind == "resized" else (3, 1, 4, 3)


def loaded(made: Made) -> Loading:
    """Open the FP16 module as a deployment does."""
    return model_artifacts.load(made.project.paths.root, model_artifacts.Requirements(precision="fp16", batch=3))


def variants(made: Made, backend: Backend) -> list[Variant]:
    """Return the FP16 variants of a backend, with weights as they are."""
    plan = made.project.plan
    return [
        item
        for item in plan.variants_on(plan.module_targets[0].name)
        if (item.backend, item.precision, item.layout) == (backend, Precision.FP16, Layout.CONTIGUOUS)
    ]


@pytest.fixture(scope="module", params=[*KINDS])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A project of each kind, whose modules are built, validated and timed; it has no engine that `load` could take."""
    folder = tmp_path_factory.mktemp(request.param)
    file = folder / "pipeline.yaml"
    file.write_text(KINDS[request.param].text(folder) + "torch_tensorrt: {min_block_size: 1}\n")
    project = Project.load(file, STAGES)
    found = Made(project, request.param)
    wanted = [item for backend in (Backend.EAGER, Backend.DYNAMO) for item in variants(found, backend)]
    target = f"{project.plan.model}/{project.plan.module_targets[0].name}"
    doit(file, *(f"validate:{item.id}" for item in wanted), f"benchmark:{target}")
    for item in project.plan.variants:
        if item.backend is Backend.TENSORRT:  # whatever has built one, it would be the faster choice
            shutil.rmtree(project.paths.variant(item), ignore_errors=True)
    assert main(["manifest", project.plan.model, "--config", str(file)]) == 0
    return found


def arrays_of(batch: dict[str, Any]) -> Any:
    """Return a batch as a session takes it: the one array of images, or those of several inputs by name."""
    return batch if len(batch) > 1 else next(iter(batch.values()))


def test_a_module_is_deployable_by_its_gates_at_each_size(made: Made) -> None:
    """All of it is one engine. It has checks at sizes beside those of the samples, and the manifest has its ranges."""
    (variant,) = variants(made, Backend.DYNAMO)
    artifact = made.project.artifact(variant)
    assert artifact.outcome is Outcome.DONE, artifact.reason
    assert artifact.module is not None
    assert (artifact.module.segments, artifact.module.torch_operators) == (1, ())
    (entry,) = (item for item in made.project.manifest().artifacts if item.id == variant.id)
    assert entry.status is Status.DEPLOYABLE, entry.reason
    axis = "sequence" if made.kind == "tags" else "height"
    assert sum(f" at {axis} " in check.metric for check in entry.checks) >= len(KINDS[made.kind].sizes)
    assert variant.profile is not None
    assert {spec.ranges for spec in entry.inputs} == {variant.profile.axes}
    assert any(isinstance(size, str) for spec in entry.outputs for size in spec.shape[1:])


def test_baselines_are_judged_at_the_samples_own_size(made: Made) -> None:
    """Eager FP16 runs on this GPU, whatever the inputs are, and claims no range."""
    (variant,) = variants(made, Backend.EAGER)
    report = made.project.accuracy(variant)
    assert report.outcome is Outcome.DONE, report.reason
    assert report.passed, report.reason
    assert {spec.ranges for spec in made.project.artifact(variant).inputs} == {()}


def test_a_module_is_timed(made: Made) -> None:
    """By the clock of the GPU, at the samples' own size."""
    (variant,) = variants(made, Backend.DYNAMO)
    report = made.project.benchmark(variant)
    assert report is not None
    assert report.outcome is Outcome.DONE, report.reason
    layouts = {timing.layout for timing in report.timings}
    assert layouts == ({Layout.CONTIGUOUS} if made.kind == "tags" else {*Layout})


def test_batches_of_any_size_in_turns_give_their_own_outputs(made: Made) -> None:
    """No size leaves anything behind for the next one."""
    with loaded(made) as model:
        assert model.entry.backend is Backend.DYNAMO
        for count in counts(made):
            for sizes in KINDS[made.kind].sizes:
                batch = made.batch(sizes, count)
                assert_right(made, batch, model(batch))


def test_a_stream_of_many_sizes_keeps_their_order(made: Made) -> None:
    """Each result is that of its own batch."""
    batches = [made.batch(sizes) for sizes in KINDS[made.kind].sizes for _ in range(3)]
    with loaded(made) as model:
        for batch, found in zip(batches, model.stream(batches), strict=True):
            assert_right(made, batch, found)


def test_cuda_graphs_of_two_sizes_in_turns_give_their_own_outputs(made: Made) -> None:
    """A graph of one size never runs for another, and stays right after it."""
    (variant,) = variants(made, Backend.DYNAMO)
    batches = [arrays_of(made.batch(sizes)) for sizes in KINDS[made.kind].sizes[2:4]]
    with open_module(made.project, made.project.artifact(variant)) as run:
        plain = [run(batch) for batch in batches]
        for _ in range(2):
            for batch, wanted in zip(batches, plain, strict=True):
                run.upload(batch)
                run.enqueue()
                found = run.result()
                names = [*wanted] if isinstance(wanted, dict) else [None]
                for name in names:
                    got, want = (item if name is None else item[name] for item in (found, wanted))
                    assert np.array_equal(got, want)
        assert run.graph_trouble == ""


def test_a_size_outside_of_the_range_is_refused(made: Made) -> None:
    """The message names the axis and its range."""
    outside = tuple(size + 100 for size in KINDS[made.kind].sizes[0])
    with loaded(made) as model, pytest.raises(model_artifacts.ArtifactError, match="expected"):
        model(made.batch(outside))


def test_a_recipe_is_skipped_with_the_reason(made: Made) -> None:
    """torch_compile builds for each shape that comes, and describes images alone."""
    (variant,) = variants(made, Backend.TORCH_COMPILE)
    artifact = made.project.artifact(variant)
    assert artifact.outcome is Outcome.SKIPPED
    says = "describes images alone" if made.kind == "tags" else "for each shape of a batch"
    assert says in artifact.reason
