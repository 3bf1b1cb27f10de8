"""Calibration and validation samples as the network's input, batch by batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model_artifacts.sessions.feeds.batches import filled, from_fields
from model_artifacts.sessions.preprocessing import to_input

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from model_artifacts.records import FileRecord, Preprocessing
    from model_artifacts.sessions.feeds.batches import Batch
    from pipeline.planning.project import Project

    Load = Callable[[int, int], Batch]


def to_batch(stored: npt.NDArray[Any], spec: Preprocessing | None) -> Batch:
    """Return stored samples as the network's input.

    Args:
        stored: uint8 pixels (samples, height, width, channels), or an array with a field for each input.
        spec: the preprocessing; None for a model of tensors.

    Returns:
        float32 (samples, channels, height, width), or the array of the one input, or those of several by their names.
    """
    return from_fields(stored) if spec is None else to_input(stored, spec)


def loader_of(project: Project, file: FileRecord) -> Load:
    """Return a function that loads the samples from a number to another one of a file of the data stage.

    The file is mapped again each time: mapped pages count as this process's memory, and 50,000 images take 7.5 GB.
    """
    spec = project.data().preprocessing
    return lambda start, stop: to_batch(project.pixels(file)[start:stop], spec)


def images_of(project: Project, batch: int) -> Batch:
    """Return validation samples as the network's input, repeated if there are too few."""
    return filled(loader_of(project, project.data().validation)(0, batch), batch)
