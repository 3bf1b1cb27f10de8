"""Settings that belong to one task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import ConfigError
from pipeline.planning.project import Project
from pipeline.stages import STAGES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXT = """\
model: {{weights: factory, task: {task}}}
profiles: [1]
workspaces: [1GiB]
data: {{{data}}}
"""


def problem_of(write_config: Callable[[str], Path], task: str, data: str) -> str:
    """Return the problems of a configuration; empty without any."""
    try:
        Project.load(write_config(TEXT.format(task=task, data=data)), STAGES)
    except ConfigError as exc:
        return str(exc)
    return ""


@pytest.mark.parametrize(
    ("task", "data"),
    [
        ("segmentation", "images: pictures, masks: masks"),
        ("segmentation", "images: pictures, classes: [a, b]"),
        ("multilabel, threshold: 0.3", "images: pictures, labels: labels.csv, classes: [a, b]"),
        ("regression, tolerance: 0.5", "images: pictures, labels: labels.csv"),
        ("regression, tolerance: [0.5, 2]", "images: photographs"),
        ("tensors, tolerance: [2, 0.01]", "images: photographs"),
        ("embedding", "images: pictures, labels: classes"),
        ("embedding", "images: digits, labels: classes"),
    ],
    ids=["masks", "classes", "table", "tolerance", "tolerances", "tensors", "folders", "digits"],
)
def test_settings_of_a_task_are_taken(write_config: Callable[[str], Path], task: str, data: str) -> None:
    """Each task takes its labels."""
    assert problem_of(write_config, task, data) == ""


@pytest.mark.parametrize(
    ("task", "data", "problem"),
    [
        ("regression", "images: photographs", ":1:"),
        ("regression, tolerance: 0", "images: photographs", "`model.tolerance"),
        ("regression, tolerance: text", "images: photographs", "expected a list"),
        ("embedding, tolerance: 1", "images: photographs", "is for `task: regression` and `task: tensors`"),
        ('tensors, tolerance: 1, metric: "a:b"', "images: photographs", "is of distances"),
        ("multilabel, threshold: 1.5", "images: photographs", "threshold"),
        ("multilabel", "images: pictures, labels: classes", "needs the path of a table"),
        ("multilabel", "images: digits, labels: table.csv", "needs a folder of images"),
        ("multilabel", "images: pictures, masks: masks", "are for `task: segmentation`"),
        ("classification", "images: pictures, labels: table.csv", "those of the images' folders"),
        ("embedding", "images: pictures, labels: table.csv", "takes classes alone"),
        ("embedding", "labels: classes", "needs a folder of images"),
        ("regression, tolerance: 1", "images: pictures, classes: [a]", "has no classes"),
        ("segmentation", "masks: masks", "needs a folder of images"),
    ],
    ids=[
        "no-tolerance",
        "zero",
        "text",
        "tolerance-of-embedding",
        "tolerance-of-metric",
        "threshold",
        "classes",
        "digits",
        "masks",
        "classification",
        "embedding",
        "auto",
        "names",
        "masks-of-auto",
    ],
)
def test_settings_of_another_task_are_refused(
    write_config: Callable[[str], Path], task: str, data: str, problem: str
) -> None:
    """The message has the place, and says what to do."""
    found = problem_of(write_config, task, data)
    assert problem.strip("`") in found, found
