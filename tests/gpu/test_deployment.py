"""A deployment on a GPU takes an engine, and gets the logits that were validated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import pipeline
from pipeline.preprocessing import to_input
from pipeline.records import Backend, EngineFlavour, Precision

if TYPE_CHECKING:
    from pipeline.project import Project

FP16 = 5e-3
"""What the gate of fp16 allows."""


def test_the_driver_runs_the_cuda_of_what_is_installed() -> None:
    """Else nothing here would run; the driver says it itself."""
    here = pipeline.this_host()
    assert here.driver_cuda is not None
    for tool in here.host.flavours:
        assert here.cuda_that_the_driver_lacks(EngineFlavour(tool.name)) is None


def test_an_engine_is_resolved_verified_and_run(project: Project) -> None:
    """By the manifest alone, within its gate of the reference's logits."""
    data = project.data()
    pixels = project.pixels(data.validation)[:8]
    reference = np.load(project.file(data.reference))[:8]
    with pipeline.load(project.paths.root, pipeline.Wish(precision=Precision.FP16)) as model:
        assert model.entry.kind is Backend.TENSORRT
        images = to_input(pixels, model.preprocessing)
        profile = model.entry.profile
        step = profile.max if profile else 1
        logits = np.concatenate([model(images[start : start + step]) for start in range(0, 8, step)])
    assert np.linalg.norm(logits - reference) / np.linalg.norm(reference) < FP16
