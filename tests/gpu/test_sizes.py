"""Engines of several lengths and image sizes on a real GPU: proven at each, and right at those between."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

import model_artifacts
from model_artifacts.host.environment import installed
from model_artifacts.records import Backend, Precision, Status
from pipeline.cli.main import main
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.common.model import restore_model
from tests.gpu.conftest import doit
from tests.support import detectors, segments, texts
from tests.support.logits import distance

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from model_artifacts.deployment.answers import Outputs
    from model_artifacts.deployment.loading import Loading

pytestmark = pytest.mark.skipif(not installed("torch"), reason="torch is not installed here")

OF_TINY_NETWORKS = 2e-2
"""More than the rounding of FP16 makes in these networks, and less than any fault of a size: relative L2."""
RANGES = "height: {min: 24, opt: 32, max: 48}, width: {min: 24, opt: 40, max: 64}"
CELLS = "height: {min: 48, opt: 64, max: 96}, width: {min: 48, opt: 64, max: 80}"
"""Sides of the detector, which has one prediction for each eight pixels."""


def _with_profile(text: str, axes: str) -> str:
    text = re.sub(r"profiles: .*", f"profiles: [{{batch: {{min: 1, opt: 2, max: 4}}, {axes}}}]", text)
    return text.replace("precisions: [fp32, fp16]", "precisions: [fp16]")


def _images(folder: Path) -> str:
    segments.write_images(folder, 40)
    text = segments.configuration(folder).replace("segments:Segmenter", "sized_segmenters:Sampled")
    return _with_profile(re.sub(r" classes: \[.*?\],", "", text), RANGES)


def _boxes(folder: Path) -> str:
    import torch  # noqa: PLC0415 - a host without torch skips this file

    detectors.write_images(folder, 60)
    torch.save(detectors.trained().state_dict(), folder / "w.pth")
    text = detectors.configuration(folder).replace("detectors:Detector", "sized_detectors:Sized")
    return _with_profile(text, CELLS)


def _tags(folder: Path) -> str:
    text = texts.configuration(texts.write_texts(folder), "Tags", "tensors")
    return _with_profile(text, f"sequence: {texts.LENGTHS}")


class Kind(NamedTuple):
    """A kind of model, and sizes of its samples: the ends of the ranges, and some between them."""

    text: Callable[[Path], str]
    sizes: tuple[tuple[int, ...], ...]


KINDS = {
    "maps": Kind(_images, ((24, 24), (48, 64), (33, 41), (32, 40), (25, 63))),
    "boxes": Kind(_boxes, ((48, 48), (96, 80), (72, 56), (64, 64))),
    "tags": Kind(_tags, ((4,), (24,), (5,), (12,), (23,))),
}


class Made(NamedTuple):
    """A project of a kind, built and validated on this GPU."""

    project: Project
    kind: str

    def batch(self, sizes: tuple[int, ...], count: int = 3) -> dict[str, npt.NDArray[Any]]:
        """Return seeded inputs of a size, by name."""
        rng = np.random.default_rng(sizes[0])
        if self.kind != "tags":
            return {"image": rng.normal(size=(count, 3, *sizes)).astype(np.float32)}
        mask = np.ones((count, *sizes), np.float32)
        mask[:, -1] = 0
        return {"tokens": rng.integers(1, texts.WORDS, (count, *sizes)), "mask": mask}

    def truth(self, batch: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Return the outputs of the network itself, in their order."""
        import torch  # noqa: PLC0415 - a host without torch skips this file

        with torch.no_grad():
            found = restore_model(self.project)(*map(torch.from_numpy, batch.values()))
        tensors = found.values() if isinstance(found, dict) else found if isinstance(found, tuple) else [found]
        return [tensor.numpy() for tensor in tensors]

    def loaded(self, contexts: int = 1) -> Loading:
        """Open the FP16 engine as a deployment does."""
        wanted = model_artifacts.Requirements(precision=Precision.FP16, batch=4)
        return model_artifacts.load(self.project.paths.root, wanted, contexts=contexts)


@pytest.fixture(scope="module", params=[*KINDS])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A project of each kind, whose TensorRT engine of all sizes is built and validated."""
    folder = tmp_path_factory.mktemp(request.param)
    file = folder / "pipeline.yaml"
    file.write_text(KINDS[request.param].text(folder))
    project = Project.load(file, STAGES)
    doit(file, *(f"validate:{item.id}" for item in project.plan.variants if item.backend is Backend.TENSORRT))
    assert main(["manifest", project.plan.model, "--config", str(file)]) == 0
    return Made(project, request.param)


def assert_right(made: Made, batch: dict[str, npt.NDArray[Any]], found: Outputs) -> None:
    """Check that outputs have the shapes of the network's own, and are near to them."""
    outputs = [found] if isinstance(found, np.ndarray) else [*found.values()]
    for output, truth in zip(outputs, made.truth(batch), strict=True):
        assert output.shape == truth.shape
        assert distance(output, truth) < OF_TINY_NETWORKS


def test_an_engine_is_deployable_by_its_gates_at_each_size(made: Made) -> None:
    """It has checks at sizes beside those of the samples."""
    (entry,) = (item for item in made.project.manifest().artifacts if item.backend is Backend.TENSORRT)
    assert entry.status is Status.DEPLOYABLE, entry.reason
    axis = "sequence" if made.kind == "tags" else "height"
    assert sum(f" at {axis} " in check.metric for check in entry.checks) >= len(KINDS[made.kind].sizes)


def test_batches_of_any_size_in_turns_give_their_own_outputs(made: Made) -> None:
    """No size leaves anything behind for the next one, nor do graphs of one size run for another."""
    with made.loaded() as model:
        assert model.entry.backend is Backend.TENSORRT
        for count in (3, 1, 4, 3):
            for sizes in KINDS[made.kind].sizes:
                batch = made.batch(sizes, count)
                assert_right(made, batch, model(batch))


def test_a_stream_of_many_sizes_keeps_their_order(made: Made) -> None:
    """Each result is that of its own batch."""
    batches = [made.batch(sizes) for sizes in KINDS[made.kind].sizes for _ in range(3)]
    with made.loaded() as model:
        for batch, found in zip(batches, model.stream(batches), strict=True):
            assert_right(made, batch, found)


def test_threads_with_sizes_of_their_own_do_not_disturb_each_other(made: Made) -> None:
    """Two contexts serve four threads, each with another size."""
    batches = [made.batch(sizes) for sizes in KINDS[made.kind].sizes[:4]] * 10
    with made.loaded(contexts=2) as model, ThreadPoolExecutor(4) as pool:
        for batch, found in zip(batches, pool.map(model, batches), strict=True):
            assert_right(made, batch, found)


def test_a_size_outside_of_the_range_is_refused(made: Made) -> None:
    """The message names the axis and its range."""
    outside = tuple(size + 100 for size in KINDS[made.kind].sizes[0])
    with made.loaded() as model, pytest.raises(model_artifacts.ArtifactError, match="expected"):
        model(made.batch(outside))
