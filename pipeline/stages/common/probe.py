"""Inputs that show how a network computes, for stages that run before the user's data are split."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from model_artifacts.errors import one_line
from model_artifacts.sessions.feeds.samples import Samples
from model_artifacts.sessions.preprocessing import to_input
from pipeline.config.axes import shown_sizes
from pipeline.stages.common.tensors.axes import beginnings, dynamic_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from model_artifacts.errors import ArtifactError
    from model_artifacts.records import Preprocessing
    from model_artifacts.sessions.feeds.batches import Batch
    from pipeline.config.axes import Sizes
    from pipeline.planning.project import Project

_COARSE = 8
"""Patches along each axis: noise of single pixels alone would leave pooled features of all images nearly alike."""


def probe_images(spec: Preprocessing, count: int) -> npt.NDArray[np.float32]:
    """Return seeded images of coarse patches with fine noise, each of another brightness, as the network's input.

    Args:
        spec: the preprocessing.
        count: the number of images; the first ones are the same for any number.

    Returns:
        float32 (count, channels, height, width), preprocessed.
    """
    channels, height, width = spec.input_shape
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        patches = rng.integers(0, 256, (_COARSE, _COARSE, channels))
        rows, columns = np.arange(height) * _COARSE // height, np.arange(width) * _COARSE // width
        fine = rng.integers(0, 256, (height, width, channels))
        light = rng.uniform(0.3, 1.0, channels)
        images.append((0.75 * patches[rows][:, columns] + 0.25 * fine) * light)
    return to_input(np.stack(images).astype(np.uint8), spec)


def inputs_at(project: Project, sizes: Sizes) -> Preprocessing | Samples:
    """Return what the model's inputs of other sizes are made of: the preprocessing, or the beginnings of its samples.

    Args:
        project: the source stage must have run.
        sizes: the size of each axis that is not the samples' own.
    """
    inputs = inputs_of(project)
    if isinstance(inputs, Samples):
        return Samples(beginnings(inputs.rows, dynamic_inputs(project), sizes))
    return at_sizes(inputs, sizes)


def at_sizes(spec: Preprocessing, sizes: Sizes) -> Preprocessing:
    """Return a preprocessing whose input has other sizes; an axis without one keeps its own.

    Args:
        spec: the preprocessing.
        sizes: of `height` and `width`.
    """
    found = {"height": spec.height, "width": spec.width} | dict(sizes)
    return spec.model_copy(update={"crop": (found["height"], found["width"])})


@contextmanager
def taking(what: str, sizes: Sizes, error: type[ArtifactError]) -> Iterator[None]:
    """Run a network on samples of other sizes; what it raises becomes the refusal of a size in `profiles`.

    Args:
        what: `images` or `samples`.
        sizes: the sizes, by the names of the axes.
        error: the type of the refusal.
    """
    try:
        yield
    except Exception as exc:  # the model's own code may raise any type
        raise error(
            f"the network takes no {what} of {shown_sizes(sizes)}",
            expected=f"{what} of every size in the ranges of `profiles`",
            got=one_line(exc),
            fix="narrow the range, or write the batch alone",
        ) from exc


def probe_batch(inputs: Preprocessing | Samples, count: int) -> Batch:
    """Return a batch that shows how a network computes: `probe_images`, or the first samples of its own inputs.

    Args:
        inputs: the preprocessing; of a model of tensors the samples.
        count: the number of samples.
    """
    return inputs.batch(count) if isinstance(inputs, Samples) else probe_images(inputs, count)


def inputs_of(project: Project) -> Preprocessing | Samples:
    """Return what the model's inputs are made of: the preprocessing, or samples that the source stage has kept."""
    source = project.source()
    return source.pictures if source.samples is None else Samples(np.load(project.file(source.samples)))


def shape_of(inputs: Preprocessing | Samples) -> tuple[int, int, int] | Samples:
    """Return (channels, height, width) of an image, or the samples."""
    return inputs if isinstance(inputs, Samples) else inputs.input_shape
