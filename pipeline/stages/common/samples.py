"""Calibration and validation samples as the network's input, batch by batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model_artifacts.records import ImageInput, Layout
from model_artifacts.sessions.feeds.batches import filled, from_fields
from model_artifacts.sessions.preprocessing import to_feed

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from model_artifacts.records import FileRecord, Preprocessing, Variant
    from model_artifacts.sessions.feeds.batches import Batch
    from pipeline.planning.project import Project

    Load = Callable[[int, int], Batch]


def to_batch(stored: npt.NDArray[Any], spec: Preprocessing | None, kind: ImageInput = ImageInput.FLOAT32) -> Batch:
    """Return stored samples as the network's input.

    Args:
        stored: uint8 pixels (samples, height, width, channels), or an array with a field for each input.
        spec: the preprocessing; None for a model of tensors.
        kind: the images that the artifact takes.

    Returns:
        float32 (samples, channels, height, width) or what else `kind` says; or the array of the one input, or those of
        several by their names.
    """
    return from_fields(stored) if spec is None else to_feed(stored, spec, kind)


def loader_of(project: Project, file: FileRecord, kind: ImageInput = ImageInput.FLOAT32) -> Load:
    """Return a function that loads the samples from a number to another one of a file of the data stage.

    The file is mapped again each time: mapped pages count as this process's memory, and 50,000 images take 7.5 GB.
    """
    spec = project.data().preprocessing
    return lambda start, stop: to_batch(project.pixels(file)[start:stop], spec, kind)


def images_of(project: Project, batch: int, variant: Variant) -> Batch:
    """Return validation samples as a variant takes them, repeated if there are too few."""
    return filled(loader_of(project, project.data().validation, variant.io.input)(0, batch), batch)


def layouts_of(project: Project, variant: Variant) -> tuple[Layout, ...]:
    """Return the memory layouts of samples to run a variant with: other inputs than images have one."""
    return (Layout.CONTIGUOUS,) if project.source().named_inputs else variant.backend.layouts
