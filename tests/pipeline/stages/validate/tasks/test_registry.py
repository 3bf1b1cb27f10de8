"""Which tasks have judges of their own."""

from __future__ import annotations

from model_artifacts.records import Task
from pipeline.stages.validate.tasks.registry import DESERVING, JUDGES


def test_each_task_with_answers_of_its_own_is_judged() -> None:
    """A classification is judged elsewhere, and so is a detector, by all outputs. Tensors have no answers."""
    answering = {task for task in Task if task.has_answers} - {Task.CLASSIFICATION, Task.DETECTION}
    assert answering <= JUDGES.keys()
    assert JUDGES.keys() == DESERVING.keys()
