"""Variants → the checkouts that made them: those of every step from the weights to the verdict."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from model_artifacts.errors import RecordError
from model_artifacts.records import StageRecord
from pipeline.planning.steps import Step

if TYPE_CHECKING:
    from model_artifacts.records import GitState, Variant
    from pipeline.planning.project import Project


class Provenance:
    """The checkouts of a project's records, each of which is read once."""

    def __init__(self, project: Project) -> None:
        """Take the project; no record is read yet."""
        self._project = project
        self._before = cache(self._steps_before)
        self._of = cache(self._checkouts_of)

    def commits(self, variant: Variant) -> tuple[GitState, ...]:
        """Return the checkouts that made a variant's weights, graph, artifact and verdict, in this order, each once.

        They are none if a record is missing, or does not know its checkout.
        """
        last = Step("validate", variant.id)
        steps = {*self._before(last), last}
        found = [self._of(step) for step in self._project.schedule.steps if step in steps]
        if any(None in states for states in found):
            return ()
        return tuple(dict.fromkeys(state for states in found for state in states if state))

    def _steps_before(self, step: Step) -> frozenset[Step]:
        required = self._project.schedule.dependencies(step).requires
        return frozenset(required).union(*(self._before(other) for other in required))

    def _checkouts_of(self, step: Step) -> tuple[GitState | None, ...]:
        try:
            records = self._project.records(step)
        except RecordError:
            return (None,)
        return tuple(record.git if isinstance(record, StageRecord) else None for record in records)
