"""Tasks → the functions that judge an artifact's answers, and those that judge the reference's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.records import Task
from pipeline.stages.validate.tasks import custom, multilabel, regression, retrieval, segmentation

if TYPE_CHECKING:
    from collections.abc import Callable

    from model_artifacts.records import GateCheck
    from pipeline.stages.validate.tasks.case import Case, TaskVerdict

JUDGES: dict[Task, Callable[[Case], TaskVerdict]] = {
    Task.SEGMENTATION: segmentation.judge,
    Task.MULTILABEL: multilabel.judge,
    Task.REGRESSION: regression.judge,
    Task.EMBEDDING: retrieval.judge,
}
"""Is an artifact good enough?"""
DESERVING: dict[Task, Callable[[Case], tuple[GateCheck, ...]]] = {
    Task.SEGMENTATION: segmentation.deserving,
    Task.MULTILABEL: multilabel.deserving,
    Task.REGRESSION: regression.deserving,
    Task.EMBEDDING: retrieval.deserving,
}
"""Is the reference worth a comparison?"""


def judge_of(case: Case, task: Task) -> Callable[[Case], TaskVerdict] | None:
    """Return the judge of a task; None for a classification, and for tensors without a metric."""
    return custom.judge if case.metric else JUDGES.get(task)


def deserving_of(case: Case, task: Task) -> Callable[[Case], tuple[GateCheck, ...]] | None:
    """Return the judge of a task's reference; None for tasks without one."""
    return custom.deserving if case.metric else DESERVING.get(task)
